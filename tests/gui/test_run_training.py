"""Training on the Run page: curves against their references, samples as a trace, and the ways on from a stopped run."""

import pytest
from PySide6.QtCore import Qt

from quantstudio.core import protocol
from quantstudio.core.recipe import OutputSection, Recipe
from quantstudio.core.recipe_method import Qat
from quantstudio.core.run_state import RunState, Status, replay
from quantstudio.core.run_store import WORK, RunHeader
from quantstudio.gui.pages.run_page import RunPage
from quantstudio.gui.widgets.chart_live import Line, LiveChart, Reference
from quantstudio.gui.widgets.run_detail import RunDetail
from quantstudio.gui.widgets.run_samples import SamplesCard, by_step
from quantstudio.gui.widgets.run_training import TrainingPanel, _rate, perplexity_words, references

TRAINED = Recipe(method=Qat(), output=OutputSection(name="Trained"))


def metric(name, value, step=0):
    return protocol.Metric(t=1.0, name=name, value=value, step=step)


def sample(step, text, prompt="Once"):
    return protocol.Sample(t=1.0, step=step, prompt=prompt, text=text)


@pytest.fixture
def page(make_context, qtbot):
    def make(way, argument=""):
        made = RunPage(make_context(way, argument))
        qtbot.addWidget(made)
        made.resize(900, 800)
        made.show()
        return made

    return make


def test_a_training_is_followed_live_cancelled_and_read_again_from_its_folder(page, qtbot):
    shown = page("train", "20 wait")
    queue = shown.context.queue
    run_id = queue.add(TRAINED, shown.context.settings.runs_path)
    shown.show_run(run_id)
    training = shown.detail.training
    qtbot.waitUntil(lambda: "step 20" in training.perplexity_now.text(), timeout=10_000)
    assert training.perplexity_now.text() == "now 34.4 · best 34.4 at step 20"
    assert "Original: 34.11. Round to nearest: 35.53. GPTQ: 34.9" in training.perplexity.accessibleDescription()
    assert {name for name, chart in training.charts.items() if chart.isVisibleTo(shown)} == set(training.charts)
    assert training.samples.steps.count() == 3
    assert "sailed for 20 days" in training.samples.text.toPlainText()
    shown.detail.cancel.click()
    qtbot.waitUntil(lambda: shown.detail.state.status is Status.CANCELLED, timeout=5000)
    qtbot.waitUntil(lambda: shown.detail.stopped_card.isVisibleTo(shown), timeout=2000)
    assert not shown.detail.stopped_card.resume.isVisibleTo(shown), "nothing was finished that could be resumed"


def test_a_stopped_run_with_finished_work_can_be_resumed(page, qtbot):
    shown = page("train", "10 wait")
    queue = shown.context.queue
    run_id = queue.add(TRAINED, shown.context.settings.runs_path)
    shown.show_run(run_id)
    work = queue.folder(run_id) / WORK
    work.mkdir()
    (work / "block-0.safetensors").touch()
    qtbot.waitUntil(lambda: shown.detail.state.status is Status.RUNNING, timeout=5000)
    shown.detail.cancel.click()
    resume = shown.detail.stopped_card.resume
    qtbot.waitUntil(lambda: resume.isVisibleTo(shown), timeout=5000)
    qtbot.mouseClick(resume, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: shown.detail.state.status is Status.RUNNING, timeout=5000)
    assert shown.run_id == run_id
    qtbot.waitUntil(lambda: not shown.detail.stopped_card.isVisibleTo(shown), timeout=2000)
    assert len(queue.runs) == 1
    assert queue.state(run_id).error is None
    shown.detail.cancel.click()
    qtbot.waitUntil(lambda: shown.detail.state.status is Status.CANCELLED, timeout=5000)


def test_a_run_without_training_shows_no_training(qtbot):
    detail = RunDetail()
    qtbot.addWidget(detail)
    detail.show_run(RunHeader(name="A", created=1.0), replay([metric("loss", 1.0, step) for step in range(3)]))
    assert not detail.training.isVisibleTo(detail)
    detail.show_run(RunHeader(name="B", created=1.0), replay([metric("train/loss", 1.0, step) for step in range(3)]))
    assert detail.training.isVisibleTo(detail)
    assert not detail._metric_charts, "no second chart of the same loss"


