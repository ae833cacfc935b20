"""A worker that misbehaves on request: a real process with the real protocol, or not quite.

Usage: python fakeworker.py WAY [ARGUMENT]. It needs nothing but the standard library, so that it starts quickly and
can disagree with the program about the protocol.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time

WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


def say(type, **fields):
    os.write(1, json.dumps({"type": type, "t": time.time(), **fields}).encode() + b"\n")


def hello(protocol=1):
    say("hello", protocol=protocol, version="0", pid=os.getpid())


def next_command(timeout=None):
    """The next command; None when none comes in time. The end of stdin ends the process."""
    while b"\n" not in unread:
        if not select.select([0], [], [], timeout)[0]:
            return None
        if not (data := os.read(0, 1 << 16)):
            os._exit(0)
        unread.extend(data)
    line, _, rest = unread.partition(b"\n")
    unread[:] = rest
    return json.loads(line)


unread = bytearray()


def wait_for(*commands):
    """Read commands until one of these comes."""
    while (command := next_command())["cmd"] not in commands:
        pass
    return command


def begin():
    hello()
    return wait_for("start")


@way
def good(argument):
    job = begin()
    say("phase", id="a", title="A", index=0, total=1)
    say("progress", done=1, total=1)
    say("result", data={"kind": job["kind"], "argument": argument})


@way
def fail(argument):
    begin()
    say("error", kind="disk", what="The disk is full.")


@way
def slow(argument):
    """Works for so many seconds; cancels when asked."""
    hello()
    if wait_for("start", "cancel")["cmd"] == "cancel":
        say("cancelled")
        return
    say("phase", id="a", title="A", index=0, total=1)
    end = time.monotonic() + float(argument)
    while time.monotonic() < end:
        command = next_command(timeout=0.02)
        if command and command["cmd"] == "cancel":
            say("cancelled")
            return
    say("result", data={})


@way
def train(argument):
    """A training of so many steps, judged at every tenth; "40 wait" then goes on until it is cancelled."""
    begin()
    steps, wait = int(argument.split()[0]), argument.endswith("wait")
    for index, title in enumerate(("Read the model", "Calibrate for reference", "Train")):
        say("phase", id=f"p{index}", title=title, index=index, total=8)
    for name, value in (("original", 34.11), ("gptq", 34.9), ("rtn", 35.53)):
        say("metric", name=f"reference/{name}", value=value)
    for step in range(steps + 1):
        train_step(step, steps)
    if wait:
        wait_for("cancel")
        say("cancelled")
    else:
        say("result", data={})


def train_step(step, steps):
    part = step / steps
    rate = 5e-4 * min(1, step / (steps / 10)) * (1 - part * 0.9)
    if step:
        say(
            "metric",
            name="train/loss",
            value=0.06 * (1 - part) ** 2 + 0.012 + 0.004 * ((step * 7) % 5 - 2) / 2,
            step=step,
        )
        say("metric", name="train/learning_rate", value=rate, step=step)
        say("metric", name="train/tokens_per_s", value=2350 + 40 * ((step * 11) % 7), step=step)
        say("progress", done=step, total=steps, unit="steps", eta_s=(steps - step) * 1.2)
    say("memory", rss=int(1.1e9 + 2e7 * ((step * 5) % 9)), available=4_000_000_000)
    if step % 10 == 0:
        say("metric", name="eval/loss", value=0.045 * (1 - part) ** 2 + 0.008, step=step)
        say("metric", name="eval/perplexity", value=34.4 + 1.13 * (1 - part) ** 2, step=step)
        for prompt in ("Once upon a time", "The captain looked at the sea and"):
            say(
                "sample",
                step=step,
                prompt=prompt,
                text=f" there was a ship that had sailed for {step} days, and nobody knew why.",
            )


@way
def preview(argument):
    """Shows a text: "chat" with answers that count alone, "broken" cannot be read, "wait" takes its time."""
    begin()
    say("phase", id="data", title="Reading the text", index=0, total=1)
    if argument == "broken":
        hint = "Save it as UTF-8, or choose another file."
        say("error", kind="data", what="The file notes.txt cannot be read.", why="It is no UTF-8 text.", hint=hint)
        return
    if argument == "wait":
        wait_for("cancel")
        say("cancelled")
        return
    say("result", data=chat_preview() if argument == "chat" else book_preview())


def book_preview():
    one = "the last words of a book.<|endoftext|>CHAPTER I. Call me what you will; the sea was calm that day. "
    summary = {"source": "Six books (built in)", "licence": "public domain", "documents": 6, "tokens": 3_412_480}
    summary |= {"sequence_length": 512, "calibration_sequences": 128, "training_sequences": 6473}
    summary |= {"held_out_sequences": 64, "training_loss_tokens": 3_314_176, "left_out_tokens": 212}
    texts = [(split, one * (3 + number)) for split in ("training", "calibration", "held_out") for number in range(3)]
    return {
        "summary": summary | {"fingerprint": "a" * 64},
        "sequences": [
            {"split": split, "text": text, "counted": [[0, len(text)]], "tokens": 512, "cut": False}
            for split, text in texts
        ],
        "warnings": [],
    }


def chat_preview():
    data = book_preview()
    question, answer = (
        "<|im_start|>user\nWhat is a knot? 🪢<|im_end|>",
        "<|im_start|>assistant\nA knot is a mile.<|im_end|>",
    )
    text = question + answer + question
    start = len(question)
    data["sequences"] = [
        {"split": "training", "text": text, "counted": [[start, start + len(answer)]], "tokens": 40, "cut": True}
    ]
    data["warnings"] = ["2 of 40 chats have no answer and were left out."]
    data["summary"] |= {"source": "My prompts and chats", "licence": "", "documents": 38}
    return data


@way
def sensitivity(argument):
    """Measures a Llama of so many blocks; "6 wait" never ends by itself."""
    begin()
    blocks = int(argument.split()[0])
    say("phase", id="sensitivity", title="Measuring each layer", index=0, total=1)
    say("progress", done=12, total=42, unit="layers", detail="model.layers.1.mlp.up_proj", eta_s=95.0)
    if argument.endswith("wait"):
        wait_for("cancel")
        say("cancelled")
        return
    say("result", data=measured_layers(blocks))


def measured_layers(blocks):
    weights = {"self_attn.q_proj": 65536, "self_attn.k_proj": 32768, "self_attn.v_proj": 32768}
    weights |= {"self_attn.o_proj": 65536, "mlp.gate_proj": 196608, "mlp.up_proj": 196608, "mlp.down_proj": 196608}
    layers = []
    for block in range(blocks):
        for place, (name, count) in enumerate(weights.items()):
            base = 4e-4 * (1 + (block * 5 + place * 3) % 7) * (4 if place == 6 else 1) * (3 if block == 0 else 1)
            options = [
                {"bits": bits, "nbytes": count * bits // 8 + count // 64, "kl": base * factor}
                for bits, factor in ((2, 40.0), (3, 5.0), (4, 1.0), (8, 0.004))
            ]
            layers.append({"name": f"model.layers.{block}.{name}", "weights": count, "options": options})
    data = {"model_name": "starter", "scheme": "W4A16 g128", "method": "rtn", "measured_as": "each"}
    return data | {"tokens": 16384, "layers": layers, "other_bytes": 2_130_000, "seconds": 12.0}


@way
def contest(argument):
    """Tries every way; "wait" stops at the third until cancelled, "fail" fails."""
    job = begin()
    ways = job["contestants"]
    for index, name in enumerate(ways):
        say("phase", id=f"make_{name}", title=f"Making: {name}", index=index, total=len(ways) + 1)
        say("progress", done=2, total=6, unit="blocks", eta_s=40.0)
        if argument == "fail":
            say("error", kind="internal", what="None of the ways gave a model.", why="The disk is full.")
            return
        if argument == "wait" and index == 2:
            wait_for("cancel")
            say("cancelled")
            return
    say("result", data=contest_result(job["recipe"], job["folder"], ways))


def around(value, width):
    return {"value": value, "low": value - width, "high": value + width}


def contest_result(recipe, folder, ways):
    titles = {"original": "Original", "rtn": "Round to nearest", "hqq": "HQQ", "gptq": "GPTQ", "awq": "AWQ"}
    titles |= {"finetune_gptq": "Fine-tune, then GPTQ", "qat": "QAT"}
    levels = {"original": 34.11, "rtn": 35.53, "hqq": 35.41, "gptq": 34.86, "awq": 35.02, "finetune_gptq": 34.8}
    levels |= {"qat": 34.31}
    rows = []
    for name in ["original", *ways]:
        change = levels[name] / 34.11 - 1
        share = (35.53 - levels[name]) / (35.53 - 34.11)
        row = {"contestant": name, "title": titles[name], "perplexity": around(levels[name], 3.2)}
        row |= {"run_folder": f"{folder}/starter-{name}" if name != "original" else "", "nbytes": 5_380_000}
        row |= {"bits_per_weight": 4.13, "seconds": 260.0 if "q" in name[:1] or "fine" in name else 7.5}
        row |= {"perplexity_change": around(change, 0.004), "kl": around(change, change / 20)}
        rows.append(row | {"recovered": around(share, 0.08) if name not in ("original", "rtn") else None})
    rows[0] |= {"nbytes": 16_800_000, "bits_per_weight": 16.0, "seconds": 0.0}
    pairs = []
    for place, first in enumerate(rows):
        for second in rows[place + 1 :]:
            apart = levels[first["contestant"]] / levels[second["contestant"]] - 1
            verdict = "cannot_tell" if abs(apart) < 0.004 else "worse" if apart > 0 else "better"
            pair = {"first": first["contestant"], "second": second["contestant"], "verdict": verdict}
            pairs.append(pair | {"difference": around(apart, 0.004)})
    text = "Take QAT. Perplexity 34.31, +0.6 % against the original; 86 % of what rounding loses is won back."
    about = {"model_name": "starter", "scheme": "W4A16 g128", "recipe": recipe, "text": "two novels", "tokens": 32704}
    about |= {"windows": 64, "gap": around(1.42, 0.1), "gap_is_noise": False, "best": ways[-1], "recommendation": text}
    return about | {"rows": rows, "pairs": pairs, "failed": []}


@way
def flood(argument):
    """So many messages in all, at 20,000 a second, as an engine in a tight loop would make them."""
    begin()
    say("phase", id="a", title="A", index=0, total=1)
    total, sent, started = int(argument), 0, time.monotonic()
    while sent < total:
        due = min(total, int((time.monotonic() - started) * 20_000) + 1)
        lines = []
        for number in range(sent, due):
            if number % 4 == 0:
                lines.append({"type": "log", "level": "info", "text": f"line {number}"})
            elif number % 4 == 1:
                lines.append({"type": "metric", "name": "loss", "value": 1 / (number + 1), "step": number})
            else:
                lines.append({"type": "progress", "done": number, "total": total, "unit": "steps", "eta_s": 1.5})
        sent = due
        write(b"".join(json.dumps({"t": 1.0, **line}).encode() + b"\n" for line in lines))
        time.sleep(0.001)
    say("result", data={"sent": total})


def write(data):
    while data:
        data = data[os.write(1, data) :]


@way
def no_hello(argument):
    wait_for("never")


@way
def other_first(argument):
    say("phase", id="a", title="A", index=0, total=1)
    wait_for("never")


@way
def other_version(argument):
    hello(protocol=999)
    wait_for("never")


@way
def killed(argument):
    begin()
    say("memory", rss=3_200_000_000, available=100_000_000)
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


@way
def crash(argument):
    begin()
    os.kill(os.getpid(), signal.SIGSEGV)


@way
def silent_exit(argument):
    begin()


@way
def python_error(argument):
    begin()
    raise RuntimeError("the sky fell")


@way
def two_ends(argument):
    begin()
    say("result", data={"first": True})
    say("error", kind="internal", what="late")
    say("cancelled")


@way
def garbage(argument):
    begin()
    for line in (b"hello there\n", b"\xff\xfe\x00\n", b"[1,2]\n", b'{"type":["x"]}\n', b'{"type":"phase"}\n', b"\n"):
        os.write(1, line)
    os.write(1, b'{"type":"progress","done":"many","total":{}}\n')
    os.write(1, b"[" * 100_000 + b"\n")
    say("from_the_future", wonder=1)
    say("notice", level="info", text="still here", another_key=1)
    say("result", data={})


@way
def half_line(argument):
    begin()
    os.write(1, b'{"type":"notice","level":"info","text":"cut in ')
    time.sleep(0.1)
    os.write(1, b'two","t":1}\n{"type":"result","data":{}')


@way
def huge_line(argument):
    """A line far beyond the limit, then a good one."""
    begin()
    write(b'{"type":"log","level":"info","text":"' + b"x" * (20 << 20) + b'"}\n')
    say("notice", level="info", text="after")
    say("result", data={})


@way
def stubborn(argument):
    """Ignores `cancel` and SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begin()
    say("phase", id="a", title="A", index=0, total=1)
    time.sleep(600)


