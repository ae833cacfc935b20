"""Finding, judging, downloading and keeping models of the Hub: the real window, real workers, a fake Hub."""

import json
import shutil

import pytest
from PySide6.QtCore import Qt, QTimer, QUrl
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QApplication, QLineEdit, QMessageBox

from quantstudio.client.download_queue import DownloadStatus
from quantstudio.core.hub import Account, ModelSummary
from quantstudio.core.machine import Machine
from quantstudio.core.paths import hub_cache
from quantstudio.gui.hub_texts import day, summary_fit, summary_line
from quantstudio.gui.pages.models_page import ModelsPage, Tab
from quantstudio.gui.widgets.delete_dialog import DeleteDialog
from quantstudio.gui.widgets.sign_in import SignInDialog
from quantstudio.gui.widgets.stranger_text import StrangerText, open_web, without_html

GB = 10**9
TOKEN = "hf_goodgoodgoodgood"
PATIENCE = 60_000


@pytest.fixture
def page(hub, make_context, make_model, qtbot):
    """The Models page with two models on the Hub, and their results on the screen."""
    for name, settings in {"ada/small": {}, "ada/wide": {"hidden": 512}, "bob/other": {"model_type": "qwen2"}}.items():
        make_model(hub.root / name, **settings)
        (hub.root / name / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    made = ModelsPage(make_context())
    qtbot.addWidget(made)
    made.resize(1000, 640)
    made.show()
    made.show_tab(Tab.FIND)
    qtbot.waitUntil(lambda: made.find_view.items.rowCount() == 3, timeout=PATIENCE)
    return made


def names(page):
    items = page.find_view.items
    return sorted(items.index(row).data() for row in range(items.rowCount()))


def click_row(page, qtbot, name):
    view = page.find_view.list
    index = next(
        view.model().index(row) for row in range(view.model().rowCount()) if view.model().index(row).data() == name
    )
    qtbot.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, pos=view.visualRect(index).center())


def open_model(page, qtbot, name):
    click_row(page, qtbot, name)
    view = page.find_view.model_view
    qtbot.waitUntil(lambda: view.details is not None and not view.call.busy, timeout=PATIENCE)
    return view


def click(qtbot, button):
    assert button.isVisible(), button.text()
    assert button.isEnabled(), button.text()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def press(words):
    """Press the button with these words in the box that is about to appear."""

    def look():
        box = QApplication.activeModalWidget()
        if not isinstance(box, QMessageBox):
            QTimer.singleShot(20, look)
            return
        next(each for each in box.buttons() if each.text().replace("&", "") == words).click()

    QTimer.singleShot(20, look)


def test_filters_ask_the_hub_and_more_comes_page_by_page(page, qtbot):
    view = page.find_view
    qtbot.keyClicks(view.filters.text, "small")
    qtbot.keyClick(view.filters.text, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: names(page) == ["ada/small"], timeout=PATIENCE)
    view.filters.text.clear()
    view.filters.family.setCurrentText("qwen2")
    click(qtbot, view.filters.search)
    qtbot.waitUntil(lambda: names(page) == ["bob/other"], timeout=PATIENCE)
    view.filters.family.setCurrentIndex(0)
    view.filters.look_for_smaller("ada", 3_000_000)
    qtbot.waitUntil(lambda: names(page) == ["ada/small", "ada/wide"], timeout=PATIENCE)
    assert view.query.max_parameters == 100_000_000
    view.filters.smallest.setCurrentIndex(2)
    view.search()
    qtbot.waitUntil(view.empty.isVisible, timeout=PATIENCE)
    view.filters.smallest.setCurrentIndex(0)
    view.query = view.filters.query()
    page_of_one = view.query.model_copy(update={"limit": 1})
    view.filters.query = lambda: page_of_one
    view.search()
    qtbot.waitUntil(view.more_button.isVisible, timeout=PATIENCE)
    assert len(names(page)) == 1
    click(qtbot, view.more_button)
    qtbot.waitUntil(lambda: names(page) == ["ada/small", "ada/wide"], timeout=PATIENCE)


def test_a_question_can_be_cancelled_and_the_window_never_waits(page, hub, qtbot):
    hub.fault("api", "silent")
    view = page.find_view
    view.search()
    qtbot.waitUntil(view.cancel.isVisible, timeout=PATIENCE)
    with qtbot.waitSignal(view.call.stopped, timeout=PATIENCE):
        click(qtbot, view.cancel)
    assert not view.bar.isVisible()


