"""Lines come out whole, however the pipe cuts them."""

import pytest

from quantstudio.client.line_reader import LineReader
from quantstudio.core.protocol import Heartbeat, Notice, encode

MESSAGES = [Notice(t=float(number), level="info", text="ü" * number) for number in range(40)]
WIRE = b"".join(encode(message) for message in MESSAGES)


@pytest.mark.parametrize("size", [1, 2, 7, 100, len(WIRE)])
def test_any_cut_gives_the_same_messages(size):
    reader = LineReader()
    seen = [message for start in range(0, len(WIRE), size) for message in reader.feed(WIRE[start : start + size])]
    assert seen == MESSAGES
    assert reader.broken == 0


@pytest.mark.parametrize(
    "line", [b"nonsense", b"{}x", b"[1]", b'"text"', b"null", b'{"type":7}', b'{"type":"phase"}', b"[" * 9999]
)
def test_a_broken_line_is_counted_and_passed_over(line):
    reader = LineReader()
    assert reader.feed(line + b"\n" + encode(Heartbeat())) == [Heartbeat()]
    assert reader.broken == (line != b'{"type":7}')


@pytest.mark.parametrize("size", [10, 64, 5000])
def test_a_line_beyond_the_limit_is_not_kept(size):
    reader = LineReader(limit=200)
    wire = encode(Heartbeat(t=1)) + b"x" * 3000 + b"\n" + encode(Heartbeat(t=2))
    seen = [message for start in range(0, len(wire), size) for message in reader.feed(wire[start : start + size])]
    assert seen == [Heartbeat(t=1), Heartbeat(t=2)]
    assert reader.broken == 1


def test_an_empty_line_is_nothing():
    reader = LineReader()
    assert reader.feed(b"\n\r\n \n") == []
    assert reader.broken == 0
