"""The README.md of a saved model, made from the recipe and from what was measured.

Written twice: with the weights, so that the folder is complete, and again when the measurements are there. It claims
nothing that was not measured, names no folder of the machine it was made on, and says which programs will not read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from quantstudio.core.humanize import human_bytes, human_count, plural
from quantstudio.core.recipe import STARTER, EmbeddingChoice, HeadChoice, Recipe
from quantstudio.core.recipe_method import NEEDS_DATA
from quantstudio.core.report import markdown_table
from quantstudio.core.result import DataSummary, Quantization, RunResult
from quantstudio.core.schemes import ActivationKind

CARD = "README.md"
METHOD_CARD = {
    "rtn": "round to nearest",
    "hqq": "HQQ",
    "gptq": "GPTQ, calibrated layer by layer",
    "awq": "AWQ, calibrated layer by layer",
    "smoothquant": "SmoothQuant, calibrated layer by layer",
    "qat": "quantization-aware training (QAT)",
    "finetune_gptq": "fine-tuned, then GPTQ",
}
MAX_KEPT_NAMES = 12
_HEAD = {HeadChoice.KEEP: "bf16", HeadChoice.INT8: "int8, one scale per word", HeadChoice.SAME: "like the layers"}
_EMBEDDING = {EmbeddingChoice.KEEP: "bf16", EmbeddingChoice.INT8: "int8, one scale per word"}


def write_model_card(
    folder: Path, recipe: Recipe, quantization: Quantization, result: RunResult | None, license: str = ""
) -> None:
    """Write README.md into a model folder; `result` adds the measurements.

    `license`: what the source says of itself. When it is empty, the one in the card that is already there is kept.
    Raises OSError.
    """
    path = folder / CARD
    license = _identifier(license) or _license_of(path)
    blocks = [
        _front_matter(recipe, license),
        _title(recipe, quantization),
        *_contents(recipe, quantization, result.data if result else None),
        *_measurements(result),
        *_usage(folder, recipe),
    ]
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _front_matter(recipe: Recipe, license: str) -> str:
    lines = ["---"]
    if base := _hub_name(recipe):
        lines += [f"base_model: {json.dumps(base)}", "base_model_relation: quantized"]
    if license:
        lines.append(f"license: {license}")
    lines += ["library_name: transformers", "pipeline_tag: text-generation", "tags:"]
    lines += [f"- {tag}" for tag in ("compressed-tensors", recipe.scheme.kind, "quantized", "quantstudio")]
    return "\n".join([*lines, "---"])


def _title(recipe: Recipe, quantization: Quantization) -> str:
    before, after = quantization.original_sizes.total, quantization.sizes.total
    smaller = f"{human_bytes(after)} instead of {human_bytes(before)}"
    return f"# {_model_name(recipe)}, {quantization.label}\n\nA quantized version of {_source(recipe)}: {smaller}."


def _contents(recipe: Recipe, quantization: Quantization, data: DataSummary | None) -> Iterator[str]:
    yield "## What was quantized"
    scheme = quantization.label
    layers = quantization.layers + quantization.removed_layers
    cut = (
        f"- Decoder layers: the first {quantization.layers} of {layers}, the others were removed before training; "
        f"{human_count(quantization.parameters)} of {human_count(quantization.original_parameters)} weights"
    )
    bits = f", {quantization.layer_bits_per_weight:.2f} bits per weight in the files" * bool(quantization.sizes.layers)
    yield "\n".join(
        [
            *([cut] if quantization.removed_layers else []),
            f"- Layers: {scheme}{bits}",
            f"- Output head: {_HEAD[recipe.layers.head]}",
            f"- Embedding: {_EMBEDDING[recipe.layers.embedding]}",
            f"- Method: {_method(recipe, data)}",
            f"- {plural(quantization.quantized_layers, 'matrix', 'matrices')} quantized, {len(quantization.kept)} kept",
        ]
    )
    if quantization.kept:
        yield "Kept in bf16:"
        yield "\n".join(_kept(quantization))
    yield _size_table(quantization)


def _method(recipe: Recipe, data: DataSummary | None) -> str:
    kind = recipe.method.kind
    if kind not in NEEDS_DATA:
        return f"{METHOD_CARD[kind]}, no calibration data"
    return f"{METHOD_CARD[kind]}; text: {_plain(data.source)}" if data else METHOD_CARD[kind]


def _kept(quantization: Quantization) -> Iterator[str]:
    for layer in quantization.kept[:MAX_KEPT_NAMES]:
        yield f"- `{_plain(layer.name)}`: {_plain(layer.reason)}"
    if len(quantization.kept) > MAX_KEPT_NAMES:
        yield f"- and {len(quantization.kept) - MAX_KEPT_NAMES} more"


def _size_table(quantization: Quantization) -> str:
    before, after = quantization.original_sizes, quantization.sizes
    rows: Iterable[tuple[str, int, int]] = (
        ("Embedding", before.embedding, after.embedding),
        ("Layers", before.layers, after.layers),
        ("Output head", before.head, after.head),
        ("Rest (norms, biases)", before.rest, after.rest),
        ("**Total**", before.total, after.total),
    )
    head = "| Part | Original | This model |\n| --- | ---: | ---: |\n"
    return head + "\n".join(f"| {name} | {human_bytes(old)} | {human_bytes(new)} |" for name, old, new in rows)


def _measurements(result: RunResult | None) -> Iterator[str]:
    if result is None or (result.quantized is None and result.quality is None):
        return
    machine = result.environment
    hardware = ", ".join(part for part in (machine.cpu, machine.gpu) if part)
    yield "## Measurements"
    yield f"Original and quantized model under the same protocol, each in a process of its own, on {_plain(hardware)}."
    yield markdown_table([result])
    if result.verdict:
        yield "\n".join(f"- {_plain(sentence)}" for sentence in result.verdict)


def _usage(folder: Path, recipe: Recipe) -> Iterator[str]:
    yield "## How to use it"
    yield "With [transformers](https://github.com/huggingface/transformers) and `pip install compressed-tensors`:"
    yield (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "path/to/this/folder"\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        'inputs = tokenizer("Once upon a time", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))\n"
        "```"
    )
    yield "transformers restores bf16 weights when the model first runs: the download is small, the memory is not."
    if obstacles := _vllm_obstacles(recipe):
        yield (
            f"vLLM may refuse {' and '.join(obstacles)}. For vLLM, quantize the original with a symmetric W4A16, W8A16 "
            "or W8A8 scheme and keep head and embedding in bf16."
        )
    else:
        yield "With [vLLM](https://github.com/vllm-project/vllm), which runs the weights as they are stored:"
        yield "```sh\nvllm serve path/to/this/folder\n```"


def _vllm_obstacles(recipe: Recipe) -> list[str]:
    obstacles = []
    if recipe.layers.embedding is not EmbeddingChoice.KEEP:
        obstacles.append("a quantized embedding")
    if recipe.layers.head is not HeadChoice.KEEP:
        obstacles.append("a quantized output head")
    spec = recipe.scheme.weight_spec()
    if not spec.symmetric:
        obstacles.append("zero points as transformers wants them")
    if spec.bits < 4:
        obstacles.append("weights of fewer than 4 bits")
    elif spec.bits < 8 and spec.activations is not ActivationKind.NONE:
        obstacles.append("packed int4 weights with int8 activations")
    return obstacles


def _hub_name(recipe: Recipe) -> str:
    """The source's name on the Hub; empty for the model in the box and for folders."""
    return recipe.model.id if re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", recipe.model.id) else ""


def _model_name(recipe: Recipe) -> str:
    if recipe.model.id == STARTER:
        return "QuantStudio starter model"
    return _plain(recipe.model.id.replace("\\", "/").rstrip("/").rpartition("/")[2]) or "Model"


def _source(recipe: Recipe) -> str:
    name = _hub_name(recipe)
    return f"[{name}](https://huggingface.co/{name})" if name else _model_name(recipe)


def _identifier(license: str) -> str:
    """A licence as the Hub's front matter takes it. The name of a licence file says only that there is one."""
    if re.match(r"(?i)(licen[cs]e|notice|use_policy)", license):
        return "other"
    return license if re.fullmatch(r"[\w.+-]{1,60}", license) else ""


def _license_of(card: Path) -> str:
    if not card.is_file():
        return ""
    front = card.read_text(encoding="utf-8").split("\n---\n", 1)[0]
    found = re.search(r"^license: ([\w.+-]{1,60})$", front, flags=re.MULTILINE)
    return found.group(1) if found else ""


def _plain(text: str) -> str:
    """Names and reasons come from strangers' files: no markup, no line breaks."""
    return re.sub(r"[`|<>\[\]*\r\n]", "", text)[:200]
