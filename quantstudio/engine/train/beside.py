"""One of the other processes of a training on several GPUs: `python -m quantstudio.engine.train.beside`.

Reads one `Task` from stdin, does everything that the first process does, and writes nothing but what went wrong. It
ends when its stdin closes, because then the first process is gone, and it is killed when that is done or has failed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial

from quantstudio.core import protocol
from quantstudio.core.errors import TrainingDiverged
from quantstudio.engine.child import end_with_parent, send, take_stdio
from quantstudio.engine.failures import as_message, details
from quantstudio.engine.memory import importing


def main() -> int:
    """Take part as told on stdin. Returns the exit status: 0 at the end of the training, 1 with an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C goes to every process; the first one decides
    commands, messages = take_stdio()
    line = commands.readline()
    end_with_parent(commands)
    say = partial(send, messages)
    try:
        with importing():
            from quantstudio.engine.train.crew import READY, Task
            from quantstudio.engine.train.run import take_part

        task = Task.model_validate_json(line)
        ready = protocol.Phase(t=time.time(), id=READY, title="", index=0, total=1)
        take_part(task, lambda: say(ready))
    except TrainingDiverged:
        return 0  # the first process has come to the same end, and says it
    except BaseException as error:  # panics of Rust libraries are not Exceptions
        say(protocol.Log(t=time.time(), level="debug", text=details(error)))
        say(as_message(error, time.time()))
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # not sys.exit: threads of libraries can hold an interpreter's end up for ever
