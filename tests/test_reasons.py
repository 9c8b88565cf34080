"""What the server says of why is what the notebook says, for whoever answered, in its time."""

import asyncio
import inspect
import json
from dataclasses import replace

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import uvloop
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from processes import BIN, free_port, post, server
from prometheus_client.parser import text_string_to_metric_families
from released import PASSED, released, sealed
from test_entities import arrow
from test_function import read, url_event

from prodml.contract import Column, Contract, check_rows
from prodml.deployment import Explain
from prodml.explain.sampled import Walks
from prodml.explain.shap import FILE, Explanation, answer_of, asking, explanation_of, pack
from prodml.ini import parse_settings, read_settings
from prodml.serve.app import App, create_app
from prodml.serve.arrow import MEDIA
from prodml.serve.build import checks, render_service
from prodml.serve.challenger import Pair
from prodml.serve.entities import write_features
from prodml.serve.function import lambda_handler, service_app
from prodml.serve.reasons import explain_frame, explain_rows, load_explainer
from prodml.serve.scorer import load_scorer
from prodml.serve.tensors import input_tensors, model_name, tensor
from prodml.serve.why import Reasons
from prodml.serve.wording import Wording, value_text, wrong_text
from prodml.settings import Mistake, Serve

KINDS = ("xgboost", "linear", "forest")


@pytest.fixture(scope="module", params=KINDS)
def one(request, tmp_path_factory):
    return released(tmp_path_factory.mktemp("one"), kind=request.param, id="application_id")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return released(tmp_path_factory.mktemp("small"), id="application_id")


def ask(app, path, body, headers=None, method="POST", runner=asyncio.run):
    """The reply of the application to one request."""

    async def once():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent = {"content-type": "application/json", **(headers or {})}
            return await client.request(method, path, content=content, headers=sent)

    return runner(once())


def notebook(one, rows):
    """The contributions that the notebook finds, without the server."""
    columns = check_rows(one.contract, rows).columns
    return explanation_of(one.folder).attribute(columns)


def contributions(contract, explanations):
    """(rows, columns) of what was served, in the order of the contract."""
    names = [column.name for column in contract.features]
    told = [{c["column"]: c["contribution"] for c in row["contributions"]} for row in explanations]
    return np.array([[row[name] for name in names] for row in told])


def test_what_is_served_is_what_the_notebook_says(one):
    app, rows = App(load_scorer(one.folder)), one.rows[:100]
    reply = ask(app, "/explain", rows)
    assert reply.status_code == 200
    told, found = reply.json()["explanations"], notebook(one, rows)
    served = contributions(one.contract, told)
    assert np.abs(served - found.values[:, :, 0]).max() < 1e-6
    assert {row["exact"] for row in told} == {row["complete"] for row in told} == {True}
    margin = np.array([row["margin"] for row in told])
    base = np.array([row["base"] for row in told])
    assert np.abs(base + served.sum(axis=1) - margin).max() < 1e-5
    probability = answer_of(margin[:, None], found.link, 2)[:, 1]
    assert np.abs(probability - [row["probability"] for row in told]).max() < 1e-5
    assert np.abs(probability - one.answers[:100, 1]).max() < 1e-5
    single = [ask(app, "/explain", row).json()["explanations"][0] for row in rows[:10]]
    assert np.abs(contributions(one.contract, single) - served[:10]).max() < 1e-6
    sizes = np.abs([[c["contribution"] for c in row["contributions"]] for row in told])
    assert (np.diff(sizes, axis=1) <= 0).all(), "the largest first"
    bulk = ask(app, "/explain", arrow(rows), {"content-type": MEDIA}).json()
    assert np.abs(contributions(one.contract, bulk["explanations"]) - served).max() < 1e-6


