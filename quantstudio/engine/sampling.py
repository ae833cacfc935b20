"""From the scores of all words to the one that comes next.

The order of the steps (repetition penalty, temperature, top-k, top-p, min-p) is transformers', so that settings copied
from elsewhere mean the same here.
"""

from __future__ import annotations

import torch

from quantstudio.core.errors import BadWeights
from quantstudio.core.jobs import Sampling


class Sampler:
    """Picks tokens for one answer. Same seed, same scores: same tokens."""

    def __init__(self, sampling: Sampling, prompt: list[int]) -> None:
        self._sampling = sampling
        self._seen = set(prompt)
        self._indices = torch.tensor(sorted(self._seen), dtype=torch.long)
        self._generator = torch.Generator(device="cpu")
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def pick(self, logits: torch.Tensor) -> int:
        """The next token for logits `[vocabulary]` of any dtype and device. Raises BadWeights when they are NaN."""
        scores = logits.detach().to(device="cpu", dtype=torch.float32)
        if torch.isnan(scores.max()):
            raise BadWeights(
                "The model's scores are not numbers, so no next word can be chosen.",
                why="Its weights hold NaN or infinity, or its numbers overflow.",
                hint="Try the original model; if it fails in the same way, its files are damaged.",
            )
        scores = self._penalized(scores)
        token = int(scores.argmax()) if self._sampling.temperature == 0 else self._drawn(scores)
        if token not in self._seen:
            self._seen.add(token)
            self._indices = torch.cat((self._indices, torch.tensor([token])))
        return token

    def _penalized(self, scores: torch.Tensor) -> torch.Tensor:
        penalty = self._sampling.repetition_penalty
        if penalty == 1 or not self._seen:
            return scores
        of_seen = scores[self._indices]
        return scores.index_copy(0, self._indices, torch.where(of_seen < 0, of_seen * penalty, of_seen / penalty))

    def _drawn(self, scores: torch.Tensor) -> int:
        top_k = min(self._sampling.top_k or len(scores), len(scores))
        best, tokens = torch.topk(scores / self._sampling.temperature, top_k)
        chances = best.softmax(0)
        # A word stays when the likelier ones together have not yet reached top-p; the likeliest always stays.
        chances = chances.where(chances.cumsum(0) - chances < self._sampling.top_p, 0)
        chances = chances.where(chances >= chances[0] * self._sampling.min_p, 0)
        return int(tokens[torch.multinomial(chances, 1, generator=self._generator)])