@way
def deaf(argument):
    """Ignores `cancel`, but not SIGTERM."""
    begin()
    say("phase", id="a", title="A", index=0, total=1)
    time.sleep(600)


@way
def lingers(argument):
    """Has ended its job, but not itself."""
    begin()
    say("result", data={})
    time.sleep(600)


@way
def orphans(argument):
    """Leaves a child and a grandchild behind when it ends."""
    begin()
    code = "import subprocess,sys,time; p=subprocess.Popen(['sleep','600']); print(p.pid, flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    grandchild = int(child.stdout.readline())
    say("result", data={"pids": [os.getpid(), child.pid, grandchild]})


@way
def noisy(argument):
    begin()
    sys.stderr.write("a warning from a library\n" * 20_000)
    say("result", data={})


@way
def chat(argument):
    """Answers each request with the words of its last message, slowly; `stop` ends an answer."""
    begin()
    say("phase", id="load", title="Loading", index=0, total=2)
    say("engine", text="int4 weights 3.1 times as fast as bf16", detail="W4A16 g128 run by an_operator")
    say("phase", id="chat", title="Ready", index=1, total=2)
    turn = 0
    while True:
        command = wait_for("generate", "cancel")
        if command["cmd"] == "cancel":
            say("cancelled")
            return
        words = command["messages"][-1]["content"].split()
        if words == ["die"]:
            os.kill(os.getpid(), signal.SIGKILL)
        reason = "end"
        if words[:1] == ["flow"]:
            flow(int(words[1]), int(words[2]), turn)
            words, reason = [], "stopped"
        if words == ["long"]:
            say("progress", done=512, total=1280, unit="tokens")
            wait_for("stop")
            words = []
        for word in words:
            say("tokens", text=word + " ", turn=turn)
        if words == ["forever"]:
            wait_for("stop")
            reason = "stopped"
        say("answer", turn=turn, reason=reason, prompt_tokens=3, tokens=len(words), ttft_s=0.1, tokens_per_s=9.0)
        turn += 1


def flow(rate, count, turn):
    """So many tokens a second, until `stop` or so many are written."""
    started = time.monotonic()
    for number in range(count):
        say("tokens", text=f"word{number}" + ("\n" if number % 60 == 59 else " "), turn=turn)
        command = next_command(timeout=max(0.0, started + (number + 1) / rate - time.monotonic()))
        if command and command["cmd"] == "stop":
            return


if __name__ == "__main__":
    WAYS[sys.argv[1]](sys.argv[2] if len(sys.argv) > 2 else "")