def test_reasons_lead_to_the_decision_and_the_prediction_is_that_of_predict(one):
    app, rows = App(load_scorer(one.folder)), one.rows[:60]
    plain = ask(app, "/predict", rows).json()
    reasoned = ask(app, "/predict?reason_codes=3", rows).json()
    values, names = notebook(one, rows).values[:, :, 0], [c.name for c in one.contract.features]
    both = zip(plain["predictions"], reasoned["predictions"], values, strict=True)
    for place, (bare, said, own) in enumerate(both):
        reasons = said.pop("reasons")
        kept = ("label", "probability", "probabilities")
        assert {k: said[k] for k in kept} == {k: bare[k] for k in kept}
        sign = 1 if said["label"] == "yes" else -1
        led = [n for n in np.argsort(-own * sign, kind="stable") if own[n] * sign > 0][:3]
        assert [one_of["column"] for one_of in reasons] == [names[n] for n in led], place
        assert np.abs([r["contribution"] for r in reasons] - own[led]).max(initial=0) < 1e-6
        for reason in reasons:
            value = rows[place][reason["column"]]
            assert "not known" in reason["text"] or value is not None
    assert {k: v for k, v in reasoned.items() if k != "predictions"} == {
        k: v for k, v in plain.items() if k != "predictions"
    }
    both_ways = {"accept": MEDIA, "content-type": MEDIA}
    raw = ask(app, "/predict?reason_codes=3", arrow(rows), both_ways)
    table = pa.ipc.open_stream(raw.content).read_all()
    table.validate(full=True)
    assert pa.types.is_list(table.schema.field("reasons").type)
    assert table.schema.field("reasons").type.value_type == pa.string()
    again = ask(app, "/predict?reason_codes=3", rows).json()["predictions"]
    assert table["reason_columns"].to_pylist() == [
        [r["column"] for r in row["reasons"]] for row in again
    ]
    assert table["reasons"].to_pylist() == [[r["text"] for r in row["reasons"]] for row in again]


def test_a_table_gets_the_reasons_that_the_server_gives(one):
    rows = one.rows[:200]
    served = ask(App(load_scorer(one.folder)), "/predict?reason_codes=2", rows[:100]).json()
    frame = pd.DataFrame(rows)
    found = explain_frame(one.folder, frame, many=2)
    assert len(found) == 200 and list(frame.columns) == list(found.columns[:-2])
    expected = [[r["column"] for r in row["reasons"]] for row in served["predictions"]]
    assert found["reason_columns"][:100].tolist() == expected
    texts = [[r["text"] for r in row["reasons"]] for row in served["predictions"]]
    assert found["reasons"][:100].tolist() == texts
    scorer, checked = load_scorer(one.folder), check_rows(one.contract, rows)
    lists = explain_rows(
        load_explainer(scorer), checked.columns, scorer.predict(checked.columns), many=2
    )
    assert lists["reasons"] == found["reasons"].tolist()
    assert pa.array(lists["reasons"]).type == pa.list_(pa.string())


def test_several_classes_and_values(tmp_path):
    three = released(tmp_path / "three", target="job", kind="xgboost")
    app, rows = App(load_scorer(three.folder)), three.rows[:40]
    told, found = ask(app, "/explain", rows).json()["explanations"], notebook(three, rows)
    chosen = [three.contract.classes.index(row["label"]) for row in told]
    assert [row["outcome"] for row in told] == [row["label"] for row in told]
    expected = found.values[np.arange(40), :, chosen]
    assert np.abs(contributions(three.contract, told) - expected).max() < 1e-6
    value = released(tmp_path / "value", target="income", kind="linear")
    app, rows = App(load_scorer(value.folder)), value.rows[:40]
    told, found = ask(app, "/explain", rows).json()["explanations"], notebook(value, rows)
    assert np.abs(contributions(value.contract, told) - found.values[:, :, 0]).max() < 1e-3
    assert {row["outcome"] for row in told} == {"income"} and "probability" not in told[0]
    reasons = ask(app, "/predict?reason_codes=3", rows).json()["predictions"]
    signs = {r["contribution"] > 0 for row in reasons for r in row["reasons"]}
    assert signs == {True, False}, "of a value, both directions are reasons"


# Who answers explains -----------------------------------------------------------------------------


