"""The reducer: same messages, same state; a job ends once."""

from quantstudio.core import protocol
from quantstudio.core.run_state import MAX_POINTS, RunState, Series, Status, replay

STORY = [
    protocol.Hello(t=10.0, protocol=1, version="0", pid=1),
    protocol.Phase(t=11.0, id="a", title="A", index=0, total=2),
    protocol.Progress(t=12.0, done=1, total=2, unit="layers"),
    protocol.Memory(t=12.5, rss=100),
    protocol.Metric(t=12.6, name="loss", value=3.0, step=1),
    protocol.Sample(t=12.65, step=1, prompt="Once", text=" upon"),
    protocol.Notice(t=12.7, level="warning", text="careful"),
    protocol.Phase(t=13.0, id="b", title="B", index=1, total=2),
    protocol.Tokens(t=13.1, text="Once "),
    protocol.Tokens(t=13.2, text="upon"),
    protocol.Artifact(t=13.3, kind="model", path="/x"),
    protocol.Log(t=13.4, level="info", text="line"),
    protocol.Heartbeat(t=13.5),
]


def test_the_story_adds_up():
    state = replay(STORY)
    assert state.status is Status.RUNNING
    assert [phase.id for phase in state.phases] == ["a", "b"]
    assert state.progress is None
    assert state.fraction == 0.5
    assert (state.memory.x, state.memory.y) == ([2.5], [100])
    assert state.metrics["loss"].y == [3.0]
    assert [(sample.step, sample.text) for sample in state.samples] == [(1, " upon")]
    assert state.text == "Once upon"
    assert list(state.log) == ["warning: careful", "line"]
    assert state.messages == len(STORY)


def test_replay_equals_live_at_every_point():
    live = RunState()
    for count, message in enumerate(STORY, 1):
        live.apply(message)
        assert live == replay(STORY[:count])


def test_nothing_after_the_end_counts():
    state = replay([*STORY, protocol.Result(t=14, data={"a": 1})])
    state.apply(protocol.Error(t=15, kind="internal", what="late"))
    state.apply(protocol.CancelledMessage(t=16))
    assert state.status is Status.DONE
    assert state.error is None
    assert state.fraction == 1.0


def test_a_phase_does_not_undo_a_request_to_cancel():
    state = replay(STORY[:3])
    state.status = Status.CANCELLING
    state.apply(STORY[6])
    assert state.status is Status.CANCELLING


def test_a_long_curve_keeps_its_ends_and_its_order():
    series = Series()
    for index in range(3 * MAX_POINTS):
        series.add(index, -index)
    assert len(series.x) <= MAX_POINTS + 1
    assert series.x == sorted(series.x)
    assert series.x[0] == 0
    assert series.x[-1] >= 3 * MAX_POINTS - 8
