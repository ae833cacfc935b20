"""From a model folder to a model that runs: originals as they are, quantized folders on low-bit kernels.

transformers can load our folders too, but runs them dequantized. Here the model is built empty and every quantized
layer becomes a plain module over the fastest operator that is right on this machine, read layer by layer, so that
the weights are in memory once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from quantstudio.core.errors import ModelDamaged, ModelUnsupported
from quantstudio.core.result import KernelUse
from quantstudio.core.safety import require_safe
from quantstudio.engine.attention import ATTENTION, register_attention
from quantstudio.engine.compiled_step import CompiledStep, make_compiled_step
from quantstudio.engine.failures import is_out_of_memory
from quantstudio.engine.formats.compressed_tensors import read_weights
from quantstudio.engine.gpu_step import GpuStep, make_gpu_step
from quantstudio.engine.kernels.registry import AUTO, REFERENCE, Chooser
from quantstudio.engine.kernels.trial import AT_LOAD_S, Trials
from quantstudio.engine.llama_step import LlamaStep, make_llama_step
from quantstudio.engine.load_quantized import empty_model, fill
from quantstudio.engine.load_tokenizer import load_tokenizer
from quantstudio.engine.memory import garbage_kept, keep_freed_memory, trim_freed_memory
from quantstudio.engine.native.build import build_with_words
from quantstudio.engine.native_step import NativeStep, make_native_step
from quantstudio.engine.reporter import Reporter
from quantstudio.engine.scratch import Scratch


@dataclass(slots=True)
class LoadedModel:
    """A model in memory, ready to run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    device: str
    """cpu or cuda."""
    folder: Path
    kernels: dict[str, int] = field(default_factory=dict)
    """Kernel name → number of layers on it; layers in bf16 count as "bf16"."""
    end_tokens: frozenset[int] = frozenset()
    """Tokens that end an answer."""
    kernel_uses: tuple[KernelUse, ...] = ()
    """Of the quantized layers, with what a short trial said of each kernel."""
    trial_s: float = 0.0
    """Seconds of the loading that went into trials of kernels."""
    step: NativeStep | LlamaStep | None = None
    """The short way for one token on the CPU, if any; it runs the layers that were there when the model was loaded."""
    gpu_step: GpuStep | None = None
    """Likewise on a GPU."""
    compiled_step: CompiledStep | None = None
    """Where the person asked for it, and there is no short way on a GPU."""


def load_model(
    folder: Path,
    device: str,
    reporter: Reporter,
    kernels: str = AUTO,
    trials_s: float = AT_LOAD_S,
    *,
    compiled: bool = False,
) -> LoadedModel:
    """Load an original model or one that was quantized to int4 or int8 and saved as compressed-tensors, in bf16.

    `device`: auto, cpu or cuda. `kernels`: "auto" (the fastest that agrees with the reference), "reference"
    (dequantized weights, and activations rounded as the scheme says), or the name of a kernel. `trials_s`: seconds that
    trials of kernels may take which this machine has not seen yet. `compiled`: let torch compile a model for writing
    that has no short way on a GPU (`compiled_step`).
    Raises ModelNotFound, ModelDamaged, ModelUnsafe, ModelUnsupported.
    """
    loaded = _load(folder.resolve(), resolve_device(device), reporter, kernels, trials_s)
    if compiled and loaded.gpu_step is not None:
        reporter.log("The model writes by this program's own programs for GPUs, which need no compiling.")
    elif compiled:
        loaded.compiled_step = make_compiled_step(loaded.model, loaded.device, reporter)
    return loaded


@garbage_kept()
def _load(folder: Path, device: str, reporter: Reporter, kernels: str, trials_s: float) -> LoadedModel:
    require_safe(folder)
    keep_freed_memory()
    register_attention()
    config = _read_config(folder)
    if device == "cpu" and kernels != REFERENCE:
        build_with_words(reporter)
    with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as pool:
        if getattr(config, "quantization_config", None) is None:
            reading = pool.submit(load_tokenizer, folder)
            loaded = _load_original(folder, device)
        else:
            weights, model = read_weights(folder, Scratch()), empty_model(config)
            # Not sooner: a model is built in Python, for whose lock both would wait in turns; weights are read without.
            reading = pool.submit(load_tokenizer, folder)
            trials = Trials(torch.device(device), trials_s, until_quiet=partial(wait, [reading]))
            chooser = Chooser(torch.device(device), kernels, reporter.log, trials)
            loaded = LoadedModel(model, None, device, folder, fill(model, weights, chooser, reporter))
            trials.save()
            loaded.kernel_uses, loaded.trial_s = chooser.uses(), trials.seconds
        loaded.model.eval()
        _straighten_head_input(loaded.model)
        if kernels != REFERENCE:
            loaded.step = make_native_step(loaded.model) or make_llama_step(loaded.model)
            loaded.gpu_step = make_gpu_step(loaded.model)
        loaded.tokenizer = reading.result()
    trim_freed_memory()  # joined layers leave their parts behind, and the tokenizer its text
    loaded.end_tokens = end_tokens(loaded.model, loaded.tokenizer)
    return loaded


def _read_config(folder: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnsupported(
            f"The model in {folder} is of a kind that cannot be loaded.",
            why=str(error),
            hint="Check that the folder is a Hugging Face causal language model.",
        ) from error


def _load_original(folder: Path, device: str) -> LoadedModel:
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(folder),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.bfloat16,
            attn_implementation=ATTENTION,
        )
    except (ValueError, KeyError) as error:
        raise ModelUnsupported(f"The model in {folder} cannot be loaded.", why=str(error)) from error
    except (OSError, RuntimeError) as error:
        if is_out_of_memory(error):  # nothing is wrong with the model then
            raise
        raise ModelDamaged(
            f"The model in {folder} cannot be read.", why=str(error), hint="Download or copy it again."
        ) from error
    model = model.to(device)
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    return LoadedModel(model, None, device, folder, {"bf16": linears})


def resolve_device(device: str) -> str:
    """auto, cpu or cuda → cpu or cuda. Raises ModelUnsupported when there is no GPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelUnsupported(
            "There is no GPU that can be used.",
            why="CUDA is not available.",
            hint="Choose the CPU.",
            field="machine.device",
        )
    return device


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Everything that the generation config, the config or the tokenizer calls the end of a text or turn."""
    sources: list[Any] = [model.config.get_text_config(decoder=True), model.generation_config, tokenizer]
    tokens: set[int] = set()
    for source in sources:
        value = getattr(source, "eos_token_id", None)
        tokens.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return frozenset(tokens)


def _straighten_head_input(model: PreTrainedModel) -> None:
    """Give the head a row without the strides of the whole prompt: the CPU's bf16 product is 50 times slower on those.

    `hidden[:, -1:]` counts as contiguous, so `contiguous()` would not copy it.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(
            lambda module, inputs: (inputs[0].clone(),) if inputs[0].shape[-2] == 1 else None
        )
