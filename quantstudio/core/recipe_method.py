"""The recipe's method section: how the integers are chosen.

Every method is one class; what it does is in the engine's folder of the same name. Fields whose 0 means "automatic"
are resolved from model, data and machine by the engine, and the resolved values are recorded with the run.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from quantstudio.core.section import ADVANCED, Section


class RoundToNearest(Section):
    """Round every weight to the nearest point of its grid. Needs no data and takes seconds."""

    kind: Literal["rtn"] = "rtn"


class Hqq(Section):
    """HQQ: fits each group's grid to all of its weights, not to the largest alone. Needs no data; helps at 2 bits."""

    kind: Literal["hqq"] = "hqq"


class Gptq(Section):
    """GPTQ: rounds column by column and lets later columns make up for earlier errors. Needs text; takes minutes."""

    kind: Literal["gptq"] = "gptq"
    damping: float = Field(
        default=0.01,
        gt=0.0,
        le=1.0,
        title="Damping",
        description="Share of the mean diagonal that is added to the Hessian, so that it can be inverted.",
        json_schema_extra=ADVANCED,
    )
    act_order: bool = Field(
        default=True,
        title="Largest activations first",
        description="Round the columns with the largest activations first, when most others can still make up.",
        json_schema_extra=ADVANCED,
    )
    block_size: int = Field(
        default=128,
        ge=8,
        le=4096,
        title="Block of columns",
        description="Columns whose updates are done together. It changes the speed, not the result.",
        json_schema_extra=ADVANCED,
    )


class Awq(Section):
    """AWQ: scales up the channels that carry large activations before rounding, and clips outliers. Needs text."""

    kind: Literal["awq"] = "awq"
    grid_points: int = Field(
        default=20,
        ge=2,
        le=200,
        title="Scales tried",
        description="How many strengths of scaling are tried for each group of layers.",
        json_schema_extra=ADVANCED,
    )
    clip: bool = Field(
        default=True,
        title="Search for clipping",
        description="Also try to cut the largest weights of each group, so that the others get a finer grid.",
        json_schema_extra=ADVANCED,
    )


class SmoothQuant(Section):
    """SmoothQuant: moves activation outliers into the weights before rounding. For int8 activations. Needs text."""

    kind: Literal["smoothquant"] = "smoothquant"
    strength: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        title="Strength",
        description="0 leaves the activations as they are, 1 moves all of their range into the weights.",
        json_schema_extra=ADVANCED,
    )


class _Training(Section):
    preset: Literal["quick", "better", "best"] = Field(
        default="quick",
        title="How long",
        description="Sets the number of steps: quick takes minutes on a desktop, best sixteen times as long.",
        json_schema_extra={"labels": {"quick": "Quick (minutes)", "better": "Better", "best": "Best"}},
    )
    train: Literal["all", "lora"] = Field(
        default="all",
        title="What is trained",
        description="All weights, or LoRA: small added matrices that take far less memory. What is rounded is the "
        "sum of both, so the result is what was trained.",
        json_schema_extra={"labels": {"all": "All weights", "lora": "LoRA"}},
    )
    loss: Literal["distil", "cross_entropy", "mixed"] = Field(
        default="distil",
        title="Learn from",
        description="The original model's probabilities for every word, which wins back most; the next word of the "
        "text alone; or the mean of both.",
        json_schema_extra={
            "labels": {"distil": "The original model", "cross_entropy": "The text alone", "mixed": "Both"}
        },
    )
    temperature: float = Field(
        default=1.0,
        ge=0.1,
        le=10.0,
        title="Distillation temperature",
        description="Above 1 the original's less likely words count more.",
        json_schema_extra=ADVANCED,
    )
    steps: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        title="Steps",
        description="Updates of the weights. 0 takes the number that belongs to 'How long'.",
        json_schema_extra={"advanced": True, "zero": "From 'How long'"},
    )
    batch_sequences: int = Field(
        default=0,
        ge=0,
        le=4096,
        title="Sequences in a step",
        description="Pieces of text that each update sees. 0 takes about 8,192 tokens.",
        json_schema_extra={"advanced": True, "zero": "Automatic"},
    )
    learning_rate: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        title="Learning rate",
        description="The largest step size, reached after the warm-up. 0 chooses by bits and size of the model.",
        json_schema_extra={"advanced": True, "zero": "Automatic"},
    )
    warmup_steps: int = Field(
        default=-1,
        ge=-1,
        le=100_000,
        title="Warm-up steps",
        description="Steps in which the learning rate rises. -1 takes a fifth of all, at most 20.",
        json_schema_extra=ADVANCED,
    )
    lora_rank: int = Field(
        default=16,
        ge=1,
        le=1024,
        title="LoRA rank",
        description="Width of the added matrices, when LoRA is trained.",
        json_schema_extra=ADVANCED,
    )
    evaluations: int = Field(
        default=8,
        ge=1,
        le=1000,
        title="Evaluations",
        description="How often the model is judged on held-out text and kept when it is the best so far.",
        json_schema_extra=ADVANCED,
    )
    patience: int = Field(
        default=0,
        ge=0,
        le=1000,
        title="Stop early after",
        description="Evaluations without improvement after which training stops. 0 never stops early.",
        json_schema_extra={"advanced": True, "zero": "Never"},
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        default="auto",
        title="Recompute activations",
        description="Gradient checkpointing: less memory, a third more time. auto turns it on when memory is short.",
        json_schema_extra={"advanced": True, "labels": {"auto": "Automatic", "on": "On", "off": "Off"}},
    )

    @property
    def all_steps(self) -> int:
        """Steps of the training, which 'How long' decides unless the recipe says."""
        return self.steps or PRESET_STEPS[self.preset]


