"""The description is valid, complete and kept: its examples are answered, its page works alone."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import httpx
import pytest
import schemathesis
import schemathesis.checks as checks
from conftest import ROOT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from processes import plain_server
from released import released

from prodml.contract import CODES, Column, Contract, check_rows
from prodml.serve.app import App
from prodml.serve.build import copy_package
from prodml.serve.openapi import openapi
from prodml.serve.page import examples, page
from prodml.serve.schema import row_schema
from prodml.serve.scorer import Scorer, load_scorer
from prodml.settings import Serve

REJECT = {"on_missing": "reject", "on_unseen": "reject", "on_range": "reject"}
COLUMNS = (
    Column("id number", "integer", "id"),
    Column("age", "integer", "feature", False, 18, 90, unit="years", fill=40.0, **REJECT),
    Column("debt", "number", "feature", True, 0.0, 0.7, fill=0.1),
    Column("owner", "boolean", "feature", False, 0, 1, fill=1.0),
    Column(
        "job", "category", "feature", False, levels=("clerk, or so", "<b>"), fill="<b>", **REJECT
    ),
    Column("town", "category", "feature", levels=tuple("abcdefghijklmnop"), fill="c"),
    Column("default", "category", "target"),
)
CONTRACTS = {
    "binary": Contract("Credit <demo>", "binary", "default", ("no", "yes"), COLUMNS),
    "multiclass": Contract("three", "multiclass", "default", ("a", "b", "c"), COLUMNS),
    "regression": Contract("value", "regression", "default", (), COLUMNS),
}


def stand_in(contract, serve=Serve()):  # noqa: B008
    """The application of a model that always gives even chances, or one."""
    import numpy as np

    shape = (len(contract.classes),) if contract.classes else ()

    def run(seen):
        return np.full((len(seen["age"]), *shape), 1 / (shape or (1,))[0])

    return App(Scorer("0123abc", contract, {"format": "onnx"}, run), serve)


@pytest.fixture(scope="module", params=[*CONTRACTS, "demo"])
def app(request, tmp_path_factory):
    """Applications of the demo and of stand-ins with columns of every kind."""
    if request.param != "demo":
        return stand_in(CONTRACTS[request.param])
    small = released(tmp_path_factory.mktemp("small"), kind="linear")
    return App(load_scorer(small.folder))


def asked(app, method, path, body=b"", headers=None):
    """The application's answer, as a real HTTP client sees it."""

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, content=body, headers=headers)

    return asyncio.run(ask())


def description(app):
    return asked(app, "GET", "/openapi.json").json()


def checker(described, schema):
    """A validator of `schema`, which may refer to the components."""
    return Draft202012Validator({**schema, "components": described["components"]})


def sent_by(body):
    return body if isinstance(body, str) else json.dumps(body)


def test_it_is_valid_openapi_and_lists_every_path(app):
    described = description(app)
    OpenAPIV31SpecValidator(described).validate()
    listed = {(m.upper(), path) for path, item in described["paths"].items() for m in item}
    assert listed == set(app.routes)
    tags = {one["tags"][0] for item in described["paths"].values() for one in item.values()}
    assert "Other" not in tags, "a path that nobody described"
    assert {"/predict", "/metadata", "/readyz", "/v2", "/invocations"} <= described["paths"].keys()


def test_every_example_is_answered_as_declared(app):
    described, count = description(app), 0
    for path, item in described["paths"].items():
        for method, one in item.items():
            content = one.get("requestBody", {}).get("content", {})
            for media, _, example in examples(content) or [("", "", "")]:
                if content and not examples(content):
                    continue
                headers = {"content-type": media} if media else None
                reply = asked(app, method.upper(), path, sent_by(example), headers)
                assert reply.is_success, (path, reply.text)
                told = one["responses"][str(reply.status_code)]["content"]
                media = reply.headers["content-type"].partition(";")[0]
                if media == "application/json" and told:
                    checker(described, told[media]["schema"]).validate(reply.json())
                if media == "application/json" and path == "/predict":
                    assert reply.json()["problems"] == []
                count += 1
    assert count > 25


def test_examples_that_no_model_of_this_kind_answers_are_not_given():
    item = description(stand_in(CONTRACTS["regression"]))["paths"]["/v1/models/value:classify"]
    assert not examples(item["post"]["requestBody"]["content"])


quick = settings(max_examples=150)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 17, 18, 40, 40.0, 40.5, 90, 91, 0.7, 0.8, 1e39, -1e39, 3.4e38]),
    st.sampled_from(["", "<b>", "clerk, or so", "a", "p", "q", "other"]),
    st.just([]),
    st.just({}),
)
ROWS = st.fixed_dictionaries(
    {}, optional={name: VALUES for name in ("age", "debt", "owner", "job", "town", "odd")}
)


@quick
@given(row=ROWS, usual=st.booleans())
def test_the_schema_takes_a_row_exactly_where_the_contract_does(row, usual):
    contract = CONTRACTS["binary"]
    row = {**contract.example(), **row} if usual else row
    schema = row_schema(contract)
    taken = not check_rows(contract, [row]).rejected
    assert Draft202012Validator(schema).is_valid(row) == taken, row


def test_units_ranges_levels_and_policies_are_said():
    row = row_schema(CONTRACTS["binary"])["properties"]
    assert "(years)" in row["age"]["description"] and row["age"]["minimum"] == 18
    assert row["age"]["x-policy"] == {"missing": "reject", "range": "reject"}
    assert row["debt"]["x-range"] == [0.0, 0.7] and row["town"]["x-levels"][0] == "a"
    assert "flagged" in row["town"]["description"] and "refused" in row["job"]["description"]


