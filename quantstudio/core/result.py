"""What a run found out, as typed plain data: `result.json`, the `result` message, tables, charts, reports.

Times are seconds, sizes bytes, rates tokens per second.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from quantstudio.core.recipe import Recipe

RESULT_VERSION = 1


class _Plain(BaseModel):
    # Numbers only: what is infinite can be put into no table and no chart.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Spread(_Plain):
    """Repeated timings: the median and the quartiles around it."""

    median: float
    low: float
    high: float
    trials: tuple[float, ...] = ()


class Interval(_Plain):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


class Sizes(_Plain):
    """Bytes in the model's weight files by part."""

    embedding: int
    layers: int
    head: int
    rest: int

    @property
    def total(self) -> int:
        return self.embedding + self.layers + self.head + self.rest


class KernelUse(_Plain):
    """The kernel that runs the layers of one scheme, and how it compares with bf16 in a short trial on this machine."""

    scheme: str
    kernel: str
    operator: str
    layers: int
    decode_ratio: float | None = None
    """How many times as fast as bf16 for one row; None: not tried."""
    prompt_ratio: float | None = None
    """Likewise for `prompt_tokens` rows."""
    prompt_tokens: int = 0


class Performance(_Plain):
    """Speed and memory of one model in one fresh process."""

    label: str
    load_s: float
    peak_rss: int
    peak_cuda: int = 0
    ttft_s: Spread
    prompt_tps: Spread
    decode_tps: Spread
    prompt_tokens: int
    decode_tokens: int
    device: str
    threads: int
    kernels: dict[str, int] = {}
    """Kernel name → number of layers that run on it."""
    kernel_uses: tuple[KernelUse, ...] = ()
    bandwidth: float = 0.0
    """Bytes a second that the memory of the device delivers; 0: not measured."""
    bytes_per_token: int = 0
    """Bytes of weights that one token reads; 0: not known."""


class Quality(_Plain):
    """Original and quantized over the same windows of the same text. Intervals by paired block bootstrap."""

    tokens: int
    windows: int
    text: str
    original_perplexity: Interval
    perplexity: Interval
    perplexity_change: Interval
    """Relative: 0.05 is 5 % higher (worse). Paired."""
    original_bits_per_byte: Interval
    bits_per_byte: Interval
    kl: Interval
    """Mean KL divergence from the original's next-token distribution, in nats."""
    top1: Interval
    """Share of positions at which both pick the same likeliest token."""


class KvCacheCost(_Plain):
    """A key-value cache in int8 against one in bf16, same model, same windows. Intervals by paired block bootstrap."""

    tokens: int
    perplexity_change: Interval
    """Relative, as in `Quality`."""
    kl: Interval
    top1: Interval
    bytes_per_token: int
    bf16_bytes_per_token: int
    """What each further token of a text takes in the cache."""


class EngineTrial(_Plain):
    """The quantized model on another engine: speed and memory, and its scores against torch's of the same model."""

    engine: str
    performance: Performance
    tokens: int
    perplexity_change: Interval
    """Relative, as in `Quality`."""
    kl: Interval
    top1: Interval


class KeptLayer(_Plain):
    """A layer that stayed in the model's own precision, and why."""

    name: str
    reason: str


class Quantization(_Plain):
    """What the quantize phase did."""

    label: str
    quantized_layers: int
    kept: tuple[KeptLayer, ...] = ()
    original_sizes: Sizes
    sizes: Sizes
    parameters: int = 0
    original_parameters: int = 0
    """Weights after and before; a tied matrix counts once. 0 in results of older versions."""
    layers: int = 0
    removed_layers: int = 0
    """Decoder layers of the result, and those that the recipe removed."""
    layer_bits_per_weight: float
    """Stored bits per weight of the quantized linear layers, read off the files, head and embedding not counted."""
    seconds: float
    peak_rss: int


class DataSummary(_Plain):
    """The text that a run learnt from. Splits share no passage; `fingerprint` is over every token of all three."""

    source: str
    """For a person: a file's name, or the dataset with its commit."""
    licence: str = ""
    documents: int
    tokens: int
    """In all three splits together."""
    sequence_length: int
    calibration_sequences: int
    training_sequences: int
    held_out_sequences: int
    training_loss_tokens: int
    """Tokens of the training split that count for the loss."""
    left_out_tokens: int = 0
    """Tokens cut away because their passage is in another split, or because they fill no whole sequence."""
    fingerprint: str


class Environment(_Plain):
    """The machine and the libraries that the numbers belong to."""

    machine: str
    cpu: str
    cores: int
    memory: int
    gpu: str = ""
    os: str
    versions: dict[str, str]


class RunCosts(_Plain):
    """What a run was estimated to cost before it started, and what it cost. Bytes and seconds, download not counted.

    `formula` figures are before this machine's correction, which is refitted from them; `predicted` ones are what the
    person was told.
    """

    formula_memory: int
    formula_seconds: float
    predicted_memory: int
    predicted_seconds: float
    measured_memory: int
    """Peak of all processes of the run together, sampled four times a second."""
    measured_seconds: float


class RunResult(_Plain):
    """Everything a finished run knows."""

    version: int = RESULT_VERSION
    run_id: str
    name: str
    model_name: str
    recipe: Recipe
    quantization: Quantization
    original_first: Performance | None = None
    quantized: Performance | None = None
    original_last: Performance | None = None
    quality: Quality | None = None
    kv_cache: KvCacheCost | None = None
    """Of the quantized model, when the recipe's machine section asks for int8."""
    other_engine: EngineTrial | None = None
    """None: there is no other engine here that runs this model, or it was not tried."""
    data: DataSummary | None = None
    """None: the method needed no text."""
    costs: RunCosts | None = None
    """None: the run was resumed, so that its times are not those of a whole run."""
    verdict: tuple[str, ...] = ()
    """Sentences for a person: faster or slower, smaller, closer or further, and whether the machine drifted."""
    environment: Environment


class Measurement(_Plain):
    """What measuring one model by itself found out."""

    version: int = RESULT_VERSION
    model_name: str
    performance: Performance
    perplexity: Interval
    bits_per_byte: Interval
    kv_cache: KvCacheCost | None = None
    environment: Environment
