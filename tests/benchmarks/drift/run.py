"""Runs the benchmark of drift monitors, or what is missing of it.

    python tests/benchmarks/drift/run.py FOLDER_OF_ENVIRONMENTS [--peers ...] [--kinds ...]

Results are appended to results.jsonl; a job that is there is not run again. About an hour of CPU.
Run `--kinds speed` on a machine that does nothing else.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from threading import Timer

from environments import PEERS, environment
from streams import CHANGES, DATA, REAL

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.jsonl"
EVERYONE = ["prodml", *PEERS]
KINDS = ("null", "change", "day", "real", "harm", "year", "large", "speed")
SIZES = [(columns, rows) for rows in (100, 500, 5000, 100_000) for columns in (5, 20, 100)]
SEEDS = {100: (4, 4, 1), 500: (4, 4, 1), 5000: (2, 2, 1), 100_000: (1, 1, 1)}
OWN_SEEDS = {100: (60, 60, 60), 500: (60, 60, 60), 5000: (60, 60, 20), 100_000: (4, 2, 1)}
YEARS = [  # rows, windows of the reference, how days vary, how many years
    (100, 30, 0.0, 100),
    (500, 10, 0.0, 100),
    (500, 30, 0.0, 100),
    (5000, 30, 0.05, 250),
]
PATIENCE = 900  # seconds for one job


def null_jobs(own):
    """Tables without a change; of the largest, other libraries get fewer looks."""
    for columns, rows in SIZES:
        looks = 30 if own or rows <= 5000 else 3 if columns == 100 else 10
        seeds = (OWN_SEEDS if own else SEEDS)[rows][(5, 20, 100).index(columns)]
        for seed in range(seeds):
            yield {"kind": "null", "columns": columns, "rows": rows, "looks": looks, "seed": seed}


def jobs(peer):
    """Every job of the benchmark for a library, by kind."""
    own = peer == "prodml"
    for rows, seeds, looks in ((500, 3, 30), (5000, 3, 10)):
        for change in CHANGES:
            for seed in range(seeds):
                yield {"kind": "change", "change": change, "columns": 20, "rows": rows,
                       "looks": looks, "seed": 100 + seed}  # fmt: skip
    for seed in range(20 if own else 2):
        yield {"kind": "day", "columns": 20, "rows": 5000, "looks": 30, "seed": seed, "day": 0.05}
    for name in REAL:
        yield {"kind": "real", "name": name, "looks": 30}
    for name in REAL if own else ():
        yield {"kind": "harm", "name": name, "looks": 30}
    for rows, windows, day, years in YEARS if own else ():
        for seed in range(years):
            yield {"kind": "year", "columns": 20, "rows": rows, "windows": windows, "day": day,
                   "looks": 365, "seed": 1000 + seed}  # fmt: skip
    yield from null_jobs(own)
    for rows in (10_000, 100_000, 1_000_000):
        yield {"kind": "speed", "rows": rows, "columns": 20, "seed": 0}


def stage(job):
    """The kind of a job; the largest tables are a kind of their own, to be run apart."""
    return "large" if job["kind"] == "null" and job["rows"] == 100_000 else job["kind"]


def key(job):
    """What makes a job of a library the same job."""
    names = ("kind", "change", "columns", "rows", "seed", "day", "name", "windows")
    return json.dumps([job["peer"].split()[0], *(job.get(name) for name in names)])


def results(file=RESULTS):
    """Every result there is."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


class Worker:
    """A process in the environment of a library; one that ended or hung is started again."""

    def __init__(self, peer, python):
        self.command, self.process = [python, HERE / "worker.py", peer], None

    def answer(self, job):
        """The lines of a job's results, or None where the process ended or took too long."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(self.command, stdin=-1, stdout=-1, stderr=-3,
                                            text=True, cwd=HERE)  # fmt: skip
        timer = Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        timer.cancel()
        return json.loads(line) if line else None

    def end(self):
        """Nothing; the process is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None


def main(folder, peers, kinds, results_file=RESULTS):
    """Nothing; appends the results of the jobs that are not there yet."""
    for peer in peers:
        done = {key(one) for one in results(results_file)}
        asked = [job for job in jobs(peer) if stage(job) in kinds]
        asked = [job for job in asked if key({"peer": peer, **job}) not in done]
        if not DATA.is_dir():
            asked = [job for job in asked if job["kind"] not in ("real", "harm")]
        python = sys.executable if peer == "prodml" else environment(peer, Path(folder))
        worker = Worker(peer, python)
        for job in asked:
            ended = [{"peer": peer, **job, "error": f"ended, or not finished in {PATIENCE} s"}]
            lines = worker.answer(job) or ended
            with results_file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            if job["kind"] == "speed" or lines == ended:
                worker.end()  # memory is counted in a new process
        worker.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="where the environments are, or will be")
    parser.add_argument("--peers", nargs="+", choices=EVERYONE, default=EVERYONE)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    main(chosen.folder, chosen.peers, chosen.kinds, chosen.results)
