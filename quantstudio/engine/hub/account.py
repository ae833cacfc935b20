"""Signing in to the Hub and out: a token is checked, then kept in the store of the Hub's own client."""

from __future__ import annotations

import os
from dataclasses import replace

from quantstudio.core.errors import AccessNeeded
from quantstudio.core.hub import Account
from quantstudio.core.jobs import AccountJob
from quantstudio.engine.hub.api import HubApi
from quantstudio.engine.hub.connection import Connection, is_token, read_token, save_token, token_file
from quantstudio.engine.reporter import Reporter


def manage(job: AccountJob, connection: Connection, reporter: Reporter) -> Account:
    """Carry out the action; who is signed in afterwards.

    Raises AccessNeeded when the Hub does not accept the token (nothing is changed then), HubUnreachable, OSError.
    """
    match job.action:
        case "sign_in":
            token = job.token.strip()
            if not is_token(token):
                raise AccessNeeded("That is no token.", hint="Copy it again; it starts with hf_.")
            name = HubApi(replace(connection, token=token), reporter).who()
            save_token(token)
            return Account(name=name, from_environment=_from_environment())
        case "sign_out":
            token_file().unlink(missing_ok=True)
            return manage(AccountJob(), replace(connection, token=read_token()), reporter)
        case _:
            if not connection.token:
                return Account()
            return Account(name=HubApi(connection, reporter).who(), from_environment=_from_environment())


def _from_environment() -> bool:
    return bool((os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip())