def test_with_a_canary_the_release_that_answered_explains(small, tmp_path):
    rival = released(tmp_path, kind="linear", id="application_id")
    pair = Pair(load_scorer(small.folder), load_scorer(rival.folder), "canary", 0.5)
    both = zip(small.ids[:60], small.rows[:60], strict=True)
    app, rows = App(pair), [row | {"application_id": name} for name, row in both]
    of = {small.folder.name: small, rival.folder.name: rival}
    answers = ask(app, "/predict?reason_codes=30", rows).json()["predictions"]
    told = ask(app, "/explain", rows).json()["explanations"]
    assert {row["release"] for row in told} == set(of)
    assert [row["release"] for row in told] == [row["release"] for row in answers]
    for row, answer, sent in zip(told, answers, small.rows, strict=False):
        own = of[row["release"]]
        found = notebook(own, [sent]).values[0, :, 0]
        assert np.abs(contributions(own.contract, [row])[0] - found).max() < 1e-6
        single = ask(app, "/explain", sent | {"application_id": row["id"]}).json()
        assert single["release"] == row["release"]
        assert single["explanations"][0]["contributions"] == row["contributions"]
        amounts = {c["column"]: c["contribution"] for c in row["contributions"]}
        assert answer["reasons"] and all(
            amounts[reason["column"]] == reason["contribution"] for reason in answer["reasons"]
        )


def test_without_an_explanation_it_is_said_why(small, tmp_path):
    for part in ("one", "two"):
        bare = released(tmp_path / part, kind="linear")
        (bare.folder / FILE).chmod(0o644)
        (bare.folder / FILE).unlink() if part == "one" else (bare.folder / FILE).write_bytes(b"x")
        app = App(load_scorer(bare.folder))
        for path in ("/explain", "/predict?reason_codes=2"):
            reply = ask(app, path, bare.rows[:1])
            assert (reply.status_code, reply.json()["error"]["code"]) == (501, "no_explanation")
            said = reply.json()["error"]["message"]
            assert ("train again" in said) if part == "one" else ("damaged" in said)
        assert ask(app, "/predict", bare.rows[:1]).status_code == 200
        described = ask(app, "/openapi.json", b"", method="GET").json()["paths"]
        assert "parameters" not in described["/predict"]["post"]
        good = load_scorer(small.folder)
        canary = App(Pair(good, load_scorer(bare.folder), "canary", 0.01))
        assert ask(canary, "/explain", small.rows[:1]).status_code == 501, "not by luck"
        shadow = App(Pair(good, load_scorer(bare.folder), "shadow"))
        assert ask(shadow, "/explain", small.rows[:1]).status_code == 200


def test_a_question_is_no_decision(small, tmp_path):
    """`/explain` is neither logged nor counted as rows; reasons beside a prediction are."""
    app = create_app(small.folder, **checks(small.settings), serve=Serve(log=str(tmp_path / "log")))
    heard = []
    app.observers.append(heard.append)
    assert ask(app, "/explain", small.rows[:5]).status_code == 200 and not heard
    assert ask(app, "/predict?reason_codes=2", small.rows[:5]).status_code == 200
    assert [len(one.ids) for one in heard] == [5]
    text = ask(app, "/metrics", b"", method="GET").text
    found = {
        (s.name, *sorted(s.labels.values())): s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
    }
    assert found["prodml_stage_seconds_count", "explain"] == 2
    assert found["prodml_requests_total", "/explain", "200"] in (1, 1.0)


# What may be asked --------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["no_reason_codes=3", "a=reason_codes"])
def test_who_does_not_ask_for_reasons_gets_none(small, query):
    app = App(load_scorer(small.folder))
    told = ask(app, f"/predict?{query}", small.rows[:2]).json()
    assert all("reasons" not in one for one in told["predictions"])
    assert "reasons" in ask(app, "/predict?reason%5Fcodes=1", small.rows[:1]).text


@pytest.mark.parametrize("query", ["0", "51", "-1", "1.5", "many", "", "3&reason_codes=3", "²"])
def test_a_number_of_reasons_that_is_none_is_refused(small, query):
    app = App(load_scorer(small.folder))
    reply = ask(app, f"/predict?reason_codes={query}", small.rows[:1])
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_parameter")


