"""Settings come back as saved, and a broken file never stops the program."""

import json
import os

import pytest

from quantstudio.core.errors import DiskProblem
from quantstudio.core.paths import runs_home
from quantstudio.core.settings import Settings, load_settings, save_settings


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "settings.json"


def test_settings_come_back_as_saved(path):
    changed = Settings(model_folders=("/models/a", "/models/b"), theme="dark", threads=3, runs_folder="/big/disk")
    save_settings(changed, path)
    assert load_settings(path) == changed
    assert list(path.parent.iterdir()) == [path]


def test_without_a_file_the_defaults_hold(path, monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTSTUDIO_HOME", str(tmp_path))
    assert load_settings(path) == Settings()
    assert Settings().runs_path == runs_home() == tmp_path / "runs"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"a":' * 3000, b" " * (2 << 20), b'{"threads": 1' + b"1" * 5000]
)
def test_a_broken_file_is_put_aside_and_said(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    settings = load_settings(path)
    assert settings.model_copy(update={"notice": ""}) == Settings()
    assert "settings.json.bad" in settings.notice
    assert path.with_name("settings.json.bad").read_bytes() == content
    assert not path.exists()


def test_one_bad_value_does_not_cost_the_others(path):
    path.parent.mkdir()
    path.write_text(json.dumps({"theme": "pink", "threads": 2, "from_the_future": 1}), encoding="utf-8")
    settings = load_settings(path)
    assert (settings.theme, settings.threads) == ("system", 2)
    assert settings.notice == "Some settings could not be used and were reset: Theme."
    save_settings(settings, path)
    assert "notice" not in json.loads(path.read_text(encoding="utf-8"))
    assert load_settings(path).notice == ""


def test_a_folder_that_cannot_be_written_is_said_in_words(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(DiskProblem, match="cannot be saved"):
        save_settings(Settings(), tmp_path / "file" / "settings.json")


@pytest.mark.skipif(os.name == "nt", reason="a folder in the file's place reads differently there")
def test_a_folder_in_the_files_place_gives_defaults_and_says_so(path):
    path.mkdir(parents=True)
    assert "cannot be read" in load_settings(path).notice


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_words(name):
    field = Settings.model_fields[name]
    assert field.title
    assert field.description
    assert field.description.endswith(".")
