"""Decode speed and time to first token beside llama.cpp, on a model of Qwen2.5-0.5B's shape with random weights.

    python tests/benchmarks/against_llama_cpp.py --llama-python PYTHON [--trials 7] [--tokens 32] [--prompt 512]
        [--genai-python PYTHON --genai-model FOLDER]
        [--openvino-python PYTHON --openvino-int4 FOLDER --openvino-int8 FOLDER]

PYTHON belongs to an environment with `llama-cpp-python` and `gguf`, which this project does not depend on: they run in
a process of their own, which writes the GGUF files (blocks, norms and biases of random numbers; embedding and head
tied, in Q8_0 as llama-quantize leaves them at this width), loads them, and times a trial whenever it is told to. Trials
of both programs take turns, one at a time, so that drift of the machine hits all alike; ratios are medians over trials
of the ratio within one trial. Where other programs are running only the ratios mean something, and they scatter.

FOLDER is a model of the same shape that onnxruntime-genai's own builder has made (`python -m
onnxruntime_genai.models.builder -i MODEL -o FOLDER -p int4 -e cpu --extra_options int4_accuracy_level=4`: groups of 32,
the head in int4 too); it is timed likewise, in a process of the second PYTHON. For OpenVINO GenAI the folders are made
by optimum-intel (`optimum-cli export openvino -m MODEL --task text-generation-with-past --weight-format int4
--group-size 128 --sym --ratio 1.0 FOLDER`, and `--weight-format int8 --sym`; the head is int8 in both).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from decode_speed import RECIPES, Trial, _cpu, _random_model, _time_ours

from quantstudio.core.model_info import read_model_info
from quantstudio.core.plan import make_plan
from quantstudio.engine.generate import Generator
from quantstudio.engine.load import load_model
from quantstudio.engine.onnx.model import load_onnx
from quantstudio.engine.quantize import quantize_model
from quantstudio.engine.reporter import silent

BESIDE = {
    "W4A16 g128, int4 head": "Q4_0",
    "W4A16 g128, int8 head": "Q4_0",
    "W4A8 g128": "Q4_0",
    "W8A16": "Q8_0",
    "W8A8": "Q8_0",
    "onnxruntime-genai, int4": "Q4_0",
    "OpenVINO GenAI, int4 g128": "Q4_0",
    "OpenVINO GenAI, int8": "Q8_0",
}
"""Which of llama.cpp's formats each variant is compared with."""
KINDS = ("Q4_0", "Q8_0")
OTHER_ENGINE = ", ONNX Runtime"
ON_BOTH = ("W4A16 g128, int4 head", "W4A16 g128, int8 head", "W8A16")
"""What runs on the second engine too; it rounds activations to int8 in all of them, as llama.cpp does."""
TORCH_ALONE = ", torch's operators"
ON_OPERATORS = {"W4A16 g128, int4 head": "cpu_int4", "W8A16": "cpu_int8_bags", "W8A8": "cpu_int8_bags"}
"""What also runs without this program's own C++, as on a machine without a compiler: on these kernels."""

