"""The command line: the same recipes and jobs as the window, in a terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from quantstudio import __version__
from quantstudio.cli.best_commands import add_best_commands
from quantstudio.cli.flags import add_recipe_flags
from quantstudio.cli.hub_commands import add_hub_commands
from quantstudio.core.disk import disk_problem
from quantstudio.core.errors import DiskProblem, QuantStudioError
from quantstudio.core.protocol import Error

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
Command = Callable[[argparse.Namespace], int]
_MODEL_HELP = "'starter', a model folder, or owner/name of a model in the Hugging Face cache"


def run_command(arguments: list[str]) -> int:
    """Parse and carry out one command. Returns the exit status: 0 done, 1 failed, 2 wrong usage, 130 cancelled."""
    options = build_parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except QuantStudioError as error:
        return _fail(error)
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:  # a path of a flag
        from quantstudio.cli.terminal import print_error

        what = f"{error.filename or 'A file'} cannot be read or written."
        print_error(Error(kind="file", what=what, why=f"{error.strerror}.", hint="Check the path."))
        return FAILED
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough, as in `quantstudio runs | head`
        sys.stderr.close()
        return OK
    except OSError as error:  # a file or folder that was named cannot be read or written
        return _fail(disk_problem(error) or _no_file(error))


def _fail(error: QuantStudioError) -> int:
    from quantstudio.cli.terminal import print_error

    print_error(Error(kind=error.kind, what=error.what, why=error.why, hint=error.hint, field=error.field))
    return FAILED


def _no_file(error: OSError) -> DiskProblem:
    where = error.filename or "A file"
    return DiskProblem(f"{where} cannot be used.", why=f"{error.strerror or error}.", hint="Choose another place.")


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand. `options.command` is the function to call."""
    parser = argparse.ArgumentParser(
        prog="quantstudio",
        description="Quantize a language model on this machine, and measure what it gained and lost. "
        "Without a command the window opens.",
    )
    parser.add_argument("--version", "-V", action="version", version=f"quantstudio {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    adders = (_add_quantize, _add_run, _add_resume, _add_validate, _add_runs, _add_measure, _add_data, _add_chat)
    for add in (*adders, _add_demo):
        add(commands)
    add_best_commands(commands)
    add_hub_commands(commands)
    commands.add_parser("open", help="open the window (the same as no command)")
    return parser


def _add_quantize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "quantize and measure a model; every field of the form is a flag"
    parser = commands.add_parser("quantize", help=text, description=text)
    parser.add_argument("model", nargs="?", metavar="MODEL", help=f"{_MODEL_HELP} (default: starter)")
    text = "where the flags start from; the values in [brackets] below are those of 'recommended'"
    presets = (
        "recommended",
        "smallest",
        "fastest",
        "closest",
        "best-int4",
        "trained-int4",
        "smallest-usable",
    )
    parser.add_argument("--preset", choices=presets, default="recommended", help=text)
    parser.add_argument("--save-recipe", type=Path, metavar="FILE", help="write the recipe as TOML and stop")
    add_recipe_flags(parser)
    _add_home(parser)
    parser.set_defaults(command=_quantize)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "carry out a recipe file; flags replace its fields"
    parser = commands.add_parser("run", help=text, description=text)
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    add_recipe_flags(parser)
    _add_home(parser)
    parser.set_defaults(command=_run)


def _add_resume(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "go on with a run that was cancelled, failed or killed while it calibrated or trained"
    parser = commands.add_parser("resume", help=text, description=text)
    parser.add_argument("run", metavar="RUN", help="the run's id, as 'quantstudio runs' lists it")
    _add_home(parser)
    parser.set_defaults(command=_resume)


def _add_validate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "check a recipe against its fields, the model and this machine, without running it"
    parser = commands.add_parser("validate", help=text, description=text)
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    _add_home(parser)
    parser.set_defaults(command=_validate)


def _add_runs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "list the runs on this machine, or compare some of them"
    parser = commands.add_parser("runs", help=text, description=text)
    parser.add_argument("run", nargs="*", metavar="RUN", help="runs to compare, by id or the start of it")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the comparison as one HTML file")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the comparison as CSV")
    _add_home(parser)
    parser.set_defaults(command=_runs)


def _add_measure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "measure speed, memory and quality of one model in a fresh process"
    parser = commands.add_parser("measure", help=text, description=text)
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    add_recipe_flags(parser, sections=("measure", "machine"), without=("measure.enabled", "measure.trial"))
    parser.set_defaults(command=_measure)


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "show the text that a model would learn from, as the model will see it"
    parser = commands.add_parser("data", help=text, description=text)
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print the preview as JSON")
    add_recipe_flags(
        parser,
        sections=("data", "machine"),
        without=("machine.device", "machine.threads", "machine.engine", "machine.kernel", "machine.kv_cache"),
    )
    parser.set_defaults(command=_data)


def _add_chat(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "talk to a model; an empty line or Ctrl+D ends"
    parser = commands.add_parser("chat", help=text, description=text)
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--plain", action="store_true", help="continue your text instead of using the chat template")
    for name, kind, help_text in _sampling_flags():
        flag, shown = f"--{name.replace('_', '-')}", {float: "X", int: "N", str: "TEXT"}[kind]
        action, again = ("append", " May be given several times.") if kind is str else ("store", "")
        help_text = help_text.replace("%", "%%") + again
        parser.add_argument(flag, type=kind, action=action, default=None, metavar=shown, help=help_text)
    add_recipe_flags(parser, sections=("machine",), without=("machine.seed",))  # --seed is the one that counts here
    parser.set_defaults(command=_chat)


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "quantize the starter model to int4 and int8, measure both, and show the comparison"
    parser = commands.add_parser("demo", help=text, description=text)
    parser.add_argument("--terminal", action="store_true", help="stay in the terminal even where a window can open")
    _add_home(parser)
    parser.set_defaults(command=_demo)


def _add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-folder", type=Path, default=None, metavar="FOLDER", help="folder that holds the runs")


def _sampling_flags() -> list[tuple[str, type, str]]:
    from quantstudio.core.jobs import Sampling

    fields = Sampling.model_fields
    kinds = {name: float if info.annotation is float else int for name, info in fields.items()} | {"stop": str}
    return [(name, kinds[name], info.description or "") for name, info in fields.items()]


def _quantize(options: argparse.Namespace) -> int:
    from quantstudio.cli.run import quantize

    return quantize(options)


def _run(options: argparse.Namespace) -> int:
    from quantstudio.cli.run import run

    return run(options)


def _resume(options: argparse.Namespace) -> int:
    from quantstudio.cli.run import resume

    return resume(options)


def _validate(options: argparse.Namespace) -> int:
    from quantstudio.cli.run import validate

    return validate(options)


def _runs(options: argparse.Namespace) -> int:
    from quantstudio.cli.compare import runs

    return runs(options)


def _measure(options: argparse.Namespace) -> int:
    from quantstudio.cli.run import measure

    return measure(options)


def _data(options: argparse.Namespace) -> int:
    from quantstudio.cli.data import data

    return data(options)


def _chat(options: argparse.Namespace) -> int:
    from quantstudio.cli.chat import chat

    return chat(options)


def _demo(options: argparse.Namespace) -> int:
    from quantstudio.cli.demo import demo

    return demo(options)
