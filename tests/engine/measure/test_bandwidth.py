"""What a token reads, counted on models whose parameters are known."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import Recipe
from quantstudio.core.schemes import W8A16
from quantstudio.engine.load import load_model
from quantstudio.engine.measure.bandwidth import bytes_per_token, memory_bandwidth
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import silent

SIZE = {"vocab_size": 320, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}


def model_of(kind=LlamaConfig, **changes):
    return AutoModelForCausalLM.from_config(kind(**SIZE, num_attention_heads=4, **changes), dtype=torch.bfloat16)


@pytest.mark.parametrize("tied", [True, False])
def test_a_row_of_the_embedding_is_not_the_table(tied):
    model = model_of(tie_word_embeddings=tied)
    read = sum(parameter.nbytes for parameter in model.parameters())
    if not tied:
        read -= 320 * 128 * 2
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert bytes_per_token(model) == read + buffers


def test_joined_low_bit_layers_count_once(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    model_of(tie_word_embeddings=True).save_pretrained(source)
    out.mkdir()
    info, recipe = read_model_info(source), Recipe(scheme=W8A16())
    quantize_model(info, make_plan(info, recipe), recipe, out, silent())
    weights = 320 * 128 + 2 * (4 * 128 * 128 + 3 * 128 * 256)
    read = bytes_per_token(load_model(out, "cpu", silent()).model)
    assert weights < read < 1.1 * weights


def test_which_experts_a_token_reads_is_not_known():
    assert bytes_per_token(model_of(MixtralConfig, num_local_experts=2)) == 0


def test_memory_has_a_speed():
    assert memory_bandwidth(torch.device("cpu")) > 0
