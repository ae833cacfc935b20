"""How much a model lost: the original and the quantized one score the same windows of the same text.

Logits are the large thing here (a window of 512 tokens over 150,000 words is 160 MB in bf16), so they are made for
as many tokens at once as fit a fixed budget: several short windows together, or a long window in pieces over a
cache, which keeps everything a model does between its layers and its logits (scaling, capping) as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from quantstudio.core.errors import BadWeights
from quantstudio.core.recipe import KvCache, MeasureSection
from quantstudio.core.result import Interval, KvCacheCost, Quality
from quantstudio.engine.kv_cache import bytes_per_position, cache_argument, make_cache
from quantstudio.engine.load import LoadedModel
from quantstudio.engine.measure.bootstrap import BlockSums, quality_intervals, sum_blocks
from quantstudio.engine.measure.text import Text, Windows, cut_windows
from quantstudio.engine.onnx.model import OnnxModel
from quantstudio.engine.onnx.sequence import window_logits
from quantstudio.engine.reporter import Reporter

LOGITS_BYTES = 192 << 20
"""Budget for the bf16 logits of one model."""
SCORING_BYTES = 32 << 20
"""Budget for each float32 copy while they are scored."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Per position of `windows`, each float32 `[windows, length - 1]`. With one model only `nll` means anything."""

    windows: Windows
    nll_original: NDArray[np.float32]
    nll: NDArray[np.float32]
    kl: NDArray[np.float32]
    same: NDArray[np.float32]


def measure_quality(
    original: LoadedModel, quantized: LoadedModel, text: Text, measure: MeasureSection, seed: int, reporter: Reporter
) -> Quality:
    """Compare two models that share a tokenizer. Raises RecipeError (text too short) and BadWeights (NaN scores)."""
    windows = quality_windows(original, text, measure, seed, reporter)
    scores = score(original.model, quantized.model, windows, reporter)
    sums = block_sums(scores)
    intervals = quality_intervals(sums, seed)
    return Quality(
        tokens=int(windows.scored.sum()),
        windows=len(windows.ids),
        text=text.name,
        original_perplexity=intervals.original_perplexity,
        perplexity=intervals.perplexity,
        perplexity_change=intervals.perplexity_change,
        original_bits_per_byte=intervals.original_bits_per_byte,
        bits_per_byte=intervals.bits_per_byte,
        kl=intervals.kl,
        top1=intervals.top1,
    )


def measure_text_fit(
    loaded: LoadedModel, text: Text, measure: MeasureSection, seed: int, reporter: Reporter
) -> tuple[Interval, Interval]:
    """Perplexity and bits per byte of one model by itself."""
    windows = quality_windows(loaded, text, measure, seed, reporter)
    intervals = quality_intervals(block_sums(score(loaded.model, None, windows, reporter)), seed)
    return intervals.perplexity, intervals.bits_per_byte


@torch.inference_mode()
def measure_kv_cache(
    loaded: LoadedModel, text: Text, measure: MeasureSection, seed: int, reporter: Reporter
) -> KvCacheCost:
    """What a key-value cache in int8 costs this model, against the same model without. Raises as `measure_quality`."""
    windows = quality_windows(loaded, text, measure, seed, reporter)
    scores = score(loaded.model, loaded.model, windows, reporter, kv_cache=KvCache.INT8)
    intervals = quality_intervals(block_sums(scores), seed)
    some = torch.from_numpy(windows.ids[:1, :1]).to(loaded.model.device)
    sizes = {}
    for kind in KvCache:
        cache = make_cache(loaded.model.config, reserve=0, kind=kind)
        loaded.model(input_ids=some, logits_to_keep=1, **cache_argument(loaded.model, cache))
        sizes[kind] = bytes_per_position(cache)
    return KvCacheCost(
        tokens=int(windows.scored.sum()),
        perplexity_change=intervals.perplexity_change,
        kl=intervals.kl,
        top1=intervals.top1,
        bytes_per_token=sizes[KvCache.INT8],
        bf16_bytes_per_token=sizes[KvCache.BF16],
    )


