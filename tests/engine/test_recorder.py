"""What passes is on disk before it is handed on."""

import json
import threading

import pytest

from quantstudio.core import protocol, run_store
from quantstudio.engine.recorder import Recorder

MESSAGES = [
    protocol.Phase(t=1.0, id="a", title="A", index=0, total=1),
    protocol.Metric(t=2.0, name="perplexity", value=3.5, step=7),
    protocol.Log(t=3.0, level="info", text="a line ä"),
    protocol.Notice(t=4.0, level="warning", text="careful"),
    protocol.Heartbeat(t=5.0),
    protocol.Error(t=6.0, kind="disk", what="The disk is full.", hint="Free some space."),
]


def test_every_message_is_kept_and_handed_on(tmp_path):
    sent = []
    with Recorder(tmp_path, sent.append) as recorder:
        for message in MESSAGES:
            recorder(message)
        recorder.log(7.0, "Traceback")
    assert sent == MESSAGES
    assert run_store.read_messages(tmp_path) == [m for m in MESSAGES if not isinstance(m, protocol.Heartbeat)]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"t": 2.0, "name": "perplexity", "step": 7, "value": 3.5}
    ]
    log = (tmp_path / "worker.log").read_text(encoding="utf-8").splitlines()
    assert log == [
        "1970-01-01T00:00:03.000+00:00 info: a line ä",
        "1970-01-01T00:00:04.000+00:00 warning: careful",
        "1970-01-01T00:00:06.000+00:00 error: The disk is full.  Free some space.",
        "1970-01-01T00:00:07.000+00:00 debug: Traceback",
    ]


def test_a_message_is_on_disk_when_the_next_sink_gets_it(tmp_path):
    seen = []
    with Recorder(tmp_path, lambda message: seen.append((tmp_path / "events.jsonl").read_bytes())) as recorder:
        recorder(MESSAGES[0])
    assert seen == [protocol.encode(MESSAGES[0])]


def test_threads_do_not_mix_their_lines(tmp_path):
    with Recorder(tmp_path, lambda message: None) as recorder:
        texts = [letter * 5000 for letter in "abcd"]
        threads = [
            threading.Thread(target=lambda text=text: [recorder(protocol.Log(level="info", text=text))] * 1)
            for text in texts * 10
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    messages = run_store.read_messages(tmp_path)
    assert sorted(message.text for message in messages) == sorted(texts * 10)


def test_a_number_that_json_does_not_have_is_refused_and_leaves_no_half_line(tmp_path):
    with Recorder(tmp_path, lambda message: None) as recorder:
        with pytest.raises(ValueError):
            recorder(protocol.Metric(name="loss", value=float("nan")))
        recorder(MESSAGES[0])
    assert run_store.read_messages(tmp_path) == [MESSAGES[0]]
