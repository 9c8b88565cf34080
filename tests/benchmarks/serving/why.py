"""What it costs to be told why: `/explain` and reason codes beside `/predict`, one row a request.

    OMP_NUM_THREADS=1 python tests/benchmarks/serving/why.py [REQUESTS] [ROUNDS]

A model of 20 numbers and 200 trees of depth 6 (that of explaining.py) is sealed and served
by `bentoml serve`, one worker on one core, and asked for one row at a time over one connection from
another core; the ways run by turns. Told are p50 and p99 of what a client waits, the processor's
time of the worker for a request, which other work on the machine disturbs little, and both as a
ratio to the plain prediction. Results go to why.json beside this file.
"""

import contextlib
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from explained import fitted
from explaining import SIZES, made
from observers import cpu_of, worker_at
from processes import BIN, free_port, server
from released import PASSED

from prodml.artifact import save_model
from prodml.explain.making import save_explanation
from prodml.frame import Table
from prodml.model import Candidate
from prodml.release.store import seal
from prodml.serve.build import render_service
from prodml.settings import Limits, Project, Settings

HERE = Path(__file__).resolve().parent
MODEL = "xgboost, 200 trees, depth 6"
WAYS = {
    "predict": "/predict",
    "predict, 3 reasons": "/predict?reason_codes=3",
    "explain": "/explain",
}


def sealed(root: Path) -> tuple[Settings, Path, list[bytes]]:
    """The project, the release of the model, and a body for each of a thousand rows."""
    contract, frame, target = made()
    settings = Settings(
        project=Project(name="why"),
        limits=replace(Limits(), required=("correctness",)),
        root=root,
    )
    table = Table(frame, target, np.ones(len(target), bool), {})
    pipeline = fitted(contract, table, SIZES[MODEL])
    best = Candidate("xgboost", pipeline, {}, "m", 0, 0, 0, 0, 1, 7, 0.5)
    candidate = settings.folder / "candidates" / "one"
    candidate.mkdir(parents=True)
    card = save_model(candidate, best, contract, frame.iloc[:500])
    assert card["format"] == "onnx", card["why_not_onnx"]
    assert save_explanation(candidate, pipeline, contract, frame, frame).exact
    (candidate / "contract.json").write_text(contract.to_json())
    (candidate / "data.json").write_text('{"digest": "00"}')
    release = seal(candidate, [], [PASSED], settings, "run-1")
    rows = frame.head(1000).to_dict("records")
    return settings, release, [json.dumps(row).encode() for row in rows]


def waits(port: int, path: str, bodies: list[bytes], requests: int) -> list[float]:
    """The milliseconds that a client waited for each answer, over one connection."""
    client, taken = http.client.HTTPConnection("127.0.0.1", port), []
    for number in range(requests):
        body = bodies[number % len(bodies)]
        began = time.perf_counter()
        client.request("POST", path, body, {"content-type": "application/json"})
        reply = client.getresponse()
        reply.read()
        taken.append((time.perf_counter() - began) * 1e3)
        assert reply.status == 200, reply.status
    client.close()
    return taken


def summary(taken: list[float], cpu: list[float]) -> dict[str, float]:
    """p50 and p99 of the waits, and the processor's time of a request, in milliseconds."""
    return {
        "p50": round(statistics.median(taken), 3),
        "p99": round(sorted(taken)[int(0.99 * len(taken))], 3),
        "cpu": round(statistics.median(cpu) * 1e3, 3),
    }


def main(requests: int = 1000, rounds: int = 5) -> None:
    """Nothing; prints a line for each way, and keeps the numbers."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        settings, release, bodies = sealed(Path(place))
        folder, port = render_service(settings, release), free_port()
        command = ["taskset", "-c", str(cores[0]), BIN / "bentoml", "serve", "--port", port]
        home = {"BENTOML_HOME": place}
        stack.enter_context(server(command, port, Path(place) / "log", home, folder))
        worker = worker_at(port)
        os.sched_setaffinity(0, {cores[-1]})
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        cpu: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(rounds + 1):
            for way, path in WAYS.items():
                before = cpu_of(worker)
                found = waits(port, path, bodies, requests)
                if turn:  # the first is to warm up
                    taken[way] += found
                    cpu[way].append((cpu_of(worker) - before) / requests)
        load = os.getloadavg()[0]
    told = {way: summary(taken[way], cpu[way]) for way in WAYS}
    plain = told["predict"]
    for way, one in told.items():
        one |= {f"{name} ratio": round(one[name] / plain[name], 2) for name in ("p50", "cpu")}
        print(f"{way:20}", one)
    about = {"model": f"{MODEL}, 20 numbers", "cores": len(cores), "load": round(load, 1)}
    about |= {"requests": requests * rounds}
    (HERE / "why.json").write_text(json.dumps({**about, "milliseconds": told}, indent=1) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
