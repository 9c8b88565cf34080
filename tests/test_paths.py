"""One row, one answer: whichever way it comes in, and whatever it comes with."""

import asyncio
import gzip
import json

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released import PASSED, released, sealed, told

from prodml.artifact import load_model
from prodml.frame import check_frame
from prodml.serve.app import App
from prodml.serve.messages import FAILURES
from prodml.serve.scorer import load_scorer
from prodml.settings import Serve

MEDIA = "application/vnd.apache.arrow.stream"
ROWS = 120


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return released(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def app(small):
    return App(load_scorer(small.folder), Serve(max_rows=500))


def client(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://model")


def ask(app, bodies, headers=None, path="/predict"):
    """The replies to `bodies`, all in hand at the same time."""

    async def at_once():
        async with client(app) as one:
            asked = [one.post(path, content=body, headers=headers or {}) for body in bodies]
            return await asyncio.gather(*asked)

    replies = asyncio.run(at_once())
    assert {reply.status_code for reply in replies} == {200}, replies[0].text
    return replies


def arrow(rows):
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table, max_chunksize=50)
    return sink.getvalue().to_pybytes()


def alone(app, rows):
    replies = [reply for row in rows for reply in ask(app, [json.dumps(row).encode()])]
    return [reply.json()["predictions"][0] for reply in replies]


def together(app, rows):
    bodies = [json.dumps(row).encode() for row in rows]
    return [reply.json()["predictions"][0] for reply in ask(app, bodies)]


def listed(app, rows):
    return ask(app, [json.dumps(rows).encode()])[0].json()["predictions"]


def named(app, rows):
    body = gzip.compress(json.dumps({"rows": rows}).encode())
    return ask(app, [body], {"content-encoding": "gzip"})[0].json()["predictions"]


def streamed(app, rows):
    return ask(app, [arrow(rows)], {"content-type": MEDIA})[0].json()["predictions"]


def as_stream(app, rows):
    (reply,) = ask(app, [arrow(rows)], {"content-type": MEDIA, "accept": MEDIA})
    return pa.ipc.open_stream(reply.content).read_all().to_pylist()


WAYS = (alone, together, listed, named, streamed, as_stream)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_in_gives_the_answer_of_the_notebook(app, small, way):
    rows = [dict(row) for row in small.rows[:ROWS]]
    rows[3] |= {"job": "astronaut"}  # an unseen level, which is a missing one
    rows[5] |= {"age": 150}
    found = way(app, rows)
    single = alone(app, [rows[3], rows[5]])
    assert [found[3]["probability"], found[5]["probability"]] == [
        one["probability"] for one in single
    ]
    kept = [i for i in range(ROWS) if i not in (3, 5)]
    difference = np.abs(told(small, found)[kept] - small.answers[kept])
    assert difference.max() < 1e-6
    assert [one["label"] for one in found] == [one["label"] for one in listed(app, rows)]


def test_a_model_without_onnx_answers_alike_by_every_way(small, tmp_path):
    native = sealed(small, tmp_path, PASSED, native=True)
    app, rows = App(load_scorer(native.folder), Serve()), small.rows[:40]
    for way in WAYS:
        assert np.abs(told(small, way(app, rows)) - small.answers[:40]).max() < 1e-6


@pytest.mark.parametrize("kind", ["linear", "forest"])
def test_no_bit_of_an_answer_depends_on_the_company(kind, tmp_path):
    made = released(tmp_path, kind=kind)
    app, rows = App(load_scorer(made.folder), Serve()), made.rows[:200]
    exact = [one["probability"] for one in listed(app, rows)]
    for way in (alone, together, streamed):
        assert [one["probability"] for one in way(app, rows)] == exact, way.__name__


def test_the_batch_by_pandas_answers_alike(app, small):
    import pandas as pd

    rows = small.rows[:ROWS]
    features = check_frame(small.contract, pd.DataFrame(rows)).features
    model = load_model(small.settings.folder / "candidates" / "one")
    batch = np.asarray(model.predict(features))
    assert np.abs(told(small, streamed(app, rows)) - batch).max() < 1e-6


def test_the_open_inference_protocol_answers_alike(app, small):
    rows = [row for row in small.rows if None not in row.values()][:30]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    kinds = {column.name: column for column in small.contract.features}
    tensors = [
        {
            "name": name,
            "shape": [len(values), 1],
            "datatype": "FP64" if kinds[name].numeric else "BYTES",
            "data": values,
        }
        for name, values in columns.items()
    ]
    path = next(path for _, path in app.routes if path.endswith("/infer"))
    reply = ask(app, [json.dumps({"inputs": tensors}).encode()], path=path)[0].json()
    found = {one["name"]: one["data"] for one in reply["outputs"]}
    exact = [one["probabilities"] for one in listed(app, rows)]
    flat = [share for row in exact for share in row.values()]
    assert any(
        np.allclose(values, flat, atol=1e-7)
        for values in found.values()
        if values[0] != str(values[0])
    )


VALUE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
KEYS = st.text(max_size=4)
JSON = st.recursive(VALUE, lambda one: st.lists(one, max_size=4) | st.dictionaries(KEYS, one))
BODY = st.binary(max_size=300) | JSON.map(json.dumps).map(str.encode)
TYPES = st.sampled_from(
    ["application/json", "", MEDIA, "text/plain", "application/json; charset=x"]
)
ENCODINGS = st.sampled_from([None, "gzip", "identity", "deflate", "GZIP "])
PATHS = st.sampled_from(
    ["/predict", "/feedback", "/explain", "/nowhere", "/v2", "//predict", "/%00"]
)
quick = settings(max_examples=250, deadline=20_000)


@quick
@given(BODY, TYPES, ENCODINGS, PATHS, st.sampled_from(["POST", "GET", "PUT", "OPTIONS", "DELETE"]))
def test_any_request_gets_an_answer_that_is_in_the_table(app, body, media, encoding, path, method):
    headers = {"content-type": media} | ({"content-encoding": encoding} if encoding else {})

    async def once():
        async with client(app) as one:
            return await one.request(method, path, content=body, headers=headers)

    reply = asyncio.run(once())
    if reply.status_code >= 400 and not reply.request.url.path.startswith("/v2"):
        code = reply.json()["error"]["code"]
        assert FAILURES[code][0] == reply.status_code and code != "internal"
    assert reply.status_code != 500
