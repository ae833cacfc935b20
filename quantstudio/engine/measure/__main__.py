"""One measurement in a process of its own: `python -m quantstudio.engine.measure`.

Reads one `MeasureSpec` from stdin, answers with protocol messages on stdout, the last of them `result` or `error`.
File descriptors 0 and 1 are taken away from everybody else first, as the worker does. It stays in its parent's
process group, so whoever kills that group kills it too; and when stdin closes, its parent is gone, and it ends at
once, writing nothing.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

from quantstudio.core import protocol
from quantstudio.core.recipe import KvCache
from quantstudio.engine.child import end_with_parent, send, take_stdio
from quantstudio.engine.failures import as_message, details
from quantstudio.engine.measure.memory import MemorySampler
from quantstudio.engine.measure.spec import QUALITY_PHASE, Measured, MeasureSpec
from quantstudio.engine.memory import importing
from quantstudio.engine.reporter import Reporter


def main() -> int:
    """Measure as told on stdin. Returns the exit status: 0 with a result, 1 with an error."""
    commands, messages = take_stdio()
    spec = MeasureSpec.model_validate_json(commands.readline())
    end_with_parent(commands)
    say = partial(send, messages)
    try:
        measured = _measure_sampled(spec, Reporter(say))
    except BaseException as error:  # panics of Rust libraries are not Exceptions
        say(protocol.Log(t=time.time(), level="debug", text=details(error)))
        say(as_message(error, time.time()))
        return 1
    say(protocol.Result(t=time.time(), data=measured.model_dump(mode="json")))
    return 0


def measure(spec: MeasureSpec, reporter: Reporter) -> Measured:
    """Carry out the spec in this process. The speed part comes first, so that its peak memory is the model's own."""
    with importing():
        import torch

        from quantstudio.engine.kernels.trial import AT_LOAD_S
        from quantstudio.engine.load import load_model, resolve_device
        from quantstudio.engine.measure.performance import load_timed, measure_performance
        from quantstudio.engine.measure.quality import measure_kv_cache, measure_quality, measure_text_fit
        from quantstudio.engine.measure.text import read_text
        from quantstudio.engine.native.build import build_with_words

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    seed = spec.machine.seed
    text = read_text(spec.measure.text, spec.measure.quality_tokens)
    if spec.other_engine:
        from quantstudio.engine.measure.other_engine import measure_other_engine

        trial = measure_other_engine(spec, text, reporter)
        return Measured(performance=trial.performance, other_engine=trial)
    # In a run the parent has tried the kernels: done here it would count as the model's memory.
    trials_s = AT_LOAD_S if spec.alone else 0.0
    folder, machine = Path(spec.model), spec.machine
    if resolve_device(machine.device) == "cpu":
        build_with_words(reporter)  # the first time takes seconds, which are not the model's
    load = partial(load_model, folder, machine.device, reporter, machine.kernel, trials_s, compiled=machine.compile)
    loaded, load_s = load_timed(folder, reporter, load)
    kind = spec.machine.kv_cache
    performance = measure_performance(loaded, load_s, spec.label, text, spec.measure, seed, reporter, kind)
    if not spec.original and not spec.alone:
        return Measured(performance=performance)
    reporter.phase(QUALITY_PHASE, "Comparing quality", 0, 1)
    int8 = kind is KvCache.INT8
    cost = measure_kv_cache(loaded, text, spec.measure, seed, reporter) if int8 else None
    if spec.alone:
        perplexity, bits_per_byte = measure_text_fit(loaded, text, spec.measure, seed, reporter)
        return Measured(performance=performance, perplexity=perplexity, bits_per_byte=bits_per_byte, kv_cache=cost)
    original = load_model(Path(spec.original), spec.machine.device, reporter)
    quality = measure_quality(original, loaded, text, spec.measure, seed, reporter)
    return Measured(performance=performance, quality=quality, kv_cache=cost)


def _measure_sampled(spec: MeasureSpec, reporter: Reporter) -> Measured:
    import torch

    if not torch.cuda.is_available():
        return measure(spec, reporter)
    # The parent sees this process's memory, but only the process itself knows what it holds on the GPU.
    with MemorySampler(reporter.emit):
        return measure(spec, reporter)


if __name__ == "__main__":
    sys.exit(main())
