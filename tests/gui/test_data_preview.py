"""The look at the text: a worker reads, the dialog shows, and nothing is hidden or made up on the way."""

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel

from quantstudio.core.data_preview import PreviewSequence
from quantstudio.gui.pages.quantize_page import QuantizePage
from quantstudio.gui.theme import active_tokens
from quantstudio.gui.widgets.basics import Banner
from quantstudio.gui.widgets.preview_text import SequenceView, counts_wholly, pieces


@pytest.fixture
def look(make_context, qtbot):
    def make(argument):
        page = QuantizePage(make_context("preview", argument))
        qtbot.addWidget(page)
        page.show()
        page.form.set_values({"method.kind": "gptq"})
        qtbot.waitUntil(lambda: page.tools.preview_button.isEnabled() and page._checked, timeout=5000)
        qtbot.mouseClick(page.tools.preview_button, Qt.MouseButton.LeftButton)
        return page, page.tools.last_preview

    return make


def shown(dialog):
    return [each.text() for each in dialog.findChildren(QLabel) if each.isVisibleTo(dialog)]


def banners(dialog):
    return [each.text() for each in dialog.findChildren(Banner)]


def test_numbers_licence_and_every_piece_are_shown(look, qtbot):
    _, dialog = look("books")
    qtbot.waitUntil(lambda: dialog.preview is not None, timeout=5000)
    words = " ".join(shown(dialog))
    for text in ("128", "6,473", "64", "3,314,176 tokens count", "212 tokens left out", "Licence: public domain"):
        assert text in words
    assert not dialog.waiting.isVisibleTo(dialog)
    assert dialog.pieces.count() == 9
    assert dialog.pieces.item(3).text() == "Calibration 1"
    qtbot.keyClick(dialog.pieces, Qt.Key.Key_End)
    assert dialog.text.toPlainText().count("<|endoftext|>") == 5
    assert "Every token" in dialog.legend.text()
    dialog.close_button.click()
    assert not dialog.isVisible()


def test_answers_that_count_are_highlighted_and_warnings_said(look, qtbot):
    _, dialog = look("chat")
    qtbot.waitUntil(lambda: dialog.preview is not None, timeout=5000)
    assert banners(dialog) == ["2 of 40 chats have no answer and were left out."]
    assert "Licence: the source does not say" in shown(dialog)
    assert "highlighted counts" in dialog.legend.text()


def test_what_cannot_be_read_is_said_with_the_fix(look, qtbot):
    _, dialog = look("broken")
    qtbot.waitUntil(lambda: bool(banners(dialog)), timeout=5000)
    assert banners(dialog) == [
        "The file notes.txt cannot be read. It is no UTF-8 text. Save it as UTF-8, or choose another file."
    ]
    assert dialog.isVisible()


def test_closing_ends_the_worker(look, qtbot):
    page, dialog = look("wait")
    qtbot.waitUntil(lambda: dialog._call.state is not None and bool(dialog._call.state.phases), timeout=5000)
    dialog.close()
    assert not dialog._call.busy
    assert page.form.isVisible()


CHAT = "<|im_start|>user\nA 🪢 knot?<|im_end|><|im_start|>assistant\nYes <b>it</b> is.<|im_end|>"
START = CHAT.index("<|im_start|>assistant")


def sequence(text, *counted):
    return PreviewSequence(split="training", text=text, counted=counted, tokens=9)


@pytest.mark.parametrize("counted", [(), ((0, len(CHAT)),), ((START, len(CHAT)),), ((2, 5), (20, 30))])
def test_pieces_put_together_are_the_text(counted):
    made = list(pieces(sequence(CHAT, *counted)))
    assert "".join(piece.text for piece in made) == CHAT
    assert sum(len(piece.text) for piece in made if piece.counted) == sum(end - start for start, end in counted)


def test_only_a_sequence_with_parts_that_do_not_count_is_marked_off():
    assert counts_wholly(sequence(CHAT, (0, len(CHAT))))
    assert not counts_wholly(sequence(CHAT, (START, len(CHAT))))


def test_the_highlight_covers_what_counts_also_after_signs_of_two_units(qtbot):
    view = SequenceView()
    qtbot.addWidget(view)
    view.show_sequence(sequence(CHAT, (START, len(CHAT))))
    soft, marked = active_tokens().accent_soft, ""
    block = view.document().begin()
    while block.isValid():
        for fragment in fragments(block):
            if fragment.charFormat().background().color().name() == soft:
                marked += fragment.text()
        block = block.next()
    assert marked == "assistantYes <b>it</b> is.", "the line break ends a block and is in no fragment"


def fragments(block):
    place = block.begin()
    while not place.atEnd():
        yield place.fragment()
        place += 1
