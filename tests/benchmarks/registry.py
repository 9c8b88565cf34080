"""What a promotion and a rollback cost: `python tests/benchmarks/registry.py [POSTGRESQL-URL]`.

A release of 3 MB, as the demo's with its reports; milliseconds, the median and the 95th of 100.
`move` is the transaction alone; a promotion also verifies the signature and digests every file.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_registry import ME, project
from test_release import GOOD, candidate

from prodml.release.journal import faults
from prodml.release.ledger import held
from prodml.release.registry import move, open_registry
from prodml.release.store import seal


def timed(call, times=100):
    """Milliseconds of `times` calls: the median and the 95th percentile."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1000)
    return "  ".join(f"{np.percentile(taken, q):7.2f}" for q in (50, 95))


def measured(folder, url=""):
    """Prints what the registry at `url` takes."""
    asked = project(folder)
    asked = replace(asked, registry=replace(asked.registry, url=url))
    names = [seal(candidate(folder, n * 1_000_000), [], [GOOD], asked).name for n in ("abc", "de")]
    registry = open_registry(asked)
    turn = iter(range(10**6))
    promote = lambda: registry.promote(names[next(turn) % 2], **ME)  # noqa: E731
    seen = lambda: held(registry.engine, registry.project, "champion")  # noqa: E731

    def only():
        after = {"alias": "champion", "after": names[next(turn) % 2], "evidence": "{}"}
        move(registry.engine, registry.project, seen(), after | ME)

    for name, call in {
        "promote": promote,
        "rollback": lambda: registry.rollback(**ME),
        "move": only,
        "current": registry.current,
    }.items():
        print(f"{url.partition(':')[0] or 'sqlite':12}{name:10}{timed(call)}", flush=True)
        promote()
    for _ in range(200):
        only()
    print(f"{'':12}{'history of ' + str(len(registry.journal())):14}{timed(registry.journal, 20)}")
    assert faults(registry.engine, registry.project) == []


if __name__ == "__main__":
    for url in ["", *sys.argv[1:]]:
        with tempfile.TemporaryDirectory() as place:
            measured(Path(place), url)
