"""Tiny training runs: a model of 0.4M parameters, two dozen short sequences, a handful of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from quantstudio.core import protocol
from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import MachineSection, Recipe
from quantstudio.engine.chosen import Chosen
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.train.run import train_weights

LENGTH = 32


@dataclass
class Data:
    """What a training needs of `PreparedData`."""

    calibration: torch.Tensor
    training: torch.Tensor
    training_mask: torch.Tensor
    held_out: torch.Tensor
    held_out_mask: torch.Tensor


@pytest.fixture
def data() -> Data:
    """Random sequences over the tiny model's vocabulary; every token but the first counts."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 512, (28, LENGTH), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    return Data(ids[:4], ids[:24], mask[:24], ids[24:], mask[24:])


@dataclass
class Ran:
    """A training that has ended, and what it said."""

    chosen: Chosen
    messages: list[protocol.Message]

    def metric(self, name: str) -> list[tuple[int, float]]:
        found = [message for message in self.messages if isinstance(message, protocol.Metric)]
        return [(message.step, message.value) for message in found if message.name == name]

    def notices(self) -> list[str]:
        return [message.text for message in self.messages if isinstance(message, protocol.Notice)]


@pytest.fixture
def train(tiny_folder: Path, tmp_path: Path, data: Data) -> Callable[..., Ran]:
    """`train(method, scheme, folder="run")` carries out one training on the CPU, by several processes if asked for."""

    def carry_out(
        method,
        scheme,
        folder: str = "run",
        listen: Callable[[protocol.Message], None] | None = None,
        processes: int = 0,
        compiled: bool = False,
        **more,
    ):
        machine = MachineSection(device="cpu", compile=compiled)
        recipe = Recipe(method=method, scheme=scheme, machine=machine, **more)
        info = read_model_info(tiny_folder)
        messages: list[protocol.Message] = []

        def sink(message: protocol.Message) -> None:
            messages.append(message)
            if listen:
                listen(message)

        (tmp_path / folder).mkdir(exist_ok=True)
        plan = make_plan(info, recipe)
        chosen = train_weights(info, plan, recipe, tmp_path / folder, data, Reporter(sink), processes)
        return Ran(chosen, messages)

    return carry_out


@pytest.fixture
def one_nan(monkeypatch):
    """The loss of the fourth step is no number when it is first computed."""
    from quantstudio.engine.train.trainer import QatTrainer

    compute, spoiled = QatTrainer.compute_loss, []

    def spoil(self, model, inputs, *args, **kwargs):
        loss = compute(self, model, inputs, *args, **kwargs)
        if self.state.global_step == 3 and not spoiled:
            spoiled.append(1)
            return loss * math.nan
        return loss

    monkeypatch.setattr(QatTrainer, "compute_loss", spoil)