THEIR_PROGRAM = textwrap.dedent(
    """
    import ctypes, json, statistics, sys, time
    import gguf, llama_cpp, numpy
    folder, threads, prompt, tokens = sys.argv[1], *map(int, sys.argv[2:5])
    LAYERS, WIDTH, INNER, WORDS, KEYS = 24, 896, 4864, 151936, 128
    random = numpy.random.default_rng(0)

    def write(path, kind):
        writer = gguf.GGUFWriter(path, "qwen2")
        writer.add_block_count(LAYERS); writer.add_context_length(4096); writer.add_embedding_length(WIDTH)
        writer.add_feed_forward_length(INNER); writer.add_head_count(14); writer.add_head_count_kv(2)
        writer.add_rope_freq_base(1e6); writer.add_layer_norm_rms_eps(1e-6)
        writer.add_tokenizer_model("gpt2"); writer.add_tokenizer_pre("qwen2")
        writer.add_token_list([f"w{number}" for number in range(WORDS)]); writer.add_token_types([1] * WORDS)
        writer.add_token_merges(["w 1"])

        def matrix(name, rows, columns, kind=kind):
            values = (random.standard_normal((rows, columns), dtype=numpy.float32)) * 0.02
            data = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, data, raw_dtype=kind)

        def vector(name, size, value=0.0):
            writer.add_tensor(name, numpy.full(size, value, dtype=numpy.float32))

        matrix("token_embd.weight", WORDS, WIDTH, gguf.GGMLQuantizationType.Q8_0)
        vector("output_norm.weight", WIDTH, 1.0)
        for layer in range(LAYERS):
            block = f"blk.{layer}."
            for name, rows in (("q", WIDTH), ("k", KEYS), ("v", KEYS)):
                matrix(f"{block}attn_{name}.weight", rows, WIDTH)
                vector(f"{block}attn_{name}.bias", rows)
            matrix(f"{block}attn_output.weight", WIDTH, WIDTH)
            for name in ("gate", "up"):
                matrix(f"{block}ffn_{name}.weight", INNER, WIDTH)
            matrix(f"{block}ffn_down.weight", WIDTH, INNER)
            vector(f"{block}attn_norm.weight", WIDTH, 1.0)
            vector(f"{block}ffn_norm.weight", WIDTH, 1.0)
        writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()

    models = {}
    for kind in ("Q4_0", "Q8_0"):
        path = f"{folder}/{kind}.gguf"
        write(path, gguf.GGMLQuantizationType[kind])
        models[kind] = llama_cpp.Llama(
            path, n_ctx=prompt + tokens + 8, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
    ids = random.integers(0, 100_000, prompt).tolist()

    def trial(model):
        model.reset()
        stamps = [time.perf_counter()]
        model.eval(ids)
        for _ in range(tokens):
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            token = int(numpy.ctypeslib.as_array(logits, shape=(WORDS,)).argmax())
            stamps.append(time.perf_counter())
            model.eval([token])
        steps = [later - earlier for earlier, later in zip(stamps[1:], stamps[2:])]
        return stamps[1] - stamps[0], statistics.median(steps)

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(trial(models[json.loads(line)])), flush=True)
    """
)

GENAI = "onnxruntime-genai, int4"
GENAI_PROGRAM = textwrap.dedent(
    """
    import json, statistics, sys, time
    import numpy, onnxruntime_genai
    folder, threads, prompt, tokens = sys.argv[1], *map(int, sys.argv[2:5])
    config = onnxruntime_genai.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = onnxruntime_genai.Model(config)
    ids = numpy.random.default_rng(0).integers(0, 100_000, prompt).astype(numpy.int32)

    def trial():
        length = prompt + tokens + 8
        options = onnxruntime_genai.GeneratorParams(model)
        options.set_search_options(min_length=length, max_length=length, do_sample=False)
        generator = onnxruntime_genai.Generator(model, options)
        stamps = [time.perf_counter()]
        generator.append_tokens(ids)
        for _ in range(tokens + 1):
            generator.generate_next_token()
            stamps.append(time.perf_counter())
        steps = [later - earlier for earlier, later in zip(stamps[1:], stamps[2:])]
        return stamps[1] - stamps[0], statistics.median(steps)

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(trial()), flush=True)
    """
)

OPENVINO_PROGRAM = textwrap.dedent(
    """
    import json, statistics, sys, time
    import numpy, openvino, openvino_genai
    folder, threads, prompt, tokens = sys.argv[1], *map(int, sys.argv[2:5])
    schedule = openvino_genai.SchedulerConfig()
    schedule.enable_prefix_caching = False
    schedule.cache_size = 1
    schedule.max_num_batched_tokens = 2 * prompt
    model = openvino_genai.LLMPipeline(folder, "CPU", scheduler_config=schedule, INFERENCE_NUM_THREADS=threads)
    ids = numpy.random.default_rng(0).integers(0, 100_000, (1, prompt)).astype(numpy.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
    options = openvino_genai.GenerationConfig()
    options.max_new_tokens = options.min_new_tokens = tokens + 1
    options.ignore_eos, options.do_sample, options.stop_token_ids = True, False, {0}
    options.set_eos_token_id(0)

    class Stamps(openvino_genai.StreamerBase):
        def __init__(self):
            super().__init__()
            self.times = [time.perf_counter()]

        def write(self, token):
            self.times.append(time.perf_counter())
            return openvino_genai.StreamingStatus.RUNNING

        def end(self):
            pass

    def trial():
        stamps = Stamps()
        model.generate(inputs, options, stamps)
        times = stamps.times
        steps = [later - earlier for earlier, later in zip(times[1:], times[2:])]
        return times[1] - times[0], statistics.median(steps)

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(trial()), flush=True)
    """
)


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        numbers = [str(options.threads), str(options.prompt), str(options.tokens)]
        theirs = [_start(options.llama_python, THEIR_PROGRAM, [folder, *numbers])]
        runs: dict[str, Callable[[], Trial]] = {kind: partial(_time_theirs, theirs[0], kind) for kind in KINDS}
        for name, python, program, model in (
            (GENAI, options.genai_python, GENAI_PROGRAM, options.genai_model),
            ("OpenVINO GenAI, int4 g128", options.openvino_python, OPENVINO_PROGRAM, options.openvino_int4),
            ("OpenVINO GenAI, int8", options.openvino_python, OPENVINO_PROGRAM, options.openvino_int8),
        ):
            if model:
                theirs.append(_start(python, program, [model, *numbers]))
                runs[name] = partial(_time_theirs, theirs[-1], name)
        try:
            for process in theirs:
                _answer(process)
            _print_table(_trials(runs | _ours(folder, options), options.trials), options)
        finally:
            for process in theirs:
                process.kill()
                process.wait()


