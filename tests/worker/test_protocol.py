"""The golden file, the written specification and the program say the same."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

from quantstudio.core import jobs, protocol
from quantstudio.core.jobs import ChatJob, ChatMessage, ChatRequest, Sampling
from quantstudio.core.paths import resources
from quantstudio.core.protocol import MESSAGES, TERMINAL, Command, decode, decode_command, encode
from quantstudio.core.recipe import MachineSection
from quantstudio.worker.outbox import GAUGES, MAX_STREAM, STREAMS

GOLDEN = Path(__file__).parent / "golden"
MESSAGE_LINES = (GOLDEN / "messages.jsonl").read_bytes().splitlines(keepends=True)
COMMAND_LINES = (GOLDEN / "commands.jsonl").read_bytes().splitlines(keepends=True)
SPEC = (resources() / "docs" / "protocol.md").read_text(encoding="utf-8")

EXAMPLES = [
    protocol.Hello(t=1700000000.25, protocol=1, version="0.1.0", pid=4242),
    protocol.Phase(t=1700000001.0, id="quantize", title="Quantize", index=1, total=6),
    protocol.Progress(t=1700000002.0, done=12, total=43, unit="layers", detail="model.layers.3.mlp.up_proj", eta_s=2.5),
    protocol.Transfer(
        t=1700000002.5,
        stage="fetching",
        file="model-00001-of-00002.safetensors",
        file_done=690_000_000,
        file_total=900_000_000,
        done=700_000_000,
        total=1_000_000_000,
        files_done=6,
        files_total=8,
        bytes_per_s=2_500_000.0,
        eta_s=120.5,
    ),
    protocol.Metric(t=1700000003.0, name="perplexity", value=19.875, step=4),
    protocol.Sample(t=1700000003.5, step=40, prompt="Once upon a time", text=" — there was\n"),
    protocol.Memory(t=1700000004.0, rss=512_000_000, available=8_000_000_000),
    protocol.Notice(t=1700000005.0, level="warning", text="2 layers stay in bf16: Conv1D – “c_attn”."),
    protocol.Artifact(t=1700000006.0, kind="model", path="/home/ada/runs/starter-int4/model"),
    protocol.Tokens(t=1700000007.0, text="Once upon a time — ✨\n", turn=2),
    protocol.Answer(
        t=1700000008.0,
        turn=2,
        reason="end",
        prompt_tokens=31,
        tokens=64,
        ttft_s=0.125,
        tokens_per_s=302.5,
        reused_tokens=24,
    ),
    protocol.Engine(t=1700000008.5, text="int4 weights 3.1 times as fast as bf16", detail="run by an_operator"),
    protocol.Log(t=1700000009.0, level="info", text="kernel int4pack_mm on 42 layers"),
    protocol.Heartbeat(t=1700000010.0),
    protocol.Result(t=1700000011.0, data={"run_id": "starter-int4", "verdict": ["Smaller."]}),
    protocol.Error(
        t=1700000012.0,
        kind="disk",
        what="The disk is full.",
        why="3.1 GB are needed.",
        hint="Free 2 GB, or choose another folder.",
        field="output.name",
    ),
    protocol.CancelledMessage(t=1700000013.0),
]
COMMANDS = [
    Command(
        name="start",
        payload=ChatJob(model="starter", machine=MachineSection(device="cpu", threads=2)).model_dump(mode="json"),
    ),
    Command(name="cancel"),
    Command(
        name="generate",
        payload=ChatRequest(
            messages=(ChatMessage(role="user", content="Who is Ahab? 🐋"),),
            sampling=Sampling(temperature=0, max_tokens=32, seed=7),
        ).model_dump(mode="json"),
    ),
    Command(name="stop"),
]


def test_the_golden_file_has_each_message_once():
    assert [type(example) for example in EXAMPLES] == list(MESSAGES.values())
    assert len(MESSAGE_LINES) == len(EXAMPLES)


@pytest.mark.parametrize(("line", "message"), list(zip(MESSAGE_LINES, EXAMPLES, strict=True)))
def test_messages_are_read_and_written_as_the_golden_file_says(line, message):
    assert decode(line) == message
    assert encode(message) == line


@pytest.mark.parametrize(("line", "command"), list(zip(COMMAND_LINES, COMMANDS, strict=True)))
def test_commands_are_read_and_written_as_the_golden_file_says(line, command):
    read = decode_command(line)
    assert (read.name, sorted(read.payload)) == (command.name, sorted(command.payload))
    if command.name == "start":
        assert jobs.parse_job(read.payload) == jobs.parse_job(command.payload)
    if command.name == "generate":
        assert ChatRequest.model_validate(read.payload) == ChatRequest.model_validate(command.payload)
    assert decode_command(command.encode()) == command


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: message.type)
def test_readers_ignore_keys_that_they_do_not_know(message):
    line = encode(message).replace(b'{"type"', b'{"wonder":[1],"type"')
    assert decode(line) == message


@pytest.mark.parametrize(
    "line",
    [
        '{"type":"progress","done":"many","total":1}',
        '{"type":"progress","done":1}',
        '{"type":"memory","rss":1.5}',
        '{"type":"tokens","text":null}',
        '{"type":"result","data":[]}',
        '{"type":"metric","name":"loss","value":NaN}',
        '{"type":"metric","name":"loss","value":Infinity}',
        b'{"type":"log","level":"info","text":"\xff"}',
        "[]",
        "",
    ],
)
def test_broken_lines_are_told_from_good_ones(line):
    with pytest.raises(ValueError):
        decode(line)


def test_nan_is_not_written():
    with pytest.raises(ValueError):
        encode(protocol.Metric(name="loss", value=float("nan")))


def section(name):
    """The part of the specification under the heading of this message or command."""
    found = re.search(rf"^### `{name}`\n(.*?)(?=^##|\Z)", SPEC, re.MULTILINE | re.DOTALL)
    assert found, f"protocol.md has no section for {name}"
    return found[1]


def keys(text):
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


@pytest.mark.parametrize("message", list(MESSAGES.values()), ids=lambda message: message.type)
def test_the_specification_has_every_key_of_every_message_and_no_other(message):
    fields = {field.name: field for field in dataclasses.fields(message) if field.name != "t"}
    text = section(message.type)
    assert sorted(keys(text)) == sorted(fields)
    for row in re.findall(r"^\| `\w+` .*$", text, re.MULTILINE):
        field = fields[keys(row)[0]]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        assert ("optional" in row) is not required, row
    assert ("Terminal" in text) is (message in TERMINAL)


def test_the_specification_knows_no_other_message_or_command():
    names = re.findall(r"^### `(\w+)`$", SPEC, re.MULTILINE)
    assert names == [*MESSAGES, *(command.name for command in COMMANDS)]


def test_the_specification_has_every_key_of_every_command():
    models = get_args(jobs.AnyJob)
    assert set(keys(section("start"))) == {name for model in models for name in model.model_fields}
    assert keys(section("generate")) == list(ChatRequest.model_fields)
    for name in Sampling.model_fields:
        assert f"`{name}`" in section("generate")


def test_the_specification_sorts_messages_into_classes_as_the_outbox_does():
    rows = {row[0]: set(re.findall(r"`(\w+)`", row[1])) for row in re.findall(r"^\| (\w+) \| (.*?) \|", SPEC, re.M)}
    assert rows["gauge"] == {message.type for message in GAUGES}
    assert rows["stream"] == {message.type for message in STREAMS}
    assert rows["state"] | rows["gauge"] | rows["stream"] == set(MESSAGES)
    assert f"{MAX_STREAM:,}" in SPEC
    assert f"{protocol.MAX_LINE_BYTES:,}" in SPEC
    assert f"Version: **{protocol.PROTOCOL_VERSION}**" in SPEC
