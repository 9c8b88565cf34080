"""A thousand rows in one request against bare onnxruntime on prepared arrays, in turns.

    python tests/benchmarks/serving/bulk.py FOLDER [--rounds 30]

FOLDER is that of run.py. The server runs on the first core, bare onnxruntime and the client on the
second: the ratio holds what HTTP costs as well. Results go to bulk.json.
"""

import argparse
import http.client
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime
from run import HERE, serving, variants

ROWS = 1000


def feeds(folder):
    """The session and its inputs, prepared once."""
    (graph,) = (folder / "prodml" / "release").glob("*/model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rows = (json.loads((folder / "rows.json").read_text()) * 2)[:ROWS]
    names = json.loads((folder / "made.json").read_text())["features"]
    kinds = {"tensor(float)": np.float32, "tensor(string)": object}
    made = zip(names, session.get_inputs(), strict=True)
    arrays = {i.name: np.array([[row[n]] for row in rows], kinds[i.type]) for n, i in made}
    return session, arrays, rows


def arrow(rows):
    """The rows as an Arrow IPC stream."""
    import pyarrow as pa

    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=lambda text: Path(text).resolve())
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    variants(asked.folder)
    os.sched_setaffinity(0, {1})
    session, arrays, rows = feeds(asked.folder)
    stream = "application/vnd.apache.arrow.stream"
    bodies = {"json": (json.dumps(rows).encode(), "application/json", "application/json"),
              "arrow": (arrow(rows), stream, stream)}  # fmt: skip
    spent = {name: [] for name in ("onnxruntime", *bodies)}
    with serving("prodml", asked.folder) as (port, _, _):
        link = http.client.HTTPConnection("127.0.0.1", port)
        for turn in range(asked.rounds + 3):
            start = time.perf_counter()
            session.run(None, arrays)
            took = {"onnxruntime": time.perf_counter() - start}
            for name, (body, kind, wanted) in bodies.items():
                start = time.perf_counter()
                link.request("POST", "/predict", body, {"content-type": kind, "accept": wanted})
                reply = link.getresponse()
                found = reply.read()
                took[name] = time.perf_counter() - start
                assert reply.status == 200, found[:200]
            if turn >= 3:
                for name, seconds in took.items():
                    spent[name].append(seconds * 1000)
    told = {name: round(statistics.median(each), 2) for name, each in spent.items()}
    told |= {f"{name} ratio": round(told[name] / told["onnxruntime"], 2) for name in bodies}
    (HERE / "bulk.json").write_text(
        json.dumps({"rows": ROWS, "rounds": asked.rounds, **told}) + "\n"
    )
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
