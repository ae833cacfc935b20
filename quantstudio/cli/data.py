"""`data`: look at the text that a model would learn from, before it does."""

from __future__ import annotations

import argparse
import json

from quantstudio.cli.flags import given_values, with_flags
from quantstudio.cli.run import OK, conduct_here, ending
from quantstudio.core import protocol
from quantstudio.core.data_preview import DataPreview, PreviewSequence
from quantstudio.core.jobs import PreviewDataJob
from quantstudio.core.recipe import Recipe

_TITLES = {"training": "training", "calibration": "calibration", "held_out": "held-out"}
_CHARS = 700


def data(options: argparse.Namespace) -> int:
    """Print the counts of every split and the beginning of its first sequence."""
    recipe = with_flags(Recipe(), given_values(options))
    message = conduct_here(PreviewDataJob(model=options.model, data=recipe.data, seed=recipe.machine.seed))
    if not isinstance(message, protocol.Result):
        return ending(message)
    if options.json:
        print(json.dumps(message.data, indent=2))
    else:
        _print_preview(DataPreview.model_validate(message.data))
    return OK


def _print_preview(preview: DataPreview) -> None:
    summary = preview.summary
    length = summary.sequence_length
    rows = [
        ("licence", summary.licence or "not said"),
        ("documents", f"{summary.documents:,}"),
        ("calibration", f"{summary.calibration_sequences:,} sequences of {length} tokens"),
        ("held-out", f"{summary.held_out_sequences:,} sequences"),
        ("training", f"{summary.training_sequences:,} sequences, {summary.training_loss_tokens:,} tokens count"),
        ("left out", f"{summary.left_out_tokens:,} tokens that fill no sequence" if summary.left_out_tokens else ""),
        ("fingerprint", summary.fingerprint),
    ]
    print(f"\n{summary.source}")
    for name, text in rows:
        if text:
            print(f"  {name:<14} {text}")
    for warning in preview.warnings:
        print(f"  note: {warning}")
    for split in _TITLES:
        first = next((sequence for sequence in preview.sequences if sequence.split == split), None)
        if first:
            print(f"\nA {_TITLES[split]} sequence{_legend(first)}:\n")
            print(_marked(first))


def _marked(sequence: PreviewSequence) -> str:
    """The beginning of the text; where not everything counts for the loss, what does stands in ⟦ ⟧."""
    text = sequence.text[:_CHARS]
    for start, end in reversed(sequence.counted if _legend(sequence) else ()):
        if start < len(text):
            stop = min(end, len(text))
            text = f"{text[:start]}⟦{text[start:stop]}⟧{text[stop:]}"
    return "\n".join(f"  │ {line}" for line in (text + (" …" if len(sequence.text) > _CHARS else "")).split("\n"))


def _legend(sequence: PreviewSequence) -> str:
    everything = ((0, len(sequence.text)),)
    return "" if sequence.counted == everything else "; what counts for the loss stands in ⟦ ⟧"