PLACES = {
    "/v2/models/{name}/infer": ({}, '"parameters": {"reason_codes": 3}'),
    "/v1/models/{name}:predict": ({"instances": []}, "ask /predict or /explain"),
    "/invocations": ({"dataframe_records": []}, '"params": {"reason_codes": 3}'),
}


@pytest.mark.parametrize("path", PLACES)
def test_an_address_without_a_place_for_reasons_says_where_to_ask(small, path):
    scorer, (body, right) = load_scorer(small.folder), PLACES[path]
    app, path = App(scorer), path.format(name=model_name(scorer.contract))
    described = ask(app, "/openapi.json", b"", method="GET").json()
    for query in ("reason_codes=2", "reason%5Fcodes=2", "a=b&reason_codes="):
        reply = ask(app, f"{path}?{query}", body)
        assert (reply.status_code, reply.json()["code"]) == (400, "bad_parameter")
        assert right in reply.json().get("error", reply.json().get("message"))
    assert "bad_parameter" not in ask(app, f"{path}?no_reason_codes=2", body).text
    known = [one for one in described["paths"] if one.rpartition("/")[2] == path.rpartition("/")[2]]
    assert known and all("bad_parameter" in json.dumps(described["paths"][one]) for one in known)


# In the words of other servers --------------------------------------------------------------------


def infer(app, rows, many, path="", **more):
    """The reply of the Open Inference Protocol to the rows, asked for so many reasons each."""
    contract, name = app.scorer.contract, model_name(app.scorer.contract)
    given = [
        {**one, "shape": [len(rows)], "data": [row.get(one["name"]) for row in rows]}
        for one in [*input_tensors(contract), tensor(contract.id_column, "BYTES")]
    ]
    asked = {"inputs": given, "parameters": {"reason_codes": many}} | more
    return ask(app, f"/v2/models/{name}{path}/infer", asked)


def invoked(app, rows, many):
    """The reply of the data frame protocol to the rows, asked for so many reasons each."""
    asked = {"dataframe_records": rows, "params": {"reason_codes": many, "other": "ignored"}}
    return ask(app, "/invocations", asked)


def led_by(reply):
    """The reasons of each row in the reply of either."""
    told = reply.json()
    assert reply.status_code == 200, told
    if "predictions" in told:
        return [one["reasons"] for one in told["predictions"]]
    (one,) = [one for one in told["outputs"] if one["name"] == "reason_codes"]
    assert one["datatype"] == "BYTES" and one["shape"] == [len(one["data"])]
    return [json.loads(text) for text in one["data"]]


def known_rows(one, many=20):
    """Rows of the release without a missing value, which FP32 in JSON has no word for."""
    both = zip(one.rows, one.ids, strict=True)
    rows = [row | {"application_id": name} for row, name in both if None not in row.values()]
    return rows[:many]


def test_the_parameters_of_other_servers_forms_give_the_reasons_of_predict(one):
    app, rows = App(load_scorer(one.folder)), known_rows(one)
    told = ask(app, "/predict?reason_codes=3", rows).json()["predictions"]
    expected = [row["reasons"] for row in told]
    assert led_by(infer(app, rows, 3)) == led_by(invoked(app, rows, 3)) == expected
    outputs = {one["name"]: one["data"] for one in infer(app, rows, 3).json()["outputs"]}
    assert outputs["label"] == [row["label"] for row in told]
    few = infer(app, rows, 3, outputs=[{"name": "label"}]).json()["outputs"]
    assert [one["name"] for one in few] == ["label", "reason_codes"], "asked for beside the others"
    only = infer(app, rows, 3, outputs=[{"name": "reason_codes"}]).json()["outputs"]
    assert [one["name"] for one in only] == ["reason_codes"]
    release = f"/versions/{one.folder.name}"
    assert led_by(infer(app, rows, 3, release)) == expected
    plain = ask(app, "/invocations", {"dataframe_records": rows}).json()["predictions"]
    assert all("reasons" not in row for row in plain)


