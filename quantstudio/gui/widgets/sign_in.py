"""Signing in to the Hub: a token goes to a worker and from there to the Hub's own store; the window keeps none."""

from __future__ import annotations

from PySide6.QtCore import QUrl
from PySide6.QtWidgets import QDialog, QLineEdit, QVBoxLayout, QWidget

from quantstudio.client.hub_call import ask_hub
from quantstudio.client.job_call import JobCall
from quantstudio.core.hub import Account
from quantstudio.core.jobs import AccountJob
from quantstudio.core.protocol import Error
from quantstudio.gui.hub_texts import error_words
from quantstudio.gui.language import tr
from quantstudio.gui.widgets.basics import MARGIN, SPACE, Banner, button, label, row
from quantstudio.gui.widgets.stranger_text import open_web

TOKEN_PAGE = "https://huggingface.co/settings/tokens"  # noqa: S105 - an address
WIDTH = 460
EXPLANATION = (
    "Some models are gated or private: the Hub gives them only to people it knows. Make a token with read access on "
    "its page and paste it here. It is kept where the Hub's own tools keep it, and nowhere else."
)


class SignInDialog(QDialog):
    """Asks for a token and has it checked; `account` is who is signed in when it closes."""

    def __init__(self, account: Account, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.account = account
        self.call = JobCall(self)
        self.banner = Banner()
        self.token = QLineEdit()
        self.token.setEchoMode(QLineEdit.EchoMode.Password)
        self.token.setPlaceholderText("hf_…")
        self.token.setAccessibleName(tr("Token"))
        self.token.setToolTip(tr("The token from the Hub's page. It is not shown."))
        self.token.setMaxLength(4096)
        self.token.textChanged.connect(lambda _: self._offer())
        self.page = button(
            "Open the token page", lambda: open_web(QUrl(TOKEN_PAGE)), icon="open", tooltip="In your browser."
        )
        self.sign_in = button("Sign in", self.ask, variant="primary", tooltip="Check the token and keep it.")
        self.sign_out = button("Sign out", self.forget, tooltip="Delete the token from this machine.")
        self.leave = button("Close", self.reject)
        self.sign_in.setDefault(True)
        self.call.answered.connect(self._take)
        self.call.failed.connect(self._fail)
        self.call.changed.connect(self._offer)
        self._lay_out()
        self._offer()

    def ask(self) -> None:
        """Have the token checked. It leaves the field at once."""
        text = self.token.text().strip()
        self.token.clear()
        if text:
            self.banner.say(tr("Asking the Hub …"))
            ask_hub(self.call, AccountJob(action="sign_in", token=text))

    def forget(self) -> None:
        """Sign out."""
        ask_hub(self.call, AccountJob(action="sign_out"))

    def done(self, result: int) -> None:
        self.token.clear()
        self.call.drop()
        super().done(result)

    def _take(self, account: Account) -> None:
        self.account = account
        if account.name and account.from_environment:
            text = f"{tr('Signed in as')} {account.name}, {tr('by the variable HF_TOKEN, which stays as it is.')}"
            self.banner.say(text, "success")
        elif account.name:
            self.accept()
        else:
            self.banner.say(tr("Signed out."), "success")
        self._offer()

    def _fail(self, error: Error) -> None:
        self.banner.say(error_words(error), "error")
        self.token.setFocus()

    def _offer(self) -> None:
        self.sign_in.setEnabled(bool(self.token.text().strip()) and not self.call.busy)
        self.sign_out.setVisible(bool(self.account.name))
        self.sign_out.setEnabled(not self.call.busy)

    def _lay_out(self) -> None:
        self.setWindowTitle(tr("Sign in to the Hub"))
        self.setFixedWidth(WIDTH)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(MARGIN, MARGIN, MARGIN, MARGIN)
        layout.setSpacing(SPACE)
        text = label(EXPLANATION, "muted", wrap=True)
        text.setMinimumHeight(text.heightForWidth(WIDTH - 2 * MARGIN))
        layout.addWidget(text)
        layout.addWidget(self.token)
        layout.addWidget(self.banner)
        layout.addLayout(row(self.page, None, self.sign_out, self.leave, self.sign_in))