@torch.inference_mode()
def score(
    original: PreTrainedModel,
    quantized: PreTrainedModel | OnnxModel | None,
    windows: Windows,
    reporter: Reporter,
    *,
    kv_cache: KvCache = KvCache.BF16,
) -> Scores:
    """Score every position; without `quantized`, only the negative log likelihood of `original`.

    `kv_cache`: how `quantized` keeps what it has read.
    """
    count, length = windows.ids.shape
    parts: list[torch.Tensor] = []
    totals = np.zeros(3)
    batch = max(1, _positions(original) // length)
    for start in range(0, count, batch):
        reporter.progress(start, count, "windows")
        ids = torch.from_numpy(windows.ids[start : start + batch]).to(original.device)
        parts.append(_score_batch(original, quantized, ids, reporter, kv_cache))
        scored = windows.scored[start : start + batch]
        totals += [*(parts[-1][:2].numpy().astype(np.float64) * scored).sum(axis=(1, 2)), scored.sum()]
        if original is not quantized:  # else it is the cache that is compared, not the models of the chart
            _report_perplexity(totals, start + len(scored), reporter)
    values = torch.cat(parts, dim=1).numpy()
    if not np.isfinite(values).all():
        raise BadWeights(
            "The model's scores are not numbers.",
            why="It computes NaN or infinity on ordinary text.",
            hint="Its weights are damaged, or it overflows in bf16; try another copy of the model.",
        )
    nll_original, nll, kl, same = values
    return Scores(windows, nll_original, nll if quantized is not None else nll_original, kl, same)


def _score_batch(
    original: PreTrainedModel,
    quantized: PreTrainedModel | OnnxModel | None,
    ids: torch.Tensor,
    reporter: Reporter,
    kv_cache: KvCache,
) -> torch.Tensor:
    """`[4, windows, length - 1]` in float32 on the CPU: both negative log likelihoods, KL, agreement."""
    pieces = []
    first = _logits(original, ids, KvCache.BF16)
    second = None
    if isinstance(quantized, OnnxModel):
        second = window_logits(quantized, ids, _piece(original, ids))
    elif quantized is not None:
        second = _logits(quantized, ids, kv_cache)
    position = 1
    for logits in first:
        reporter.check_cancel()
        targets = ids[:, position : position + logits.shape[1]]
        position += targets.shape[1]
        width = targets.shape[1]  # the last position has no token to predict
        other = next(second)[:, :width] if second is not None else None
        pieces.append(_score_logits(logits[:, :width], other, targets))
    return torch.cat(pieces, dim=2).cpu()


def _score_logits(first: torch.Tensor, second: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
    rows = max(1, SCORING_BYTES // (4 * first.shape[-1]))
    out = torch.zeros(4, *targets.shape, device=first.device)
    for window in range(targets.shape[0]):
        for start in range(0, targets.shape[1], rows):
            place = slice(start, start + rows)
            target = targets[window, place].unsqueeze(-1)
            log_first = first[window, place].log_softmax(-1, dtype=torch.float32)
            out[0, window, place] = -log_first.gather(-1, target).squeeze(-1)
            if second is None:
                continue
            log_second = second[window, place].log_softmax(-1, dtype=torch.float32)
            out[1, window, place] = -log_second.gather(-1, target).squeeze(-1)
            # In place from here on: with 150,000 words every further copy costs as much as the softmax itself.
            ratio = log_second.neg_().add_(log_first)
            out[2, window, place] = torch.linalg.vecdot(log_first.exp_(), ratio)
            out[3, window, place] = (first[window, place].argmax(-1) == second[window, place].argmax(-1)).float()
    return out


def _logits(model: PreTrainedModel, ids: torch.Tensor, kv_cache: KvCache) -> Iterator[torch.Tensor]:
    """Logits `[windows, piece, vocabulary]`, piece after piece along the windows."""
    length = ids.shape[1]
    piece = _piece(model, ids)
    if piece >= length and kv_cache is KvCache.BF16:
        yield model(input_ids=ids, use_cache=False).logits
        return
    cache = DynamicCache(config=model.config)
    if kv_cache is not KvCache.BF16:
        cache = make_cache(model.config, length, kv_cache)
    for start in range(0, length, piece):
        yield model(input_ids=ids[:, start : start + piece], **cache_argument(model, cache)).logits


def _piece(model: PreTrainedModel, ids: torch.Tensor) -> int:
    """How many positions of every window are scored at once."""
    return max(1, _positions(model) // ids.shape[0])


def _positions(model: PreTrainedModel) -> int:
    """How many positions' logits fit the budget."""
    return max(1, int(LOGITS_BYTES // (2 * model.config.get_text_config(decoder=True).vocab_size)))


def quality_windows(loaded: LoadedModel, text: Text, measure: MeasureSection, seed: int, reporter: Reporter) -> Windows:
    """The windows of a text in which a model's quality is measured; shorter ones for models that read less, said so."""
    context = int(getattr(loaded.model.config.get_text_config(decoder=True), "max_position_embeddings", 0) or 0)
    length = min(measure.window, context) if context else measure.window
    if length < measure.window:
        reporter.notice(f"The model reads at most {context} tokens: quality is measured in windows of {length}.")
    return cut_windows(text, loaded.tokenizer, length, measure.quality_tokens, seed)


def block_sums(scores: Scores) -> BlockSums:
    """Sums over the scored tokens of each block; comparable between models scored on the same windows."""
    scored = scores.windows.scored
    return BlockSums(
        tokens=sum_blocks(scored),
        nbytes=sum_blocks(scores.windows.nbytes * scored),
        nll_original=sum_blocks(scores.nll_original * scored),
        nll=sum_blocks(scores.nll * scored),
        kl=sum_blocks(scores.kl * scored),
        same=sum_blocks(scores.same * scored),
    )


def _report_perplexity(totals: NDArray[np.float64], done: int, reporter: Reporter) -> None:
    """The perplexities so far, for the live chart. `totals`: both sums of negative log likelihood, and of tokens."""
    for name, total in (("original_perplexity", totals[0]), ("perplexity", totals[1])):
        mean = total / max(1.0, totals[2])
        if math.isfinite(mean) and 0 < mean < 700:
            reporter.metric(name, math.exp(mean), step=done)
