"""What must not go wrong, seen from outside: the real command and real workers, and what is left when they fail.

Whatever fails, a person reads one error with what to do about it, no half model lies about, no process lives on, and
the history says what happened. Disks here are really full, memory really runs out, and killed processes are killed.
"""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantstudio.cli.main import run_command
from quantstudio.core import run_store
from quantstudio.core.disk import check_model, partial_of
from quantstudio.core.jobs import RunJob
from quantstudio.core.paths import starter_model
from quantstudio.core.recipe import MachineSection, MeasureSection, ModelSection, Recipe
from quantstudio.core.recipe_io import recipe_to_toml
from quantstudio.core.run_state import Status
from quantstudio.core.schemes import W8A16

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups, signals and limits of POSIX")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
PATIENCE_S = 60
ROOT = Path(__file__).parents[1]
MB = 1 << 20
SHARD = "model-00002-of-00002.safetensors"


@dataclass
class Failure:
    """How a command failed: what the person read, and where it was to write."""

    what: str
    advice: list[str]
    home: Path
    output: str

    @property
    def text(self):
        return " ".join([self.what, *self.advice])


@dataclass
class Started:
    process: subprocess.Popen
    home: Path

    def folder(self):
        return wait_for(lambda: next(iter(self.home.glob("*/run.json")), None)).parent


def wait_for(look):
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return found


