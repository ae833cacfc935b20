"""The Models page: what is found, what is added, what is wrong, in words."""

import json

import pytest
from PySide6.QtCore import QMimeData, QPointF, Qt, QUrl
from PySide6.QtGui import QDesktopServices, QDropEvent
from PySide6.QtWidgets import QFileDialog

from quantstudio.core.library import FoundModel, ModelKind
from quantstudio.core.machine import Machine
from quantstudio.core.model_info import read_model_info
from quantstudio.core.settings import load_settings
from quantstudio.gui.model_texts import details, fit, summary
from quantstudio.gui.pages.models_page import ModelsPage


@pytest.fixture
def page(context, qtbot):
    whole = ModelsPage(context)
    qtbot.addWidget(whole)
    whole.resize(900, 600)
    whole.show()
    with qtbot.waitSignal(context.library.found, timeout=5000):
        whole.library.refresh()
    return whole.library


@pytest.fixture
def folder_of_models(tmp_path, make_model):
    make_model(tmp_path / "models" / "good", hidden=128)
    broken = tmp_path / "models" / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    return tmp_path / "models"


def names(page):
    return [page.items.index(row).data() for row in range(page.items.rowCount())]


def add(page, qtbot, *folders):
    with qtbot.waitSignal(page.context.library.found, timeout=5000):
        page.add_folders(list(folders))


def mark(page, name):
    page.list.setCurrentIndex(page.items.index(names(page).index(name)))


def test_the_starter_model_is_there_with_its_facts_and_whether_it_fits(page, qtbot):
    assert names(page) == ["Starter model"]
    facts = dict(details(page.marked()))
    assert facts["Parameters"] == "1.84M (1,835,264)"
    assert facts["Architecture"] == "LlamaForCausalLM"
    assert facts["Licence"] == "apache-2.0"
    assert facts["Context"] == "1,024 tokens"
    qtbot.waitUntil(lambda: "memory" in page.details.fit.text(), timeout=5000)
    assert page.deeds.quantize.isEnabled()


def test_added_folders_appear_and_are_remembered(page, qtbot, folder_of_models):
    add(page, qtbot, folder_of_models)
    assert names(page) == ["Starter model", "broken", "good"]
    assert load_settings().model_folders == (str(folder_of_models),)


def test_a_dialog_adds_a_folder(page, qtbot, folder_of_models, monkeypatch):
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(folder_of_models / "good"))
    with qtbot.waitSignal(page.context.library.found, timeout=5000):
        qtbot.mouseClick(page.add_button, Qt.MouseButton.LeftButton)
    assert page.marked().name == "good", "what was added is marked"


def test_a_dropped_folder_is_added_and_a_dropped_file_is_not(page, qtbot, folder_of_models):
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(folder_of_models / "good"))])
    drop = QDropEvent(
        QPointF(10, 10), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    )
    with qtbot.waitSignal(page.context.library.found, timeout=5000):
        page.window().dropEvent(drop)
    assert "good" in names(page)
    assert page.context.settings.model_folders == (str(folder_of_models / "good"),)


def test_a_broken_folder_says_what_is_wrong_and_offers_no_work(page, qtbot, folder_of_models):
    add(page, qtbot, folder_of_models)
    mark(page, "broken")
    assert "There are no weights in" in page.details.fit.text()
    assert not page.deeds.quantize.isEnabled()
    assert not page.deeds.chat.isEnabled()
    assert page.deeds.remove.isVisible()


def test_removing_takes_the_folder_off_the_list_and_leaves_its_files(page, qtbot, folder_of_models):
    add(page, qtbot, folder_of_models)
    mark(page, "good")
    with qtbot.waitSignal(page.context.library.found, timeout=5000):
        qtbot.mouseClick(page.deeds.remove, Qt.MouseButton.LeftButton)
    assert names(page) == ["Starter model"]
    assert load_settings().model_folders == ()
    assert (folder_of_models / "good" / "config.json").is_file()
    assert not page.deeds.remove.isVisible(), "the starter model cannot be taken off"


def test_the_filter_keeps_what_matches(page, qtbot, folder_of_models):
    add(page, qtbot, folder_of_models)
    qtbot.keyClicks(page.filter, "GOOD")
    assert names(page) == ["good"]
    page.filter.setText("nothing like it")
    assert names(page) == []
    assert page.empty.isVisible()
    assert not page.side.isVisible()


def test_buttons_and_enter_lead_to_the_other_pages(page, qtbot, monkeypatch):
    opened = []
    monkeypatch.setattr(QDesktopServices, "openUrl", opened.append)
    with qtbot.waitSignal(page.context.quantize_wanted) as wanted:
        qtbot.mouseClick(page.deeds.quantize, Qt.MouseButton.LeftButton)
    assert wanted.args == ["starter"]
    with qtbot.waitSignal(page.context.quantize_wanted):
        qtbot.keyClick(page.list, Qt.Key.Key_Return)
    with qtbot.waitSignal(page.context.chat_wanted) as wanted:
        qtbot.mouseClick(page.deeds.chat, Qt.MouseButton.LeftButton)
    assert wanted.args == ["starter"]
    qtbot.mouseClick(page.deeds.folder, Qt.MouseButton.LeftButton)
    assert opened[0].toLocalFile() == str(page.marked().path)


def test_a_row_tells_screen_readers_everything(page, qtbot):
    qtbot.waitUntil(lambda: page.items.fit_of("starter") is not None, timeout=5000)
    said = page.items.index(0).data(Qt.ItemDataRole.AccessibleTextRole)
    for part in ("Starter model", "1.84M parameters", "bf16", "Llama", "MB", "Fits"):
        assert part in said


def test_an_already_quantized_model_can_be_talked_to_but_not_quantized_again(page, qtbot, tmp_path, make_model):
    folder = make_model(tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (folder / "config.json").write_text(json.dumps(config))
    add(page, qtbot, folder)
    assert page.marked().name == "small"
    assert not page.deeds.quantize.isEnabled()
    assert page.deeds.chat.isEnabled()
    assert summary(page.marked()).endswith("Llama · quantized (gptq)")


@pytest.mark.parametrize(
    ("machine", "short"),
    [
        (Machine(cores=2, memory=8 * 10**9, available_memory=6 * 10**9, free_disk=10**10), "Fits"),
        (Machine(cores=2, memory=8 * 10**9, available_memory=10**8, free_disk=10**10), "Tight"),
        (Machine(cores=2, memory=3 * 10**8, available_memory=10**8, free_disk=10**10), "Too large"),
        (Machine(cores=2, memory=8 * 10**9, available_memory=6 * 10**9, free_disk=10**6), "Disk too small"),
    ],
)
def test_whether_a_model_fits_depends_on_the_machine(home, tmp_path, machine, short):
    info = read_model_info(tmp_path / "starter")
    found = fit(info, machine, home)
    assert found.short == short
    assert found.sentence.endswith(".")


def test_a_model_that_can_only_be_quantized_says_so(home, tmp_path, make_model):
    info = read_model_info(make_model(tmp_path / "wide", vocab=60_000))
    machine = Machine(cores=2, memory=620_000_000, available_memory=620_000_000, free_disk=10**10)
    assert "Can be quantized, but measuring" in fit(info, machine, home).sentence


def test_a_model_without_facts_is_described_by_its_error(tmp_path):
    model = FoundModel(ModelKind.FOLDER, "x", "x", tmp_path, error="There are no weights.")
    assert summary(model) == "There are no weights."
    assert details(model) == [("Where", str(tmp_path))]