@pytest.mark.parametrize("many", [0, 51, -1, 1.5, "3", True, None, [3]])
@pytest.mark.parametrize("form", [infer, invoked])
def test_a_number_of_reasons_in_a_body_that_is_none_is_refused(small, form, many):
    reply = form(App(load_scorer(small.folder)), known_rows(small, 1), many)
    assert (reply.status_code, reply.json()["code"]) == (400, "bad_parameter")


@pytest.mark.parametrize("form", [infer, invoked])
def test_the_limits_of_reasons_hold_in_every_form(small, tmp_path, form):
    app = App(load_scorer(small.folder), why=Reasons(Explain(max_rows=5)))
    heard, rows = [], known_rows(small, 6)
    app.observers.append(heard.append)
    many = form(app, rows, 2)
    assert (many.status_code, many.json()["code"]) == (413, "too_many_rows") and not heard
    assert len(led_by(form(app, rows[:5], 2))) == 5
    assert [len(one.ids) for one in heard] == [5], "it is a decision like any other"
    bad = form(app, [rows[0] | {"age": 1e39}], 2)
    assert (bad.status_code, bad.json()["code"]) == (400, "rows_refused")
    (tmp_path / "slow").mkdir()
    slow = sampled(small, tmp_path / "slow")
    hasty = App(slow, why=Reasons(Explain(seconds=0.001)))
    assert len(led_by(form(hasty, rows[:3], 2))) == 3
    bare = App(replace(load_scorer(small.folder), folder=None))
    none = form(bare, rows[:1], 2)
    assert (none.status_code, none.json()["code"]) == (501, "no_explanation")
    assert "not loaded from a release" in none.text


@pytest.mark.parametrize("form", [infer, invoked])
def test_the_release_that_answers_gives_the_reasons_in_every_form(small, tmp_path, form):
    rival = released(tmp_path, kind="linear", id="application_id")
    pair = Pair(load_scorer(small.folder), load_scorer(rival.folder), "canary", 0.5)
    app, rows = App(pair), known_rows(small, 60)
    told = ask(app, "/predict?reason_codes=30", rows).json()["predictions"]
    assert len({row["release"] for row in told}) == 2
    assert led_by(form(app, rows, 30)) == [row["reasons"] for row in told]


def test_rows_by_id_get_reasons_in_every_form(small, tmp_path):
    url = f"memory:{tmp_path}"
    rows = known_rows(small)
    write_features(url, rows, id="application_id")
    serve = Serve(features=url, features_timeout=5)
    app = create_app(small.folder, **checks(small.settings), serve=serve)
    ids = [{"application_id": row["application_id"]} for row in rows]
    expected = led_by(invoked(app, rows, 3))
    assert led_by(invoked(app, ids, 3)) == expected
    names = [row["application_id"] for row in rows]
    given = {"name": "application_id", "datatype": "BYTES", "shape": [len(ids)], "data": names}
    assert led_by(infer(app, rows, 3, inputs=[given])) == expected


def test_reasons_in_other_forms_are_described(small):
    app = App(load_scorer(small.folder))
    described = ask(app, "/openapi.json", b"", method="GET").json()
    components = {"components": described["components"]}
    name = model_name(app.scorer.contract)
    forms = ((f"/v2/models/{name}/infer", infer), ("/invocations", invoked))
    for path, form in forms:
        one = described["paths"][path]["post"]
        assert "reason_codes" in one["summary"] and "501" in one["responses"]
        schema = one["responses"]["200"]["content"]["application/json"]["schema"]
        told = form(app, known_rows(small), 2).json()
        Draft202012Validator({**schema, **components}).validate(told)
        sent = one["requestBody"]["content"]["application/json"]["schema"]
        asked = {"parameters": {"reason_codes": 99}, "params": {"reason_codes": 99}}
        example = one["requestBody"]["content"]["application/json"]["example"]
        check = Draft202012Validator({**sent, **components})
        assert check.is_valid(example) and not check.is_valid(example | asked)
    known = ask(app, f"/v2/models/{name}", b"", method="GET").json()
    assert "reason_codes" in known["parameters"]
    assert all(one["name"] != "reason_codes" for one in known["outputs"])
    bare = App(replace(load_scorer(small.folder), folder=None))
    assert "parameters" not in ask(bare, f"/v2/models/{name}", b"", method="GET").json()


