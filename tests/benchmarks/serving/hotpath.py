"""Where the time of a request goes, in one process, without a network.

    python tests/benchmarks/serving/hotpath.py [FOLDER]

Microseconds of CPU (the best of several rounds, so that neighbours on the machine count little) for
each stage of a request of 1 and of 1,000 rows: reading and checking, the model, writing; beside
them bare ONNX Runtime on arrays that are ready, and the whole application with its guard. The goal
is that a thousand rows cost at most twice what bare ONNX Runtime does.
"""

import asyncio
import json
import sys
import tempfile
import time
import timeit
from pathlib import Path

import msgspec
from model import make

from prodml.serve.app import App
from prodml.serve.decoder import Decoder
from prodml.serve.scorer import load_scorer, score
from prodml.settings import Serve


def microseconds(call, rounds=7, seconds=0.2):
    """The CPU time of one `call`: the best of some `rounds`."""
    timer = timeit.Timer(call, timer=time.process_time)
    once = max(timer.timeit(1), 1e-6)
    times = max(1, int(seconds / once))
    return min(timer.repeat(rounds, times)) / times * 1e6


def whole(app, body):
    """One request through the application, as a server would bring it."""
    head = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": head}

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        assert message.get("status", 200) == 200

    async def many(times):
        began = time.process_time()
        for _ in range(times):
            await app(scope, receive, send)
        return (time.process_time() - began) / times * 1e6

    return min(asyncio.run(many(30 if len(body) > 10_000 else 2000)) for _ in range(5))


def stages(scorer, release, rows):
    """Microseconds by stage for a request of `rows`."""
    body, decoder = msgspec.json.encode(rows), Decoder(scorer.contract)
    checked = decoder.decode(body, len(rows)).checked
    answered = score(scorer, checked)
    session, feed = bare(scorer, release, checked)
    return {
        "bare ONNX Runtime": microseconds(lambda: session.run(["probabilities"], feed)),
        "decode and check": microseconds(lambda: decoder.decode(body, len(rows))),
        "model": microseconds(lambda: scorer.predict(checked.columns)),
        "model, ids and time": microseconds(lambda: score(scorer, checked)),
        "encode": microseconds(lambda: scorer.encoder.encode(answered)),
        "the whole application": whole(App(scorer, Serve(max_rows=len(rows))), body),
    }


def bare(scorer, release, checked):
    """A session of its own for the model in `release`, and what to feed it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(release / "model.onnx"), options)
    names = [made.name for made in session.get_inputs()]
    columns = [checked.columns[one.name].reshape(-1, 1) for one in scorer.contract.features]
    return session, dict(zip(names, columns, strict=True))


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    if not (folder / "made.json").exists():
        make(folder)
    (release,) = Path(json.loads((folder / "made.json").read_text())["service"]).glob("release/*")
    rows, scorer = json.loads((folder / "rows.json").read_text()), load_scorer(release)
    for count in (1, 1000):
        found = stages(scorer, release, rows[:count])
        print(f"{count} row{'s' * (count > 1)} of {len(scorer.contract.features)} features")
        for stage, took in found.items():
            print(f"{took:12,.1f} us  {took / found['bare ONNX Runtime']:6.2f}  {stage}")


if __name__ == "__main__":
    main()
