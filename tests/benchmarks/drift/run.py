"""Runs the benchmark of drift monitors, or what is missing of it.

    python tests/benchmarks/drift/run.py FOLDER_OF_ENVIRONMENTS [PEER ...]

Results are appended to results.jsonl; a job that is there is not run again. About an hour of CPU.
"""

import json
import subprocess
import sys
from pathlib import Path

from environments import environment
from streams import CHANGES, DATA, REAL

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
SIZES = [(5, 100, 4), (20, 100, 4), (100, 100, 1), (5, 500, 4), (20, 500, 4), (100, 500, 1)]
SIZES += [(5, 5000, 2), (20, 5000, 2), (20, 100_000, 1)]


def jobs():
    """Every job of the benchmark, the quick ones first."""
    for columns, rows, seeds in SIZES[:-1]:
        for seed in range(seeds):
            yield {"kind": "null", "columns": columns, "rows": rows, "looks": 30, "seed": seed}
    for rows, seeds, looks in ((500, 3, 30), (5000, 2, 10)):
        for change in CHANGES:
            for seed in range(seeds):
                yield {"kind": "change", "change": change, "columns": 20, "rows": rows,
                       "looks": looks, "seed": 100 + seed}  # fmt: skip
    for seed in range(2):
        yield {"kind": "day", "columns": 20, "rows": 5000, "looks": 30, "seed": seed, "day": 0.05}
    for name in REAL if DATA.is_dir() else ():
        yield {"kind": "real", "name": name, "looks": 30}
    for rows in (10_000, 100_000, 1_000_000):
        yield {"kind": "speed", "rows": rows, "columns": 20, "seed": 0}
    yield {"kind": "null", "columns": 20, "rows": 100_000, "looks": 10, "seed": 0}


def key(job):
    """What makes a job the same job."""
    names = ("peer", "kind", "change", "columns", "rows", "seed", "day", "name")
    return json.dumps([job.get(name) for name in names])


def main(folder, *peers):
    """Nothing; appends the results of the jobs that are not there yet."""
    everyone = [
        "prodml notice",
        "prodml alert",
        "whylogs",
        "nannyml",
        "alibi",
        "deepchecks",
        "evidently",
    ]
    for peer in peers or everyone:
        done = {key(json.loads(line)) for line in RESULTS.open()} if RESULTS.exists() else set()
        own = "prodml" in peer
        python = sys.executable if own else environment(peer, Path(folder))
        for job in jobs():
            if key({"peer": peer, **job}) in done:
                continue
            command = [python, HERE / "worker.py", peer]
            try:
                ended = subprocess.run(command, input=json.dumps(job) + "\n", capture_output=True,
                                       text=True, cwd=HERE, timeout=420)  # fmt: skip
                line = ended.stdout.strip() or json.dumps(
                    {"peer": peer, **job, "error": "ended: " + ended.stderr.strip()[-150:]}
                )
            except subprocess.TimeoutExpired:
                line = json.dumps({"peer": peer, **job, "error": "not finished in 420 seconds"})
            with RESULTS.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