def test_a_long_body_is_explained_by_the_loop_of_the_server_as_well(small):
    """uvloop, which BentoML and uvicorn run on, refuses to run a coroutine function in a thread."""
    app = App(load_scorer(small.folder))
    body = json.dumps(small.rows[:5]).encode().ljust(150_000)
    for path in ("/explain", "/predict?reason_codes=2", "/predict"):
        found = ask(app, path, body, runner=uvloop.run)
        assert found.status_code == 200, found.text
    assert not [path for path, route in app.routes.items() if inspect.iscoroutinefunction(route)]


def test_limits_and_bad_rows(small):
    app = App(load_scorer(small.folder), why=Reasons(Explain(max_rows=5)))
    for path in ("/explain", "/predict?reason_codes=2"):
        assert ask(app, path, small.rows[:5]).status_code == 200
        many = ask(app, path, small.rows[:6])
        assert (many.status_code, many.json()["error"]["code"]) == (413, "too_many_rows")
        bulk = ask(app, path, arrow(small.rows[:6]), {"content-type": MEDIA})
        assert bulk.status_code == 413
        assert ask(app, path, []).status_code == 200
        bad = ask(app, path, [small.rows[0], small.rows[1] | {"age": "secret"}])
        assert bad.status_code == 422 and "secret" not in bad.text
        assert ask(app, path, b"{").json()["error"]["code"] == "not_json"
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert ask(app, path, b"a=b", form).json()["error"]["code"] == "wrong_media"
    odd = ask(app, "/explain", small.rows[0] | {"job": "astronaut", "age": None}).json()
    told = {c["column"]: c for c in odd["explanations"][0]["contributions"]}
    assert told["job"]["value"] is None and told["age"]["value"] is None
    assert "not known" in told["age"]["text"] and "astronaut" not in json.dumps(odd)
    assert odd["counts"]["unseen_level"] == 1


def test_rows_by_id_are_explained_too(small, tmp_path):
    url = f"memory:{tmp_path}"
    stored = [row | {"who": name} for name, row in zip(small.ids, small.rows, strict=True)]
    write_features(url, stored[:20], id="who")
    serve = Serve(features=url, features_timeout=60)
    app = create_app(small.folder, **checks(small.settings), serve=serve)
    ids = [{"application_id": name} for name in small.ids[:20]]
    for headers, body in (({}, ids), ({"content-type": MEDIA}, arrow(ids))):
        told = ask(app, "/explain", body, headers).json()["explanations"]
        found = notebook(small, small.rows[:20]).values[:, :, 0]
        assert np.abs(contributions(small.contract, told) - found).max() < 1e-6
    assert ask(app, "/explain", {"application_id": "nobody"}).status_code == 422


def test_a_release_that_takes_over_explains_itself(small, tmp_path):
    rival = released(tmp_path, kind="linear", id="application_id")
    app = App(load_scorer(small.folder))
    app.swap(Pair(load_scorer(rival.folder)))
    told = ask(app, "/explain", small.rows[:10]).json()
    assert told["release"] == rival.folder.name
    found = notebook(rival, small.rows[:10]).values[:, :, 0]
    assert np.abs(contributions(rival.contract, told["explanations"]) - found).max() < 1e-6


def test_a_text_for_a_column_that_another_release_lacks_is_left_out(small, caplog):
    said = Reasons(texts={"shoe_size": "Large feet", "income": "Income of {value}"})
    app = App(load_scorer(small.folder), why=said)
    told = ask(app, "/explain", small.rows[0]).json()["explanations"][0]["contributions"]
    (income,) = [one["text"] for one in told if one["column"] == "income"]
    assert income.startswith("Income of") and "shoe_size" in caplog.text


