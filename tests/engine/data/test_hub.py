"""Datasets of a fake Hub, streamed by the real library in its own process."""

import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from quantstudio.core.errors import (
    AccessNeeded,
    Cancelled,
    DataUnusable,
    HubRefused,
    HubUnreachable,
    Offline,
    PackageMissing,
)
from quantstudio.core.recipe_data import HubData
from quantstudio.engine.data import hub as hub_source
from quantstudio.engine.data.document import Budget
from quantstudio.engine.data.hub import open_hub
from quantstudio.engine.data.prepare import prepare_data
from quantstudio.engine.reporter import silent

pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

_SPEC = importlib.util.spec_from_file_location("fakehub_data", Path(__file__).parents[2] / "fakehub.py")
fakehub = importlib.util.module_from_spec(_SPEC)
sys.modules["fakehub_data"] = fakehub
_SPEC.loader.exec_module(fakehub)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running Hub, and the environment of a job, in which the libraries' own switch is always off."""
    for name in os.environ:
        if name.lower().endswith("_proxy") or name in ("HF_TOKEN", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name)
    server = fakehub.FakeHub(tmp_path / "hub").start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("QUANTSTUDIO_OFFLINE", "0")
    yield server
    server.stop()


@pytest.fixture
def add(hub):
    """Put a dataset on the Hub: files by name."""

    def make(name, card="", **files):
        folder = hub.root / "datasets" / name
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(f"---\n{card}\n---\n# {name}\n", encoding="utf-8")
        for file, content in files.items():
            path = folder / file.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return folder

    return make


def read(name, **fields):
    warnings = []
    limit = fields.pop("limit", 1 << 24)
    source = open_hub(HubData(dataset=name, **fields), Budget(limit), silent(), warnings.append)
    return source, list(source.documents), warnings


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_parquet_dataset_with_its_licence_and_commit(add, hub, tmp_path, monkeypatch, section, tokenizer, prose):
    folder = add("ada/tales", "license: cc-by-4.0")
    (folder / "data").mkdir()
    table = pa.table({"id": range(80), "story": [prose(number, 2) for number in range(80)]})
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    shadow = tmp_path / "here" / "ada" / "tales"
    shadow.mkdir(parents=True)
    (shadow / "train.txt").write_text("A folder that is called like the dataset.")
    monkeypatch.chdir(tmp_path / "here")
    wanted = section(source=HubData(dataset="ada/tales"))
    data = prepare_data(wanted, tokenizer, 0, silent(), tmp_path / "cache")
    assert data.summary.source == f"ada/tales at commit {hub.commit('datasets/ada/tales')[:12]}"
    assert data.summary.licence == "cc-by-4.0"
    assert data.summary.documents == 80
    before = len(hub.seen)
    assert prepare_data(wanted, tokenizer, 0, silent(), tmp_path / "cache").summary == data.summary
    assert len(hub.seen) == before


def test_only_what_is_used_is_read_and_columns_are_named(add):
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    add("ada/chat", "license: mit", train_dot_jsonl=lines(*({"messages": talk, "n": n} for n in range(500))))
    source, documents, warnings = read("ada/chat", limit=50)
    assert source.licence == "mit"
    assert len(documents) == 8  # 6 bytes each
    assert [message.content for message in documents[0].messages] == ["Who?", "I."]
    assert warnings == [f"Only the first 50 B of {source.name} are read."]


PROGRAM = b"import pathlib, os\npathlib.Path(os.environ['HF_HOME'], 'executed').write_text('x')\n"


def test_what_cannot_be_read_is_said_and_nothing_of_it_is_run(add, hub, tmp_path):
    """One process for each case; two at a time."""
    secret = tmp_path / "secret.txt"
    secret.write_text("A secret of this machine.\n" * 50)
    add("ada/program", program_dot_py=PROGRAM)
    add("ada/images", train__a_dot_png=b"png", train__b_dot_png=b"png")
    files = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "
    add("ada/thief", files + str(secret), train_dot_txt=b"text\n")
    add("ada/split", train_dot_jsonl=lines({"text": "x"}))
    add("ada/gated", train_dot_jsonl=lines({"text": "x"}))
    hub.gated.add("datasets/ada/gated")
    cases = {
        "ada/program": (DataUnusable, {}),
        "ada/images": (DataUnusable, {}),
        "ada/thief": (DataUnusable, {}),
        "ada/split": (DataUnusable, {"split": "test"}),
        "ada/gated": (AccessNeeded, {}),
    }
    said, places = {}, threading.Semaphore(2)

    def attempt(name, fields):
        with places:
            try:
                said[name] = read(name, **fields)
            except Exception as error:
                said[name] = error

    threads = [threading.Thread(target=attempt, args=(name, fields)) for name, (_, fields) in cases.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, (kind, _) in cases.items():
        assert type(said[name]) is kind, (name, said[name])
        assert said[name].hint
        assert said[name].field.startswith("data.source.")
    assert said["ada/split"].field == "data.source.split"
    assert "outside the dataset" in said["ada/thief"].why
    assert "not a dataset of text" in said["ada/images"].what
    assert not (tmp_path / "hf" / "executed").exists()


def test_cancelling_ends_the_process_while_the_hub_is_silent(add, hub, listener):
    add("ada/slow", train_dot_jsonl=lines({"text": "x"}))
    hub.fault("api", "silent")
    threading.Timer(0.5, listener.cancel.set).start()
    begun = time.monotonic()
    with pytest.raises(Cancelled):
        open_hub(HubData(dataset="ada/slow"), Budget(99), listener, print)
    assert time.monotonic() - begun < 15  # the Hub would be silent for 60 s


def test_a_dataset_that_is_not_there_and_a_hub_that_is_gone_or_switched_off(hub, monkeypatch):
    with pytest.raises(HubRefused, match="no dataset ada/tales"):
        read("ada/tales")
    hub.stop()
    with pytest.raises(HubUnreachable):
        read("ada/tales")
    monkeypatch.setenv("QUANTSTUDIO_OFFLINE", "1")
    with pytest.raises(Offline, match="cannot be read"):
        read("ada/tales")


def test_without_the_package_it_says_what_to_install(hub, tmp_path, monkeypatch):
    (tmp_path / "datasets.py").write_text("raise ImportError('absent')\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setattr(hub_source, "_environment", lambda folder: dict(os.environ) | {"PYTHONPATH": paths})
    with pytest.raises(PackageMissing) as caught:
        read("ada/tales")
    assert "pip install 'quantstudio[data]'" in caught.value.hint


def test_no_dataset_is_chosen():
    with pytest.raises(DataUnusable, match="No dataset"):
        read("")
