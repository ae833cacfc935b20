"""The parsers of the commands in `cli.hub`, which is imported only when one of them is used."""

from __future__ import annotations

import argparse
from collections.abc import Callable

Commands = argparse._SubParsersAction  # the type has no public name
_MODEL = "owner/name of a model on the Hugging Face Hub"
_SORTS = ("trending", "downloads", "likes", "modified", "created")


def add_hub_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `search`, `info`, `download`, `library`, `verify`, `remove` and `login`."""
    _add_search(commands)
    _add_info(commands)
    _add_download(commands)
    _add_library(commands)
    _add_verify(commands)
    _add_remove(commands)
    text = "sign in to the Hub with a token, read from the terminal or from a pipe"
    _add(commands, "login", text)


def _add(commands: Commands[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=_later(name))
    return parser


def _later(name: str) -> Callable[[argparse.Namespace], int]:
    def carry_out(options: argparse.Namespace) -> int:
        from quantstudio.cli import hub

        status: int = getattr(hub, name)(options)
        return status

    return carry_out


def _add_search(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(commands, "search", "search the Hugging Face Hub for language models")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="words in the model's name")
    parser.add_argument("--author", default="", metavar="NAME", help="person or organization")
    parser.add_argument("--min-parameters", default="", metavar="N", help="at least so many weights, such as 500M")
    parser.add_argument("--max-parameters", default="", metavar="N", help="at most so many weights, such as 3B")
    parser.add_argument("--licence", default="", metavar="NAME", help="the Hub's short name, such as apache-2.0")
    parser.add_argument("--gated", choices=("any", "yes", "no"), default="any", help="whether access must be asked for")
    parser.add_argument("--family", default="", metavar="NAME", help="architecture family, such as llama or qwen2")
    parser.add_argument("--sort", choices=_SORTS, default="trending", help="order of the results (default: trending)")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many results (default: 20)")
    _add_json(parser)


def _add_info(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(commands, "info", "look at a model of the Hub without downloading its weights")
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    _add_revision(parser)
    _add_json(parser)


def _add_download(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(commands, "download", "download a model, or go on with a download that was stopped")
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    _add_revision(parser)
    text = "fetch weights that exist only as pickles; they are read in a mode that refuses programs, and converted"
    parser.add_argument("--allow-pickles", action="store_true", help=text)


def _add_library(commands: Commands[argparse.ArgumentParser]) -> None:
    _add_json(_add(commands, "library", "list every model on this machine"))


def _add_verify(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(commands, "verify", "compare every byte of a model on this machine with its checksum")
    parser.add_argument("model", metavar="MODEL", help="owner/name of a model in the Hugging Face cache, or a folder")
    _add_revision(parser)


def _add_remove(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(commands, "remove", "delete a model from the Hugging Face cache")
    parser.add_argument("model", metavar="MODEL", help="owner/name of a model in the Hugging Face cache")
    _add_revision(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _add_revision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", default="", metavar="REV", help="branch, tag or commit (default: main)")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