def test_without_an_onnx_form_it_is_the_same(small, tmp_path):
    native = sealed(small, tmp_path, PASSED, native=True)
    app = App(load_scorer(native.folder, native.settings.model.trusted))
    told = ask(app, "/explain", small.rows[:20]).json()["explanations"]
    found = notebook(small, small.rows[:20]).values[:, :, 0]
    assert np.abs(contributions(small.contract, told) - found).max() < 1e-6


def test_lambda_and_a_real_server_give_reasons(small, tmp_path):
    """The query reaches the application whoever brings it."""
    folder = render_service(small.settings, small.folder)
    event = url_event("POST", "/predict", small.rows[:5], query="reason_codes=2")
    status, answer = read(lambda_handler(service_app(folder))(event, None))
    assert status == 200
    led = [[r["column"] for r in row["reasons"]] for row in answer["predictions"]]
    port = free_port()
    command = [BIN / "bentoml", "serve", "--host", "127.0.0.1", "--port", port]
    home = {"BENTOML_HOME": str(tmp_path)}
    with server(command, port, tmp_path / "log", home, folder) as url:
        status, answer = post(f"{url}/predict?reason_codes=2", small.rows[:5])
        assert status == 200
        assert [[r["column"] for r in row["reasons"]] for row in answer["predictions"]] == led
        status, answer = post(f"{url}/explain", small.rows[:50])
    found = notebook(small, small.rows[:50]).values[:, :, 0]
    told = contributions(small.contract, answer["explanations"])
    assert status == 200 and np.abs(told - found).max() < 1e-6


# Sampling -----------------------------------------------------------------------------------------


def sampled(small, folder):
    """The release with an explanation that can only ask, on the scorer of the release."""
    scorer = load_scorer(small.folder)
    columns = check_rows(small.contract, small.rows[:32]).columns
    walks = Walks(asking(scorer.predict, small.contract), columns)
    told = Explanation(small.contract, "probability", walks, None, "a test")
    (folder / FILE).write_bytes(pack(told))
    (folder / "contract.json").write_text(small.contract.to_json())
    return replace(scorer, folder=folder)


def test_sampling_stops_in_time_and_says_so(small, tmp_path):
    scorer = sampled(small, tmp_path)
    exact = notebook(small, small.rows[:3])
    hasty = App(scorer, why=Reasons(Explain(seconds=0.001)))
    patient = App(scorer, why=Reasons(Explain(seconds=600)))
    for app, complete in ((hasty, False), (patient, True)):
        told = ask(app, "/explain", small.rows[:3]).json()["explanations"]
        assert {row["complete"] for row in told} == {complete}
        assert not any(row["exact"] for row in told) and exact.exact
        served = contributions(small.contract, told)
        base, margin = ([row[k] for row in told] for k in ("base", "margin"))
        assert np.abs(base + served.sum(axis=1) - margin).max() < 1e-9, "it always adds up"
        errors = [[c["error"] for c in row["contributions"]] for row in told]
        largest = np.max(errors)
        assert largest > 0 and (complete or largest > 0)
    again = ask(patient, "/explain", small.rows[:3]).json()["explanations"]
    assert again == [row | {"id": other["id"]} for row, other in zip(told, again, strict=True)]


def test_predictions_go_on_while_an_explanation_takes_its_time(small, tmp_path):
    app = App(sampled(small, tmp_path), why=Reasons(Explain(seconds=3.0)))

    async def both():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            slow = asyncio.create_task(client.post("/explain", json=small.rows[:60]))
            await asyncio.sleep(0.05)
            quick = [await client.post("/predict", json=small.rows[0]) for _ in range(5)]
            early = not slow.done()
            return quick, early, await slow

    quick, early, slow = asyncio.run(both())
    assert early and {reply.status_code for reply in quick} == {200} and slow.status_code == 200


# Words --------------------------------------------------------------------------------------------

WORDS = """[data]
source = demo
target = default
[reasons]
income = Your income of {value} is not what we usually see ({usual})
debt_ratio.up = Debts are high
up = {column} speaks for {outcome}
"""