class Qat(_Training):
    """QAT: a short fine-tune, begun where GPTQ ends, in which the model feels its own rounding. Needs text."""

    kind: Literal["qat"] = "qat"
    keep_layers: int = Field(
        default=0,
        ge=0,
        le=10_000,
        title="Keep only the first layers",
        description="Removes all decoder layers after the first so many, for good: the model becomes smaller and "
        "faster, and much worse before training wins some of that back. It learns from the whole original. For those "
        "who want a smaller model and have time to train; a long training, with all weights. 0 keeps all layers.",
        json_schema_extra={"advanced": True, "zero": "All layers"},
    )


class FineTune(_Training):
    """An ordinary short fine-tune, then GPTQ. What QAT is compared with: same text, same steps."""

    kind: Literal["finetune_gptq"] = "finetune_gptq"
    loss: Literal["distil", "cross_entropy", "mixed"] = Field(
        default="cross_entropy",
        title="Learn from",
        description="The next word of the text alone. An unrounded model that learns from its own original has "
        "nothing to learn.",
        json_schema_extra={
            "labels": {"distil": "The original model", "cross_entropy": "The text alone", "mixed": "Both"}
        },
    )


AnyMethod = RoundToNearest | Hqq | Gptq | Awq | SmoothQuant | Qat | FineTune
Method = Annotated[AnyMethod, Field(discriminator="kind")]
METHOD_LABELS: dict[str, JsonValue] = {
    "rtn": "Round to nearest",
    "hqq": "HQQ (no data)",
    "gptq": "GPTQ (calibrated)",
    "awq": "AWQ (calibrated)",
    "smoothquant": "SmoothQuant (calibrated)",
    "qat": "QAT (trained)",
    "finetune_gptq": "Fine-tune, then GPTQ",
}
LEARNED_BELOW = 8
"""QAT's grids with fewer bits have scales that learn."""
PRESET_STEPS = {"quick": 50, "better": 200, "best": 800}
"""Steps that belong to 'How long'."""
STEP_TOKENS = 8192
"""Tokens that a step sees unless the recipe says otherwise."""
NEEDS_DATA = frozenset({"gptq", "awq", "smoothquant", "qat", "finetune_gptq"})
"""Methods that read the recipe's data section."""
METHOD_NAMES = {
    "rtn": "",
    "hqq": "HQQ",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "smoothquant": "SmoothQuant",
    "qat": "QAT",
    "finetune_gptq": "fine-tuned, GPTQ",
}
"""What a method adds to the name of a scheme; rounding to nearest goes without saying."""


def undivided(sequences: int, gpus: int) -> tuple[str, str]:
    """What is wrong with a step whose sequences do not divide among the GPUs, and what to do about it."""
    below = sequences // gpus * gpus
    fitting = f"{below} or {below + gpus}" if below else str(gpus)
    return (
        f"The {sequences} sequences in a step cannot be shared equally by {gpus} GPUs.",
        f"Take {fitting} sequences in a step, or another number of GPUs.",
    )
