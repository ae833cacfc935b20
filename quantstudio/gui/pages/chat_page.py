"""Talk to a model: the quantized one, or the original to hear the difference.

The model is loaded in a worker when somebody asks for it (by choosing "Chat with it" or sending a message), never
just because the page is open: loading takes memory that a run may need. Every turn is saved as it ends.
"""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QUrl
from PySide6.QtGui import QDesktopServices, QKeySequence, QShortcut, QShowEvent
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QMenu, QStackedWidget, QVBoxLayout, QWidget

from quantstudio.client.chat_client import ChatClient
from quantstudio.core import protocol
from quantstudio.core.conversation import (
    Conversation,
    chats_home,
    has_chat_template,
    load_conversation,
    recent_conversations,
)
from quantstudio.core.errors import QuantStudioError
from quantstudio.core.humanize import human_bytes
from quantstudio.core.library import resolve_model
from quantstudio.core.recipe import ModelSection
from quantstudio.core.run_store import result_of_model
from quantstudio.core.verdict import kv_cache_cost
from quantstudio.gui.context import AppContext
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import MARGIN, Banner, ElidedLabel, EmptyState, button, label, row
from quantstudio.gui.widgets.chat_bubbles import READING_WIDTH, ChatView
from quantstudio.gui.widgets.chat_composer import Composer
from quantstudio.gui.widgets.chat_models import ModelBox
from quantstudio.gui.widgets.chat_options import ChatOptions


