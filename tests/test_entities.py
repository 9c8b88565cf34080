"""Rows by entity id in every protocol: row by row the answer that `/predict` gives them in JSON."""

import csv
import io
import json
import time

import numpy as np
import pyarrow as pa
import pytest
from released import told
from test_features import HELD, application, asked, dynamo, redis, small, stored, url  # noqa: F401
from test_protocols import ask

from prodml.serve.arrow import MEDIA
from prodml.serve.entities import write_features
from prodml.serve.tensors import model_name, rows_of

ENTITY = "application_id"


def arrow(rows):
    """The rows as the bytes of an Arrow stream."""
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


def table(rows):
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows([{k: "" if v is None else v for k, v in row.items()} for row in rows])
    return text.getvalue().encode()


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def tensors(rows):
    """The rows as tensors in JSON."""
    made = []
    for name, values in columns(rows).items():
        text = any(isinstance(value, str) for value in values)
        head = {"name": name, "datatype": "BYTES" if text else "FP64", "shape": [len(rows)]}
        made.append({**head, "data": values})
    return {"inputs": made}


def named(body):
    """The predictions of TensorFlow's rows, as `/predict` words them."""
    found = rows_of(body["outputs"]) if "outputs" in body else body["predictions"]
    for row in found:
        row["probabilities"] = dict(zip(row.pop("classes"), row["probabilities"], strict=True))
    return found


def from_tensors(body):
    """The predictions of v2's tensors, as `/predict` words them."""
    made = {one["name"]: one["data"] for one in body["outputs"]}
    pairs = np.reshape(made.pop("probabilities"), (-1, 2)).tolist()
    rows = rows_of(made | {"probabilities": pairs})
    return [r | {"probabilities": dict(zip(("no", "yes"), r["probabilities"], strict=True))}
            for r in rows]  # fmt: skip


def ways(one, rows):
    """(path, headers, body, what makes predictions of the answer) of each way to send `rows`."""
    name = model_name(one.contract)
    as_csv, as_arrow = {"content-type": "text/csv"}, {"content-type": MEDIA}
    split = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    predictions = lambda body: body["predictions"]  # noqa: E731
    lines = b"\n".join(json.dumps(row).encode() for row in rows)
    yield f"/v1/models/{name}:predict", {}, {"instances": rows}, named
    yield f"/v1/models/{name}:predict", {}, {"inputs": columns(rows)}, named
    yield "/invocations", {}, {"dataframe_split": split}, predictions
    yield "/invocations", as_csv, table(rows), predictions
    yield "/invocations", {"content-type": "application/jsonlines"}, lines, predictions
    yield f"/v2/models/{name}/infer", {}, tensors(rows), from_tensors
    yield "/predict", as_arrow, arrow(rows), predictions


def send(app, path, headers, body):
    """(status, facts) of a request."""
    status, _, said = ask(app, path, body, headers=headers)
    return status, json.loads(said)


def alike(found, expected, where):
    """Nothing; both say the same of each row."""
    kept = ("id", "label", "probability", "probabilities")
    assert [{k: row[k] for k in kept} for row in found] == [
        {k: row[k] for k in kept} for row in expected
    ], where


def test_every_protocol_answers_ids_as_json_does(small, url):  # noqa: F811
    write_features(url, stored(small), id="customer")
    app = application(small, url)
    rows = [
        {ENTITY: name} | {key: row[key] for key in HELD}
        for name, row in zip(small.ids[:200], small.rows, strict=False)
    ]
    expected = send(app, "/predict", {}, rows)[1]
    assert np.abs(told(small, expected["predictions"]) - small.answers[:200]).max() < 1e-6
    for path, headers, body, read in ways(small, rows):
        status, answer = send(app, path, headers, body)
        assert status == 200, (path, answer)
        alike(read(answer), expected["predictions"], (path, headers))
    exact = {"accept": MEDIA, "content-type": MEDIA}
    _, _, raw = ask(app, "/predict", arrow(rows), headers=exact)
    assert pa.ipc.open_stream(raw).read_all().to_pylist() == expected["predictions"]
    judged = f"/v1/models/{model_name(small.contract)}:classify"
    status, answer = send(app, judged, {}, {"examples": rows})
    pairs = [dict(one)["yes"] for one in answer["results"]]
    assert pairs == [one["probability"] for one in expected["predictions"]]
    app.features.close()


