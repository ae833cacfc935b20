"""What a measuring process is asked, and what it answers: plain data that travels as one line of JSON each way."""

from __future__ import annotations

from quantstudio.core.recipe import MachineSection, MeasureSection
from quantstudio.core.result import EngineTrial, Interval, KvCacheCost, Performance, Quality
from quantstudio.core.section import Plain

QUALITY_PHASE = "quality"
"""Id of the phase that the process announces when it turns from speed to quality."""


class MeasureSpec(Plain):
    """Measure the model in folder `model`: always speed and memory, then quality when asked.

    `original`: a folder to compare with, or empty. `alone`: without an original, how well the model fits the text.
    `other_engine`: the same on ONNX Runtime, compared with torch, and nothing else.
    """

    model: str
    label: str
    original: str = ""
    alone: bool = False
    other_engine: bool = False
    measure: MeasureSection = MeasureSection()
    machine: MachineSection = MachineSection()


class Measured(Plain):
    """What came out; `quality` with an original, `perplexity` and `bits_per_byte` alone; `kv_cache` when it is int8."""

    performance: Performance
    quality: Quality | None = None
    perplexity: Interval | None = None
    bits_per_byte: Interval | None = None
    kv_cache: KvCacheCost | None = None
    other_engine: EngineTrial | None = None
