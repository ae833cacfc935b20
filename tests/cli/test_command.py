"""The command as a process: quick answers, clear failures."""

import os
import subprocess
import sys
import time

import pytest

from quantstudio import __version__
from quantstudio.cli.screen import window_problem
from quantstudio.core import run_store


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "quantstudio", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def test_version_is_quick_and_loads_nothing_heavy():
    probe = (
        "import sys; from quantstudio.__main__ import main; main(['--version']);"
        "heavy = {'torch', 'PySide6', 'pydantic', 'transformers', 'matplotlib'} & set(sys.modules);"
        "sys.exit(bool(heavy))"
    )
    times = []
    for _ in range(3):  # the best of three: other work on the machine must not decide
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
        times.append(time.monotonic() - started)
        assert done.stdout == f"quantstudio {__version__}\n"
        assert done.returncode == 0, "a heavy library was imported"
    assert min(times) < 0.3


def test_validate_names_the_field_and_the_fix(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[layers]\nhed = 'int8'\n")
    done = command("validate", str(recipe))
    assert done.returncode == 1
    assert "Did you mean layers.head?" in done.stderr
    assert "Traceback" not in done.stderr


def test_quantize_can_save_its_recipe_instead(tmp_path):
    path = tmp_path / "recipe.toml"
    done = command("quantize", "starter", "--scheme.kind", "w8a8", "--save-recipe", str(path))
    assert done.returncode == 0
    assert 'kind = "w8a8"' in path.read_text()


def test_paths_that_do_not_exist_are_said_to_be_so_and_leave_nothing_behind(tmp_path):
    recipe = command("quantize", "starter", "--save-recipe", str(tmp_path / "none" / "recipe.toml"))
    model = command("quantize", "startr", QUANTSTUDIO_HOME=str(tmp_path))
    chat = command("chat", "startr", QUANTSTUDIO_HOME=str(tmp_path))
    for done in (recipe, model, chat):
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
    assert "recipe.toml cannot be read or written" in recipe.stderr
    assert "'starter'" in model.stderr
    assert "You:" not in chat.stdout
    assert not list(tmp_path.glob("runs/*"))


def test_runs_without_any_says_what_to_do(tmp_path):
    done = command("runs", QUANTSTUDIO_HOME=str(tmp_path))
    assert done.returncode == 0
    assert "quantstudio demo" in done.stdout


def test_an_unknown_run_is_named(tmp_path):
    done = command("runs", "nonesuch", QUANTSTUDIO_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "nonesuch" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="screens are found by variables on Linux only")
def test_without_a_screen_the_window_says_so(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert "no screen" in (window_problem(probe="quick") or "")


@pytest.mark.skipif(sys.platform != "linux", reason="screens are found by variables on Linux only")
def test_a_screen_that_cannot_be_reached_is_found_out_without_dying(monkeypatch):
    monkeypatch.delenv("QT_QPA_PLATFORM", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":987")
    assert "cannot open a window" in (window_problem(probe="full") or "")


def test_offscreen_qt_counts_as_a_screen(monkeypatch):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    assert window_problem(probe="full") is None


def test_resuming_a_run_that_had_finished_says_so_and_closes_it(tmp_path, make_run):
    """Killed when the model had its name and only the header was still to be written."""
    run = make_run(tmp_path)
    path = tmp_path / run / run_store.HEADER
    path.write_text(path.read_text(encoding="utf-8").replace('"done"', '"running"'), encoding="utf-8")
    assert '"running"' in path.read_text(encoding="utf-8")
    done = command("resume", run, "--runs-folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "has finished" in done.stderr
    assert "Perplexity" in done.stdout
    assert '"done"' in path.read_text(encoding="utf-8")
