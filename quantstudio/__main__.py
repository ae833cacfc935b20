"""The `quantstudio` command: decides between window and terminal, and answers the cheap questions at once.

Nothing heavy is imported here: `--version` must not wait for Qt, torch or even pydantic.
"""

from __future__ import annotations

import sys

from quantstudio import __version__


def main(argv: list[str] | None = None) -> int:
    """Run the command line; without a command, open the window. Returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments in (["--version"], ["-V"]):
        sys.stdout.write(f"quantstudio {__version__}\n")
        return 0
    if not arguments or arguments[0] == "open":
        return _open_window(arguments[1:])
    if arguments[0] == "demo" and "--terminal" not in arguments and not {"-h", "--help"} & set(arguments):
        return _demo(arguments)
    from quantstudio.cli.main import run_command

    return run_command(arguments)


def _open_window(arguments: list[str]) -> int:
    from quantstudio.cli.screen import window_problem

    if problem := window_problem(probe="quick"):
        sys.stderr.write(f"{problem}\nEverything also works in the terminal: quantstudio --help\n")
        return 1
    from quantstudio.gui.app import run_app

    return run_app(arguments)


def _demo(arguments: list[str]) -> int:
    from quantstudio.cli.screen import window_problem

    problem = window_problem(probe="full")
    if problem is None:
        from quantstudio.gui.app import run_app

        return run_app(["--demo"])
    from quantstudio.cli.main import run_command

    sys.stderr.write(f"{problem}\nRunning the demo in the terminal.\n\n")
    return run_command([*arguments, "--terminal"])


if __name__ == "__main__":
    sys.exit(main())
