"""Files and folders are whole or absent, and a manifest notices every change."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from quantstudio.core.disk import check_model, disk_problem, partial_of, publish_folder, write_atomically
from quantstudio.core.errors import DiskProblem, ModelDamaged

PUBLISH = """
import sys
from pathlib import Path
from quantstudio.core.disk import partial_of, publish_folder
folder = Path(sys.argv[1])
partial = partial_of(folder)
partial.mkdir()
print("ready", flush=True)
for index in range(40):
    (partial / f"part-{index}").write_bytes(bytes([index]) * 200_000)
publish_folder(partial, folder)
"""


def published(tmp_path):
    folder = tmp_path / "model"
    partial = partial_of(folder)
    (partial / "sub").mkdir(parents=True)
    (partial / "config.json").write_text("{}")
    (partial / "sub" / "weights").write_bytes(b"\x01" * 1000)
    publish_folder(partial, folder, {"run": "a"})
    return folder


def test_a_published_folder_is_whole_and_the_partial_gone(tmp_path):
    folder = published(tmp_path)
    check_model(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    manifest = json.loads((folder / "quantstudio.json").read_text())
    assert manifest["about"] == {"run": "a"}
    assert set(manifest["files"]) == {"config.json", "sub/weights"}


def test_a_finished_model_is_never_overwritten(tmp_path):
    folder = published(tmp_path)
    before = (folder / "config.json").read_bytes()
    partial_of(folder).mkdir()
    (partial_of(folder) / "config.json").write_text("other")
    with pytest.raises(DiskProblem, match="already exists"):
        publish_folder(partial_of(folder), folder)
    assert (folder / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "sub" / "weights").write_bytes(b"\x01" * 999), "999 bytes instead of 1000"),
        (lambda folder: (folder / "sub" / "weights").write_bytes(b"\x02" * 1000), "contents of sub/weights"),
        (lambda folder: (folder / "quantstudio.json").unlink(), "missing or cannot be read"),
        (lambda folder: (folder / "quantstudio.json").write_text("[]"), "missing or cannot be read"),
        (lambda folder: (folder / "quantstudio.json").write_text('{"files": {"../x": {}}}'), "outside the folder"),
        (lambda folder: (folder / "quantstudio.json").write_text('{"files": {"/etc/passwd": {}}}'), "outside"),
    ],
)
def test_every_kind_of_damage_is_noticed(tmp_path, damage, reason):
    folder = published(tmp_path)
    damage(folder)
    with pytest.raises(ModelDamaged, match=reason):
        check_model(folder)


def test_killed_at_any_moment_the_folder_is_whole_or_absent(tmp_path):
    """A real process, killed for real, at random moments of writing and publishing."""
    moments = random.Random(0)  # noqa: S311 - moments, not secrets
    seen = set()
    for trial in range(8):
        folder = tmp_path / str(trial) / "model"
        folder.parent.mkdir()
        process = subprocess.Popen([sys.executable, "-c", PUBLISH, str(folder)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.15) if trial else 1.0)
        process.kill()
        process.wait()
        process.stdout.close()
        seen.add(folder.exists())
        if folder.exists():
            check_model(folder)
    assert True in seen  # at least the first had time to finish


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_atomically(path, "old")
    write_atomically(path, "new ä")
    assert path.read_text(encoding="utf-8") == "new ä"

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "newer")
    assert path.read_text(encoding="utf-8") == "new ä"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["run.json"]


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "Permission"), (errno.EIO, "failed")],
)
def test_errors_of_the_disk_are_put_into_words(code, words):
    problem = disk_problem(OSError(code, os.strerror(code), "/some/where"))
    assert words in str(problem)
    assert "/some/where" in str(problem)


def test_an_error_that_is_not_about_the_disk_is_left_alone():
    assert disk_problem(OSError(errno.ECHILD, "no child")) is None


def test_threads_that_write_one_file_do_not_take_each_others_pieces(tmp_path):
    # Regression: pieces were named after the process alone, so the second of two threads found its own moved away.
    path = tmp_path / "file"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_atomically(path, f"{number}" * 1000), range(200)))
    assert len(set(path.read_text())) <= 3
    assert list(tmp_path.iterdir()) == [path]
