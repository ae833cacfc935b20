"""The recipe: everything that decides what a run produces, as one frozen, printable value.

It is the single source of the window's forms, the command line's flags, the TOML file and the table in the docs;
`fieldspec` flattens it for them. Every field carries a title and a help text, and a test insists on it.
Levels of checking: a field (here), across fields (here), against the model (`plan`), against the machine
(`estimate`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, field_validator

from quantstudio.core.humanize import plural
from quantstudio.core.recipe_data import DataSection
from quantstudio.core.recipe_method import (
    LEARNED_BELOW,
    METHOD_LABELS,
    METHOD_NAMES,
    Method,
    Qat,
    RoundToNearest,
)
from quantstudio.core.recipe_precision import PRECISION_LABELS, Precision, Uniform
from quantstudio.core.schemes import W4A16, Scheme
from quantstudio.core.section import ADVANCED, Section

RECIPE_VERSION = 1
STARTER = "starter"
"""The model id that means the model in the box."""


class HeadChoice(StrEnum):
    """What becomes of the output head."""

    KEEP = "keep"
    INT8 = "int8"
    SAME = "same"


class EmbeddingChoice(StrEnum):
    """What becomes of the token embedding."""

    KEEP = "keep"
    INT8 = "int8"


class OnMisfit(StrEnum):
    """What to do with a layer whose rows the group size does not divide."""

    REFUSE = "refuse"
    KEEP = "keep"
    SMALLER = "smaller"


class KvCache(StrEnum):
    """How a running model keeps the keys and values of what it has read."""

    BF16 = "bf16"
    INT8 = "int8"


class ModelSection(Section):
    """Which model to start from."""

    id: str = Field(
        default=STARTER,
        min_length=1,
        title="Model",
        description="'starter' for the model in the box, a folder on this machine, or the name of a model that is "
        "already in the Hugging Face cache (owner/name).",
        json_schema_extra={"editor": "model"},
    )
    revision: str = Field(
        default="",
        title="Revision",
        description="For a model from the cache: the branch, tag or commit to use. Empty means main.",
        json_schema_extra=ADVANCED,
    )


class LayersSection(Section):
    """Which parts of the model are quantized."""

    head: HeadChoice = Field(
        default=HeadChoice.INT8,
        title="Output head",
        description="The last layer, which scores every word. In a small model it takes a third of the time of "
        "each token. int8 is nearly free of loss; 'same' uses the scheme of the other layers; 'keep' leaves bf16.",
        json_schema_extra={"labels": {"keep": "Keep in bf16", "int8": "int8", "same": "Same as the layers"}},
    )
    embedding: EmbeddingChoice = Field(
        default=EmbeddingChoice.INT8,
        title="Embedding",
        description="The table that turns words into vectors. int8 halves it with next to no loss. Where head and "
        "embedding are one matrix, both as int8 stay one.",
        json_schema_extra={"labels": {"keep": "Keep in bf16", "int8": "int8"}},
    )
    keep: tuple[str, ...] = Field(
        default=(),
        title="Layers to keep in bf16",
        description="Names or patterns of layers to leave alone, such as model.layers.0.* or *.down_proj. "
        "Sensitive layers protected here cost space and win back quality.",
        json_schema_extra=ADVANCED,
    )
    on_misfit: OnMisfit = Field(
        default=OnMisfit.REFUSE,
        title="When a group size does not fit",
        description="Some layers may have rows that the group size does not divide. 'refuse' stops before "
        "starting and names them; 'smaller' gives them the next smaller size that fits; 'keep' leaves them in bf16.",
        json_schema_extra={
            "advanced": True,
            "labels": {
                "refuse": "Stop and tell me",
                "keep": "Keep in bf16",
                "smaller": "Use a smaller group",
            },
        },
    )

    @field_validator("keep")
    @classmethod
    def _patterns_are_names(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not re.fullmatch(r"[\w.*?\[\]-]+", pattern):
                raise ValueError(f"{pattern!r} is not a layer name or pattern; use letters, digits, dots, * and ?")
        return patterns


class BuiltinText(Section):
    """Two public-domain novels that the starter model never saw."""

    kind: Literal["builtin"] = "builtin"


class FileText(Section):
    """A text file of your own."""

    kind: Literal["file"] = "file"
    path: str = Field(
        default="",
        title="Text file",
        description="A UTF-8 text file. What you will use the model for is the best text to judge it by.",
        json_schema_extra={"editor": "file"},
    )


EvaluationText = Annotated[BuiltinText | FileText, Field(discriminator="kind")]


class MeasureSection(Section):
    """How the original and the result are compared."""

    enabled: bool = Field(
        default=True,
        title="Measure afterwards",
        description="Measure speed, memory and quality of the original and the result, each in a fresh process.",
    )
    trial: bool = Field(
        default=True,
        title="Try the speed first",
        description="Before a calibrated method or training starts, time the kernels on the shapes of this model for "
        "up to 20 seconds, and warn when the result would write slower than the original on this machine. Measured "
        "once for a model; on a GPU nothing is tried.",
        json_schema_extra=ADVANCED,
    )
    text: EvaluationText = Field(
        default=BuiltinText(),
        title="Evaluation text",
        description="The text on which quality is measured.",
        json_schema_extra={"labels": {"builtin": "Two novels (built in)", "file": "A text file of your own"}},
    )
    quality_tokens: int = Field(
        default=32768,
        ge=1024,
        le=4_194_304,
        title="Tokens to evaluate",
        description="How much of the text to use. More tokens give narrower intervals and take longer.",
        json_schema_extra=ADVANCED,
    )
    window: int = Field(
        default=512,
        ge=32,
        le=32768,
        title="Window length",
        description="Tokens the model sees at once while quality is measured.",
        json_schema_extra=ADVANCED,
    )
    prompt_tokens: int = Field(
        default=512,
        ge=1,
        le=131072,
        title="Prompt length",
        description="Tokens in the prompt when the time to first token is measured.",
        json_schema_extra=ADVANCED,
    )
    decode_tokens: int = Field(
        default=64,
        ge=8,
        le=8192,
        title="Answer length",
        description="Tokens written when the decode speed is measured.",
        json_schema_extra=ADVANCED,
    )
    trials: int = Field(
        default=5,
        ge=5,
        le=100,
        title="Trials",
        description="How often each timing is repeated after a warm-up. The median is shown with its spread.",
        json_schema_extra=ADVANCED,
    )


class OutputSection(Section):
    """Where the result goes and in what pieces."""

    name: str = Field(
        default="",
        max_length=80,
        title="Name of the run",
        description="A name for the run's folder. Empty: made from the model and the scheme.",
    )
    shard_mb: int = Field(
        default=4096,
        ge=16,
        le=65536,
        title="Largest file (MB)",
        description="Weights are split into files of at most this size.",
        json_schema_extra=ADVANCED,
    )

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z0-9][\w. +-]*", name):
            raise ValueError(
                "use letters, digits, spaces, dots, dashes and underscores, starting with a letter or digit"
            )
        return name


class MachineSection(Section):
    """What the run may use of this machine."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        title="Device",
        description="auto takes the GPU when there is one.",
        json_schema_extra={
            "advanced": True,
            "labels": {"auto": "Automatic", "cpu": "CPU", "cuda": "GPU (CUDA)"},
        },
    )
    gpus: int = Field(
        default=1,
        ge=1,
        le=64,
        title="GPUs for training",
        description="Over how many GPUs of this machine a training (QAT, or a fine-tune) is spread. Each then keeps "
        "only its share of the weights, their gradients and the optimizer's memory (FSDP), so that larger models fit; "
        "what is learnt stays the same. The sequences in a step must divide among them. All other work uses one GPU.",
        json_schema_extra=ADVANCED,
    )
    compile: bool = Field(
        default=False,
        title="Compile",
        description="Let torch write programs for this model and this GPU. Trainings (QAT, or a fine-tune) take about "
        "half the time with them, and models outside of the Llama family may write faster. Making the programs takes "
        "up to two minutes; they are kept on the disk, so that the next time is shorter. Needs an NVIDIA GPU and "
        "triton, which torch brings along on Linux; elsewhere, and where it fails, the run says so and goes on "
        "without.",
        json_schema_extra=ADVANCED,
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        title="Threads",
        description="CPU threads for the work. 0 uses every physical core.",
        json_schema_extra={"advanced": True, "zero": "Every core"},
    )
    engine: Literal["auto", "torch", "onnxruntime"] = Field(
        default="auto",
        title="Engine",
        description="The program that runs a quantized model on the CPU. ONNX Runtime (pip install "
        "'quantstudio[onnx]') knows models of the Llama family and is often faster; it rounds activations to int8. "
        "auto measures it beside torch where a run's model writes fewer than 100 tokens a second, and the chat takes "
        "the one that was faster. The saved model is the same either way.",
        json_schema_extra={
            "advanced": True,
            "labels": {"auto": "Faster one (measured)", "torch": "torch", "onnxruntime": "ONNX Runtime"},
        },
    )
    kernel: Literal[
        "auto",
        "native_int4",
        "native_int8",
        "cpu_int4",
        "cpu_int8_bags",
        "cpu_int8",
        "cpu_int8_dynamic",
        "gpu_int4",
        "cuda_int4",
        "cuda_int8",
        "dequantized",
    ] = Field(
        default="auto",
        title="Kernel",
        description="The piece of code that multiplies by quantized weights when the model runs. auto tries those "
        "that fit for a moment on this machine and takes the fastest; layers that it cannot run go to the "
        "others. The saved model is the same whichever it is.",
        json_schema_extra={
            "advanced": True,
            "labels": {
                "auto": "Fastest here (tried)",
                "native_int4": "CPU (x86, Linux), int4 and fewer bits, built here",
                "native_int8": "CPU (x86, Linux), int8, built here",
                "cpu_int4": "CPU, int4 and fewer bits",
                "cpu_int8_bags": "CPU (x86), int8",
                "cpu_int8": "CPU, int8 weights",
                "cpu_int8_dynamic": "CPU, int8 weights and activations",
                "gpu_int4": "GPU, int4 and fewer bits",
                "cuda_int4": "GPU, int4 and fewer bits, torch's operator",
                "cuda_int8": "GPU, int8",
                "dequantized": "bf16 (no memory saved)",
            },
        },
    )
    kv_cache: KvCache = Field(
        default=KvCache.BF16,
        title="Key-value cache",
        description="What a model remembers of a text while it runs. int8 takes about half the memory, which counts "
        "in long conversations; the text comes out slightly different. A run with int8 measures what that costs in "
        "quality. The saved model is the same either way. Writing is about as fast with it on a CPU, "
        "and much slower on a GPU.",
        json_schema_extra={"advanced": True, "labels": {"bf16": "bf16 (as the model has it)", "int8": "int8"}},
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        title="Seed",
        description="Start of every random choice, such as which text windows are used. Same seed, same result.",
        json_schema_extra=ADVANCED,
    )


