"""torch.compile where a recipe asks for it: whether it can be done here, and where its programs are kept.

What is compiled is decided elsewhere: blocks in `train.compiled`, the step of an answer in `compiled_step`.
A model that cannot be compiled runs as it always does, and whoever asked for it is told why.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from quantstudio.core.errors import Cancelled, QuantStudioError
from quantstudio.core.paths import compiled_cache
from quantstudio.engine.failures import is_out_of_memory, without_secrets

BACKEND = "inductor"
_CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Triton's own cache lies in there, too."""
_LONGEST_REASON = 300
IN_PROGRESS = "Compiling (up to a minute, the next time less)"


def why_not(device: str) -> str:
    """Why nothing can be compiled for this device, in a person's words; empty when it can."""
    from torch.utils._triton import has_triton

    if device != "cuda":
        return "torch writes faster programs for NVIDIA GPUs only."
    return "" if has_triton() else "torch comes without triton on this system, or its compiler does not know this GPU."


def keep_programs() -> None:
    """Let torch keep what it compiles under the data home, and find it there again. What the person has set stays."""
    if _CACHE not in os.environ:
        folder = compiled_cache()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies in there is run
        os.environ[_CACHE] = str(folder)


def words_if_kept() -> str:
    """The end of a sentence when this process has found on the disk all that was compiled since `forget_counts`."""
    counts = _counts()
    kept = counts["fxgraph_cache_hit"] > 0 and not counts["fxgraph_cache_miss"]
    return " from programs that were on the disk" if kept else ""


def forget_counts() -> None:
    """Start counting anew for `words_if_kept`."""
    _counts().clear()


def _counts() -> dict[str, int]:
    from torch._dynamo.utils import counters

    found: dict[str, int] = counters["inductor"]
    return found


def is_failure(error: Exception) -> bool:
    """Whether the exception may be torch.compile's: no wish to stop, no lack of memory, and none of those by which
    gradient checkpointing leaves a block that it has computed far enough."""
    checkpointing = type(error).__module__ == "torch.utils.checkpoint"
    return not (checkpointing or isinstance(error, Cancelled | QuantStudioError) or is_out_of_memory(error))


def reason(error: BaseException) -> str:
    """What has failed, as one line for a notice."""
    error = getattr(error, "inner_exception", error)  # torch puts its own around what it met
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = without_secrets(f"{type(error).__name__}: {first}".rstrip(": ."))
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


@contextmanager
def settings_for_training() -> Iterator[None]:
    """How blocks that train are compiled in the body.

    - Their gradients' programs are made at once, where torch can do that, so that every failure shows in the forward
      pass, where it can be caught.
    - Equal computations in the forward and the backward pass stay two. Else the rounded weight, which the backward
      pass makes again (`grid`), would be kept from the forward pass: two bytes for each weight of the model.
    """
    from torch._functorch import config

    wanted = {"cse": False, "force_non_lazy_backward_lowering": True}
    with settings_for_steps(), config.patch({name: value for name, value in wanted.items() if hasattr(config, name)}):
        yield


@contextmanager
def settings_for_steps() -> Iterator[None]:
    """How anything is compiled in the body: in silence, and with more programs for one piece of code than torch's 8.

    Models have several kinds of blocks, in several ways of running; and a step has a program for each size of cache.
    """
    from torch._dynamo import config

    with warnings.catch_warnings(action="ignore"), config.patch(recompile_limit=64):
        yield