def test_a_large_bound_is_told_to_the_last_digit():
    """`1.26834e+06`, rounded up, would invite a value that is then flagged."""
    named, age, *others = COLUMNS
    columns = (named, replace(age, maximum=1268339.0), *others)
    wide = replace(CONTRACTS["binary"], columns=columns)
    told = row_schema(wide)["properties"]["age"]["description"]
    text, _ = page(openapi(stand_in(wide).scorer, Serve(), [("POST", "/predict")]))
    assert "18 to 1268339" in told and text.count("18 to 1268339") >= 2 and "e+06" not in text


def test_a_server_with_tokens_says_so():
    scorer = stand_in(CONTRACTS["binary"]).scorer
    paths = [("POST", "/predict"), ("GET", "/livez")]
    described = openapi(scorer, Serve(), paths, secured=True)
    OpenAPIV31SpecValidator(json.loads(json.dumps(described))).validate()
    assert described["paths"]["/predict"]["post"]["security"] == [{"bearer": []}]
    assert described["paths"]["/livez"]["get"]["security"] == []
    text, _ = page(described)
    assert "Bearer token" in text and "$TOKEN" in text
    assert "Bearer token" not in page(openapi(scorer, Serve(), paths))[0]


def test_every_code_that_is_raised_is_described(app):
    """Each code of an error in the server's modules is in the description, with its status."""
    known = description(app)["x-failures"]
    raised, refused = {}, set()
    for path in (ROOT / "prodml" / "serve").glob("*.py"):
        found = re.findall(r"(?:Unanswerable|Unreadable)\(\s*(\d+), \"(\w+)\"", path.read_text())
        raised |= {code: int(status) for status, code in found}
        refused |= set(re.findall(r"\brefus(?:al|ed_route)\(\s*\"(\w+)\"", path.read_text()))
    assert len(raised) > 5 and {"not_json", "too_many_rows"} <= raised.keys()
    assert {code: known.get(code, [0])[0] for code in raised} == raised
    assert refused <= known.keys() and "overloaded" in refused
    assert description(app)["x-problems"] == dict(CODES)


# The page.


class Page(HTMLParser):
    """What a browser would fetch, run or point to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.handlers, self.ids, self.styles = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            self.links += [value] if name in ("href", "src", "srcset", "action") else []
            self.handlers += [name] if name.startswith("on") else []
            self.styles += [value] if name == "style" else []
            self.ids += [value] if name == "id" else []


def test_the_page_is_one_file_under_a_strict_policy(app):
    reply = asked(app, "GET", "/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    rule = reply.headers["content-security-policy"]
    assert "default-src 'none'" in rule and "unsafe" not in rule and "http" not in rule
    found = Page(reply.text)
    outside = [link for link in found.links if not link.startswith(("#", "data:", "openapi.json"))]
    assert not outside and not found.handlers and not found.styles
    assert found.tags.count("script") == found.tags.count("style") == 1
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids)) and found.tags.count("h1") == 1
    assert not re.search(r"\[\[[A-Z]", reply.text) and len(reply.content) < 200_000


def test_the_page_shows_what_the_description_says(app):
    described, text = description(app), asked(app, "GET", "/docs").text
    for name, column in described["components"]["schemas"]["Row"]["properties"].items():
        assert (f'data-column="{name}"' in text) == (column["x-type"] != "id")
    for code in [*described["x-failures"], *described["x-problems"]]:
        assert f"<code>{code}</code>" in text
    assert "<demo>" not in text and "<b></option>" not in text


def test_the_start_leads_on(app):
    start = asked(app, "GET", "/")
    assert asked(app, "GET", f"/{start.json()['docs']}").status_code == 200
    browser = asked(app, "GET", "/", headers={"accept": "text/html,*/*;q=0.8"})
    assert browser.status_code == 307 and browser.headers["location"] == "docs"


def test_the_page_travels_with_the_service(tmp_path):
    """The copy of the package that ships finds its template, with no checkout beside it."""
    copy_package(tmp_path / "prodml")
    code = "from prodml.files import template_path; print(template_path('html/docs.html'))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(tmp_path / "prodml/_templates/html/docs.html")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A running server of the demo."""
    small = released(tmp_path_factory.mktemp("running"), kind="linear")
    with plain_server(small.folder, tmp_path_factory.mktemp("log") / "log") as found:
        yield found


def test_the_page_runs_in_a_browser_under_its_policy(url, tmp_path):
    """The script ran, and was let ask the server: the chip says that it is ready."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no browser")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=4000", "--dump-dom"]
    run = subprocess.run([*command, f"{url}/docs"], capture_output=True, text=True, timeout=120)
    assert re.search(r'class="chip good" id="state"[^>]*>ready<', run.stdout), run.stderr[-2000:]
    assert f"curl {url}/predict" in run.stdout


# Any request that the description allows, and many that it does not.


PROMISED = ("not_a_server_error", "status_code_conformance", "content_type_conformance")
PROMISED += ("response_headers_conformance", "response_schema_conformance")


def test_schemathesis_finds_no_answer_that_was_not_described(url):
    described = httpx.get(f"{url}/openapi.json", timeout=120).json()
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=url, request_timeout=120)
    promised = [getattr(checks, name) for name in PROMISED]
    asked = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if "/versions/" in operation.path:
            continue  # the same functions once more

        @settings(
            max_examples=15,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),  # the strategies are none of ours
        )
        @given(case=operation.as_strategy())
        def ask(case):
            taken = case.path in ("/predict", "/explain")
            own = [checks.positive_data_acceptance] if taken else []
            case.call_and_validate(checks=[*promised, *own])
            asked.add(case.operation.path)

        ask()
    assert len(asked) > 15