def test_the_words_of_the_settings_travel_with_the_service(small):
    asked = replace(small.settings, reasons=parse_settings(WORDS).reasons, text=WORDS)
    asked = replace(asked, explain=Explain(seconds=0.5, max_rows=7))
    folder = render_service(asked, small.folder)
    app = service_app(folder)
    assert app.why.limits.max_rows == 7 and app.why.texts == asked.reasons
    told = ask(app, "/explain", small.rows[:7]).json()["explanations"]
    for row, sent in zip(told, small.rows, strict=False):
        for one in row["contributions"]:
            up, value = one["contribution"] > 0, sent[one["column"]]
            if one["column"] == "income" and value is not None:
                assert one["text"].startswith(f"Your income of {one['value']} is not")
            elif one["column"] == "debt_ratio" and up:
                assert one["text"] == "Debts are high"
            elif up:
                assert one["text"] == f"{one['column']} speaks for yes"
            else:
                assert one["text"].endswith("makes default = yes less likely")
    assert ask(app, "/explain", small.rows[:8]).status_code == 413
    assert "told_reasons" in (folder / "service.py").read_text()


PLACED = st.lists(st.sampled_from(["{value}", "{", "}", "{{", "}}", "{usual", "x ", "{0}", "{}"]))


@settings(max_examples=300)
@given(st.text(max_size=30) | PLACED.map("".join), st.sampled_from([None, 0.1, 30, True, "a{b}"]))
def test_any_text_is_said_or_is_a_mistake(text, value):
    age = Column("age", "number", "feature", fill=40.0)
    contract = Contract("c", "binary", "y", ("no", "yes"), (age,))
    found = wrong_text(contract, {"age": text})
    if found:
        assert found[0] == "age"
        return
    said = Wording(contract, {"age": text}).text("age", value, up=True, outcome="yes")
    plain = text.format(value=value_text(value), usual="40", column="age", unit="", outcome="yes",
                        target="y")  # fmt: skip
    assert said == plain


def test_the_words_of_the_demo_can_be_said_of_it(small):
    texts = read_settings(ROOT).reasons
    assert texts and wrong_text(small.contract, texts) is None


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [
        ("income =", "incomes =", "line 5: .*'income'"),
        ("{value}", "{valeu}", "line 5: .*{valeu} is no place.*'value'"),
        ("debt_ratio.up", "debt_ratio.upp", "line 6: .*"),
        ("Debts are high", "Debts {are high", "line 6: .*brace"),
        ("{outcome}", "{outcome!r}", "line 7: .*no place"),
        ("income =", "default =", "line 5: .*sees no column"),
    ],
)
def test_words_that_could_never_be_said_are_a_mistake_of_the_build(small, right, wrong, line):
    text = WORDS.replace(right, wrong, 1)
    asked = replace(small.settings, reasons=parse_settings(text).reasons, text=text)
    with pytest.raises(Mistake, match=line):
        render_service(asked, small.folder)


# What is described --------------------------------------------------------------------------------


def test_it_is_described_as_it_is(small):
    app = App(load_scorer(small.folder))
    described = ask(app, "/openapi.json", b"", method="GET").json()
    OpenAPIV31SpecValidator(described).validate()
    whole = {"components": described["components"]}
    for path, schema in (("/explain", "Explanations"), ("/predict?reason_codes=3", "Answer")):
        one = described["paths"][path.partition("?")[0]]["post"]
        told = one["responses"]["200"]["content"]["application/json"]["schema"]
        assert told["$ref"].endswith(f"/{schema}")
        checker = Draft202012Validator({**told, **whole})
        for row in small.rows[:20]:
            checker.validate(ask(app, path, row).json())
    (parameter,) = described["paths"]["/predict"]["post"]["parameters"]
    assert parameter["name"] == "reason_codes" and parameter["example"] == 3
    page = ask(app, "/docs", b"", method="GET").text
    assert "<code>/explain</code>" in page and "curl http://localhost:3000/explain" in page
