"""Real workers that are at work at once: forked from a process that has imported already what a job needs.

For each line on stdin (where to write the messages, a tab, a job as JSON) a worker is forked in a session of its own,
and its id printed. Behind the fork it is `python -m quantstudio.worker` to the last thread; only the seconds of imports
are left out, so that a test can afford to kill ten.
"""

import json
import os
import sys

import quantstudio.engine.conduct
import quantstudio.engine.pipeline
import quantstudio.engine.quantize  # noqa: F401 - imports torch and transformers
from quantstudio.core.protocol import Command
from quantstudio.worker.serve import serve
from quantstudio.worker.work import perform

_pipes = []


def start(log, job):
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.setsid()
        os.dup2(reading, 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o644), 1)
        os.close(writing)
        serve(perform)
    os.close(reading)
    os.write(writing, Command(name="start", payload=json.loads(job)).encode())
    _pipes.append(writing)  # its end would be the window's
    return pid


print("ready", flush=True)
for line in sys.stdin:
    print(worker := start(*line.rstrip("\n").split("\t", 1)), flush=True)
    print(os.waitpid(worker, 0)[1], flush=True)
