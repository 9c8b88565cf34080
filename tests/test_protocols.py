"""Clients of Triton, TensorFlow Serving, MLflow and SageMaker get the answers of `/predict`."""

import asyncio
import csv
import io
import json
import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import plain_server, post
from released import released, told

from prodml.contract import Column, Contract
from prodml.serve.app import App
from prodml.serve.build import service_name
from prodml.serve.scorer import Scorer, load_scorer
from prodml.serve.tensors import datatype_of, join_texts, model_name
from prodml.settings import Serve

NAME = "credit-demo"
V1, V2 = f"/v1/models/{NAME}", f"/v2/models/{NAME}"
CSV = {"content-type": "text/csv"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return released(tmp_path_factory.mktemp("small"), kind="linear")


@pytest.fixture(scope="module")
def app(small):
    return App(load_scorer(small.folder), Serve(max_rows=600))


def ask(app, path, body=b"", method="POST", headers=None):
    """(status, headers, body) of the application itself."""
    sent = []
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    pairs = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]

    async def receive():
        return {"type": "http.request", "body": raw}

    async def send(message):
        sent.append(message)

    asyncio.run(
        app({"type": "http", "path": path, "method": method, "headers": pairs}, receive, send)
    )
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found, sent[1]["body"]


def asked(app, path, body=b"", method="POST", headers=None):
    """(status, JSON) of the application itself."""
    status, _, answer = ask(app, path, body, method, headers)
    return status, json.loads(answer)


def columns(contract, rows):
    return {c.name: [row[c.name] for row in rows] for c in contract.features}


def tensors(contract, rows, wide=False):
    """(inputs, tail) of a request in binary, numbers as FP32 or, if wide, in what is announced."""
    inputs, tail = [], b""
    for column in contract.features:
        values = [row[column.name] for row in rows]
        if column.numeric:
            kind = "FP64" if wide else "FP32"
            raw = np.array(values, dtype={"FP32": "<f4", "FP64": "<f8"}[kind]).tobytes()
        else:
            kind, raw = "BYTES", join_texts(["" if v is None else v for v in values])
        size = {"binary_data_size": len(raw)}
        one = {"name": column.name, "shape": [len(rows), 1], "datatype": kind, "parameters": size}
        inputs, tail = [*inputs, one], tail + raw
    return inputs, tail


def binary(app, request, tail=b"", path=f"{V2}/infer"):
    """(status, JSON, the bytes behind it) of a request in binary."""
    head = json.dumps(request).encode()
    sized = {"inference-header-content-length": str(len(head))}
    status, headers, body = ask(app, path, head + tail, headers=sized)
    size = int(headers.get("inference-header-content-length", len(body)))
    return status, json.loads(body[:size]), body[size:]


