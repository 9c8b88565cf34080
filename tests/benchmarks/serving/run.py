"""Requests per second of prodml's endpoint and of its peers, in turns, on one core each.

    python tests/benchmarks/serving/run.py FOLDER [--rounds 3] [--seconds 5] [--only NAME ...]

FOLDER gets the model, the environments of the peers, and the logs. The server runs on the first
core and the load, made by wrk (a Debian package), on the second. Every server must first answer
twenty rows as the notebook does. Results go to results.json beside this file.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from environments import PEERS, environment  # noqa: E402
from processes import free_port  # noqa: E402

RESULTS = HERE / "results.json"
CONNECTIONS = (1, 16, 64)
QUIET = {"metrics": False, "gauge": False, "log": ""}
NAMES = ("noop", "prodml", "prodml quiet", "bentoml", *PEERS)


def body(name, row):
    """The JSON that asks server `name` for one row."""
    forms = {"fastapi": [row], "vetiver": [row], "bentoml": {"rows": [row]}}
    forms["mlflow"] = {"dataframe_records": [row]}
    return json.dumps(forms.get(name, row))


def path(name):
    return "/invocations" if name == "mlflow" else "/predict"


def first_answer(name, found):
    """The probability in an answer."""
    if name.startswith("prodml"):
        return found["predictions"][0]["probability"]
    if name == "bentoml":
        return found[0]
    one = found.get("predictions", found.get("predict"))[0]
    return one[1] if isinstance(one, list) else one


def command(name, folder, port):
    """(command, folder to run it in) of server `name`."""
    bento = [sys.executable, "-m", "bentoml", "serve"]
    place = ["--host", "127.0.0.1", "--port", str(port)]
    if name in PEERS:
        python = environment(name, folder / "environments")
        return [python, HERE / "servers.py", name, folder, str(port)], HERE
    if name in ("noop", "bentoml"):
        module = {"noop": "bento_noop:Noop", "bentoml": "bento_plain:Plain"}[name]
        return [*bento, module, *place], HERE
    service = folder / name.replace(" ", "-")
    return [*bento, "service:Service", *place], service


def variants(folder):
    """Nothing; copies of the service folder: all observers on, and all off."""
    made = json.loads((folder / "made.json").read_text())
    for name, change in (("prodml", {"log": str(folder / "log")}), ("prodml-quiet", QUIET)):
        place = folder / name
        subprocess.run(["rm", "-rf", place], check=True)
        subprocess.run(["cp", "-r", made["service"], place], check=True)
        told = json.loads((place / "service.json").read_text())
        told["serve"] |= change
        (place / "service.json").write_text(json.dumps(told))


@contextlib.contextmanager
def serving(name, folder):
    """A running server on the first core: (port, process, seconds until it answered)."""
    port = free_port()
    line, place = command(name, folder, port)
    environment_ = os.environ | {"OMP_NUM_THREADS": "1", "BENCH_FOLDER": str(folder)}
    environment_ |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bentoml")}
    start = time.perf_counter()
    with open(folder / f"{name}.log", "wb") as log:
        process = psutil.Popen(
            ["taskset", "-c", "0", *map(str, line)], cwd=place, env=environment_, stdout=log,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        row = json.loads((folder / "rows.json").read_text())[0]
        while True:
            with contextlib.suppress(OSError):
                ask(name, port, row)
                break
            if process.poll() is not None or time.perf_counter() - start > 120:
                raise RuntimeError(f"{name} did not start: see its log")
            time.sleep(0.02)
        yield port, process, time.perf_counter() - start
    finally:
        family = [process, *process.children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(family, timeout=10)[1]:
            one.kill()


def ask(name, port, row):
    """The answer to one row, decoded."""
    url, kind = f"http://127.0.0.1:{port}{path(name)}", {"content-type": "application/json"}
    request = urllib.request.Request(url, body(name, row).encode(), kind)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def agrees(name, port, folder, many=20):
    """Nothing; raises where the server answers other than the notebook."""
    if name == "noop":
        return
    rows = json.loads((folder / "rows.json").read_text())[:many]
    told = [first_answer(name, ask(name, port, row)) for row in rows]
    gap = np.abs(np.array(told) - np.load(folder / "answers.npy")[:many, 1]).max()
    assert gap < 1e-5, f"{name} is off by {gap}"


def load(name, port, folder, connections, seconds, pause=0):
    """What wrk measured: requests per second, p50 and p99 in milliseconds, failures."""
    bodies = folder / f"bodies-{path(name)[1:]}-{name.replace(' ', '-')}.txt"
    rows = json.loads((folder / "rows.json").read_text())
    bodies.write_text("\n".join(body(name, row) for row in rows) + "\n")
    line = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout"]
    line += ["20s", "-s", HERE / "rows.lua", f"http://127.0.0.1:{port}{path(name)}", "--", bodies]
    ended = subprocess.run(
        [*map(str, line), str(pause)], capture_output=True, text=True, check=True
    )
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    rate = found["requests"] / found["microseconds"] * 1e6
    return {"rate": round(rate, 1), "p50": found["p50"] / 1000, "p99": found["p99"] / 1000,
            "failed": found["failed"]}  # fmt: skip


def worker_memory(process):
    """Megabytes of resident memory of the process that answers, BentoML's worker or the largest."""
    family = [process, *process.children(recursive=True)]
    workers = [one for one in family if "_bentoml_impl.worker.service" in one.cmdline()]
    return round(max(one.memory_info().rss for one in workers or family) / 2**20, 1)


def measure(name, folder, seconds):
    """One round of one server."""
    with serving(name, folder) as (port, process, ready):
        agrees(name, port, folder)
        load(name, port, folder, 4, 1)  # warm
        found = {"ready": round(ready, 2)}
        for connections in CONNECTIONS:
            found[str(connections)] = load(name, port, folder, connections, seconds)
        return found | {"memory": worker_memory(process)}


def middle(rounds):
    """The median of every number over the rounds; failures are added up."""
    one = rounds[0]
    if isinstance(one, dict):
        return {
            key: sum(r[key] for r in rounds)
            if key == "failed"
            else middle([r[key] for r in rounds])
            for key in one
        }
    return round(statistics.median(rounds), 2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=lambda text: Path(text).resolve())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(NAMES))
    asked = parser.parse_args()
    os.environ["BENTOML_HOME"] = str(asked.folder / "bentoml")
    if not (asked.folder / "made.json").exists():
        subprocess.run([sys.executable, HERE / "model.py", asked.folder], check=True)
    variants(asked.folder)
    rounds = {name: [] for name in asked.only}
    for turn in range(asked.rounds):
        for name in asked.only:
            rounds[name].append(measure(name, asked.folder, asked.seconds))
            print(turn, name, json.dumps(rounds[name][-1]), flush=True)
    found = {name: middle(each) for name, each in rounds.items()}
    told = {"rounds": asked.rounds, "seconds": asked.seconds, "servers": found}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    for name, one in found.items():
        rate = one["16"]["rate"]
        share = [
            f"{rate / found[peer]['16']['rate']:.2f} x {peer}" for peer in found if peer != name
        ]
        print(f"{name:14} {rate:8.0f} requests/s at 16 connections: " + ", ".join(share))


if __name__ == "__main__":
    main()
