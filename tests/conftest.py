"""Finished runs made to order, for tests of what is done with results."""

import gc
import os
import time
from pathlib import Path

import pytest

from quantstudio.core import protocol, result, run_store
from quantstudio.core.recipe import OutputSection, Recipe
from quantstudio.core.run_state import Status
from quantstudio.core.schemes import W4A16, W8A16

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")


def spread(median, width=0.02):
    trials = tuple(median * (1 + width * step) for step in (-1, -0.5, 0, 0.5, 1))
    return result.Spread(median=median, low=trials[1], high=trials[3], trials=trials)


def interval(value, width):
    return result.Interval(value=value, low=value - width, high=value + width)


def performance(label, *, speed=1.0, memory=512_000_000, width=0.02):
    return result.Performance(
        label=label,
        load_s=0.8 / speed,
        peak_rss=memory,
        ttft_s=spread(0.138 / speed, width),
        prompt_tps=spread(3700 * speed, width),
        decode_tps=spread(310 * speed, width),
        prompt_tokens=512,
        decode_tokens=64,
        device="cpu",
        threads=2,
        kernels={"int4pack_mm": 42},
    )


def quality(perplexity, change, kl, top1):
    return result.Quality(
        tokens=32768,
        windows=64,
        text="two public-domain novels",
        original_perplexity=interval(19.88, 0.9),
        perplexity=interval(perplexity, 0.95),
        perplexity_change=interval(change, 0.004),
        original_bits_per_byte=interval(1.381, 0.02),
        bits_per_byte=interval(1.381 + change / 4, 0.02),
        kl=interval(kl, kl / 20),
        top1=interval(top1, 0.004),
    )


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory):
    """What jobs note down (which models were used, which files verified) does not go to the person's own place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTSTUDIO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _processes_start_without_torchao():
    """They begin with `without_torchao/sitecustomize.py`."""
    paths = [str(Path(__file__).parent / "without_torchao"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        yield


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_not_walked_through():
    """Half a million objects of libraries stay for good; looking for garbage among them was a third of the tests' time.

    By module, because some libraries are imported late. What is garbage already is collected before.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def make_result():
    """Build a `RunResult`: `make_result("int4")`, `make_result("int8", name=…, model_name=…)`; any field by name."""

    def make(kind="int4", **fields):
        four = kind == "int4"
        recipe = Recipe(scheme=W4A16() if four else W8A16(), output=OutputSection(name=f"Demo {kind}"))
        made = {
            "run_id": f"demo-{kind}-20250101-120000",
            "name": f"Demo {kind}",
            "model_name": "starter",
            "recipe": recipe,
            "quantization": result.Quantization(
                label=recipe.scheme.weight_spec().label,
                quantized_layers=42,
                original_sizes=result.Sizes(embedding=4_200_000, layers=12_600_000, head=0, rest=12_000),
                sizes=result.Sizes(embedding=2_100_000, layers=3_346_875 if four else 6_331_500, head=0, rest=12_000),
                layer_bits_per_weight=4.25 if four else 8.04,
                seconds=1.4,
                peak_rss=420_000_000,
            ),
            "original_first": performance("Original"),
            "quantized": performance(recipe.scheme.weight_spec().label, speed=2.6 if four else 1.8, memory=470_000_000),
            "original_last": performance("Original", speed=0.99),
            "quality": quality(20.94, 0.053, 0.0534, 0.903) if four else quality(19.89, 0.0006, 0.0002, 0.994),
            "verdict": (
                f"The answer comes {'2.6' if four else '1.8'} times as fast as the original's on this machine.",
                f"The files are {'3.1' if four else '2.0'} times smaller.",
                "Perplexity rises by 5.3 %." if four else "No loss of quality can be seen.",
            ),
            "environment": result.Environment(
                machine="x86_64",
                cpu="Example CPU",
                cores=2,
                memory=8_000_000_000,
                os="Linux",
                versions={"torch": "2.13.0", "transformers": "5.23.0"},
            ),
        }
        return result.RunResult(**made | fields)

    return make


PHASES = (
    "Read the model",
    "Quantize",
    "Save",
    "Measure the original",
    "Measure the result",
    "Measure again",
    "Quality",
)


def run_messages(end, *, start=1_700_000_000.0):
    """A run's messages from hello to `end` (a terminal message, or None for one that still runs)."""
    sent = [protocol.Hello(t=start, protocol=protocol.PROTOCOL_VERSION, version="0.1.0", pid=1)]
    clock = start
    for index, title in enumerate(PHASES):
        sent.append(protocol.Phase(t=clock, id=f"p{index}", title=title, index=index, total=len(PHASES)))
        for step in range(1, 11):
            clock += 0.35
            rss = int(3e8 + 3e7 * index + 1e7 * ((step * 7) % 10))
            sent.append(protocol.Memory(t=clock, rss=rss, available=4_000_000_000))
            sent.append(protocol.Progress(t=clock, done=step, total=10, unit="layers", eta_s=(10 - step) * 0.35))
    sent.append(protocol.Notice(t=clock, level="warning", text="2 layers stay in bf16."))
    sent += [protocol.Log(t=clock, level="info", text=f"line {number}") for number in range(30)]
    return [*sent, *([end] if end else [])]


@pytest.fixture
def make_run(make_result):
    """Write a finished (or failed) run folder under `home`, as a worker would have; its id."""

    def make(home, kind="int4", *, error=None, messages=None, **fields):
        found = make_result(kind, **fields)
        folder = home / found.run_id
        run_store.prepare_run(folder, found.recipe)
        end = error or protocol.Result(t=1_700_000_030.0, data=found.model_dump(mode="json"))
        sent = run_messages(end) if messages is None else messages
        (folder / run_store.EVENTS).write_bytes(b"".join(protocol.encode(message) for message in sent))
        sizes = found.quantization
        header = run_store.RunHeader(
            name=found.name,
            status=Status.FAILED if error else Status.DONE,
            created=time.time() - 3600,
            started=1_700_000_000.0,
            finished=1_700_000_030.0,
            model=found.model_name,
            label=sizes.label,
            original_bytes=sizes.original_sizes.total,
            quantized_bytes=sizes.sizes.total,
            summary=error.what if error else found.verdict[0],
            error_kind=error.kind if error else "",
        )
        run_store.write_header(folder, header)
        if not error:
            (folder / run_store.RESULT).write_text(found.model_dump_json(), encoding="utf-8")
            (folder / run_store.MODEL).mkdir(exist_ok=True)
        return found.run_id

    return make
