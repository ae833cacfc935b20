"""Real workers and commands that are at work at once: forked from a process that has imported already what they need.

For each line on stdin (JSON: the file that gets what is written, and a job or the arguments of a command) one is forked
in a session of its own, its id printed, and at its end its status. Behind the fork a worker is
`python -m quantstudio.worker` to the last thread, and a command is `quantstudio` with these arguments; only the seconds
of imports are left out, so that a test can afford to kill ten.
"""

import json
import os
import sys

import quantstudio.engine.conduct
import quantstudio.engine.pipeline
from quantstudio.__main__ import main
from quantstudio.core.protocol import Command
from quantstudio.engine.memory import importing
from quantstudio.worker.serve import serve
from quantstudio.worker.work import perform

with importing():  # what stays for good is not looked through, and so not copied, by everyone that is forked
    import transformers.models.llama.modeling_llama  # noqa: F401

    import quantstudio.engine.foresight
    import quantstudio.engine.quantize  # noqa: F401

_pipes = []


def start(output, job=None, arguments=(), limit=0):
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.setsid()
        os.dup2(reading, 0)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT, 0o644), 1)
        os.close(writing)
        if job is not None:
            serve(perform)
        os.dup2(1, 2)
        run(arguments, limit)
    os.close(reading)
    if job is not None:
        os.write(writing, Command(name="start", payload=job).encode())
    _pipes.append(writing)  # its end would be the window's
    return pid


def run(arguments, limit):
    if limit:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    status = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


print("ready", flush=True)
for line in sys.stdin:
    print(worker := start(**json.loads(line)), flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), flush=True)
os._exit(0)  # taking torch apart in order takes seconds
