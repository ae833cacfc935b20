"""`search`, `info`, `download`, `library`, `verify`, `remove`, `login`: the Hub and the models on this machine."""

from __future__ import annotations

import argparse
import getpass
import json
import re
import sys
import threading
import time
from typing import Any

from quantstudio.cli.terminal import Terminal, interrupt_cancels, print_error
from quantstudio.core import protocol
from quantstudio.core.errors import RecipeError
from quantstudio.core.hub import (
    MODEL_ID,
    Account,
    DownloadResult,
    ModelDetails,
    RemoveResult,
    SearchPage,
    SearchQuery,
    Sort,
    VerifyResult,
)
from quantstudio.core.humanize import human_bytes
from quantstudio.core.jobs import (
    AccountJob,
    DetailsJob,
    DownloadJob,
    HubJob,
    RemoveJob,
    SearchJob,
    VerifyJob,
    parse_job,
)

OK, FAILED, INTERRUPTED = 0, 1, 130
MAX_PAGES = 20


def search(options: argparse.Namespace) -> int:
    """Print models of the Hub, page after page until there are as many as asked for."""
    query = SearchQuery(
        text=options.text or "",
        author=options.author,
        min_parameters=count(options.min_parameters),
        max_parameters=count(options.max_parameters),
        licence=options.licence,
        gated={"yes": True, "no": False, "any": None}[options.gated],
        family=options.family,
        sort=Sort(options.sort),
        limit=max(1, min(100, options.limit)),
    )
    found: list[dict[str, Any]] = []
    for _ in range(MAX_PAGES):
        data = _carry_out(SearchJob(query=query))
        if data is None:
            return FAILED
        page = SearchPage.model_validate(data)
        found += [model.model_dump() for model in page.models]
        if not page.next_cursor or len(found) >= options.limit:
            break
        query = query.model_copy(update={"cursor": page.next_cursor})
    found = found[: options.limit]
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _print_models(found)
    return OK


def info(options: argparse.Namespace) -> int:
    """Print what is known of a model before it is downloaded."""
    data = _carry_out(_job(kind="details", model=options.model, revision=options.revision))
    if data is None:
        return FAILED
    if options.json:
        print(json.dumps({key: value for key, value in data.items() if key != "packed_info"}, indent=2))
    else:
        _print_details(ModelDetails.model_validate(data))
    return OK


def download(options: argparse.Namespace) -> int:
    """Bring a model into the Hugging Face cache, whole and verified."""
    job = {"model": options.model, "revision": options.revision, "allow_pickles": options.allow_pickles}
    data = _carry_out(_job(kind="download", **job))
    if data is None:
        return FAILED
    result = DownloadResult.model_validate(data)
    print(f"{result.model} at commit {result.commit}: {human_bytes(result.nbytes)}, every file verified")
    print(f"  fetched      {human_bytes(result.fetched_bytes)}, {human_bytes(result.reused_bytes)} were here already")
    print(f"  folder       {result.folder}")
    return OK


def library(options: argparse.Namespace) -> int:
    """Print every model on this machine."""
    from quantstudio.core.library import list_models
    from quantstudio.core.settings import load_settings

    models = list_models(load_settings())
    if options.json:
        fields = ("id", "kind", "name", "nbytes", "partial_bytes", "last_used", "origin", "error", "verified", "made")
        rows = [{"path": str(model.path)} | {name: getattr(model, name) for name in fields} for model in models]
        print(json.dumps(rows, indent=2))
        return OK
    for model in models:
        used = time.strftime("%Y-%m-%d", time.localtime(model.last_used)) if model.last_used else "–"
        print(f"{model.id}\n  {human_bytes(model.nbytes):>9}  last used {used}  {model.origin}")
        if model.made:
            print(f"  made from it: {', '.join(model.made[:5])}{' …' if len(model.made) > 5 else ''}")
        if model.partial_bytes:
            print(f"  {human_bytes(model.partial_bytes)} of it are an unfinished download")
        if model.error:
            print(f"  cannot be used: {model.error}")
    return OK


def verify(options: argparse.Namespace) -> int:
    """Compare every file of a model with its checksum."""
    data = _carry_out(_job(kind="verify", model=options.model, revision=options.revision))
    if data is None:
        return FAILED
    result = VerifyResult.model_validate(data)
    for problem in result.problems:
        print(f"{problem.file}: {problem.problem}")
    if not result.whole:
        print("The model is damaged. Downloading it again repairs it: what is right is kept.")
        return FAILED
    unknown = f"; {len(result.unchecked)} have no known checksum" if result.unchecked else ""
    print(f"{result.model} is whole: {result.files} files, {human_bytes(result.nbytes)}{unknown}.")
    return OK


