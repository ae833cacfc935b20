"""What training minimizes: how far the student's next-token probabilities are from the teacher's, the text's, or both.

The fp32 softmax of a vocabulary is the largest thing in a training step (8,192 tokens × 150,000 words × 4 bytes are
5 GB, several times over). Here it is made for a few rows at a time, and the gradient, which is known in closed form, is
written in the same pass: what lives on are bf16 logits and their bf16 gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

CHUNK_BYTES = 64 << 20
"""Budget for one fp32 copy of the rows that are scored at once."""
IGNORED = -100
"""Label of a position that does not count, as everywhere in transformers."""


@dataclass(frozen=True)
class Objective:
    """Weights of the two losses, and the temperature at which the distributions are compared."""

    distil: float = 1.0
    cross_entropy: float = 0.0
    temperature: float = 1.0


class TokenLoss(torch.autograd.Function):
    """Summed loss over the positions that count. Logits `[tokens, vocabulary]`, labels int64 `[tokens]`.

    `teacher` may be None when nothing is distilled. KL(teacher ‖ student) at temperature T is multiplied by T², which
    keeps gradients of the same size (Hinton et al., arXiv:1503.02531). Gives fp32 (loss, cross entropy, KL), each a
    sum in nats; only the first has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, teacher: torch.Tensor | None, labels: torch.Tensor, objective: Objective
    ) -> torch.Tensor:
        wants_grad = ctx.needs_input_grad[0]
        grad = torch.empty_like(student) if wants_grad else None
        sums = torch.zeros(2, dtype=torch.float32, device=student.device)
        rows = max(1, CHUNK_BYTES // (4 * student.shape[1]))
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            other = None if teacher is None else teacher[part]
            slope = _score(student[part], other, labels[part], objective, sums)
            if grad is not None:
                grad[part] = slope
        ctx.save_for_backward(grad)
        total = objective.cross_entropy * sums[0] + objective.distil * sums[1]
        return torch.stack((total, sums[0], sums[1]))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        (grad,) = ctx.saved_tensors
        return grad.mul_(grads[0][0].to(grad.dtype)), None, None, None


def _score(
    student: torch.Tensor,
    teacher: torch.Tensor | None,
    labels: torch.Tensor,
    objective: Objective,
    sums: torch.Tensor,
) -> torch.Tensor:
    """Add to the sums of cross entropy and KL; return the gradient of the loss."""
    counts = labels != IGNORED
    targets = labels.clamp_min(0).unsqueeze(1)
    scale = counts.to(torch.float32).unsqueeze(1)
    own = torch.log_softmax(student.to(torch.float32), dim=-1)
    sums[0] -= (own.gather(1, targets) * scale).sum()
    slope = torch.zeros((), device=student.device)
    if objective.cross_entropy:
        towards = own.exp().scatter_add_(1, targets, torch.full_like(scale, -1.0))
        slope = towards * (scale * objective.cross_entropy)
    if teacher is not None:
        kl, towards = _distance(student, own, teacher, objective.temperature)
        sums[1] += (kl.unsqueeze(1) * scale).sum()
        slope = slope + towards.mul_(scale * objective.distil)
    return slope


def _distance(
    student: torch.Tensor, own: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL of each row, times the temperature squared, and its gradient for the student's logits."""
    wide = teacher.to(torch.float32)
    if temperature != 1.0:
        own = torch.log_softmax(student.to(torch.float32) / temperature, dim=-1)
        wide = wide / temperature
    theirs = torch.log_softmax(wide, dim=-1)
    probabilities = theirs.exp()
    kl = torch.linalg.vecdot(probabilities, theirs.sub_(own)) * temperature**2
    return kl, own.exp().sub_(probabilities).mul_(temperature)
