"""The machine as it is, told without loading a library and without naming anybody."""

import platform
import subprocess
import sys

import psutil

from quantstudio.core.recipe import MachineSection
from quantstudio.engine.measure.environment import read_environment, thread_count, usable_cores


def test_the_environment_tells_what_numbers_depend_on(tmp_path):
    found = read_environment(tmp_path)
    assert found.memory == psutil.virtual_memory().total
    assert 1 <= found.cores <= psutil.cpu_count()
    assert found.cpu
    assert found.versions["python"] == platform.python_version()
    assert {"torch", "transformers", "compressed-tensors", "quantstudio"} <= set(found.versions)
    assert platform.node() not in found.model_dump_json()


def test_no_heavy_library_is_loaded_to_learn_its_version(tmp_path):
    code = (
        "import sys; from pathlib import Path; from quantstudio.engine.measure.environment import read_environment\n"
        "read_environment(Path(sys.argv[1])); print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "set()"


def test_threads_are_those_of_the_recipe_or_all_physical_cores():
    assert thread_count(MachineSection(threads=3)) == 3
    assert thread_count(MachineSection()) == usable_cores() >= 1