class Recipe(Section):
    """One run: model, scheme, layers, method, data, measurement, output and machine."""

    version: Literal[1] = Field(
        default=1,
        title="Recipe version",
        description="Version of the recipe's format. Newer programs read older recipes.",
        json_schema_extra={"hidden": True},
    )
    model: ModelSection = Field(default=ModelSection(), title="Model", description="Which model to start from.")
    scheme: Scheme = Field(
        default=W4A16(),
        title="Scheme",
        description="How many bits weights and activations get.",
        json_schema_extra={
            "labels": {
                "w4a16": "int4 weights (W4A16)",
                "w4a8": "int4 weights, int8 activations (W4A8)",
                "w8a16": "int8 weights (W8A16)",
                "w8a8": "int8 weights and activations (W8A8)",
                "w3a16": "int3 weights (W3A16)",
                "w3a8": "int3 weights, int8 activations (W3A8)",
                "w2a16": "int2 weights (W2A16)",
                "w2a8": "int2 weights, int8 activations (W2A8)",
            }
        },
    )
    precision: Precision = Field(
        default=Uniform(),
        title="Bits per layer",
        description="Whether every layer gets the scheme's bits, or sensitive layers more and others fewer.",
        json_schema_extra={"labels": PRECISION_LABELS},
    )
    layers: LayersSection = Field(
        default=LayersSection(), title="Layers", description="Which parts of the model are quantized."
    )
    method: Method = Field(
        default=RoundToNearest(),
        title="Method",
        description="How the integers are chosen.",
        json_schema_extra={"labels": METHOD_LABELS},
    )
    data: DataSection = Field(
        default=DataSection(),
        title="Data",
        description="The text that calibrated methods and training learn from. Rounding to nearest needs none.",
    )
    measure: MeasureSection = Field(
        default=MeasureSection(), title="Measurement", description="How original and result are compared."
    )
    output: OutputSection = Field(
        default=OutputSection(), title="Output", description="Where the result goes and in what pieces."
    )
    machine: MachineSection = Field(
        default=MachineSection(), title="Machine", description="What the run may use of this machine."
    )

    @property
    def label(self) -> str:
        """Short name of what comes out: `W4A16 g128`, `W4A16 g128 mixed bits QAT`, `W4A16 g128 QAT, first 3 layers`."""
        mixed = "" if isinstance(self.precision, Uniform) else "mixed bits"
        kept = self.method.keep_layers if isinstance(self.method, Qat) else 0
        name = " ".join(filter(None, (self.scheme.weight_spec().label, mixed, METHOD_NAMES[self.method.kind])))
        return f"{name}, first {plural(kept, 'layer')}" if kept else name

    @property
    def begins_calibrated(self) -> bool:
        """Whether training starts from what GPTQ chose: QAT of all weights of all layers, where scales learn.

        Not LoRA: its sum starts as the original's weights, and GPTQ's codes are those of other weights, shifted to make
        up for each other. Begun there, the adapter would belong to weights that nobody has.
        """
        method = self.method
        everything = isinstance(method, Qat) and method.train == "all" and not method.keep_layers
        return everything and self.scheme.weight_spec().bits < LEARNED_BELOW