def test_a_model_s_page_tells_what_it_is_and_what_it_needs(page, hub, qtbot):
    card = "---\nlicense: mit\n---\n# Small\n\n<img src='http://spy/x.png'> [site](https://example.org)\n"
    (hub.root / "ada/small/README.md").write_text(card)
    view = open_model(page, qtbot, "ada/small")
    assert "Small" in view.about.card.toPlainText()
    assert "spy" not in view.about.card.toHtml()
    qtbot.waitUntil(lambda: len(view.fit.panel.needs) == 6, timeout=PATIENCE)
    assert {need.verdict.value for need in view.fit.panel.needs} == {"fits"}
    assert view.fit.sizes.rowCount() == 1 + len(view.details.schemes)
    kinds = [view.layers.kinds.item(row, 0).text() for row in range(view.layers.kinds.rowCount())]
    assert "down_proj" in kinds
    files = {view.files.table.item(row, 0).text(): row for row in range(view.files.table.rowCount())}
    assert view.files.table.item(files["model.safetensors"], 2).text() == "will be fetched"
    assert view.licence.name.text() == "apache-2.0"
    qtbot.mouseClick(view.back, Qt.MouseButton.LeftButton)
    assert view.isHidden() or not view.isVisible()


def test_a_download_is_shown_paused_resumed_and_leads_to_quantizing(page, hub, qtbot):
    hub.rate = 1.5e6
    view = open_model(page, qtbot, "ada/wide")
    click(qtbot, view.download_button)
    queue, downloads = page.context.downloads, page.downloads_view
    assert page.stack.currentWidget() is downloads
    card = downloads.cards["ada/wide"]
    qtbot.waitUntil(lambda: queue.download("ada/wide").state.done > 300_000, timeout=PATIENCE)
    assert "MB" in card.words.whole_text()
    assert page.tabs.tabText(Tab.DOWNLOADS) == "Downloads (1)"
    page.show_tab(Tab.LIBRARY)
    page.show_tab(Tab.DOWNLOADS)
    click(qtbot, card.pause)
    qtbot.waitUntil(lambda: queue.download("ada/wide").status is DownloadStatus.PAUSED, timeout=PATIENCE)
    assert "kept" in card.words.whole_text()
    kept, hub.rate = queue.download("ada/wide").state.done, 0
    click(qtbot, card.resume)
    qtbot.waitUntil(lambda: queue.download("ada/wide").status is DownloadStatus.DONE, timeout=PATIENCE)
    assert queue.download("ada/wide").result.reused_bytes >= 0.9 * kept > 0, "what was fetched is not fetched again"
    with qtbot.waitSignal(page.context.quantize_wanted) as wanted:
        click(qtbot, card.quantize)
    assert wanted.args == ["ada/wide"]


def test_a_cancelled_download_leaves_nothing(page, hub, qtbot):
    hub.rate = 1.5e6
    view = open_model(page, qtbot, "ada/wide")
    click(qtbot, view.download_button)
    queue, card = page.context.downloads, page.downloads_view.cards["ada/wide"]
    qtbot.waitUntil(lambda: queue.download("ada/wide").state.done > 300_000, timeout=PATIENCE)
    press("Stop and delete")
    click(qtbot, card.cancel)
    qtbot.waitUntil(lambda: not queue.downloads, timeout=PATIENCE)
    qtbot.waitUntil(lambda: not list(hub_cache().glob("models--ada--wide/blobs/*")), timeout=PATIENCE)
    assert page.downloads_view._stack.currentIndex() == 0


def test_closing_the_window_ends_a_download_and_keeps_what_it_has(page, hub, qtbot):
    hub.rate = 1.5e6
    page.start_download("ada/wide")
    queue = page.context.downloads
    qtbot.waitUntil(lambda: queue.download("ada/wide").state.done > 300_000, timeout=PATIENCE)
    page.context.closing.emit()
    partial = list(hub_cache().glob("models--ada--wide/blobs/*partial"))
    assert partial
    assert max(path.stat().st_size for path in partial) > 250_000


def test_a_new_window_offers_what_the_one_before_left_and_asks_nobody(page, hub, make_context, qtbot):
    hub.rate = 1.5e6
    page.start_download("ada/wide")
    page.start_download("ada/small")
    before = page.context.downloads
    qtbot.waitUntil(lambda: before.download("ada/wide").state.done > 300_000, timeout=PATIENCE)
    page.context.closing.emit()
    hub.seen.clear()
    hub.rate = 0
    new = ModelsPage(make_context())
    qtbot.addWidget(new)
    new.resize(1000, 640)
    new.show()
    qtbot.waitUntil(lambda: new.tabs.tabText(Tab.DOWNLOADS) == "Downloads (2 not finished)", timeout=PATIENCE)
    qtbot.mouseClick(new.tabs, Qt.MouseButton.LeftButton, pos=new.tabs.tabRect(Tab.DOWNLOADS).center())
    view, queue = new.downloads_view, new.context.downloads
    assert "2 downloads were not finished" in view.left.text()
    card = view.cards["ada/wide"]
    assert "are kept" in card.words.whole_text()
    assert 0 < card.total.value() < card.total.maximum()
    assert not hub.seen
    click(qtbot, view.resume_all)
    qtbot.waitUntil(lambda: all(d.status is DownloadStatus.DONE for d in queue.downloads), timeout=PATIENCE)
    assert queue.download("ada/wide").result.reused_bytes > 250_000
    assert not view.left.isVisible()


