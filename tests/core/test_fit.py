"""What a model would need: against sums done by hand, and in the right order."""

from pathlib import Path

import pytest

from quantstudio.core.estimate import BASE_MEMORY
from quantstudio.core.fit import (
    Task,
    Verdict,
    cache_bytes_per_token,
    chat_memory,
    needs,
    rough_needs,
    scheme_sizes,
)
from quantstudio.core.machine import Machine
from quantstudio.core.model_info import ModelInfo, Part, TensorInfo, WeightSlot, read_model_info
from quantstudio.core.paths import starter_model
from quantstudio.core.schemes import W4A16, W8A16

GB = 10**9


def machine(memory=16 * GB, disk=100 * GB, gpu=0):
    return Machine(
        cores=2, memory=memory, available_memory=memory, free_disk=disk, gpu="GPU" if gpu else "", gpu_memory=gpu
    )


def _count(slot):
    return slot.rows * slot.columns


def model(*, hidden=2048, inner=8192, blocks=24, vocab=64_000, kv=256, context=32_768, fused=False) -> ModelInfo:
    """A Llama-shaped model that exists on paper only."""
    slots = [WeightSlot("model.embed_tokens", "model.embed_tokens.weight", vocab, hidden, Part.EMBEDDING, True)]
    for block in range(blocks):
        at, mlp = f"model.layers.{block}.self_attn", f"model.layers.{block}.mlp"
        shapes = {f"{at}.q_proj": (hidden, hidden), f"{at}.k_proj": (kv, hidden), f"{at}.v_proj": (kv, hidden)}
        if fused:
            shapes = {f"{at}.qkv_proj": (hidden + 2 * kv, hidden)}
        shapes |= {f"{at}.o_proj": (hidden, hidden), f"{mlp}.gate_proj": (inner, hidden)}
        shapes |= {f"{mlp}.up_proj": (inner, hidden), f"{mlp}.down_proj": (hidden, inner)}
        for name, (rows, columns) in shapes.items():
            slots.append(WeightSlot(name, f"{name}.weight", rows, columns, Part.LAYER, True))
    weights = sum(slot.rows * slot.columns for slot in slots)
    tensors = [
        TensorInfo(slot.tensor, (slot.rows, slot.columns), "BF16", "weights", 2 * _count(slot), slot.part)
        for slot in slots
    ]
    return ModelInfo(
        path=Path(),
        name="paper",
        architecture="LlamaForCausalLM",
        model_type="llama",
        parameters=weights,
        dtype="BF16",
        nbytes=2 * weights,
        tied=False,
        license="",
        vocab_size=vocab,
        context_length=context,
        hidden_size=hidden,
        layers=blocks,
        slots=tuple(slots),
        tensors=tuple(tensors),
        quantized="",
    )


def test_the_cache_of_keys_and_values_is_counted_from_the_projections():
    """6 blocks, 4 key-value heads of 64 in the starter model: 2 × 6 × 256 numbers of 2 bytes a token."""
    assert cache_bytes_per_token(read_model_info(starter_model())) == 2 * 6 * 256 * 2
    assert cache_bytes_per_token(model()) == 2 * 24 * 256 * 2
    assert cache_bytes_per_token(model(fused=True)) == cache_bytes_per_token(model())


def test_a_chat_needs_libraries_weights_and_its_context():
    found = chat_memory(model(), GB, 10_000)
    assert found.middle == BASE_MEMORY + GB + 10_000 * 2 * 24 * 256 * 2
    assert found.low < found.middle < found.high


def test_training_every_weight_takes_eighteen_bytes_for_each_and_lora_far_less():
    info = model()
    full, lora = found_for(info, memory=256 * GB)[Task.QAT].memory, found_for(info, memory=256 * GB)[Task.LORA].memory
    assert full.low > BASE_MEMORY + 18 * info.parameters
    assert lora.low < 0.25 * full.low
    for span in (full, lora):
        assert span.low <= span.middle <= span.high
        assert span.low < span.high


def found_for(info, **settings):
    missing = settings.pop("missing", 0)
    context = settings.pop("context", 4096)
    made = needs(info, machine(**settings), Path("/"), scheme=W4A16(), context=context, missing_bytes=missing)
    return {need.task: need for need in made}


def test_a_large_machine_can_do_everything():
    found = found_for(model(), memory=256 * GB)
    assert set(found) == set(Task)
    assert {need.verdict for need in found.values()} == {Verdict.FITS}
    assert all(need.instead is None for need in found.values())


def test_what_does_not_fit_is_told_with_the_nearest_thing_that_does():
    info = model()
    lora_only = found_for(info, memory=16 * GB)[Task.QAT]
    assert (lora_only.verdict, lora_only.instead.task) == (Verdict.NO, Task.LORA)
    smaller = found_for(info, memory=3 * GB)[Task.QAT]
    assert 0 < smaller.instead.parameters < info.parameters
    long = found_for(info, memory=5 * GB, context=1_000_000)[Task.CHAT]
    assert long.verdict is Verdict.NO
    assert found_for(info, memory=5 * GB, context=long.instead.context)[Task.CHAT].verdict is not Verdict.NO
    tiny = found_for(info, memory=GB)[Task.CHAT]
    assert tiny.instead.scheme or tiny.instead.parameters


def test_fewer_bits_are_advised_before_a_smaller_model():
    info = model()
    sizes = {label: nbytes for _, label, nbytes, _ in scheme_sizes(info)}
    assert sizes["W8A16"] > sizes["W4A16 g128"] > sizes["W3A16 g128"] > sizes["W2A16 g128"]
    room = machine(int(chat_memory(info, sizes["W4A16 g128"], 1024).high / 0.94))
    found = needs(info, room, Path("/"), scheme=W8A16(), context=1024, missing_bytes=0)
    chat = next(need for need in found if need.task is Task.CHAT)
    assert (chat.verdict, chat.instead.scheme) == (Verdict.NO, "W4A16 g128")


def test_a_disk_that_is_too_small_is_told_before_memory():
    found = found_for(model(), disk=GB, missing=3 * GB)
    assert found[Task.DOWNLOAD].disk_short
    assert found[Task.QUANTIZE].verdict is Verdict.NO


def test_a_gpu_s_memory_counts_where_the_gpu_works():
    found = found_for(model(), memory=256 * GB, gpu=8 * GB)
    assert found[Task.QAT].on_gpu
    assert found[Task.QAT].verdict is Verdict.NO
    assert not found[Task.QUANTIZE].on_gpu


def test_a_quantized_model_can_only_be_downloaded_and_talked_to():
    info = model()
    quantized = ModelInfo(**{name: getattr(info, name) for name in info.__dataclass_fields__} | {"quantized": "gptq"})
    assert set(found_for(quantized)) == {Task.DOWNLOAD, Task.CHAT}


@pytest.mark.parametrize("parameters", [10**6, 10**9, 10**11])
def test_rough_needs_grow_with_the_model(parameters):
    chat, measure = rough_needs(parameters, 2 * parameters)
    assert BASE_MEMORY < chat < measure