def test_references_stand_in_the_order_of_what_they_mean():
    state = replay([metric(f"reference/{key}", value) for key, value in (("gptq", 5), ("rtn", 9), ("original", 4))])
    assert [(each.name, each.y) for each in references(state)] == [
        ("Original", 4),
        ("Round to nearest", 9),
        ("GPTQ", 5),
    ]


def test_the_best_evaluation_is_named_also_when_it_is_not_the_last():
    state = replay([metric("eval/perplexity", value, step) for step, value in ((0, 9.0), (5, 7.25), (10, 8.0))])
    assert perplexity_words(RunState()) == ""
    assert perplexity_words(state) == "now 8 · best 7.25 at step 5"


def test_steps_that_were_rolled_back_leave_no_loop_in_the_curve():
    state = replay([metric("train/loss", float(step), step) for step in (1, 2, 3, 4, 3, 4, 5)])
    assert state.metrics["train/loss"].x == [1, 2, 3, 4, 5]
    again = replay([metric("train/loss", 1.0, 8), metric("train/loss", 2.0, 3)])
    assert (again.metrics["train/loss"].x, again.metrics["train/loss"].y) == ([3], [2.0])


def test_reference_lines_are_inside_the_chart_and_named(qtbot):
    chart = LiveChart("Perplexity", lambda value: f"{value:g}", over_time=False)
    qtbot.addWidget(chart)
    chart.resize(500, 200)
    chart.show_lines([Line("This", [0.0, 5.0], [6.0, 5.5])], [Reference("Original", 2.0), Reference("RTN", 20.0, 3)])
    ticks = chart._y_ticks()
    assert ticks[0] <= 2.0
    assert ticks[-1] >= 20.0
    assert chart.spoken() == "This: last 5.5, at most 6. Original: 2. RTN: 20"
    wide = chart._plot().top()
    chart.resize(180, 200)
    assert chart._plot().top() > wide, "names that do not fit beside each other stand below each other"
    chart.grab()


@pytest.fixture
def samples(qtbot):
    card = SamplesCard()
    qtbot.addWidget(card)
    card.show()
    return card


def test_samples_follow_until_a_step_is_picked(samples, qtbot):
    samples.show_samples([sample(0, " zero"), sample(10, " ten")])
    assert samples.current_step() == 10
    samples.show_samples([sample(0, " zero"), sample(10, " ten"), sample(20, " twenty")])
    assert samples.text.toPlainText() == "Once twenty"
    samples.steps.setFocus()
    qtbot.keyClick(samples.steps, Qt.Key.Key_Home)
    assert samples.text.toPlainText() == "Once zero"
    samples.show_samples([sample(step, f" {step}") for step in (0, 10, 20, 30)])
    assert samples.current_step() == 0, "what the person reads is not taken away"
    qtbot.keyClick(samples.steps, Qt.Key.Key_End)
    samples.show_samples([sample(step, f" {step}") for step in (0, 10, 20, 30, 40)])
    assert samples.current_step() == 40


def test_a_step_done_again_shows_its_later_text():
    found = by_step([sample(10, "old"), sample(10, "b", "Two"), sample(5, "x"), sample(10, "new")])
    assert {step: [each.text for each in texts] for step, texts in found.items()} == {5: ["x"], 10: ["new", "b"]}


def test_markup_in_samples_stays_text(samples):
    samples.show_samples([sample(0, "<b>bold</b> &amp;")])
    assert samples.text.toPlainText() == "Once<b>bold</b> &amp;"


def test_another_run_starts_with_its_own_last_step(qtbot):
    panel = TrainingPanel()
    qtbot.addWidget(panel)
    panel.show_state(replay([sample(step, str(step)) for step in (0, 10)]))
    panel.samples.steps.setCurrentRow(0)
    panel.new_run()
    panel.show_state(replay([sample(step, str(step)) for step in (0, 10, 20)]))
    assert panel.samples.current_step() == 20


def test_learning_rates_are_written_as_people_write_them():
    assert [_rate(value) for value in (0.0, 0.001, 8e-05, 1.784e-05)] == ["0", "0.001", "8 · 10⁻⁵", "1.78 · 10⁻⁵"]