def _start(python: str, program: str, arguments: list[str]) -> subprocess.Popen[str]:
    """A program of this file's own, run by the Python that the person named."""
    return subprocess.Popen(
        [python, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", required=True, help="Python with llama-cpp-python and gguf")
    parser.add_argument("--genai-python", default="", help="Python with onnxruntime-genai")
    parser.add_argument("--genai-model", default="", help="folder that its builder has made")
    parser.add_argument("--openvino-python", default="", help="Python with openvino-genai")
    parser.add_argument("--openvino-int4", default="", help="folder that optimum-intel has made")
    parser.add_argument("--openvino-int8", default="", help="likewise, in int8")
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _ours(folder: str, options: argparse.Namespace) -> dict[str, Callable[[], Trial]]:
    original = _random_model(Path(folder) / "original")
    info = read_model_info(original)
    prompt = torch.randint(0, 100_000, (options.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    runs = {}
    for number, name in enumerate(RECIPES):
        out = Path(folder) / str(number)
        out.mkdir()
        quantize_model(info, make_plan(info, RECIPES[name]), RECIPES[name], out, silent())
        runs[name] = partial(_time_ours, Generator(load_model(out, "cpu", silent())), prompt, options.tokens)
        if name in ON_OPERATORS:
            alone = Generator(load_model(out, "cpu", silent(), ON_OPERATORS[name]))
            runs[name + TORCH_ALONE] = partial(_time_ours, alone, prompt, options.tokens)
        if name in ON_BOTH:
            other = Generator(load_onnx(out, silent()))
            runs[name + OTHER_ENGINE] = partial(_time_ours, other, prompt, options.tokens)
    return runs


def _time_theirs(process: subprocess.Popen[str], kind: str) -> Trial:
    assert process.stdin is not None
    print(json.dumps(kind), file=process.stdin, flush=True)
    first, step = _answer(process)
    return first, step


def _answer(process: subprocess.Popen[str]) -> list[float]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("The other program ended; its messages are above.")
    return json.loads(line)


def _trials(runs: dict[str, Callable[[], Trial]], count: int) -> dict[str, list[Trial]]:
    trials: dict[str, list[Trial]] = {name: [] for name in runs}
    for number in range(count + 1):
        for name, run in runs.items():
            trial = run()
            if number:  # the first is a warm-up
                trials[name].append(trial)
            print(f"{number} {name}: {trial[0]:.3f} s, {1 / trial[1]:.1f} tokens/s", flush=True)
    return trials


def _print_table(trials: dict[str, list[Trial]], options: argparse.Namespace) -> None:
    print(
        f"{_cpu()}, {options.threads} threads, torch {torch.__version__}; prompt of {options.prompt}, "
        f"{options.tokens} tokens, {options.trials} trials in turn\n"
    )
    print("| | answer, tokens/s | × llama.cpp | first token, s | × llama.cpp | compared with |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, own in trials.items():
        first, step = (statistics.median(trial[part] for trial in own) for part in (0, 1))
        beside = BESIDE.get(name.removesuffix(OTHER_ENGINE).removesuffix(TORCH_ALONE), "")
        base = trials[beside or name]
        start, speed = (statistics.median(b[part] / o[part] for b, o in zip(base, own, strict=True)) for part in (0, 1))
        print(f"| {name} | {1 / step:.1f} | {speed:.2f} | {first:.2f} | {start:.2f} | {beside} |")


if __name__ == "__main__":
    main()
