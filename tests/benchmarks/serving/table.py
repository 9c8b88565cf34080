"""The table of the README, from results.json.

python tests/benchmarks/serving/table.py
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = {
    "noop": "an empty answer in the same server",
    "prodml": "prodml, with log, gauge and metrics",
    "prodml quiet": "prodml, without them",
    "bentoml": "BentoML, a data frame and the pipeline",
    "fastapi": "FastAPI, a data frame and the pipeline",
    "vetiver": "vetiver",
    "mlflow": "`mlflow models serve`",
}
HEAD = ("", "1 connection", "16", "64", "p50 / p99 at 16", "memory", "ready")


def results():
    """The servers of the last run, by name."""
    return json.loads((HERE / "results.json").read_text())["servers"]


def markdown(servers):
    """A row for each server: requests a second, latency, memory of the worker, time to start."""
    lines = [f"| {' | '.join(HEAD)} |", "| --- " * len(HEAD) + "|"]
    for name, told in NAMES.items():
        one = servers[name]
        rates = [f"{one[many]['rate']:,.0f}" for many in ("1", "16", "64")]
        late = f"{one['16']['p50']:.1f} / {one['16']['p99']:.0f} ms"
        weight, ready = f"{one['memory']:.0f} MB", f"{one['ready']:.1f} s"
        lines.append(f"| {' | '.join([told, *rates, late, weight, ready])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(results()))
