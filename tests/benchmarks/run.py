"""CPU seconds of the first things a person does: import, `--help`, and `run` on the demo.

    python tests/benchmarks/run.py [REPEATS]

Child processes count too, kernels included. Machines differ: compare runs on one machine only.
"""

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODML = Path(sys.executable).with_name("prodml")


def cpu_seconds(*command: str | Path) -> float:
    """User and system seconds of `command` and all it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_demo() -> float:
    """CPU seconds of `prodml run` on the embedded demo, in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "settings.ini", folder)
        return cpu_seconds(PRODML, "run", "-p", folder)


def main(repeats: int = 5) -> None:
    """Prints the median of `repeats`, and of three runs of the demo."""
    rows = {
        "python -c pass": [cpu_seconds(sys.executable, "-c", "pass") for _ in range(repeats)],
        "import prodml": [
            cpu_seconds(sys.executable, "-c", "import prodml") for _ in range(repeats)
        ],
        "prodml --help": [cpu_seconds(PRODML, "--help") for _ in range(repeats)],
        "prodml run (demo)": [run_demo() for _ in range(3)],
    }
    for name, seconds in rows.items():
        low, high = min(seconds), max(seconds)
        print(f"{name:20} {statistics.median(seconds):7.2f} CPU s  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