def remove(options: argparse.Namespace) -> int:
    """Delete a model of the Hugging Face cache, after asking."""
    job = _job(kind="remove", model=options.model, revision=options.revision)
    if not options.yes:
        which = f"revision {options.revision} of {options.model}" if options.revision else options.model
        if input(f"Delete {which} from this machine? [y/N] ").strip().lower() not in ("y", "yes"):
            return FAILED
    data = _carry_out(job)
    if data is None:
        return FAILED
    result = RemoveResult.model_validate(data)
    print(f"{result.model}: {len(result.revisions)} revision(s) removed, {human_bytes(result.freed_bytes)} freed")
    return OK


def login(options: argparse.Namespace) -> int:
    """Check a token and keep it in the Hub's own store. It is read from a prompt or a pipe, never from the command
    line, which every user of the machine can see."""
    if sys.stdin.isatty():
        print("Make a token with read access at https://huggingface.co/settings/tokens and paste it here.")
        token = getpass.getpass("Token (not shown): ")
    else:
        token = sys.stdin.readline(4096)
    data = _carry_out(AccountJob(action="sign_in", token=token))
    if data is None:
        return FAILED
    print(f"Signed in as {Account.model_validate(data).name}.")
    return OK


def count(text: str) -> int | None:
    """A number of parameters as people write it: 500M, 1.5B. Raises RecipeError."""
    if not text:
        return None
    unit = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1].upper(), 1.0)
    try:
        number = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e16:
        raise RecipeError(f"{text!r} is no number of parameters.", hint="Write 500M or 1.5B.")
    return round(number)


def _job(**fields: Any) -> HubJob:
    if fields["kind"] != "verify" and not re.fullmatch(MODEL_ID, fields["model"]):
        raise RecipeError(f"{fields['model']!r} is no name of a model on the Hub.", hint="Write owner/name.")
    job = parse_job(fields)
    if not isinstance(job, (SearchJob, DetailsJob, DownloadJob, VerifyJob, RemoveJob, AccountJob)):
        raise TypeError("only jobs on the Hub are made here")
    return job


def _carry_out(job: HubJob) -> dict[str, Any] | None:
    """Do a job in this process; its result, or None after its error was printed."""
    from quantstudio.engine.conduct import conduct

    cancel = threading.Event()
    with interrupt_cancels(cancel):
        message = conduct(job, Terminal(), cancel)
    if isinstance(message, protocol.Result):
        return message.data
    if isinstance(message, protocol.Error):
        print_error(message)
    else:
        print("Stopped. What was downloaded is kept; the same command goes on from there.", file=sys.stderr)
    return None


def _print_models(models: list[dict[str, Any]]) -> None:
    for model in models:
        marks = [mark for mark, shown in (("gated", model["gated"]), (model["quantized"], model["quantized"])) if shown]
        weights = f"{model['parameters'] / 1e9:.2f}B" if model["parameters"] else "?"
        size = human_bytes(model["download_bytes"]) if model["download_bytes"] else "?"
        facts = f"{weights:>8}  {model['dtype']:<5} {size:>9}  {model['licence']:<14} {model['modified'][:10]}"
        print(f"{model['id']:<50} {facts}  {' '.join(marks)}".rstrip())
    if not models:
        print("Nothing on the Hub fits these filters.")


def _print_details(details: ModelDetails) -> None:
    model = details.summary
    print(f"{model.id} at commit {details.commit}")
    rows = [
        ("licence", model.licence or "not said"),
        ("architecture", model.architecture),
        ("parameters", f"{model.parameters:,}" if model.parameters else ""),
        ("context", f"{details.context_length:,} tokens" if details.context_length else ""),
        ("base model", details.base_model),
        ("access", details.access.value.replace("_", " ")),
        ("download", f"{human_bytes(details.download_bytes)} of {human_bytes(details.total_bytes)}"),
        *((f"as {scheme.label}", _scheme_line(scheme.nbytes, scheme.problem)) for scheme in details.schemes),
        ("quantized", ", ".join(other.id for other in details.quantizations[:5])),
    ]
    for name, text in rows:
        if text:
            print(f"  {name:<14} {text}")
    for note in details.notes:
        print(f"  note: {note}")
    if details.problem:
        print(f"  cannot be used as it is: {details.problem}")


def _scheme_line(nbytes: int, problem: str) -> str:
    return f"{human_bytes(nbytes)} ({problem.rstrip('.')})" if problem else human_bytes(nbytes)
