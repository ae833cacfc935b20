"""The promise of the generation engine: the starter model writes, quantized, what transformers' `generate` writes.

`generate` runs the dequantized weights as plain transformers loads them; the engine runs its own kernels, cache and
attention. Both are bf16, in other orders of summation, so their scores differ by up to 0.1 of the scores' standard
deviation (0.2 where activations are rounded to int8, because a rounding that falls the other way moves an input by a
whole step). Where the two best tokens are closer than that, either may win and the texts part. So the engine is led
along `generate`'s text, and at each of 200 tokens must pick the same one or one that `generate` scored as good within
that difference; and such ties must be few.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantstudio.core.model_info import read_model_info
from quantstudio.core.paths import resources
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import Recipe
from quantstudio.core.schemes import W2A16, W3A16, W4A8, W4A16, W8A8, W8A16
from quantstudio.engine.generate import Generator
from quantstudio.engine.load import load_model
from quantstudio.engine.load_tokenizer import load_tokenizer
from quantstudio.engine.onnx.model import load_onnx
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import silent

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
TOKENS = 200
PROMPT = "It was a dark night, and the captain of the whaler stood"


@dataclass(frozen=True)
class Written:
    """The quantized starter model, and what `generate` writes with it after the prompt, by which scores."""

    folder: Path
    prompt: list[int]
    theirs: list[int]
    scores: list[torch.Tensor]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`written(scheme)`: made once for both engines."""

    @cache
    def make(scheme):
        folder = tmp_path_factory.mktemp(scheme.kind)
        starter, recipe = resources() / "starter", Recipe(scheme=scheme)
        info = read_model_info(starter)
        quantize_model(info, make_plan(info, recipe), recipe, folder, silent())
        prompt = load_tokenizer(folder)(PROMPT)["input_ids"]
        return Written(folder, prompt, *generate(folder, prompt))

    return make


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scheme", [W8A16(), W8A8(), W4A16(), W4A8(), W3A16(), W2A16()], ids=lambda each: each.kind)
def test_the_same_tokens_as_generate(scheme, device, written):
    loaded = load_model(written(scheme).folder, device, silent())
    assert_same_tokens(Generator(loaded), written(scheme), 0.2 if scheme.kind.endswith("a8") else 0.1)


@pytest.mark.parametrize("scheme", [W4A16(), W8A8()], ids=lambda each: each.kind)
def test_the_same_tokens_on_onnx_runtime(scheme, written):
    """It rounds activations to int8 under every scheme, a scale for each block of a row."""
    other = load_onnx(written(scheme).folder, silent())
    assert_same_tokens(Generator(other), written(scheme), 0.2)


def assert_same_tokens(generator, written, allowed):
    logits, ties = generator.prefill(written.prompt), 0
    for token, expected in zip(written.theirs, written.scores, strict=True):
        picked = int(logits.argmax())
        ties += picked != token
        assert expected[token] - expected[picked] <= allowed * expected.std()
        logits = generator.decode_step(token)
    assert ties <= TOKENS * allowed / 4
    assert len(set(written.theirs)) > 10


def generate(folder, prompt):
    """transformers' own tokens, and the scores that it picked them by."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, trust_remote_code=False, use_safetensors=True
    ).eval()
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            output_scores=True,
            return_dict_in_generate=True,
        )
    return out.sequences[0, len(prompt) :].tolist(), [score[0].float() for score in out.scores]
