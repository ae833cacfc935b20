"""How fast this machine reads its memory, and how much of it a model reads for each token.

One token needs every weight once, so bytes a second over bytes a token is the most tokens a second there can be.
"""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedModel

_BYTES = 256 << 20
"""Read at once: more than the caches of a desktop's processor hold."""
_READS = 6


@torch.inference_mode()
def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second at which the device sums up a large buffer with torch's threads; the best of a few times."""
    buffer = torch.ones(_BYTES // 4, dtype=torch.float32, device=device)
    times = []
    for _ in range(_READS):
        started = time.perf_counter()
        float(buffer.sum())  # fetching the number waits for the GPU
        times.append(time.perf_counter() - started)
    return _BYTES / min(times)


def bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of weights that one token reads: all but an embedding table that no head shares, of which it reads a row.

    0 for models with experts, of which a token reads some.
    """
    config = model.config.get_text_config(decoder=True)
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return 0
    embedding = model.get_input_embeddings()
    sizes: dict[int, int] = {}
    for module in model.modules():
        if module is not embedding:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
