"""Folders that were made to harm: each is refused with its reason, nothing in them runs, and nothing waits for ever.

All are looked at in one process of its own, which is given up after half a minute: whoever opens a pipe or follows a
bomb would not come back. `auto_map` alone is no reason to refuse (its code is never run); see the last test.
"""

import json
import os
import pickle
import subprocess
import sys

import pytest

LOOK = """
import json, sys, time
from pathlib import Path
from quantstudio.core.errors import QuantStudioError
from quantstudio.core.model_info import read_model_info
from quantstudio.core.safety import check_folder
found = {}
for folder in map(Path, sys.argv[1:]):
    started = time.monotonic()
    try:
        read_model_info(folder)
        kind = text = ""
    except QuantStudioError as error:
        kind, text = error.kind, str(error)
    blocked = [finding.text for finding in check_folder(folder) if finding.level == "block"]
    found[folder.name] = [kind, text, blocked, time.monotonic() - started]
print(json.dumps(found))
"""


class Program:
    """What a malicious pickle does when it is read."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def header(entries, size=None):
    """Change the weights to a file with this header over as many bytes as it claims."""

    def change(make, folder, canary):
        raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        make.write_header(folder / "model.safetensors", raw, 4 if size is None else size)

    return change


def config(**keys):
    def change(make, folder, canary):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return change


def write(name, content):
    return lambda make, folder, canary: (folder / name).write_bytes(content)


def pickles_only(make, folder, canary):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Program(canary)))


def link(name, target):
    def change(make, folder, canary):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pipe(name):
    def change(make, folder, canary):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def index(name):
    def change(make, folder, canary):
        (folder / "model.safetensors").unlink()
        make.index(folder, {"model.embed_tokens.weight": name})

    return change


def adapter(make, folder, canary):
    settings = {"base_model_name_or_path": "evil/base", "auto_mapping": {"parent_library": "evil"}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter.py").write_text(f"open({str(canary)!r}, 'w')")


def entry(shape=(2,), offsets=(0, 4), dtype="BF16"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


FOLDERS = {
    "pickle": (pickles_only, "unsupported", "pickle"),
    "link_to_a_file_outside": (link("tokenizer.json", "../../secret.json"), "unsafe", "link"),
    "link_to_an_absolute_path": (link("vocab.json", "/etc/passwd"), "unsafe", "link"),
    "giant_json": (write("config.json", b'{"a": "' + b"x" * (5 << 20) + b'"}'), "unsafe", "MB"),
    "deep_json": (write("tokenizer_config.json", b'{"a":' * 5000 + b"1" + b"}" * 5000), "unsafe", "deep"),
    "header_that_claims_terabytes": (
        write("model.safetensors", (1 << 40).to_bytes(8, "little") + b"{}"),
        "damaged",
        "header",
    ),
    "overlapping_tensors": (header({"a.weight": entry(), "b.weight": entry((1,), (2, 4))}), "damaged", "overlap"),
    "tensors_beyond_the_end": (header({"a.weight": entry((512,), (0, 1024))}), "damaged", "missing at its end"),
    "negative_shape": (header({"a.weight": entry((-2, -1))}), "damaged", "impossible shape"),
    "duplicate_keys": (
        header(b'{"a.weight":%s,"a.weight":%s}' % ((json.dumps(entry()).encode(),) * 2)),
        "damaged",
        "twice",
    ),
    "index_that_points_outside": (index("../../../.ssh/id.safetensors"), "unsafe", "outside"),
    "template_bomb": (write("chat_template.jinja", b"{% for a in b %}" * 60_000), "unsafe", "template"),
    "pipe_instead_of_weights": (pipe("model.safetensors"), "", ""),
    "pipe_instead_of_config": (pipe("config.json"), "", ""),
    "device": (link("tokenizer.json", "/dev/zero"), "unsafe", "link"),
    "sizes_that_lie": (header({"a.weight": entry((1 << 30, 1 << 30))}), "damaged", "does not fill"),
    "names_of_control_characters": (header({"a\u202e\u0000.weight": entry()}), "damaged", "no tensor"),
    "a_billion_layers": (config(num_hidden_layers=10**9), "unsafe", "num_hidden_layers"),
    "a_width_that_is_no_number": (config(hidden_size=float("nan")), "unsafe", "hidden_size"),
    "adapter_with_code": (adapter, "unsafe", "adapter"),
    "downloaded_kernel": (config(attn_implementation="evil/kernel:run"), "unsafe", "download and run"),
    "unknown_quantization": (config(quantization_config={"quant_method": "evil"}), "unsafe", "nobody knows"),
    "pattern_that_never_ends": (
        config(quantization_config={"quant_method": "gptq", "ignore": ["re:(a+)+$"]}),
        "unsafe",
        "for ever",
    ),
    "trust_me": (config(trust_remote_code=True), "unsafe", "trust code"),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory, model_maker):
    """What one process says of all folders, and the file that exists if anything was run."""
    root = tmp_path_factory.mktemp("malicious")
    canary = root / "executed"
    (root / "secret.json").write_text("{}")
    make = model_maker(root / "folders")
    for name, (change, _, _) in FOLDERS.items():
        change(make, make(name), canary)
    command = [sys.executable, "-c", LOOK, *(str(root / "folders" / name) for name in FOLDERS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), canary


@pytest.mark.parametrize("name", FOLDERS)
def test_each_is_refused_with_its_reason(verdicts, name):
    kind, text, blocked, seconds = verdicts[0][name]
    _, expected, words = FOLDERS[name]
    assert kind.startswith("model_")
    assert expected in kind
    assert words in text
    assert blocked or kind == "model_not_found"
    assert seconds < 2


def test_there_are_seventeen_at_least_and_none_has_run(verdicts):
    assert len(FOLDERS) >= 17
    assert not verdicts[1].exists()


def test_the_window_lists_them_with_their_reasons_and_goes_on_meanwhile(
    tmp_path, model_maker, qapp, qtbot, monkeypatch
):
    """The look that fills the library, on all of them at once; the window's loop turns while it is under way."""
    from PySide6.QtCore import QTimer

    from quantstudio.client.library_scan import LibraryScan
    from quantstudio.core.settings import Settings

    for name, place in (("QUANTSTUDIO_HOME", "home"), ("HF_HOME", "hf")):
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    make = model_maker(tmp_path / "folders")
    for name, (change, _, _) in FOLDERS.items():
        change(make, make(name), tmp_path / "executed")
    turns = []
    beat = QTimer()
    beat.timeout.connect(lambda: turns.append(len(turns)))
    beat.start(5)
    scan = LibraryScan()
    with qtbot.waitSignal(scan.found, timeout=30_000):
        scan.refresh(Settings(model_folders=(str(tmp_path / "folders"),)))
    beat.stop()
    scan.shutdown()
    listed = {model.name: model.error for model in scan.models if model.path.parent.name == "folders"}
    refused = {name for name, (_, kind, _) in FOLDERS.items() if kind}
    assert refused <= listed.keys()
    assert all(listed.values())
    assert turns
    assert not (tmp_path / "executed").exists()


def test_code_beside_a_model_is_said_and_never_run(make_model, tmp_path):
    from quantstudio.core.model_info import read_model_info
    from quantstudio.core.safety import check_folder

    folder = make_model(auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    assert read_model_info(folder).parameters
    assert [finding.level for finding in check_folder(folder)] == ["note", "note"]
    assert not (tmp_path / "executed").exists()
