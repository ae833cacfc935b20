"""What the model will see, before it does: numbers, warnings and the first sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch

from quantstudio.core import protocol
from quantstudio.core.data_preview import DataPreview, PreviewSequence
from quantstudio.core.errors import ModelUnsupported
from quantstudio.core.jobs import PreviewDataJob
from quantstudio.core.library import resolve_model
from quantstudio.core.recipe import ModelSection
from quantstudio.core.recipe_data import DataSection
from quantstudio.core.safety import require_safe
from quantstudio.engine.data.prepare import prepare_data
from quantstudio.engine.reporter import Reporter

SEQUENCES = 3
"""Of each split."""
MAX_CHARS = 20_000

Split = Literal["calibration", "training", "held_out"]


def preview_data(section: DataSection, tokenizer: Any, seed: int, reporter: Reporter) -> DataPreview:
    """Prepare the data as a run would, and show the beginning. Raises what `prepare_data` raises."""
    warnings: list[str] = []

    def listen(message: protocol.Message) -> None:
        if isinstance(message, protocol.Notice) and message.level == "warning":
            warnings.append(message.text)
        else:
            reporter.emit(message)

    data = prepare_data(section, tokenizer, seed, Reporter(listen, reporter.cancel))
    everything = torch.ones_like(data.calibration, dtype=torch.bool)
    shown = [
        *_sequences("training", data.training, data.training_mask, tokenizer),
        *_sequences("calibration", data.calibration, everything, tokenizer),
        *_sequences("held_out", data.held_out, data.held_out_mask, tokenizer),
    ]
    return DataPreview(summary=data.summary, sequences=tuple(shown), warnings=tuple(warnings))


def preview_for(job: PreviewDataJob, reporter: Reporter) -> DataPreview:
    """The preview for a model on this machine. Raises also ModelNotFound, ModelUnsafe, ModelDamaged."""
    from quantstudio.engine.load_tokenizer import load_tokenizer

    reporter.phase("data", "Reading the text", 0, 1)
    folder = resolve_model(ModelSection(id=job.model)).resolve()
    require_safe(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ModelUnsupported(
            f"The model in {folder} has no tokenizer.",
            why="Without it, text cannot be turned into what the model reads.",
            hint="Download or copy the model again, with its tokenizer files.",
            field="model.id",
        )
    return preview_data(job.data, tokenizer, job.seed, reporter)


def _sequences(split: Split, ids: torch.Tensor, mask: torch.Tensor, tokenizer: Any) -> Iterator[PreviewSequence]:
    for row, marks in zip(ids[:SEQUENCES].tolist(), mask[:SEQUENCES].tolist(), strict=True):
        text, counted = _decode(row, marks, tokenizer)
        cut = len(text) > MAX_CHARS
        spans = tuple((start, min(end, MAX_CHARS)) for start, end in counted if start < MAX_CHARS)
        yield PreviewSequence(split=split, text=text[:MAX_CHARS], counted=spans, tokens=len(row), cut=cut)


def _decode(row: list[int], marks: list[bool], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """The text, and where in it the marked tokens lie; stretches of equal marks are decoded together."""
    text, spans, start = "", [], 0
    for end in range(1, len(row) + 1):
        if end < len(row) and marks[end] == marks[start]:
            continue
        piece = tokenizer.decode(row[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if marks[start]:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
        start = end
    return text, spans
