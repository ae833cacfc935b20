"""Peak memory of the quantize job stays under output + two layers + 500 MB, measured in a process of its own.

The suite uses a model of 400 MB and a second bound, which its weights would break if they were ever held;
`-m benchmark` generates one of 2 GB.
"""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import LlamaConfig

from quantstudio.engine.safetensors_io import CheckpointWriter, NewTensor

MB = 1_000_000


def random_llama(folder, hidden, inner, layers, vocabulary):
    """A Llama checkpoint of random bf16 weights, written tensor by tensor."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{prefix}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    noise = torch.randn(1 << 20).to(torch.bfloat16) * 0.02
    tensors = [NewTensor(name, "BF16", shape) for name, shape in shapes.items()]
    with CheckpointWriter(folder, tensors, 1000 * MB) as writer:
        for tensor in tensors:
            rows = max(1, noise.numel() // tensor.shape[-1])
            for row in range(0, tensor.rows, rows):
                count = min(rows, tensor.rows - row) * tensor.shape[-1]
                writer.write(tensor.name, noise[:count].view(-1, tensor.shape[-1]), row)
        writer.finish()
    layer_bytes = sum(tensor.nbytes for tensor in tensors if tensor.name.startswith("model.layers.0."))
    return sum(tensor.nbytes for tensor in tensors), layer_bytes


def quantize_alone(source, out):
    """Quantize in a fresh process: (bytes written, peak before the model was touched, peak, seconds)."""
    out.mkdir()
    program = textwrap.dedent(
        """
        import json, sys, pathlib, torch
        from quantstudio.core.model_info import read_model_info
        from quantstudio.core.plan import make_plan
        from quantstudio.core.recipe import Recipe
        from quantstudio.engine.measure.memory import peak_rss
        from quantstudio.engine.quantize import quantize_model
        from quantstudio.engine.architecture import inspect_architecture
        from quantstudio.engine.reporter import silent
        torch.set_num_threads(1)
        info, recipe = read_model_info(pathlib.Path(sys.argv[1])), Recipe()
        inspect_architecture(info)
        libraries = peak_rss()
        done = quantize_model(info, make_plan(info, recipe), recipe, pathlib.Path(sys.argv[2]), silent())
        print(json.dumps([done.sizes.total, libraries, peak_rss(), done.seconds]))
        """
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, source, out], capture_output=True, text=True, check=True, timeout=600
    )
    return json.loads(answer.stdout)


def test_weights_are_never_held(tmp_path):
    total, layer = random_llama(tmp_path / "model", hidden=1024, inner=4096, layers=9, vocabulary=24000)
    written, libraries, peak, _ = quantize_alone(tmp_path / "model", tmp_path / "out")
    assert total > 390 * MB
    assert peak < written + 2 * layer + 500 * MB
    # 160 to 200 MB, by when each thread frees its blocks; held, the weights alone would be 400 MB.
    assert peak - libraries < 0.7 * total


@pytest.mark.benchmark
def test_two_gigabytes(tmp_path):
    total, layer = random_llama(tmp_path / "model", hidden=2048, inner=8192, layers=12, vocabulary=64000)
    written, libraries, peak, seconds = quantize_alone(tmp_path / "model", tmp_path / "out")
    print(
        f"\n{total / MB:,.0f} MB → {written / MB:,.0f} MB in {seconds:.0f} s; peak {peak / MB:,.0f} MB, "
        f"of which libraries {libraries / MB:,.0f} MB; allowed {(written + 2 * layer + 500 * MB) / MB:,.0f} MB"
    )
    assert total > 2000 * MB
    assert peak < written + 2 * layer + 500 * MB


@pytest.mark.benchmark
def test_calibrating(tmp_path):
    """Under six times the largest block, the activations (of the original and the quantized model) and 1 GB."""
    total, block = random_llama(tmp_path / "model", hidden=2048, inner=5632, layers=6, vocabulary=48000)
    program = textwrap.dedent(
        """
        import sys, pathlib, torch
        from quantstudio.core.model_info import read_model_info
        from quantstudio.core.plan import make_plan
        from quantstudio.core.recipe import MachineSection, Recipe
        from quantstudio.core.recipe_method import Gptq
        from quantstudio.engine.calibrate import choose
        from quantstudio.engine.measure.memory import peak_rss
        from quantstudio.engine.reporter import silent
        info = read_model_info(pathlib.Path(sys.argv[1]))
        recipe = Recipe(method=Gptq(), machine=MachineSection(device="cpu"))
        ids = torch.randint(0, 48000, (8, 512))
        choose(info, make_plan(info, recipe), recipe, pathlib.Path(sys.argv[2]), ids, silent())
        print(peak_rss())
        """
    )
    arguments = [sys.executable, "-c", program, tmp_path / "model", tmp_path / "work"]
    peak = int(subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=3600).stdout)
    allowed = 6 * block + 2 * 8 * 512 * 2048 * 2 + 1000 * MB
    print(f"\nmodel {total / MB:,.0f} MB, block {block / MB:,.0f} MB: peak {peak / MB:,.0f} of {allowed / MB:,.0f} MB")
    assert peak < allowed
