"""This program's own C++ is built once for a processor, whole or not at all, and its absence is told."""

import subprocess
import sys
import textwrap

import pytest

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.core.recipe import MachineSection, Recipe
from quantstudio.core.schemes import W4A16
from quantstudio.engine.foresight import try_kernels
from quantstudio.engine.native import build
from quantstudio.engine.reporter import Reporter

needs_native = pytest.mark.skipif(build.native().library is None, reason=build.native().why_not)


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """`anew()`: as a process that has just started, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return build.native.__wrapped__


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """`compiler(lines)`: this shell script is the only g++ there is."""

    def put(lines):
        folder = tmp_path / "bin"
        folder.mkdir()
        program = folder / "g++"
        program.write_text("#!/bin/sh\n" + lines)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return put


def told(monkeypatch, found):
    sent = []
    monkeypatch.setattr(build, "native", lambda: found)
    build.build_with_words(Reporter(sent.append))
    return [message.text for message in sent]


@needs_native
def test_it_is_built_once_for_this_person_alone_and_without_a_second_openmp(anew, tmp_path):
    assert anew().library is not None
    (kept,) = (tmp_path / "cache" / "quantstudio" / "native").iterdir()
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    first = kept.stat().st_mtime_ns
    assert anew().library is not None
    assert kept.stat().st_mtime_ns == first
    # Two OpenMPs would have two teams of threads, which are in each other's way.
    needed = subprocess.run(["ldd", str(kept)], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed
    assert "omp" not in needed


@needs_native
def test_what_the_compiler_says_is_told(anew, compiler, monkeypatch):
    compiler("echo 'token.cpp:3: error: no such header' >&2; exit 1\n")
    found = anew()
    assert found.library is None
    assert "no such header" in found.why_not
    assert not list(build._place().parent.iterdir()), "nothing half-built stays"
    first, second = told(monkeypatch, found)
    assert "being built" in first
    assert "no such header" in second


@needs_native
def test_whoever_tries_kernels_first_says_that_they_are_built(tiny_folder, monkeypatch, tmp_path):
    """Not only who loads a model: measuring one begins with it, so that the seconds are not the model's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    info, sent = read_model_info(tiny_folder), []
    plan = make_plan(info, Recipe(scheme=W4A16(group_size=32)))
    try_kernels(plan, MachineSection(device="cpu"), Reporter(sent.append), 0.0)
    assert "being built" in sent[0].text


@needs_native
def test_nothing_is_run_from_where_others_may_write(anew):
    folder = build._place().parent
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    found = anew()
    assert found.library is None
    assert str(folder) in found.why_not
    assert not list(folder.iterdir())


@needs_native
def test_a_library_of_another_kind_is_no_reason_to_fail(anew):
    place = build._place()
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not a library")
    assert anew().library is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("sys.platform", "win32", "Linux"),
        ("platform.machine", lambda: "aarch64", "x86-64"),
        ("shutil.which", lambda name: None, "compiler"),
    ],
)
def test_where_it_cannot_be_built_that_is_said(anew, monkeypatch, name, value, words):
    monkeypatch.setattr(f"quantstudio.engine.native.build.{name}", value)
    found = anew()
    assert found.library is None
    assert words in found.why_not
    assert told(monkeypatch, found)[-1].endswith(found.why_not)


OLDER = textwrap.dedent(
    """
    import sys
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config
    from quantstudio.core.schemes import ActivationKind, WeightSpec
    from quantstudio.engine.kernels.cpu_native import NativeInt4, NativeInt8
    from quantstudio.engine.kernels.registry import relative_error
    from quantstudio.engine.kv_cache import make_cache
    from quantstudio.engine.native import build
    from quantstudio.engine.native_step import make_native_step

    build._PROCESSOR = tuple(sys.argv[1:])
    assert build.native().require().quantstudio_int4_rows() == 32
    for activations in ActivationKind:
        for spec in (WeightSpec(4, 64, False, activations), WeightSpec(8, None, True, activations)):
            kernel = NativeInt4 if spec.bits == 4 else NativeInt8
            assert kernel.supports(spec, 72, 192, torch.device("cpu"))
            assert relative_error(kernel, spec, 192, torch.device("cpu")) < 0.005
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=99, hidden_size=72, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    tokens, step, cache = torch.randint(99, (1, 30)), make_native_step(model), make_cache(config, 40)
    with torch.inference_mode():
        found = torch.stack([step(token, cache) for token in tokens[0].tolist()]).float()
        expected = model(tokens).logits[0].float()
    assert (found - expected).norm() / expected.norm() < 0.01
    """
)


@needs_native
def test_older_processors_get_the_same_numbers(monkeypatch, tmp_path):
    """As on AVX2 alone. torch's operators are told to be those of such a processor: its packing of int4 is another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    done = subprocess.run([sys.executable, "-c", OLDER, "-mavx2", "-mfma"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
