"""The parsers of `best` and `sensitivity`; what they do is in `best`, which is imported when one of them is called."""

from __future__ import annotations

import argparse
from pathlib import Path

from quantstudio.cli.flags import add_recipe_flags

_MODEL_HELP = "'starter', a model folder, or owner/name of a model in the Hugging Face cache"
_METHODS = ("rtn", "hqq", "gptq", "awq", "finetune_gptq", "qat")
_CHOOSING = ("scheme", "precision", "layers", "data", "machine")


def add_best_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`quantstudio best MODEL` and `quantstudio sensitivity MODEL`."""
    _add_best(commands)
    _add_sensitivity(commands)


def _add_best(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "make the model in every way at one size, measure them all alike, and say which to take"
    parser = commands.add_parser("best", help=text, description=text)
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    only = f"take only these, of {', '.join(_METHODS)}"
    parser.add_argument("--only", nargs="+", choices=_METHODS, metavar="METHOD", help=only)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--runs-folder", type=Path, default=None, metavar="FOLDER", help="folder that holds the runs")
    add_recipe_flags(parser, without=("measure.enabled",))
    parser.set_defaults(command=_best)


def _add_sensitivity(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "measure what few bits cost each layer, and allot bits to a target"
    parser = commands.add_parser("sensitivity", help=text, description=text)
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the recipe with the allotted bits as TOML")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    add_recipe_flags(parser, sections=_CHOOSING)
    parser.set_defaults(command=_sensitivity)


def _best(options: argparse.Namespace) -> int:
    from quantstudio.cli.best import best

    return best(options)


def _sensitivity(options: argparse.Namespace) -> int:
    from quantstudio.cli.best import sensitivity

    return sensitivity(options)
