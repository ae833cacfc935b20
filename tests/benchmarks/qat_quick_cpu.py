"""QAT's preset "Quick" on a CPU: what it wins back at W4A16 g128 on the starter model, and in how many minutes.

    python tests/benchmarks/qat_quick_cpu.py [OUT] [--tokens 32768]

The goal is 70 % of the gap in under 8 minutes on two idle cores. Minutes are those of GPTQ, from which training starts,
and of the training; reading the text comes before, measuring after. On a busy machine the minutes mean nothing; the
share does not change.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=Path("qat_quick_cpu"))
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens of evaluation text")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load of the machine: {load:.1f} on {os.cpu_count()} cores", flush=True)
    ladder = str(Path(__file__).with_name("qat_gpu.py"))
    chosen = ["w4", "--device", "cpu", "--steps", "50", "--no-gptq", "--tokens", str(options.tokens)]
    subprocess.run([sys.executable, ladder, str(options.out), *chosen], check=True)


if __name__ == "__main__":
    main()