def as_csv(rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def by_v2_json(app, contract, rows):
    inputs = [
        {"name": k, "shape": [len(v)], "datatype": datatype_of(contract.column(k)), "data": v}
        for k, v in columns(contract, rows).items()
    ]
    answer = asked(app, f"{V2}/infer", {"inputs": inputs})[1]
    return next(o["data"] for o in answer["outputs"] if o["name"] == "probabilities")


def by_v2_binary(app, contract, rows, wide=False):
    inputs, tail = tensors(contract, rows, wide)
    wanted = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    _, answer, raw = binary(app, {"inputs": inputs, "outputs": wanted}, tail)
    assert answer["outputs"][0]["shape"] == [len(rows), 2]
    return np.frombuffer(raw, "<f8")


def by_tf_rows(app, contract, rows):
    answer = asked(app, f"{V1}:predict", {"instances": rows, "signature_name": "serving_default"})[
        1
    ]
    return [one["probabilities"] for one in answer["predictions"]]


def by_tf_columns(app, contract, rows):
    wrapped = {k: [[one] for one in v] for k, v in columns(contract, rows).items()}
    return asked(app, f"{V1}:predict", {"inputs": wrapped})[1]["outputs"]["probabilities"]


def by_tf_classify(app, contract, rows):
    answer = asked(app, f"{V1}:classify", {"examples": rows})[1]["results"]
    assert [label for label, _ in answer[0]] == list(contract.classes)
    return [[score for _, score in one] for one in answer]


def by_mlflow(app, contract, body, headers=None):
    answer = asked(
        app, "/invocations", body, headers=headers or {"content-type": "application/json"}
    )
    return [list(one["probabilities"].values()) for one in answer[1]["predictions"]]


def by_mlflow_split(app, contract, rows):
    names = list(rows[0])
    frame = {"columns": names, "index": [0], "data": [[row[n] for n in names] for row in rows]}
    return by_mlflow(app, contract, {"dataframe_split": frame, "params": {}})


WAYS = {
    "v2 json": by_v2_json,
    "v2 binary": by_v2_binary,
    "v2 binary wide": lambda *given: by_v2_binary(*given, wide=True),
    "tf rows": by_tf_rows,
    "tf columns": by_tf_columns,
    "tf classify": by_tf_classify,
    "mlflow split": by_mlflow_split,
    "mlflow records": lambda a, c, rows: by_mlflow(a, c, {"dataframe_records": rows}),
    "mlflow instances": lambda a, c, rows: by_mlflow(a, c, {"instances": rows}),
    "mlflow inputs": lambda a, c, rows: by_mlflow(a, c, {"inputs": columns(c, rows)}),
    "csv": lambda a, c, rows: by_mlflow(a, c, as_csv(rows), CSV),
    "json lines": lambda a, c, rows: by_mlflow(
        a,
        c,
        "\n".join(map(json.dumps, rows)).encode(),
        {"content-type": "application/jsonlines"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_row_gets_the_answer_of_predict_and_of_the_notebook(app, small, way):
    rows = small.rows[:500]
    expected = told(small, asked(app, "/predict", rows)[1]["predictions"])
    found = np.array(WAYS[way](app, small.contract, rows)).reshape(-1, 2)
    assert np.abs(found - small.answers[:500]).max() < 1e-6
    assert found.tolist() == expected.tolist() and len(rows) > 300


def test_missing_values_are_missing_in_each_form(app, small):
    name = next(c.name for c in small.contract.features if c.numeric)
    level = next(c.name for c in small.contract.features if not c.numeric)
    rows = [{**row, name: None, level: None} for row in small.rows[:3]]
    expected = told(small, asked(app, "/predict", rows)[1]["predictions"])
    for way, ask_so in WAYS.items():
        found = np.array(ask_so(app, small.contract, rows)).reshape(-1, 2)
        assert found.tolist() == expected.tolist(), way
    spelt = json.dumps({"instances": [{**rows[0], name: float("nan")}]}).encode()
    assert b"NaN" in spelt
    status, answer = asked(app, f"{V1}:predict", spelt)
    assert status == 200 and answer["predictions"][0]["probabilities"] == expected[0].tolist()


def test_the_log_sees_each_protocol_with_the_ids_of_the_answer(app, small):
    seen = []
    app.observers.append(seen.append)
    try:
        inputs, tail = tensors(small.contract, small.rows[:2])
        answer = binary(app, {"id": "order-7", "inputs": inputs}, tail)[1]
        status, by_row = asked(app, f"{V1}:predict", {"instances": small.rows[:1]})
        by_frame = asked(app, "/invocations", {"dataframe_records": small.rows[:1]})[1]
    finally:
        app.observers.remove(seen.append)
    assert status == 200 and len(seen) == 3 and answer["id"] == "order-7"
    outputs = {one["name"]: one["data"] for one in answer["outputs"]}
    assert seen[0].ids == ("order-7-0", "order-7-1") == tuple(outputs["id"])
    assert seen[1].ids == (by_row["predictions"][0]["id"],)
    assert seen[2].ids == (by_frame["predictions"][0]["id"],)


def stand_in(contract, most=10):
    """The application of a model that answers with the sum of its numbers, or even chances."""

    def run(seen):
        rows = len(next(iter(seen.values())))
        if contract.classes:
            return np.full((rows, len(contract.classes)), 1 / len(contract.classes))
        return sum(np.nan_to_num(seen[c.name]) for c in contract.features if c.numeric)

    return App(Scorer("0123abc", contract, {"format": "onnx"}, run), Serve(max_rows=most))


X = Column("x", "number", "feature", minimum=0.05, maximum=0.1, on_range="reject", fill=0.1)
LEVEL = Column("level", "category", "feature", levels=("a",), on_unseen="reject", fill="a")


def test_a_limit_that_was_narrowed_on_its_way_is_still_within(app):
    one = stand_in(Contract("tight", "regression", "y", (), (X,)))
    for dtype, name in (("<f4", "FP32"), ("<f2", "FP16"), ("<f8", "FP64")):
        raw = np.array([0.05, 0.1], dtype).tobytes()
        size = {"binary_data_size": len(raw)}
        sent = [{"name": "x", "shape": [2], "datatype": name, "parameters": size}]
        status, answer, _ = binary(one, {"inputs": sent}, raw, "/v2/models/tight/infer")
        assert status == 200, (name, answer)
    raw = np.array([np.nextafter(np.float32(0.1), np.float32(1))], "<f4").tobytes()
    sent = [{"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}]
    status, answer, _ = binary(one, {"inputs": sent}, raw, "/v2/models/tight/infer")
    assert status == 400 and answer["problems"][0]["code"] == "out_of_range"


def test_regression_and_several_classes(small):
    value = stand_in(Contract("value", "regression", "y", (), (X,)))
    assert asked(value, "/v1/models/value:regress", {"examples": [{"x": 0.1}]})[1]["results"] == [
        pytest.approx(0.1)
    ]
    answer = asked(value, "/v1/models/value:predict", {"instances": [{"x": 0.1}]})[1]
    assert set(answer["predictions"][0]) == {"value", "id"}
    status, answer = asked(value, "/v1/models/value:classify", {"examples": [{"x": 0.1}]})
    assert status == 400 and answer["code"] == "wrong_form"
    three = stand_in(Contract("three", "multiclass", "y", ("a", "b", "c"), (X,)))
    status, answer = asked(three, "/v1/models/three:regress", {"examples": [{"x": 0.1}]})
    assert status == 400 and "multiclass" in answer["error"]
    answer = asked(three, "/v1/models/three:predict", {"inputs": {"x": [0.1]}})[1]["outputs"]
    assert answer["classes"] == [["a", "b", "c"]] and answer["label"] == ["a"]
    described = asked(three, "/v2/models/three", method="GET")[1]["outputs"]
    assert [one["shape"] for one in described] == [[-1], [-1, 3], [-1]]


def test_metadata_and_health_are_as_published(app, small):
    release = small.folder.name
    for path in (V2, f"{V2}/versions/{release}"):
        status, answer = asked(app, path, method="GET")
        assert status == 200 and answer["name"] == NAME and answer["versions"] == [release]
        assert {"name", "datatype", "shape"} == set(answer["inputs"][0])
        assert asked(app, f"{path}/ready", method="GET")[1]["ready"] is True
    server = asked(app, "/v2", method="GET")[1]
    assert set(server) == {"name", "version", "extensions"}
    assert "binary_tensor_data" in server["extensions"]
    assert asked(app, "/v2/health/live", method="GET") == (200, {"live": True})
    assert asked(app, "/v2/health/ready", method="GET") == (200, {"ready": True})
    state = asked(app, V1, method="GET")[1]["model_version_status"]
    good = {"error_code": "OK", "error_message": ""}
    assert state == [{"version": release, "state": "AVAILABLE", "status": good}]
    signature = asked(app, f"{V1}/versions/{release}/metadata", method="GET")[1]
    assert signature["model_spec"] == {"name": NAME, "signature_name": "", "version": release}
    inputs = signature["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]
    assert list(inputs) == [c.name for c in small.contract.features]
    assert ask(app, "/ping", method="GET")[0] == ask(app, "/health", method="HEAD")[0] == 200
    assert model_name(small.contract) == service_name(small.contract.name) == NAME
    assert model_name(replace(small.contract, name="My_model.2")) == "My_model.2"
    assert model_name(replace(small.contract, name="../etc")) == "etc"
    accents = replace(small.contract, name="Kredit Ünïts")
    assert model_name(accents) == service_name(accents.name) == "kredit-units"


SECRET = "a-secret-value"
GOOD = {"name": "x", "shape": [1], "datatype": "FP32", "data": [0.1]}
BINARY = {k: v for k, v in GOOD.items() if k != "data"} | {"parameters": {"binary_data_size": 4}}
WRONG_TENSORS = {
    "no inputs": {},
    "inputs are no list": {"inputs": {SECRET: 1}},
    "no tensors": {"inputs": []},
    "a tensor is a text": {"inputs": [SECRET]},
    "no name": {"inputs": [GOOD | {"name": 3}]},
    "unknown datatype": {"inputs": [GOOD | {"datatype": SECRET}]},
    "unhashable datatype": {"inputs": [GOOD | {"datatype": [SECRET]}]},
    "no shape": {"inputs": [GOOD | {"shape": SECRET}]},
    "negative shape": {"inputs": [GOOD | {"shape": [-1]}]},
    "a shape of truth": {"inputs": [GOOD | {"shape": [True]}]},
    "two columns in one": {"inputs": [GOOD | {"shape": [1, 2], "data": [1, 2]}]},
    "too little data": {"inputs": [GOOD | {"shape": [2]}]},
    "data are a text": {"inputs": [GOOD | {"data": SECRET}]},
    "no data": {"inputs": [{k: v for k, v in GOOD.items() if k != "data"}]},
    "a column twice": {"inputs": [GOOD, GOOD]},
    "different lengths": {"inputs": [GOOD, GOOD | {"name": "y", "shape": [0], "data": []}]},
    "shared memory": {"inputs": [GOOD | {"parameters": {"shared_memory_region": SECRET}}]},
    "parameters are a text": {"inputs": [GOOD | {"parameters": SECRET}]},
    "bytes that are not there": {"inputs": [BINARY]},
    "a negative size": {"inputs": [BINARY | {"parameters": {"binary_data_size": -4}}]},
    "a huge size": {"inputs": [BINARY | {"parameters": {"binary_data_size": 10**15}}]},
    "an id that is a number": {"inputs": [GOOD], "id": 7},
    "a long id": {"inputs": [GOOD], "id": SECRET * 100},
    "an id of two lines": {"inputs": [GOOD], "id": f"{SECRET}\n{SECRET}"},
    "unknown output": {"inputs": [GOOD], "outputs": [{"name": SECRET}]},
    "outputs are a text": {"inputs": [GOOD], "outputs": SECRET},
    "an output is a text": {"inputs": [GOOD], "outputs": [SECRET]},
    "classes of a value": {
        "inputs": [GOOD],
        "outputs": [{"name": "value", "parameters": {"classification": 2}}],
    },
    "request parameters are a text": {"inputs": [GOOD], "parameters": SECRET},
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_each_wrong_tensor_is_told_in_the_form_of_the_protocol(case):
    one = stand_in(Contract("tight", "regression", "y", (), (X,)))
    status, answer = asked(one, "/v2/models/tight/infer", WRONG_TENSORS[case])
    assert status == 400 and answer["code"] == "wrong_form" and SECRET not in json.dumps(answer)
    assert answer["error"].startswith("wrong_form: ")
    assert asked(one, "/v2/models/tight/infer", {"inputs": [GOOD]})[0] == 200


def test_wrong_bytes_behind_the_json():
    one = stand_in(Contract("tight", "binary", "y", ("a", "b"), (LEVEL,)))
    path = "/v2/models/tight/infer"

    def send(raw, rows=1):
        size = {"binary_data_size": len(raw)}
        sent = {"name": "level", "shape": [rows], "datatype": "BYTES", "parameters": size}
        return binary(one, {"inputs": [sent]}, raw, path)

    assert send(join_texts(["a"]))[0] == 200
    bad = [b"\x01", struct.pack("<I", 9) + b"a", struct.pack("<I", 1) + b"\xff", b"", b"\xff" * 8]
    for raw in bad:
        status, answer, _ = send(raw)
        assert (status, answer["code"]) == (400, "wrong_form"), raw
    assert send(join_texts(["a"]) + b"\0\0\0\0")[0] == 400
    body = json.dumps({"inputs": [GOOD]}).encode()
    for size in ("-1", "x", "99999", "1e2", "9" * 30, "²"):
        sized = {"inference-header-content-length": size}
        pairs = sized if size.isascii() else {}
        if pairs:
            assert ask(one, path, body, headers=pairs)[0] == 400, size


WRONG_FORMS = {
    ("/v1/models/tight:predict", "not_json"): [b"", b"<html>", b'{"a": NaN'],
    ("/v1/models/tight:predict", "too_deep"): [b"[" * 100_000],
    ("/v2/models/tight/infer", "duplicate_key"): [b'{"inputs": [], "inputs": []}'],
    ("/invocations", "duplicate_key"): [b'{"instances": [{"x": NaN, "x": 2}]}'],
    ("/v1/models/tight:predict", "wrong_form"): [
        b"[]",
        b"{}",
        {"instances": [], "inputs": {}},
        {"instances": {SECRET: 1}},
        {"inputs": [SECRET]},
        {"inputs": {"x": SECRET}},
        {"inputs": {"x": [1], SECRET: []}},
        {"instances": [{"x": 0.1}], "signature_name": SECRET},
        {"instances": [{"level": {"b64": SECRET}}]},
    ],
    ("/v1/models/tight:classify", "wrong_form"): [
        {"examples": SECRET},
        {"context": [], "examples": []},
    ],
    ("/invocations", "not_json"): [b"", b"x,y", b"\xff"],
    ("/invocations", "wrong_form"): [
        b"[]",
        {},
        {"rows": []},
        {"instances": [], "inputs": {}},
        {"dataframe_split": SECRET},
        {"dataframe_split": {"columns": ["x"], "data": [[1, SECRET]]}},
        {"dataframe_split": {"columns": ["x", "x"], "data": []}},
        {"dataframe_split": {"columns": [1], "data": []}},
        {"dataframe_records": SECRET},
        {"inputs": SECRET},
    ],
}
CASES = [(*key, body) for key, bodies in WRONG_FORMS.items() for body in bodies]


@pytest.mark.parametrize(("path", "code", "body"), CASES, ids=range(len(CASES)))
def test_each_wrong_form_is_told_in_the_form_of_the_protocol(path, code, body):
    one = stand_in(Contract("tight", "binary", "y", ("a", "b"), (X, LEVEL)))
    status, answer = asked(one, path, body)
    assert status == 400 and answer["code"] == code and SECRET not in json.dumps(answer)
    text = answer["message"] if path == "/invocations" else answer["error"]
    assert text.startswith(f"{code}: ")
    if path == "/invocations":
        assert answer["error_code"] == "BAD_REQUEST"


WRONG_CSV = [b"", b"x\n1,2\n", b"x,level\n0.1\n", b"0.1,a\n", b'x,level\n0.1,"a"b\n', b"x,x\n1,2\n"]
WRONG_CSV += [b"x\n\xff\n", b'x,level\n0.1,"a', b"x,level\n0.1,a\n\n0.1,a\n"]


@pytest.mark.parametrize("body", WRONG_CSV, ids=range(len(WRONG_CSV)))
def test_csv_that_is_not_strictly_one_is_refused(body):
    one = stand_in(Contract("tight", "binary", "y", ("a", "b"), (X, LEVEL)))
    status, answer = asked(one, "/invocations", body, headers=CSV)
    assert (status, answer["code"], answer["error_code"]) == (400, "wrong_form", "BAD_REQUEST")


def test_csv_as_others_write_it():
    one = stand_in(Contract("tight", "binary", "y", ("a", "b"), (X, LEVEL)))
    for body in (
        b"x,level\n0.1,a\n",
        b'\xef\xbb\xbf"level","x"\r\n"a",0.1\r\n\r\n',
        b"x,level\n1e-1,a",
    ):
        headers = {"content-type": "text/csv; charset=utf-8"}
        status, answer = asked(one, "/invocations", body, headers=headers)
        assert status == 200 and len(answer["predictions"]) == 1, body
    for text in (b"0_1", b" 0.1", b"0.1 ", b"0x1", b"inf", SECRET.encode(), "１".encode()):
        status, answer = asked(one, "/invocations", b"x,level\n" + text + b",a\n", headers=CSV)
        assert status == 400 and answer["problems"][0]["code"] == "wrong_type", text
        assert SECRET not in json.dumps(answer)
    status, answer = asked(one, "/invocations", b"x,level\n" + b"9" * 400 + b",a\n", headers=CSV)
    assert status == 400 and answer["problems"][0]["code"] == "not_finite"


def test_other_media_types_are_told_what_is_taken(app):
    for media in ("application/x-npy", "text/csv; charset=latin-1", "application/json; odd=1"):
        status, answer = asked(app, "/invocations", b"{}", headers={"content-type": media})
        assert (status, answer["code"]) == (415, "wrong_media")
    for path in (f"{V2}/infer", f"{V1}:predict", f"{V1}:classify", f"{V1}:regress"):
        for media in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
            status, answer = asked(app, path, b"{}", headers={"content-type": media})
            assert (status, answer["code"]) == (415, "wrong_media")
        for media in ("", "application/json; charset=utf-8"):  # many clients do not say
            status, answer = asked(app, path, b"{}", headers={"content-type": media})
            assert (status, answer["code"]) == (400, "wrong_form")


def test_rows_that_break_the_contract_are_refused_in_each_form(app, small):
    row = small.rows[0] | {"age": SECRET}
    for path, body in (
        (f"{V1}:predict", {"instances": [small.rows[1], row]}),
        ("/invocations", {"dataframe_records": [small.rows[1], row]}),
    ):
        status, answer = asked(app, path, body)
        assert status == 400 and answer["code"] == "rows_refused"
        assert "row 1: 'age' has the wrong type" in (answer.get("message") or answer["error"])
        assert answer["problems"][0]["row"] == 1 and SECRET not in json.dumps(answer)
    flagged = [small.rows[1] | {"age": 900}] * 4  # what refuses the rows is told first
    said = asked(app, f"{V1}:predict", {"instances": [*flagged, row]})[1]["error"]
    assert said.partition(": row ")[2].startswith("4: 'age' has the wrong type") and "row 0" in said
    told = asked(app, f"{V1}:predict", {"instances": [SECRET]})[1]
    assert told["counts"]["not_an_object"] == 1 and SECRET not in json.dumps(told)


@pytest.mark.parametrize(
    "bad", ["x" * 129, 1.5, "two\nlines", True, ["a", "b"], {"a": "b"}], ids=repr
)
def test_an_id_that_is_none_is_told_in_each_protocol_and_its_row_is_answered(app, small, bad):
    key = app.scorer.contract.id_column
    rows = [{**small.rows[0], key: bad}, {**small.rows[1], key: "mine"}]
    for sent in (rows[0], rows[:1], rows, {"rows": rows}):
        status, answer = asked(app, "/predict", sent)
        assert status == 200 and answer["counts"] == {"bad_id": 1}
        problem = answer["problems"][0]
        assert (problem["code"], problem["action"], problem["row"]) == ("bad_id", "flagged", 0)
        assert problem["column"] == key and answer["predictions"][-1]["id"]
    assert answer["predictions"][1]["id"] == "mine"
    split = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    for path, body in (
        (f"{V1}:predict", {"instances": rows}),
        (f"{V1}:classify", {"examples": rows}),
        ("/invocations", {"dataframe_records": rows}),
        ("/invocations", {"dataframe_split": split}),
    ):
        status, answer = asked(app, path, body)
        assert status == 200 and answer["counts"] == {"bad_id": 1}, path
    if isinstance(bad, str | float):
        kinds = {float: "FP64", int: "INT64", str: "BYTES"}
        sent = [
            {"name": name, "shape": [1], "datatype": kinds[type(value)], "data": [value]}
            for name, value in rows[0].items()
            if value is not None and name in {key, *app.scorer.contract.names}
        ]
        status, answer = asked(app, f"{V2}/infer", {"inputs": sent})
        assert status == 200 and answer["parameters"]["bad_id"] == 1


def test_what_is_unusual_is_counted_in_the_answer(app, small):
    rows = [small.rows[0] | {"job": "astronaut"}, small.rows[1]]
    inputs, tail = tensors(small.contract, rows)
    status, answer, _ = binary(app, {"inputs": inputs}, tail)
    assert status == 200 and answer["parameters"] == {"unseen_level": 1}


def test_tensors_are_judged_exactly_as_rows_are(app, small):
    odd = [{"job": "astronaut"}, {"age": 140}, {"age": None}, {"age": True}, {"income": 1e39}]
    odd += [{"age": 40.5}, {"job": ""}, {"job": 7}, {"id": "mine"}, {"id": "x" * 999}, {"shoe": 9}]
    usual = small.rows[0] | {"id": None, "shoe": None}
    for some in (odd[:1], odd[:3], odd[5:7], odd[8:10], odd):
        rows = [usual | one for one in some]
        inputs = [
            {
                "name": name,
                "shape": [len(rows)],
                "datatype": "FP64",
                "data": [r[name] for r in rows],
            }
            for name in usual
        ]
        expected_status, expected = asked(app, "/predict", rows)
        status, answer = asked(app, f"{V2}/infer", {"inputs": inputs})
        assert (status, expected_status) in ((200, 200), (400, 422))
        if status == 400:
            assert answer["problems"] == expected["problems"]
            assert answer["counts"] == expected["counts"]
            continue
        assert answer.get("parameters", {}) == expected["counts"]
        found = next(one["data"] for one in answer["outputs"] if one["name"] == "id")
        named = [row["id"] for row in rows if row["id"] and len(row["id"]) < 99]
        assert named == [name for name in found if name == "mine"]


def test_errors_of_the_application_are_in_the_form_of_the_protocol(app, small):
    for path in (f"/v2/models/{SECRET}/infer", f"/v1/models/{SECRET}:predict", "/v2/x"):
        status, answer = asked(app, path, {})
        assert status == 404 and answer["error"].startswith("no_such_path: ")
        assert SECRET not in json.dumps(answer)
    status, headers, body = ask(app, f"{V2}/infer", method="GET")
    assert status == 405 and headers["allow"] == "POST" and b"wrong_method: " in body
    status, answer = asked(app, "/invocations", method="GET")
    assert (status, answer["error_code"]) == (405, "BAD_REQUEST")
    big = {"instances": small.rows[:1] * 601}
    assert asked(app, f"{V1}:predict", big)[1]["code"] == "too_many_rows"
    status, answer = asked(app, "/invocations", b" " * 5_000_000)
    assert status == 413 and answer["code"] == "body_too_large" and "error_code" in answer
    status, answer = asked(app, "/predicted", {})
    assert status == 404 and answer["error"]["code"] == "no_such_path"


def test_a_fault_of_the_model_is_told_without_details(small):
    broken = App(load_scorer(small.folder))

    def fail(seen):
        raise RuntimeError(SECRET)

    object.__setattr__(broken.scorer, "run", fail)
    status, answer = asked(broken, f"{V1}:predict", {"instances": small.rows[:1]})
    assert status == 500 and answer["code"] == "internal" and SECRET not in json.dumps(answer)
    status, answer = asked(broken, "/invocations", {"instances": small.rows[:1]})
    assert status == 500 and answer["error_code"] == "INTERNAL_ERROR"


quick = settings(max_examples=80)
VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
DEEP = st.recursive(
    VALUE,
    lambda more: (
        st.lists(more, max_size=3) | st.dictionaries(st.text(max_size=4), more, max_size=3)
    ),
    max_leaves=12,
)
KEYS = ["instances", "inputs", "outputs", "id", "parameters", "dataframe_split", "columns", "data"]
KEYS += ["name", "shape", "datatype", "examples", "context", "dataframe_records", "signature_name"]
BODY = st.dictionaries(st.sampled_from(KEYS), DEEP, max_size=5)
PATHS = [f"{V2}/infer", f"{V1}:predict", f"{V1}:classify", f"{V1}:regress", "/invocations"]


@quick
@given(
    path=st.sampled_from(PATHS), body=st.binary(max_size=80) | BODY.map(json.dumps).map(str.encode)
)
def test_any_body_gets_an_answer(app, path, body):
    status, answer = asked(app, path, body)
    assert status in (200, 400, 413) and (
        status == 200 or ": " in str(answer.get("error") or answer["message"])
    )


TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["age", "job", "income", "x"])},
    optional={
        "shape": st.lists(st.integers(-1, 3), max_size=3),
        "datatype": st.sampled_from(["FP32", "BYTES", "INT64", "BOOL", "X"]),
        "data": st.lists(VALUE | st.lists(VALUE, max_size=2), max_size=3),
        "parameters": st.dictionaries(st.just("binary_data_size"), st.integers(-1, 20), max_size=1),
    },
)


@quick
@given(inputs=st.lists(TENSOR, max_size=3), tail=st.binary(max_size=24))
def test_any_tensors_get_an_answer(app, inputs, tail):
    status, answer, _ = binary(app, {"inputs": inputs}, tail)
    assert status == 200 or (status == 400 and answer["code"] in ("wrong_form", "rows_refused"))


@quick
@given(body=st.text(alphabet='ageincomjob,";\r\n0123456789.', max_size=60).map(str.encode))
def test_any_csv_gets_an_answer(app, body):
    assert asked(app, "/invocations", b"age,job\n" + body, headers=CSV)[0] in (200, 400)


# Triton's own client, against a server that runs.


@pytest.fixture(scope="module")
def triton(small, tmp_path_factory):
    """Triton's client of a running server, and what it needs for a request."""
    http = pytest.importorskip("tritonclient.http")
    with plain_server(small.folder, tmp_path_factory.mktemp("log") / "log") as url:
        client = http.InferenceServerClient(url.removeprefix("http://"))

        def inputs(rows, binary=True):
            made = []
            for one in client.get_model_metadata(NAME)["inputs"]:
                values = [row[one["name"]] for row in rows]
                if one["datatype"] == "BYTES":
                    array = np.array(["" if v is None else v for v in values], dtype=object)
                else:
                    kinds = {"INT64": "i8", "BOOL": "?", "FP32": "f4", "FP64": "f8"}
                    array = np.array(values, dtype=kinds[one["datatype"]])
                tensor = http.InferInput(one["name"], [len(rows)], one["datatype"])
                made.append(tensor.set_data_from_numpy(array, binary_data=binary))
            return made

        yield SimpleNamespace(client=client, inputs=inputs, http=http)
        client.close()


def test_tritons_client_finds_the_server_and_the_model(triton, small):
    client = triton.client
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, small.folder.name) and not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "prodml"
    assert client.get_model_metadata(NAME, small.folder.name)["name"] == NAME


@pytest.mark.parametrize("sent", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("asked", [None, True, False], ids=["default", "binary", "json"])
def test_tritons_client_gets_the_notebooks_answers(triton, small, sent, asked):
    rows = [r for r in small.rows if None not in r.values()][:200] if not sent else small.rows[:200]
    places = [small.rows.index(row) for row in rows]
    outputs = None
    if asked is not None:
        names = ("probabilities", "label", "probability")
        outputs = [triton.http.InferRequestedOutput(n, binary_data=asked) for n in names]
    found = triton.client.infer(NAME, triton.inputs(rows, sent), outputs=outputs, request_id="r1")
    assert np.abs(found.as_numpy("probabilities") - small.answers[places]).max() < 1e-6
    assert (found.as_numpy("probability") == found.as_numpy("probabilities")[:, 1]).all()
    raw = found.as_numpy("label")
    labels = [one.decode() if isinstance(one, bytes) else str(one) for one in raw]
    chosen = (found.as_numpy("probability") >= small.threshold).astype(int)
    assert labels == [small.contract.classes[i] for i in chosen]
    assert found.get_response()["id"] == "r1" and len(rows) > 50
    assert found.get_response()["model_version"] == small.folder.name


def test_tritons_client_may_press_and_ask_for_the_likeliest(triton, small):
    wanted = [triton.http.InferRequestedOutput("probabilities", class_count=1)]
    pressed = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
    found = triton.client.infer(NAME, triton.inputs(small.rows[:3]), outputs=wanted, **pressed)
    best = found.as_numpy("probabilities")
    assert best.shape == (3, 1)
    value, index, label = best[0, 0].decode().split(":")
    assert label == small.contract.classes[int(index)] and float(value) >= 0.5


@pytest.mark.parametrize("asked", [None, True, False], ids=["default", "binary", "json"])
def test_tritons_client_gets_reasons(triton, small, asked):
    outputs = None
    if asked is not None:
        names = "label", "reason_codes"
        outputs = [triton.http.InferRequestedOutput(n, binary_data=asked) for n in names]
    wanted = {"outputs": outputs, "parameters": {"reason_codes": 2}}
    found = triton.client.infer(NAME, triton.inputs(small.rows[:3]), **wanted)
    url = f"http://{triton.client._parsed_url.netloc}/predict?reason_codes=2"
    expected = [row["reasons"] for row in post(url, small.rows[:3])[1]["predictions"]]
    assert [json.loads(text) for text in found.as_numpy("reason_codes")] == expected
    assert "reason_codes" in triton.client.get_model_metadata(NAME)["parameters"]
    assert "reason_codes" not in str(triton.client.infer(NAME, triton.inputs(small.rows[:3])))


def test_tritons_client_reads_what_was_wrong(triton, small):
    from tritonclient.utils import InferenceServerException

    given = triton.inputs(small.rows[:2])
    with pytest.raises(
        InferenceServerException, match="wrong_form: input 1: this column comes twice"
    ):
        triton.client.infer(NAME, [given[0], given[0]])
    with pytest.raises(InferenceServerException, match="no_such_path: "):
        triton.client.infer("other", given)
    tensor = triton.http.InferInput("age", [1], "FP32")
    tensor.set_data_from_numpy(np.array([np.inf], "f4"))
    with pytest.raises(
        InferenceServerException, match=r"rows_refused: .*'age' is not a finite number"
    ):
        triton.client.infer(NAME, [tensor])
