"""What a download costs and what a kill loses, against the fake Hub on this machine.

    python tests/benchmarks/hub_download.py [--megabytes 2000] [--kills 10] [--kill-megabytes 300]

First: memory that downloading and verifying adds to a process (peak of resident memory, sampled from outside; the file
is sparse zeros on the Hub's side). Second: SIGKILL at random moments; how many bytes came twice. What was sent and not
kept lies in the system's buffers of the connection: no program has seen it. Third: a Hub that is gone for 15 s in the
middle of a file, and a connection that delivers nothing more, both with the program's real patience.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

CHILD = [sys.executable, "-P", "-m", "quantstudio"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 1024,
    "num_hidden_layers": 0,
    "num_attention_heads": 8,
    "tie_word_embeddings": True,
}


def load_fakehub():
    path = Path(__file__).parents[1] / "fakehub.py"
    spec = importlib.util.spec_from_file_location("fakehub", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fakehub"] = module
    spec.loader.exec_module(module)
    return module


def make_model(folder: Path, megabytes: int, *, noise: bool) -> int:
    """One embedding of so many megabytes; its size in bytes."""
    folder.mkdir(parents=True)
    rows = megabytes * 1_000_000 // 2048
    nbytes = rows * 2048
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": rows}), encoding="utf-8")
    entry = {"dtype": "BF16", "shape": [rows, 1024], "data_offsets": [0, nbytes]}
    raw = json.dumps({"model.embed_tokens.weight": entry}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for _ in range(nbytes // (1 << 20) if noise else 0):
            file.write(os.urandom(1 << 20))
        file.truncate(8 + len(raw) + nbytes)
    return nbytes


def environment(hub, home: Path) -> dict[str, str]:
    places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "QUANTSTUDIO_HOME": str(home / "home")}
    return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | places


def peak_of(command: list[str], env: dict[str, str]) -> tuple[float, float, str]:
    """(peak MB, seconds, output) of a process."""
    started = time.monotonic()
    child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    process, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.01)
    return peak / 1e6, time.monotonic() - started, child.stdout.read()


def measure_memory(hub, root: Path, megabytes: int) -> None:
    make_model(hub.root / "ada/tiny", 1, noise=False)
    make_model(hub.root / "ada/large", megabytes, noise=False)
    hub.tree("ada/large")  # checksums made now, not while the clock runs
    tiny, _, _ = peak_of([*CHILD, "download", "ada/tiny"], environment(hub, root / "a"))
    large, seconds, text = peak_of([*CHILD, "download", "ada/large"], environment(hub, root / "a"))
    print(text.strip())
    print(f"download of 1 MB: peak {tiny:.0f} MB; of {megabytes} MB: peak {large:.0f} MB, {seconds:.1f} s")
    print(f"added by the size: {large - tiny:.1f} MB")
    checked, seconds, text = peak_of([*CHILD, "verify", "ada/large"], environment(hub, root / "a"))
    print(f"verify: {text.strip()} peak {checked:.0f} MB, {seconds:.1f} s; added: {checked - tiny:.1f} MB")


def measure_kills(hub, root: Path, megabytes: int, kills: int) -> None:
    size = make_model(hub.root / "ada/killed", megabytes, noise=True)
    hub.tree("ada/killed")
    env = environment(hub, root / "b")
    hub.rate, hub.sent, lost = 100e6, 0, []
    dice = random.Random(7)  # noqa: S311 - no secret
    moments = sorted(dice.random() * 0.95 for _ in range(kills))
    for moment in moments:
        child = subprocess.Popen([*CHILD, "download", "ada/killed"], env=env, stderr=subprocess.DEVNULL)
        while hub.sent - sum(lost) < moment * size and child.poll() is None:
            time.sleep(0.002)
        alive = child.poll() is None
        child.kill()
        child.wait()
        time.sleep(0.3)
        partial = sum(path.stat().st_size for path in (root / "b").rglob("*partial"))
        lost.append(max(0, hub.sent - sum(lost) - partial))
        snapshots = len(list((root / "b").rglob("snapshots")))
        print(f"killed at {partial / size:5.1%} (running: {alive}): {lost[-1]:,} bytes lost, {snapshots} snapshots")
    hub.rate = 0
    done = subprocess.run([*CHILD, "download", "ada/killed"], env=env, capture_output=True, text=True, check=True)
    print(done.stdout.strip())
    print(f"kept over {kills} kills: {1 - sum(lost) / size:.2%}; sent in all: {hub.sent / size:.4f} × the size")


def measure_outages(hub, root: Path, seconds: float) -> None:
    size = make_model(hub.root / "ada/outage", 60, noise=True)
    hub.tree("ada/outage")
    hub.rate, hub.sent = 10e6, 0
    started = time.monotonic()
    hub.fault("model.safetensors", "stall", at=size // 2)
    command = [*CHILD, "download", "ada/outage"]
    subprocess.run(command, env=environment(hub, root / "c"), capture_output=True, check=True)
    print(f"a stall in mid-file: whole after {time.monotonic() - started:.0f} s (6 s without); {sent(hub, size)}")
    hub.sent = 0
    hub.fault("model.safetensors", "close", at=size // 3)
    child = subprocess.Popen(command, env=environment(hub, root / "d"), stdout=subprocess.PIPE, text=True)
    while hub.sent < 0.3 * size:
        time.sleep(0.01)
    hub.shutdown()
    hub.socket.close()
    time.sleep(seconds)
    reborn = type(hub)(hub.root, hub.port).start()
    text, _ = child.communicate()
    hub.sent += reborn.sent
    print(f"gone for {seconds:.0f} s: status {child.returncode}, {text.splitlines()[0]}; {sent(hub, size)}")
    reborn.stop()


def sent(hub, size: int) -> str:
    return f"sent {hub.sent / size:.3f} × the size"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--kill-megabytes", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "hub").mkdir()
        hub = load_fakehub().FakeHub(root / "hub").start()
        if options.megabytes:
            measure_memory(hub, root, options.megabytes)
        if options.kills:
            measure_kills(hub, root, options.kill_megabytes, options.kills)
        measure_outages(hub, root, 15.0)


if __name__ == "__main__":
    main()
