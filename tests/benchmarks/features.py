"""What it costs to fetch features by entity id: the store alone, and all of `/predict`.

    OMP_NUM_THREADS=1 python tests/benchmarks/features.py [REPEATS]

Medians and 99th percentiles in milliseconds, the hand-over to the thread included; `cpu` is the
processor's time of this process for one question. Redis is left out where there is no redis-server,
and everything runs on one machine: no network is measured.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from processes import free_port
from pytest import skip
from released import released
from services import redis_server

from prodml.serve.app import App, create_app
from prodml.serve.build import checks
from prodml.serve.entities import write_features
from prodml.serve.features import Asker
from prodml.serve.stores import open_store
from prodml.settings import Serve

Times = tuple[float, float, float]


async def timed(ask, repeats: int) -> Times:
    """(median, 99th percentile, processor's time) of `await ask(i)`, in milliseconds."""
    for i in range(repeats // 10 + 1):
        await ask(i)
    taken, cpu = [], time.process_time()
    for i in range(repeats):
        start = time.perf_counter()
        await ask(i)
        taken.append(time.perf_counter() - start)
    spent = (time.process_time() - cpu) / repeats
    return *(1000 * float(np.quantile(taken, q)) for q in (0.5, 0.99)), 1000 * spent


def post(app: App, bodies: list[bytes]):
    """A function that posts the body of number `i` to `/predict`, without a server."""

    async def ask(i: int) -> None:
        sent = []

        async def receive():
            return {"type": "http.request", "body": bodies[i % len(bodies)]}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/predict", "method": "POST", "headers": []}
        await app(scope, receive, send)
        assert sent[0]["status"] == 200, sent

    return ask


def tell(what: str, times: Times) -> None:
    print(f"{what:42} p50 {times[0]:7.3f}   p99 {times[1]:7.3f}   cpu {times[2]:7.3f}")


def measure(one, url: str, repeats: int) -> None:
    """Prints the costs with the store at `url`."""
    kind = url.partition(":")[0]
    many = [{**one.rows[i % len(one.rows)], "customer": f"c{i}"} for i in range(10_000)]
    write_features(url, many, id="customer")
    asker = Asker(open_store(url, 5.0), 5.0)
    ids = [[f"c{(7 * i) % 10_000}"] for i in range(1000)]
    tell(f"{kind}: 1 id", asyncio.run(timed(lambda i: asker.fetch(ids[i % 1000]), repeats)))
    thousand = [f"c{i}" for i in range(1000)]
    tell(f"{kind}: 1000 ids", asyncio.run(timed(lambda i: asker.fetch(thousand), repeats // 50)))
    asker.close()
    serve = Serve(features=url, features_entity="customer", features_timeout=5.0)
    app = create_app(one.folder, **checks(one.settings), serve=serve)
    bodies = [json.dumps({"customer": name}).encode() for [name] in ids]
    tell(f"{kind}: /predict by id", asyncio.run(timed(post(app, bodies), repeats)))
    app.features.close()


def main(repeats: int = 2000) -> None:
    with tempfile.TemporaryDirectory() as place:
        one, port = released(Path(place) / "release"), free_port()
        app = create_app(one.folder, **checks(one.settings))
        whole = [json.dumps(row).encode() for row in one.rows]
        tell("no store: /predict of a whole row", asyncio.run(timed(post(app, whole), repeats)))
        for url in ("memory:", f"sqlite:///{place}/features.db"):
            measure(one, url, repeats)
        try:
            with redis_server(port, Path(place)):
                measure(one, f"redis://127.0.0.1:{port}/0", repeats)
        except skip.Exception as reason:
            print(reason)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