@pytest.mark.parametrize("policy", ["reject", "flag", "impute"])
def test_stale_and_unknown_entities_are_treated_alike(small, tmp_path, policy):  # noqa: F811
    url, now = f"memory:{tmp_path}", time.time()  # noqa: F811
    write_features(url, [small.rows[0] | {"who": "fresh"}], id="who", at=now - 50)
    write_features(url, [small.rows[1] | {"who": "stale"}], id="who", at=now - 7000)
    more = {"features_entity": "who", "features_max_age": 3600}
    app = application(small, url, **more, features_stale=policy, features_unknown=policy)
    rows = [{"who": who, "age": 40} for who in ("fresh", "stale", "nobody", "stale")]
    status, expected = send(app, "/predict", {}, rows)
    assert status == (422 if policy == "reject" else 200)
    assert expected["counts"]["stale_features"] == 2 and expected["counts"]["unknown_entity"] == 1
    for path, headers, body, read in ways(small, rows):
        status, answer = send(app, path, headers, body)
        if policy == "reject":
            assert status == (422 if path == "/predict" else 400), path
            assert answer["counts"] == expected["counts"] and "nobody" not in json.dumps(answer)
            assert answer["problems"] == expected["problems"]
        else:
            found = [{**row, "id": ""} for row in read(answer)]
            alike(found, [{**row, "id": ""} for row in expected["predictions"]], path)
            counts = answer.get("counts", answer.get("parameters"))
            assert counts is None or counts == expected["counts"], path


def test_a_row_that_is_whole_asks_nobody_and_what_is_said_wins(small, tmp_path):  # noqa: F811
    url = f"memory:{tmp_path}"  # noqa: F811
    write_features(url, stored(small), id="customer")
    app = application(small, url)
    whole = [
        {ENTITY: n} | row | {"age": 33}
        for n, row in zip(small.ids[:50], small.rows[:50], strict=True)
    ]
    part = [{ENTITY: name, "age": 33, "income": None} for name in small.ids[:50]]
    for rows in (whole, part):
        expected = send(app, "/predict", {}, rows)[1]["predictions"]
        for path, headers, body, read in ways(small, rows):
            alike(read(send(app, path, headers, body)[1]), expected, (path, headers))
    calls = []
    app.features.asker.store = type("Spy", (), {"get_many": lambda self, ids: calls.append(ids)})()
    for path, headers, body, _ in ways(small, whole):
        assert send(app, path, headers, body)[0] == 200
    assert not calls


def test_no_store_is_asked_for_a_hundred_thousand_at_once(small, tmp_path):  # noqa: F811
    url = f"memory:{tmp_path}"  # noqa: F811
    write_features(url, [small.rows[0] | {"who": "one"}], id="who")
    app = application(small, url, features_entity="who", max_rows=10)
    headers, few = {"content-type": MEDIA}, [{"who": "one"}] * 10
    assert send(app, "/predict", headers, arrow(few))[0] == 200
    status, answer = send(app, "/predict", headers, arrow([*few, few[0]]))
    assert (status, answer["error"]["code"]) == (413, "too_many_rows")
    whole = [{"who": "one"} | small.rows[0]] * 500
    status, answer = send(app, "/predict", headers, arrow(whole))
    assert status == 200 and len(answer["predictions"]) == 500 and answer["counts"] == {}


@pytest.mark.parametrize("wrong", [4.5, "x" * 501])
def test_an_id_that_is_none_is_refused_in_every_protocol(small, tmp_path, wrong):  # noqa: F811
    app = application(small, f"memory:{tmp_path}", features_entity="who", features_unknown="impute")
    rows = [{"who": "a"}, {"who": wrong}] if type(wrong) is str else [{"who": 7.5}, {"who": wrong}]
    for path, headers, body, _ in ways(small, rows):
        if headers == {"content-type": "text/csv"} and type(wrong) is float:
            continue  # a text there, and texts are ids
        status, answer = send(app, path, headers, body)
        assert status in (400, 422), path
        found = {(p["row"], p["code"]) for p in answer["problems"] if p["action"] == "rejected"}
        assert (1, "wrong_type") in found and "xxx" not in json.dumps(answer), path


def test_a_store_that_fails_is_told_in_every_protocol(small, tmp_path):  # noqa: F811
    app = application(small, f"memory:{tmp_path}")

    def fail(ids):
        raise OSError("secret")

    app.features.asker.store = type("Down", (), {"get_many": lambda self, ids: fail(ids)})()
    rows = [{ENTITY: "a"}]
    for path, headers, body, _ in ways(small, rows):
        status, answer = send(app, path, headers, body)
        assert status == 503 and "secret" not in json.dumps(answer), path
        code = answer["error"]["code"] if path == "/predict" else answer["code"]
        assert code == "store_unavailable", path
