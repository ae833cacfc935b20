"""The quantized model on ONNX Runtime, beside torch: speed and memory first, then how far its scores are from torch's.

The second part holds the model twice, so the first takes its peak of memory before.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from quantstudio.core.engines import ONNX_RUNTIME, OTHER_ENGINE_TOKENS
from quantstudio.core.result import EngineTrial
from quantstudio.engine.load import load_model
from quantstudio.engine.measure.bootstrap import quality_intervals
from quantstudio.engine.measure.performance import measure_performance, warm_up_files
from quantstudio.engine.measure.quality import block_sums, quality_windows, score
from quantstudio.engine.measure.spec import MeasureSpec
from quantstudio.engine.measure.text import Text
from quantstudio.engine.onnx.model import load_onnx
from quantstudio.engine.reporter import Reporter


@torch.inference_mode()
def measure_other_engine(spec: MeasureSpec, text: Text, reporter: Reporter) -> EngineTrial:
    """In a fresh process. Raises what loading and measuring raise."""
    folder, seed = Path(spec.model), spec.machine.seed
    warm_up_files(folder, reporter)
    started = time.perf_counter()
    other = load_onnx(folder, reporter)
    load_s = time.perf_counter() - started
    performance = measure_performance(other, load_s, spec.label, text, spec.measure, seed, reporter)
    own = load_model(folder, "cpu", reporter, spec.machine.kernel)
    fewer = spec.measure.model_copy(update={"quality_tokens": min(OTHER_ENGINE_TOKENS, spec.measure.quality_tokens)})
    windows = quality_windows(own, text, fewer, seed, reporter)
    intervals = quality_intervals(block_sums(score(own.model, other, windows, reporter)), seed)
    return EngineTrial(
        engine=ONNX_RUNTIME,
        performance=performance,
        tokens=int(windows.scored.sum()),
        perplexity_change=intervals.perplexity_change,
        kl=intervals.kl,
        top1=intervals.top1,
    )
