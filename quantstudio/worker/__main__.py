"""`python -m quantstudio.worker`: the process that does the work. Started by the window; speaks JSON lines."""

from __future__ import annotations

from quantstudio.worker.serve import serve
from quantstudio.worker.work import perform

if __name__ == "__main__":
    serve(perform)
