"""The text that a run learns from: read, tokenized once, split without overlap, packed, fingerprinted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantstudio.core.recipe_data import DataSection
from quantstudio.core.result import DataSummary
from quantstudio.engine.data import cache as kept
from quantstudio.engine.data.document import Source, Warn, refuse
from quantstudio.engine.data.layout import Layout
from quantstudio.engine.data.pack import Packed, Packer, cut_passages
from quantstudio.engine.data.prepared import PreparedData, fingerprint
from quantstudio.engine.data.sources import open_source
from quantstudio.engine.data.splits import connect, draw
from quantstudio.engine.data.tokenize import Blocks, tokenize
from quantstudio.engine.reporter import Reporter

_FEWEST = 3
"""Sequences without which there is nothing to split."""


def prepare_data(
    section: DataSection, tokenizer: Any, seed: int, reporter: Reporter, cache: Path | None = None
) -> PreparedData:
    """Read the section's source and make calibration, training and held-out sequences of it.

    Same source, tokenizer, section and seed: same tokens. Warnings are sent as notices. `cache` is a folder in which
    the result is kept, so that a run that goes on does not tokenize again; it is made when it does not exist.
    Raises DataUnusable, PackageMissing, ModelUnsupported, ModelUnsafe, HubUnreachable, HubRefused, Cancelled.
    """
    path = kept.place(cache, section, tokenizer, seed) if cache else None
    if path and (found := kept.load(path)):
        return PreparedData(**found)
    prepared = _prepare(section, tokenizer, seed, reporter)
    if path:
        kept.save(path, prepared)
    return prepared


def _prepare(section: DataSection, tokenizer: Any, seed: int, reporter: Reporter) -> PreparedData:
    def warn(text: str) -> None:
        reporter.notice(text, "warning")

    source = open_source(section, reporter, warn)
    layout = Layout(tokenizer, section.loss, reporter, warn)
    blocks = tokenize(source.documents, layout, tokenizer, reporter, source.nbytes, warn)
    return _split(section, source, blocks, tokenizer, seed, warn)


def _split(section: DataSection, source: Source, blocks: Blocks, tokenizer: Any, seed: int, warn: Warn) -> PreparedData:
    passages = cut_passages(blocks, section.sequence_length)
    packer = Packer(blocks, passages, tokenizer, section.sequence_length)
    total = len(blocks.ids) // packer.payload
    if total < _FEWEST:
        raise _too_short(source, len(blocks.ids), section)
    connected = connect(blocks.ids, blocks.compared, passages)
    if connected.forms:
        warn("Most documents share some words, such as the same instruction; those words are in every split.")
    chance = np.random.default_rng(seed)
    sizes = passages.ends - passages.starts
    taken = np.zeros(len(sizes), np.bool_)
    wanted_held_out = min(section.held_out_sequences, max(1, total // 4))
    wanted_calibration = min(section.calibration_sequences, max(1, total // 2))
    held_out = packer.pack(
        draw(connected.group, sizes, wanted_held_out * packer.payload, taken, chance), wanted_held_out, chance
    )
    calibration = packer.pack(
        draw(connected.group, sizes, wanted_calibration * packer.payload, taken, chance), wanted_calibration, chance
    )
    training = packer.pack(np.flatnonzero(~taken), None, chance)
    counts = [len(part.ids) for part in (calibration, training, held_out)]
    if not all(counts):
        raise _repeats_itself(source)
    if counts[0] < section.calibration_sequences or counts[2] < section.held_out_sequences:
        warn(_fewer(counts, section))
    return _as_tensors(section, source, blocks, calibration, training, held_out)


def _as_tensors(
    section: DataSection, source: Source, blocks: Blocks, calibration: Packed, training: Packed, held_out: Packed
) -> PreparedData:
    parts = (calibration, training, held_out)
    tokens = sum(part.ids.size for part in parts)
    if section.loss == "answers" and not training.mask.any():
        raise refuse(
            "Nothing in the training text counts for the loss.",
            why="None of its conversations has an answer.",
            hint="Choose to learn from every word, or use conversations with answers.",
            field="data.loss",
        )
    summary = DataSummary(
        source=source.name,
        licence=source.licence,
        documents=blocks.documents,
        tokens=tokens,
        sequence_length=section.sequence_length,
        calibration_sequences=len(calibration.ids),
        training_sequences=len(training.ids),
        held_out_sequences=len(held_out.ids),
        training_loss_tokens=int(training.mask.sum()),
        left_out_tokens=sum(part.left_out for part in parts),
        fingerprint=fingerprint(*(part.ids for part in parts)),
    )
    return PreparedData(
        calibration=_long(calibration.ids),
        training=_long(training.ids),
        training_mask=torch.from_numpy(training.mask),
        held_out=_long(held_out.ids),
        held_out_mask=torch.from_numpy(held_out.mask),
        summary=summary,
    )


def _long(ids: NDArray[np.int32]) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64))


def _fewer(counts: list[int], section: DataSection) -> str:
    calibration, training, held_out = counts
    return (
        f"The text is short: {calibration} sequences for calibration instead of {section.calibration_sequences}, "
        f"{held_out} held out instead of {section.held_out_sequences}, {training} for training."
    )


def _too_short(source: Source, tokens: int, section: DataSection) -> Exception:
    need = _FEWEST * section.sequence_length
    shorter = tokens // 12 // 32 * 32
    hint = f"Choose a longer text (about {need * 4 // 1000 + 1} kB at the least)"
    return refuse(
        f"{source.name} is too short.",
        why=f"It has {tokens:,} tokens, and {_FEWEST} sequences of {section.sequence_length} need {need:,}.",
        hint=f"{hint}, or set the sequence length to {shorter}." if shorter >= 32 else f"{hint}.",
    )


def _repeats_itself(source: Source) -> Exception:
    return refuse(
        f"{source.name} cannot be split into text to learn from and text to judge by.",
        why="Its passages repeat each other, or it consists of a few very long conversations.",
        hint="Choose a more varied text, or add the built-in books' kind of prose to it.",
    )