@contextmanager
def started(home, *arguments, warm=None, limit=0):
    """A command at work in a session of its own; afterwards nothing of that session may live.

    `warm`: forked from these workers, which saves the imports; `limit`: bytes of address space that it may take then.
    """
    command = [str(argument) for argument in arguments]
    if warm:
        process = warm.run(command, limit)
    else:
        process = subprocess.Popen(
            [sys.executable, "-m", "quantstudio", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        yield Started(process, home)
    finally:
        process.kill()
        process.communicate()
        wait_for(lambda: gone(process.pid))


def gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return all(each.status() == psutil.STATUS_ZOMBIE for each in psutil.process_iter() if same_group(each, group))


def same_group(process, group):
    try:
        return os.getpgid(process.pid) == group
    except ProcessLookupError:
        return False


def failure_of(command):
    """Wait for a command that must fail, and look at all that it may have left."""
    output, _ = command.process.communicate(timeout=PATIENCE_S)
    assert command.process.returncode == 1, output
    assert gone(command.process.pid), "a process was left"
    assert "Traceback" not in output
    lines = output.splitlines()
    errors = [index for index, line in enumerate(lines) if line.startswith("Error: ")]
    assert len(errors) == 1, output
    advice = [line.strip() for line in lines[errors[0] + 1 :]]
    assert advice, output
    assert all(advice), output  # nothing comes behind the error
    return Failure(lines[errors[0]].removeprefix("Error: "), advice, command.home, output)


def fail(home, *arguments, **how):
    with started(home, *arguments, **how) as command:
        return failure_of(command)


def run_arguments(recipe, home):
    return ("run", recipe, "--runs-folder", home)


@pytest.fixture
def write_recipe(tmp_path):
    def write(model, measure=None):
        recipe = Recipe(
            model=ModelSection(id=str(model)),
            scheme=W8A16(),
            measure=measure or MeasureSection(enabled=False),
            machine=MachineSection(device="cpu", threads=1),
        )
        path = tmp_path / "recipe.toml"
        path.write_text(recipe_to_toml(recipe), encoding="utf-8")
        return path

    return write


@pytest.fixture
def assert_run_failed(capsys):
    """The only run is listed as failed for that reason, and holds no model nor a piece of one."""

    def check(failure, what=None):
        (header,) = run_store.list_runs(failure.home)
        assert header.status is Status.FAILED
        assert no_pieces(header.path)
        assert not (header.path / "model").exists()
        run_command(["runs", "--runs-folder", str(failure.home)])
        listed = capsys.readouterr().out
        assert "failed" in listed
        assert (failure.what if what is None else what) in listed

    return check


def no_pieces(folder):
    return not [path for path in folder.rglob("*") if "partial" in path.name]


def make_model(folder, hidden=64, inner=128, **config):
    """A Llama of one layer with the starter's tokenizer. Its weights are zero, so that even a large one is quick."""
    folder.mkdir()
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 8192,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(settings | config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(starter_model() / name, folder / name)
    shapes = {"model.embed_tokens.weight": (8192, hidden), "model.norm.weight": (hidden,)}
    block = "model.layers.0"
    shapes |= {f"{block}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    shapes |= {f"{block}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    shapes[f"{block}.mlp.down_proj.weight"] = (hidden, inner)
    shapes |= {f"{block}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # a hole, which takes no room and reads as zeros
    return folder


# Recipes and models that cannot be used.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[scheme]\nkind = 'w4a16'\ngroup_size = 0", r"scheme\.group_size cannot be used.*0"),
        ("[layers]\nhed = 'int8'", r"layers\.hed cannot be used.*no such field.*Did you mean layers\.head"),
        ("version = 99", "version 99; this program reads up to version 1.*Update QuantStudio"),
    ],
    ids=["group size 0", "unknown key", "newer version"],
)
def test_a_recipe_that_cannot_be_used(tmp_path, text, words):
    (tmp_path / "recipe.toml").write_text(text)
    failure = fail(tmp_path / "runs", *run_arguments(tmp_path / "recipe.toml", tmp_path / "runs"))
    assert re.search(words, failure.text)
    assert not failure.home.exists()


def test_a_model_that_is_not_there(tmp_path, write_recipe):
    failure = fail(tmp_path / "runs", *run_arguments(write_recipe(tmp_path / "nowhere"), tmp_path / "runs"))
    assert re.search(r"There is no folder .*nowhere\. Check the path", failure.text)
    assert not failure.home.exists()


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def without_a_shard(folder):
    (folder / "model.safetensors").rename(folder / SHARD.replace("2-of", "1-of"))
    index = {"weight_map": {"model.embed_tokens.weight": SHARD.replace("2-of", "1-of"), "model.norm.weight": SHARD}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def truncated(folder):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1000)


def configured(**settings):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def with_nan(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (emptied, r"is not a model folder.*no config\.json.*Pick the folder that holds"),
        (without_a_shard, rf"files are missing: {SHARD}.*Finish the download"),
        (truncated, r"model\.safetensors.*1,000 bytes.*(Download|copy)"),
        (configured(model_type="new-thing"), r"cannot be built.*new-thing.*known architecture"),
        (configured(quantization_config={"quant_method": "gptq", "bits": 4}), r"already quantized.*gptq.*original"),
        (with_nan, r"model\.layers\.0\.mlp\.up_proj\.weight.*NaN"),
    ],
    ids=["no model", "missing shard", "truncated", "unknown architecture", "quantized", "NaN"],
)
def test_a_model_that_cannot_be_used(tmp_path, write_recipe, assert_run_failed, warm_workers, damage, words):
    damage(model := make_model(tmp_path / "tiny"))
    failure = fail(tmp_path / "runs", *run_arguments(write_recipe(model), tmp_path / "runs"), warm=warm_workers)
    assert re.search(words, failure.text), failure.text
    assert_run_failed(failure)


# Disks.


@contextmanager
def small_disk(tmp_path, options):
    """A file system of its own, seen through the process that keeps it; it is gone with that process."""
    (place := tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o "$1" none "$2" && echo ready && read line'
    for way in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        try:
            keeper = subprocess.Popen(
                [*way, "sh", "-c", script, "sh", options, str(place)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError:
            pytest.skip("there is no unshare here, so that no disk can be made")
        try:
            if keeper.stdout.readline() == b"ready\n":
                yield Path(f"/proc/{keeper.pid}/root{place}")
                return
        finally:
            _, trouble = keeper.communicate()  # it goes when its stdin is closed
    pytest.skip(f"no disk may be made here: {trouble.decode().strip()}")


@LINUX
def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, write_recipe, assert_run_failed):
    with small_disk(tmp_path, "size=16m") as disk:
        failure = fail(disk / "runs", *run_arguments(write_recipe("starter"), disk / "runs"))
        assert re.search(r"needs \d+\.\d MB on the disk of .*; \d+\.\d MB are free\..*Free some space", failure.text)
        assert "Quantizing" not in failure.output
        assert_run_failed(failure)


@LINUX
@pytest.mark.parametrize("left", [MB, 0], ids=["no room for the model", "no room for one byte"])
def test_a_disk_that_fills_while_quantizing(tmp_path, write_recipe, assert_run_failed, warm_workers, left):
    recipe = write_recipe("starter")
    with small_disk(tmp_path, "size=96m") as disk:
        with started(disk / "runs", *run_arguments(recipe, disk / "runs"), warm=warm_workers) as command:
            wait_for(partial_of(command.folder() / "model").exists)  # the room has been checked by now
            with held_up(command.process.pid):
                fill(disk, left)
            failure = failure_of(command)
        assert failure.what == "The disk is full."
        assert "Free some space" in failure.advice[-1]
        # With no byte left even the reason cannot be written down; the run is known as failed all the same.
        assert_run_failed(failure, what=failure.what if left else "")


@contextmanager
def held_up(pid):
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


def fill(disk, left):
    """Another program's file takes all but `left` bytes."""
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        while (room := shutil.disk_usage(disk).free - left) > 0:
            ballast.write(bytes(min(room, 16 * MB)))


@LINUX
def test_a_disk_that_is_read_only(tmp_path, write_recipe):
    recipe = write_recipe("starter")
    with small_disk(tmp_path, "ro") as disk:
        failure = fail(disk / "runs", *run_arguments(recipe, disk / "runs"))
    assert re.search(r"cannot be written\. The disk is read-only\. Choose an output folder", failure.text)


def test_a_place_where_no_folder_can_be(tmp_path, write_recipe):
    (tmp_path / "file").write_text("not a folder")
    failure = fail(tmp_path / "file", *run_arguments(write_recipe("starter"), tmp_path / "file" / "runs"))
    assert re.search(r"file/runs cannot be used\. Not a directory\. Choose another output folder", failure.text)


@pytest.mark.parametrize("arguments", [("quantize", "starter", "--save-recipe"), ("run",)], ids=lambda each: each[0])
def test_a_file_that_cannot_be_written_or_read(tmp_path, arguments):
    (tmp_path / "file").write_text("not a folder")
    failure = fail(tmp_path, *arguments, tmp_path / "file" / "recipe.toml")
    assert re.search(r"file/recipe\.toml cannot be (used|read).*Not a directory", failure.text)


# Memory.


@LINUX
def test_memory_that_runs_out_while_quantizing(tmp_path, write_recipe, assert_run_failed, warm_workers):
    model = make_model(tmp_path / "large", hidden=4096, inner=16384)
    command = run_arguments(write_recipe(model), tmp_path / "runs")
    with started(tmp_path / "runs", *command, warm=warm_workers) as command:
        folder = partial_of(command.folder() / "model")
        wait_for((folder / "model.safetensors").exists)  # all is imported, the first block is on its way
        limit_memory(command.process.pid, extra=10 * MB)
        failure = failure_of(command)
    assert failure.what == "This machine's memory is not enough for this."
    assert "take a smaller model" in failure.advice[-1]
    assert_run_failed(failure)


@LINUX
def test_memory_that_runs_out_while_measuring(tmp_path, warm_workers):
    """Loading maps the weights twice: the second time there is no room, and it is not the model that is to blame."""
    model = make_model(tmp_path / "large", hidden=4096, inner=16384)
    weights = (model / "model.safetensors").stat().st_size
    command = ("measure", model, "--machine.threads", 1, "--machine.device", "cpu")
    failure = fail(tmp_path, *command, warm=warm_workers, limit=warm_workers.memory + weights * 3 // 2)
    assert failure.what == "This machine's memory is not enough for this."
    assert "take a smaller model" in failure.advice[-1]


@LINUX
def test_a_measuring_process_that_the_system_ends_for_its_memory(tmp_path, write_recipe, warm_workers):
    """As the kernel does it. What was quantized before is whole, and the person is told where it is."""
    recipe = write_recipe(make_model(tmp_path / "tiny"), MeasureSection())
    with started(tmp_path / "runs", *run_arguments(recipe, tmp_path / "runs"), warm=warm_workers) as command:
        wait_for(lambda: measuring_process(command.process.pid)).send_signal(signal.SIGKILL)
        failure = failure_of(command)
        folder = command.folder()
    assert "most likely because memory ran out" in failure.what
    assert f"saved in {folder / 'model'}" in failure.text
    check_model(folder / "model")
    assert no_pieces(folder)
    header = run_store.read_header(folder)
    assert (header.status, header.error_kind) == (Status.FAILED, "out_of_memory")


def measuring_process(pid):
    for child in psutil.Process(pid).children():
        with suppress(psutil.Error):  # one that has just ended
            if "quantstudio.engine.measure" in child.cmdline():
                return child
    return None


def limit_memory(pid, *, extra):
    import resource  # not on Windows

    limit = psutil.Process(pid).memory_info().vms + extra
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


# Workers that are killed.


class WarmWorkers:
    """See `warm_workers.py`. `memory`: bytes of address space that the libraries take before there is any model."""

    def __init__(self, process, home):
        self._process, self._home = process, home
        assert process.stdout.readline() == "ready\n"
        self.memory = psutil.Process(process.pid).memory_info().vms

    def run(self, arguments, limit):
        """A command at work."""
        output = self._home / f"{time.monotonic_ns()}.output"
        return WarmCommand(self._start(output=str(output), arguments=arguments, limit=limit), output, self._ended)

    def _start(self, **what):
        self._process.stdin.write(f"{json.dumps(what)}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def _ended(self):
        return int(self._process.stdout.readline())

    def work(self, recipe, moment=None):
        """Carry out the recipe and kill the worker after `moment` seconds; its run folder and how long it worked."""
        folder = run_store.create_run(self._home, recipe)
        job = RunJob(recipe=recipe, run_folder=str(folder)).model_dump(mode="json")
        worker, began = self._start(output=str(folder.with_suffix(".messages")), job=job), time.monotonic()
        if moment is not None:
            time.sleep(moment)
            with suppress(psutil.NoSuchProcess):  # it was quicker than the first one
                psutil.Process(worker).kill()
        self._ended()
        seconds = time.monotonic() - began
        wait_for(lambda: gone(worker))
        return folder, seconds


class WarmCommand:
    """Stands where a `Popen` does."""

    def __init__(self, pid, output, ended):
        self.pid, self.returncode = pid, None
        self._output, self._ended = output, ended

    def communicate(self, timeout=None):
        if self.returncode is None:
            wait_for(lambda: gone(self.pid))
            self.returncode = self._ended()
        return self._output.read_text(), None

    def kill(self):
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def warm_workers(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    script = Path(__file__).with_name("warm_workers.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    paths = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    process = subprocess.Popen(
        [sys.executable, script], env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, **pipes
    )
    yield WarmWorkers(process, home)
    process.communicate()  # it ends when its stdin is closed


def test_a_worker_killed_at_ten_moments_never_leaves_a_half_model(warm_workers, tmp_path):
    recipe = Recipe(
        model=ModelSection(id=str(make_model(tmp_path / "tiny"))),
        scheme=W8A16(),
        measure=MeasureSection(enabled=False),
        machine=MachineSection(device="cpu", threads=1),
    )
    folder, whole = warm_workers.work(recipe)
    assert run_store.read_header(folder).status is Status.DONE
    check_model(folder / "model")
    ends = []
    for tenth in range(10):
        folder, _ = warm_workers.work(recipe, moment := whole * (tenth + random.random()) / 10)  # noqa: S311
        header = run_store.read_header(folder)
        ends.append((header.status.value, (folder / "model").exists()))
        if (folder / "model").exists():
            check_model(folder / "model")
        else:
            assert header.status is not Status.DONE, f"killed after {moment} of {whole} s"
        run_store.clean_up(folder.parent)
        assert no_pieces(folder), f"killed after {moment} of {whole} s"
        assert run_store.read_header(folder).status in (Status.WAITING, Status.FAILED, Status.DONE)
    assert ("failed", False) in ends, f"none was killed at work: {ends}"