def test_a_failed_download_says_why_and_is_tried_again(page, hub, qtbot):
    shutil.copytree(hub.root / "ada/small", hub.root / "ada/gone")
    page.start_download("ada/missing")
    queue, card = page.context.downloads, page.downloads_view.cards["ada/missing"]
    qtbot.waitUntil(lambda: queue.download("ada/missing").status is DownloadStatus.FAILED, timeout=PATIENCE)
    assert "no model ada/missing" in card.problem.text()
    shutil.copytree(hub.root / "ada/small", hub.root / "ada/missing")
    assert card.resume.text() == "Try again"
    click(qtbot, card.resume)
    qtbot.waitUntil(lambda: queue.download("ada/missing").status is DownloadStatus.DONE, timeout=PATIENCE)


def test_gated_models_ask_for_a_token_that_stays_nowhere_in_the_window(page, hub, qtbot, tmp_path):
    hub.gated.add("ada/small")
    view = open_model(page, qtbot, "ada/small")
    assert "signed in" in view.banner.text()
    assert not view.download_button.isVisible()
    dialog = SignInDialog(Account(), page)
    qtbot.addWidget(dialog)
    dialog.show()
    assert dialog.token.echoMode() is QLineEdit.EchoMode.Password
    dialog.token.setText("hf_wrong")
    click(qtbot, dialog.sign_in)
    qtbot.waitUntil(lambda: "not accept this token" in dialog.banner.text(), timeout=PATIENCE)
    assert "hf_wrong" not in dialog.banner.text()
    dialog.token.setText(TOKEN)
    click(qtbot, dialog.sign_in)
    assert dialog.token.text() == ""
    qtbot.waitUntil(lambda: not dialog.isVisible(), timeout=PATIENCE)
    assert dialog.account.name == "ada"
    view.look_again()
    qtbot.waitUntil(view.download_button.isVisible, timeout=PATIENCE)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert [path.name for path in kept] == ["token"], "the Hub's own store alone"


