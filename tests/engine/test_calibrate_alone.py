"""Calibration in a process of its own, killed without warning."""

import hashlib
import subprocess
import sys
import textwrap
import time

import torch

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import MachineSection, Recipe
from quantstudio.core.recipe_method import Gptq
from quantstudio.core.schemes import W3A16
from quantstudio.engine.calibrate import choose
from quantstudio.engine.reporter import silent

RECIPE = Recipe(scheme=W3A16(group_size=32), method=Gptq(), machine=MachineSection(device="cpu", threads=1))
PROGRAM = textwrap.dedent(
    """
    import sys, pathlib, torch
    from quantstudio.core.model_info import read_model_info
    from quantstudio.core.plan import make_plan
    from quantstudio.core.recipe import Recipe
    from quantstudio.engine.calibrate import choose
    from quantstudio.engine.reporter import silent
    torch.set_num_threads(1)
    model, work, recipe = sys.argv[1:]
    info, recipe = read_model_info(pathlib.Path(model)), Recipe.model_validate_json(recipe)
    ids = torch.arange(24 * 64).view(-1, 64) * 7 % 501
    choose(info, make_plan(info, recipe), recipe, pathlib.Path(work), ids, silent())
    """
)


def bytes_of(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.safetensors")}


def test_a_killed_process_is_carried_on_to_the_same_bytes(tiny_folder, tmp_path):
    """Killed as soon as a block is finished; the next one is begun or half done."""
    info = read_model_info(tiny_folder)
    ids = torch.arange(24 * 64).view(-1, 64) * 7 % 501
    peace, killed = tmp_path / "peace", tmp_path / "killed"
    choose(info, make_plan(info, RECIPE), RECIPE, peace, ids, silent())
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, tiny_folder, killed, RECIPE.model_dump_json()])
    while not bytes_of(killed) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    before = bytes_of(killed)
    choose(info, make_plan(info, RECIPE), RECIPE, killed, ids, silent())
    assert list(before) == ["block.0.safetensors"]
    assert bytes_of(killed) == bytes_of(peace)
    assert before.items() <= bytes_of(peace).items()