class ChatPage(QWidget):
    """Conversation in the middle, model above, message below, settings folded out on the right."""

    def __init__(self, context: AppContext, client: ChatClient | None = None) -> None:
        super().__init__()
        self.context = context
        self.client = client or ChatClient()
        self.client.setParent(self)
        self.conversation = Conversation()
        self.models, self.view, self.composer = ModelBox(), ChatView(), Composer()
        self.options, self.banner = ChatOptions(), Banner()
        self.status = ElidedLabel("", "caption")
        self.setFocusProxy(self.composer)  # who opens the page can write at once
        self._answer: list[str] | None = None
        self._wanted = False
        self._noticed = ""
        self._engine: list[protocol.Engine] = []
        self._middle = QStackedWidget()
        self._make_buttons()
        self._lay_out()
        self._connect()
        self._on_library(context.library.models)
        self._adopt_model()
        self._say_status()

    def show_model(self, model: str) -> None:
        """Choose this model and load it."""
        self.models.choose(model)
        if model != self.client.model:
            self._change_model(model)
        self.composer.setFocus()

    def send(self, text: str) -> None:
        """Say this and ask for the answer."""
        if self._answer is not None:
            return
        self.composer.clear()
        self.conversation.say(text)
        self.view.say(text)
        self._save()
        self._ask()

    def stop(self) -> None:
        """End the current answer; what was written stays."""
        if self._answer is not None and self.client.is_answering:
            self.client.stop()
        elif self._answer is not None:  # still loading: take the question back
            self._wanted = False
            self._end_without_answer()

    def regenerate(self) -> None:
        """Throw the last answer away and ask for another."""
        if self._answer is None and self.conversation.turns:
            if self.conversation.take_back_answer():
                self.view.drop_answer()
            self._ask()

    def new_chat(self) -> None:
        """Start over with the same model and settings. The old conversation is saved already."""
        self._abandon_answer()
        self.conversation = Conversation()
        self.view.clear()
        self.banner.say("")
        self._show_middle()
        self.composer.setFocus()

    def open_conversation(self, path: Path) -> None:
        """Go on with a saved conversation."""
        try:
            found = load_conversation(path)
        except QuantStudioError as error:
            self.banner.say(str(error), "error")
            return
        self._abandon_answer()
        self.banner.say("")
        self.conversation = found
        self.options.system.setPlainText(found.system)
        self.options.set_sampling(found.sampling)
        self.options.set_template(on=found.template)
        if found.model and found.model != self.models.model_id():
            self.models.choose(found.model)
            self.client.close()
        self.view.show_turns(found.turns)
        self._show_middle()
        self._say_status()

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 - Qt's name
        super().showEvent(event)
        self._warn_of_run()

    def _make_buttons(self) -> None:
        self.new = button(
            tr("&New chat"), self.new_chat, icon="plus", tooltip=tr("Start over. This conversation stays saved.")
        )
        self.open = button(tr("&Open"), self._open_menu, icon="open", tooltip=tr("Go on with a saved conversation."))
        self.fold = button(
            tr("Options"),
            self._toggle_options,
            icon="settings",
            tooltip=tr("System prompt, way of answering and sampling (Ctrl+,)."),
        )
        self.fold.setCheckable(True)

    def _lay_out(self) -> None:
        top = row(label(tr("Chat"), "title"), spacing=10)
        top.addWidget(self.models, 100)
        top.addStretch(1)
        for each in (self.new, self.open, self.fold):
            top.addWidget(each)
        head = QVBoxLayout()
        head.setContentsMargins(MARGIN, MARGIN, MARGIN, 8)
        head.setSpacing(6)
        head.addLayout(top)
        head.addWidget(self.status)
        head.addWidget(self.banner)
        text = tr("Write something below. Everything stays on this machine; the conversation is saved as you go.")
        self._middle.addWidget(EmptyState("chat", tr("Talk to the model"), text))
        self._middle.addWidget(self.view)
        bottom = QHBoxLayout()
        bottom.setContentsMargins(MARGIN, 8, MARGIN, MARGIN)
        self.composer.setMaximumWidth(READING_WIDTH)
        bottom.addStretch(1)
        bottom.addWidget(self.composer, 1000)
        bottom.addStretch(1)
        left = QVBoxLayout()
        left.setContentsMargins(0, 0, 0, 0)
        left.setSpacing(0)
        left.addWidget(self._middle, 1)
        left.addLayout(bottom)
        body = QHBoxLayout()
        body.setSpacing(0)
        body.addLayout(left, 1)
        body.addWidget(self.options)
        self.options.setVisible(False)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addLayout(head)
        layout.addLayout(body, 1)

    def _connect(self) -> None:
        client, context = self.client, self.context
        client.phase.connect(lambda _: self._say_status())
        client.ready.connect(self._on_ready)
        client.piece.connect(self._on_piece)
        client.notice.connect(self._on_notice)
        client.answered.connect(self._on_answered)
        client.memory.connect(self._on_memory)
        client.engine.connect(self._on_engine)
        client.reading.connect(self._on_reading)
        client.failed.connect(self._on_failed)
        client.closed.connect(self._on_closed)
        context.library.found.connect(self._on_library)
        context.closing.connect(client.close)
        context.queue.changed.connect(lambda _: self._warn_of_run())
        self.models.picked.connect(self._change_model)
        self.composer.sent.connect(self.send)
        self.composer.stopped.connect(self.stop)
        self.view.again_asked.connect(self.regenerate)
        self.options.mode.currentIndexChanged.connect(lambda _: self._on_mode())
        self.options.machine_changed.connect(self._load_again)
        QShortcut(QKeySequence("Ctrl+,"), self).activated.connect(self.fold.click)
        QShortcut(QKeySequence.StandardKey.New, self).activated.connect(self.new_chat)
        QShortcut(QKeySequence.StandardKey.Open, self).activated.connect(self._open_menu)

    def _ask(self) -> None:
        """Ask for an answer to what was said, loading the model first where needed."""
        self._answer = []
        self.conversation.model = self.models.model_id()
        self._noticed = ""
        self.banner.say("")
        self._show_middle()
        self.view.begin_answer()
        self.composer.set_answering(on=True)
        if self.client.is_ready:
            self._generate()
            return
        self._wanted = True
        if not self.client.model:
            self._open_model()
        self._say_status()

    def _generate(self) -> None:
        talk = self.conversation
        talk.model = self.models.model_id()
        talk.system = self.options.system.toPlainText()
        talk.template, talk.sampling = self.options.template(), self.options.sampling()
        self.client.generate(talk.request())
        self._say_status()

    def _open_model(self) -> None:
        self._engine = []
        self.options.say_kernels([])
        machine = self.options.machine(self.context.settings)
        self.client.open(self.models.model_id(), machine)
        self._say_status()

    def _change_model(self, model: str) -> None:
        self._abandon_answer()
        self.banner.say("")
        self.client.close()
        self._adopt_model()
        self._open_model()

    def _load_again(self) -> None:
        """A model that is loaded, or being loaded, is loaded anew as the options are now."""
        if self.client.model:
            self._change_model(self.models.model_id())

    def _adopt_model(self) -> None:
        """Chat where the model has a template, plain continuation where it has none."""
        try:
            folder = resolve_model(ModelSection(id=self.models.model_id()))
        except QuantStudioError:
            return  # said when it is loaded
        measured = result_of_model(folder)
        self.options.say_kv_cost(kv_cache_cost(measured.kv_cache) if measured and measured.kv_cache else "")
        self.options.set_template(on=has_chat_template(folder))
        self._on_mode()

    def _on_engine(self, line: protocol.Engine) -> None:
        self._engine.append(line)
        self.options.say_kernels([each.detail for each in self._engine if each.detail])

    def _on_ready(self) -> None:
        self._say_status()
        if self._wanted:
            self._wanted = False
            self._generate()

    def _on_piece(self, text: str) -> None:
        if self._answer is not None:
            if not self._answer:
                self._say(tr("Answering…"))
            self._answer.append(text)
            self.view.add_piece(text)

    def _on_notice(self, text: str) -> None:
        self._noticed = text
        self.banner.say(text, "warning")

    def _on_answered(self, numbers: protocol.Answer) -> None:
        if self._answer is None:
            return
        text = "".join(self._answer)
        self._answer = None
        self.composer.set_answering(on=False)
        if numbers.reason == "failed" and not text:
            self.view.drop_answer()
            self.banner.say(self._noticed or tr("The model gave no answer."), "warning")
        else:
            self.view.end_answer(self.conversation.answer(text, numbers))
        self._save()
        self._say_status()

    def _on_memory(self, memory: protocol.Memory) -> None:
        if self.client.is_ready and not self.client.is_answering:
            used = human_bytes(memory.cuda or memory.rss)
            where = tr("of GPU memory") if memory.cuda else tr("of memory")
            self._say_ready(f"{used} {where}")

    def _on_reading(self, share: float) -> None:
        """Only until the first word of the answer."""
        if self._answer is not None and not self._answer:
            text = tr("Reading the prompt, {percent} %").format(percent=round(100 * share))
            self.view.say_reading(text)
            self._say(text)

    def _on_failed(self, error: protocol.Error) -> None:
        self.banner.say(" ".join(part for part in (error.what, error.why, error.hint) if part), "error")

    def _on_closed(self) -> None:
        self._wanted = False
        if self._answer is not None:
            self._end_without_answer()
        self._say_status()

    def _end_without_answer(self) -> None:
        """The model is gone, or was not waited for: keep what it wrote, if anything."""
        text = "".join(self._answer or [])
        self._answer = None
        self.composer.set_answering(on=False)
        if text:
            cut = protocol.Answer(turn=0, reason="stopped", prompt_tokens=0, tokens=0, ttft_s=0.0, tokens_per_s=0.0)
            self.view.end_answer(self.conversation.answer(text, cut))
        else:
            self.view.drop_answer()
            if not self.composer.field.toPlainText() and self.conversation.turns:
                self._give_back()
        self._save()

    def _give_back(self) -> None:
        """A message that was never answered goes back into the field, to be sent again or changed."""
        said = self.conversation.turns.pop()
        self.view.drop_answer()
        self.composer.field.setPlainText(said.content)
        self._show_middle()

    def _abandon_answer(self) -> None:
        if self._answer is not None:
            self._wanted = False
            if self.client.is_answering:
                self.client.close()
            else:
                self._end_without_answer()

    def _save(self) -> None:
        if not self.conversation.turns:
            return
        try:
            self.conversation.save()
        except QuantStudioError as error:
            self.banner.say(str(error), "error")

    def _on_library(self, models: object) -> None:
        first = not self.context.library.models or self.models.count() <= 1
        self.models.fill(models)  # type: ignore[arg-type]
        if first and not self.conversation.turns and not self.client.model and self.models.count():
            self.models.setCurrentIndex(0)
            self._adopt_model()

    def _on_mode(self) -> None:
        self.composer.set_mode(template=self.options.template())

    def _say_status(self) -> None:
        if not self.client.model:
            self._say(tr("Not loaded yet: the model is loaded with your first message."))
        elif not self.client.is_ready:
            self._say(tr("Loading the model…"))
        elif self.client.is_answering:
            self._say(tr("Answering…"))
        else:
            self._say_ready()

    def _say_ready(self, memory: str = "") -> None:
        """In few words what the model takes and what runs it; in the tooltip all of it, with operators' own names."""
        parts = [tr("Ready"), memory, *(line.text for line in self._engine)]
        self._say(" · ".join(filter(None, parts)), "\n".join(line.detail for line in self._engine if line.detail))

    def _say(self, text: str, detail: str = "") -> None:
        self.status.set_detail(detail)
        self.status.setText(text)

    def _warn_of_run(self) -> None:
        if self.isVisible() and self.context.queue.active is not None and not self.banner.text():
            self.banner.say(tr("A run is at work. Chatting meanwhile slows both and disturbs its timings."), "warning")

    def _show_middle(self) -> None:
        self._middle.setCurrentIndex(1 if self.conversation.turns else 0)

    def _toggle_options(self) -> None:
        self.options.setVisible(self.fold.isChecked())

    def _open_menu(self) -> None:
        menu = QMenu(self)
        for path in recent_conversations():
            action = menu.addAction(_menu_text(path))
            action.triggered.connect(lambda _=False, path=path: self.open_conversation(path))
        if menu.isEmpty():
            menu.addAction(tr("No saved conversations yet")).setEnabled(False)
        menu.addSeparator()
        menu.addAction(tr("Open a file…")).triggered.connect(lambda _=False: self._open_file())
        menu.addAction(tr("Show the folder")).triggered.connect(lambda _=False: _show_folder())
        menu.aboutToHide.connect(menu.deleteLater)
        menu.popup(self.open.mapToGlobal(self.open.rect().bottomLeft()))

    def _open_file(self) -> None:
        chosen, _ = QFileDialog.getOpenFileName(
            self, tr("Open a conversation"), str(chats_home()), tr("Conversations (*.jsonl)")
        )
        if chosen:
            self.open_conversation(Path(chosen))


def _menu_text(path: Path) -> str:
    """The conversation's first words; `&` doubled, or a menu takes it for a shortcut."""
    try:
        title = load_conversation(path).title or path.stem
    except QuantStudioError:
        title = path.stem
    shown = title if len(title) <= 48 else title[:47] + "…"
    return shown.replace("&", "&&")


def _show_folder() -> None:
    chats_home().mkdir(parents=True, exist_ok=True)
    QDesktopServices.openUrl(QUrl.fromLocalFile(str(chats_home())))