def test_without_a_network_the_library_works_and_the_search_says_what_is_wrong(page, hub, qtbot, monkeypatch):
    page.start_download("ada/small")
    queue = page.context.downloads
    qtbot.waitUntil(lambda: queue.download("ada/small").status is DownloadStatus.DONE, timeout=PATIENCE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    page.show_tab(Tab.FIND)
    page.find_view.search()
    qtbot.waitUntil(page.find_view.trouble.isVisible, timeout=PATIENCE)
    assert page.find_view.trouble.title.text() == "The Hub is switched off"
    assert "HF_HUB_OFFLINE" in page.find_view.trouble.text.text()
    page.show_tab(Tab.LIBRARY)
    qtbot.waitUntil(lambda: page.library.items.row_of("ada/small") >= 0, timeout=PATIENCE)
    page.library._mark("ada/small")
    click(qtbot, page.library.deeds.verify)
    qtbot.waitUntil(lambda: "is whole" in page.library.banner.text(), timeout=PATIENCE)


def test_a_damaged_model_is_found_and_repaired_and_a_model_can_be_deleted(page, hub, qtbot, monkeypatch):
    page.start_download("ada/small")
    queue, library = page.context.downloads, page.library
    qtbot.waitUntil(lambda: queue.download("ada/small").status is DownloadStatus.DONE, timeout=PATIENCE)
    qtbot.waitUntil(lambda: library.items.row_of("ada/small") >= 0, timeout=PATIENCE)
    blob = max(hub_cache().glob("models--ada--small/blobs/*"), key=lambda path: path.stat().st_size)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    page.show_tab(Tab.LIBRARY)
    library._mark("ada/small")
    click(qtbot, library.deeds.verify)
    qtbot.waitUntil(lambda: "is damaged" in library.banner.text(), timeout=PATIENCE)
    qtbot.waitUntil(library.deeds.repair.isVisible, timeout=PATIENCE)
    click(qtbot, library.deeds.repair)
    qtbot.waitUntil(lambda: queue.download("ada/small").status is DownloadStatus.DONE, timeout=PATIENCE)
    assert blob.read_bytes() == whole
    page.show_tab(Tab.LIBRARY)
    library._mark("ada/small")
    monkeypatch.setattr(DeleteDialog, "exec", lambda dialog: dialog.delete.click() or True)
    qtbot.waitUntil(lambda: not library.keeper.call.busy, timeout=PATIENCE)
    click(qtbot, library.deeds.delete)
    qtbot.waitUntil(lambda: library.items.row_of("ada/small") < 0, timeout=PATIENCE)
    assert "free again" in library.banner.text()
    assert not list(hub_cache().glob("models--ada--small"))


def test_what_is_remarkable_about_a_stranger_s_folder_is_shown(page, qtbot, tmp_path, make_model):
    folder = make_model(tmp_path / "mine")
    (folder / "evil.py").write_text("raise SystemExit")
    page.show_tab(Tab.LIBRARY)
    with qtbot.waitSignal(page.context.library.found, timeout=PATIENCE):
        page.library.add_folders([folder])
    qtbot.waitUntil(lambda: "Python code (evil.py)" in page.library.details.findings.text(), timeout=PATIENCE)


def test_a_card_cannot_load_or_open_anything_but_web_pages(qtbot, monkeypatch):
    opened = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: opened.append(url.toString()) or True)
    for bad in (
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:text/html,x",
        "smb://host/x",
        "relative.html",
        "http:",
    ):
        assert not open_web(QUrl(bad))
    assert open_web(QUrl("https://example.org/a"))
    assert opened == ["https://example.org/a"]
    shown = StrangerText("Card")
    qtbot.addWidget(shown)
    shown.show_markdown(
        "# T\n![x](file:///etc/passwd)\n[go](https://example.org)\n<script>bad()</script>\n```\n<b>code</b>\n```"
    )
    assert shown.loadResource(2, QUrl("file:///etc/passwd")) is None
    text = shown.toPlainText()
    assert "bad()" not in text
    assert "<b>code</b>" in text
    assert "<img" not in shown.toHtml()


def test_a_card_s_table_has_no_empty_lines_and_what_it_says_stays(qtbot):
    shown = StrangerText("Card")
    qtbot.addWidget(shown)
    shown.show_markdown("Before.\n\n| task | score |\n| --- | --- |\n| singing | 61 |\n\nAfter.\n")
    lines = shown.toPlainText().split("\n")
    assert [line for line in lines if line.strip()] == ["Before.", "task", "score", "singing", "61", "After."]
    table = next(frame for frame in shown.document().rootFrame().childFrames())
    assert table.cellAt(0, 0).firstCursorPosition().block().text() == "task"


@pytest.mark.parametrize("evil", ["![" * 30_000, "<" * 60_000, "<!--" * 20_000, "[![a](" * 10_000, "*_" * 30_000])
def test_a_hostile_card_is_cleaned_and_laid_out_in_the_blink_of_an_eye(qtbot, evil):
    shown = StrangerText("Card")
    qtbot.addWidget(shown)
    shown.show_markdown(evil)
    assert len(without_html(evil)) < 70_000


MACHINE = Machine(cores=2, memory=8 * GB, available_memory=6 * GB, free_disk=30 * GB)


@pytest.mark.parametrize(
    ("parameters", "nbytes", "quantized", "short"),
    [
        (500_000_000, GB, "", "Fits"),
        (3_000_000_000, 6 * GB, "", "Fits quantized"),
        (7_000_000_000, 14 * GB, "", "Fits quantized"),
        (14_000_000_000, 28 * GB, "", "Too large"),
        (70_000_000_000, 140 * GB, "", "Disk too small"),
        (7_000_000_000, 4 * GB, "gptq", "Fits"),
        (None, None, "", "Size unknown"),
    ],
)
def test_a_row_s_badge_is_plain_and_has_a_sentence(parameters, nbytes, quantized, short):
    row = ModelSummary(id="a/b", parameters=parameters, download_bytes=nbytes, quantized=quantized)
    found = summary_fit(row, MACHINE)
    assert found.short == short
    assert found.sentence.endswith(".")
    assert "OOM" not in found.sentence


def test_a_row_s_line_leaves_out_what_is_not_known():
    row = ModelSummary(id="a/b", parameters=1_540_000_000, dtype="BF16", architecture="Qwen2ForCausalLM", modified="x")
    assert summary_line(row) == "1.54B parameters · bf16 · Qwen2"
    assert day("2026-01-02T03:04:05.000Z") == "2 Jan 2026"
    assert json.dumps(summary_line(ModelSummary(id="a/b"))) == '""'
