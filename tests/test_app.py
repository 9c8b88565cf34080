"""The application without a network: each bad request has its answer, and nothing else happens."""

import asyncio
import base64
import gzip
import io
import json
import re
import threading
import time
from functools import partial

import httpx
import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT
from small import even_chances, small_contract

from prodml.contract import CODES, Column, Contract
from prodml.serve.app import App, close_app
from prodml.serve.guard import SHORTEST, Guard, gentle
from prodml.serve.messages import FAILURES
from prodml.serve.outcomes import MOST_LABELS
from prodml.serve.scorer import Scorer, score
from prodml.serve.single import Single
from prodml.serve.together import ROUNDS, Together
from prodml.serve.wire import Unanswerable, inflate
from prodml.settings import Mistake, Serve

COLUMNS = (
    Column("income", "number", "feature", True, 0, 90, fill=30.0),
    Column("children", "integer", "feature", False, 0, 9, on_range="reject", fill=1.0),
    Column("job", "category", "feature", levels=("clerk", "nurse"), fill="clerk"),
    Column("number", "text", "id"),
)
CONTRACT = Contract("credit", "binary", "default", ("no", "yes"), COLUMNS)
ROW = {"income": 30, "children": 2, "job": "nurse"}
TOKEN = "a-token-of-sufficient-length"


def model(columns):
    """Chances that tell which row they are of."""
    risk = np.nan_to_num(columns["income"].astype(float)) / 100
    return np.column_stack([1 - risk, risk])


def made(run=model, **settings):
    """An application, `run` its model."""
    return App(
        Scorer("0123abc", CONTRACT, {"threshold": 0.3, "format": "onnx"}, run), Serve(**settings)
    )


def client(app):
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://model", timeout=30)


def ask(app, method="POST", path="/predict", **sent):
    """The reply to one request."""

    async def once():
        async with client(app) as one:
            return await one.request(method, path, **sent)

    return asyncio.run(once())


def raw(app, messages, headers=(), method="POST", path="/predict"):
    """(status, facts) of a request that a server brings in `messages`, which may also be waits."""
    sent, left = [], list(messages)

    async def receive():
        if not left:
            await asyncio.sleep(60)
        message = left.pop(0)
        if isinstance(message, float):
            await asyncio.sleep(message)
            return await receive()
        return message

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(app(scope, receive, send))
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], json.loads(sent[1]["body"])


def part(body, more=False):
    return {"type": "http.request", "body": body, "more_body": more}


ONE = json.dumps(ROW).encode()
ZIPPED = {"content-encoding": "gzip"}
BAD = {
    "nothing": ({"content": b""}, 400, "not_json"),
    "half an object": ({"content": ONE[:-1]}, 400, "not_json"),
    "a page": ({"content": b"<html>secret"}, 400, "not_json"),
    "NaN": ({"content": b'{"income": NaN}'}, 400, "not_json"),
    "not UTF-8": ({"content": b'{"job": "\xff"}'}, 400, "not_json"),
    "UTF-16": ({"content": '{"job": "nurse"}'.encode("utf-16")}, 400, "not_json"),
    "deep": ({"content": b"[" * 50_000}, 400, "too_deep"),
    "a key twice": ({"content": ONE[:-1] + b', "job": "clerk"}'}, 400, "duplicate_key"),
    "too many rows": ({"json": [ROW] * 6}, 413, "too_many_rows"),
    "too many bytes": ({"content": b" " * 60_000}, 413, "body_too_large"),
    "a bomb": ({"content": gzip.compress(bytes(10**8)), "headers": ZIPPED}, 413, "body_too_large"),
    "half a gzip": ({"content": gzip.compress(ONE)[:-9], "headers": ZIPPED}, 400, "not_gzip"),
    "gzip and more": ({"content": gzip.compress(ONE) + b"x", "headers": ZIPPED}, 400, "not_gzip"),
    "no gzip": ({"content": ONE, "headers": ZIPPED}, 400, "not_gzip"),
    "zipped JSON is none": ({"content": gzip.compress(b"{"), "headers": ZIPPED}, 400, "not_json"),
    "brotli": ({"content": ONE, "headers": {"content-encoding": "br"}}, 415, "wrong_encoding"),
    "a form": ({"data": {"income": "30"}}, 415, "wrong_media"),
    "XML": ({"content": ONE, "headers": {"content-type": "text/xml"}}, 415, "wrong_media"),
    "a text": ({"json": "secret"}, 422, "rows_refused"),
    "a number": ({"json": 7}, 422, "rows_refused"),
    "null": ({"content": b"null"}, 422, "rows_refused"),
    "a wrong type": ({"json": ROW | {"income": "secret"}}, 422, "rows_refused"),
    "1e400": ({"content": ONE.replace(b"30", b"1e400")}, 422, "rows_refused"),
    "another method": ({"method": "GET"}, 405, "wrong_method"),
    "a method nobody knows": ({"method": "BREW"}, 405, "wrong_method"),
    "another path": ({"path": "/secret"}, 404, "no_such_path"),
    "a path in bytes": ({"path": "/%ff%00"}, 404, "no_such_path"),
    "explanations": ({"path": "/explain", "json": [ROW]}, 501, "no_explanation"),
    "reasons": ({"path": "/predict?reason_codes=2", "json": [ROW]}, 501, "no_explanation"),
    "no number of reasons": (
        {"path": "/predict?reason_codes=x", "json": ROW},
        400,
        "bad_parameter",
    ),
    "labels without a log": ({"path": "/feedback", "json": []}, 409, "no_log"),
}


@pytest.mark.parametrize("name", BAD)
def test_each_bad_request_has_its_answer_and_is_counted(name):
    sent, status, code = BAD[name]
    app = made(max_rows=5, max_bytes=50_000)
    visits, answers = [], []
    app.watchers.append(visits.append)
    app.observers.append(answers.append)
    reply = ask(app, **sent)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert FAILURES[code][0] == status and "secret" not in reply.text
    assert [(visit.status, visit.code) for visit in visits] == [(status, code)] and not answers
    assert visits[0].counts == reply.json().get("counts", {})
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    if code == "wrong_media":
        assert "application/json" in reply.json()["error"]["message"], "what would be right"
    assert ask(app, json=ROW).status_code == 200, "and it goes on"


VALUES = {
    "null where none was": ({"children": None}, "missing", "flagged"),
    "absent": ({"children": ...}, "missing", "flagged"),
    "an unseen level": ({"job": "secret"}, "unseen_level", "flagged"),
    "out of range": ({"income": 91}, "out_of_range", "flagged"),
    "out of range, refused": ({"children": 10}, "out_of_range", "rejected"),
    "a fraction": ({"children": 1.5}, "not_integer", "rejected"),
    "a number as text": ({"income": "30"}, "wrong_type", "rejected"),
    "a text": ({"income": "secret"}, "wrong_type", "rejected"),
    "true": ({"income": True}, "wrong_type", "rejected"),
    "a list": ({"income": [30]}, "wrong_type", "rejected"),
    "a level as number": ({"job": 1}, "wrong_type", "rejected"),
    "too large": ({"income": 1e39}, "not_finite", "rejected"),
    "an extra column": ({"secret": 1}, "unknown_column", "flagged"),
}


@pytest.mark.parametrize("name", VALUES)
def test_each_bad_value_has_its_answer(name):
    change, code, action = VALUES[name]
    row = {k: v for k, v in (ROW | change).items() if v is not ...}
    reply = ask(made(), json=[ROW, row])
    assert reply.status_code == (422 if action == "rejected" else 200)
    told = reply.json()
    column = "" if code == "unknown_column" else next(iter(change))
    assert [(p["row"], p["column"], p["code"], p["action"]) for p in told["problems"]] == [
        (1, column, code, action)
    ]
    assert told["counts"] == {code: 1} and code in CODES and "secret" not in reply.text


def test_what_is_well_formed_is_answered():
    app = made()
    assert ask(app, json=[]).json()["predictions"] == []
    assert ask(app, json={"rows": []}).status_code == 200
    whole = ask(app, json=ROW | {"children": 2.0, "number": "A-7"}).json()
    assert whole["counts"] == {} and whole["predictions"][0]["id"] == "A-7"
    for body, headers in (
        (gzip.compress(ONE), ZIPPED),
        (gzip.compress(ONE), {"content-encoding": "X-Gzip"}),
        (gzip.compress(ONE[:9]) + gzip.compress(ONE[9:]), ZIPPED),
        (ONE, {"content-type": "application/vnd.bank+json; charset=utf-8"}),
        (ONE, {"content-encoding": "identity"}),
    ):
        reply = ask(app, content=body, headers=headers)
        assert reply.json()["predictions"][0]["probability"] == pytest.approx(0.3)


def test_an_arrow_stream_may_be_larger_than_other_bodies_and_not_larger_than_its_own_limit():
    media = "application/vnd.apache.arrow.stream"
    table = pa.table({"income": [30.0] * 9000, "children": [2] * 9000, "job": ["nurse"] * 9000})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body, typed = sink.getvalue(), {"content-type": f"{media}; x=y"}
    assert 150_000 < len(body) < 300_000
    for limit, status in ((300_000, 200), (150_000, 413)):
        app = made(max_bytes=100_000, max_bulk_bytes=limit)
        for sent, more in ((body, {}), (gzip.compress(body), ZIPPED)):
            assert ask(app, content=sent, headers=typed | more).status_code == status
    assert ask(made(max_bytes=100_000), content=b" " * 150_000).status_code == 413


def test_an_arrow_stream_gets_the_answer_of_its_rows_in_either_form():
    app, media = made(max_rows=5, max_bulk_rows=300), "application/vnd.apache.arrow.stream"
    rows = [ROW | {"income": i % 100, "number": f"n-{i}"} for i in range(300)]
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    body, typed = sink.getvalue().to_pybytes(), {"content-type": media}
    told = ask(app, content=body, headers=typed)
    exact = ask(made(max_rows=300), json=rows)
    assert told.status_code == 200 and told.json() == exact.json() and told.json()["counts"]
    for sent in ({"content": body}, {"content": gzip.compress(body)}):
        zipped = ZIPPED if sent["content"] != body else {}
        reply = ask(app, **sent, headers=typed | zipped | {"accept": f"{media}, */*;q=0.1"})
        assert reply.headers["content-type"] == media
        found = pa.ipc.open_stream(reply.content).read_all()
        assert found.to_pylist() == exact.json()["predictions"]
    few = ask(app, json=rows[:1], headers={"accept": media})
    assert pa.ipc.open_stream(few.content).read_all().to_pylist() == exact.json()["predictions"][:1]
    large = ask(made(max_rows=5, max_bulk_rows=299), content=body, headers=typed)
    assert large.json()["error"]["code"] == "too_many_rows"
    for content, code in ((body[:99], "not_arrow"), (ONE, "not_arrow"), (b"", "not_arrow")):
        reply = ask(app, content=content, headers=typed)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)
    bad = pa.table({"income": ["secret"], "children": [1], "job": ["nurse"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, bad.schema) as out:
        out.write_table(bad)
    reply = ask(app, content=sink.getvalue().to_pybytes(), headers=typed | {"accept": media})
    assert reply.status_code == 422 and reply.json()["counts"] == {"wrong_type": 1}


def test_head_and_options_are_answered_without_a_body():
    app = made()
    head, get = ask(app, "HEAD", "/metadata"), ask(app, "GET", "/metadata")
    assert head.status_code == 200 and not head.content
    assert head.headers["content-length"] == str(len(get.content))
    options = ask(app, "OPTIONS", "/predict")
    assert options.status_code == 204 and options.headers["allow"] == "POST, OPTIONS"
    assert ask(app, "OPTIONS", "/nowhere").status_code == 404


def test_every_code_that_is_raised_is_in_the_table_and_told_to_clients():
    raised = set()
    pattern = r"""(?:refusal|refused_route|Unanswerable|Unreadable)\(\s*(?:\d+, )?"(\w+)\""""
    for path in (ROOT / "prodml" / "serve").glob("*.py"):
        raised |= set(re.findall(pattern, path.read_text()))
    assert len(raised) > 15 and raised <= FAILURES.keys()
    told = ask(made(), "GET", "/metadata").json()
    assert told["codes"].keys() == FAILURES.keys() and told["problems"].keys() == CODES.keys()


def test_a_body_in_pieces_is_whole_and_one_that_breaks_off_is_told():
    app = made()
    pieces = [part(ONE[i : i + 5], i + 5 < len(ONE)) for i in range(0, len(ONE), 5)]
    assert raw(app, pieces)[0] == 200
    status, told = raw(app, [part(ONE[:9], True), {"type": "http.disconnect"}])
    assert (status, told["error"]["code"]) == (400, "gone")


def test_a_slow_body_and_a_slow_model_have_their_time():
    app = made(timeout=0.2)
    for messages in ([part(b"[", True)], [0.1, part(b"[", True), 0.2, part(b"]")], []):
        began = time.monotonic()
        status, told = raw(app, messages)
        assert (status, told["error"]["code"]) == (408, "slow_body")
        assert time.monotonic() - began < 30

    async def sleep(request):
        await asyncio.sleep(60)

    app.routes["POST", "/predict"] = sleep
    reply = ask(app, json=ROW)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "too_slow")
    assert reply.headers["retry-after"] == "1" and not app.guard.in_hand


@pytest.mark.parametrize("count", [2, 16, 64])
def test_requests_together_get_the_answers_they_get_alone(count):
    asked = []

    def counted(columns):
        asked.append(len(columns["income"]))
        return model(columns)

    app = made(counted)
    seen = []
    app.observers.append(seen.append)
    rows = [ROW | {"income": i, "number": f"n-{i}"} for i in range(count)]
    rows[1] |= {"job": "unseen"}

    async def all_at_once():
        async with client(app) as one:
            return await asyncio.gather(*(one.post("/predict", json=row) for row in rows))

    replies = asyncio.run(all_at_once())
    for i, reply in enumerate(replies):
        told = reply.json()
        assert reply.status_code == 200 and told["predictions"][0]["id"] == f"n-{i}"
        assert told["predictions"][0]["probability"] == pytest.approx(i / 100)
        assert told["counts"] == ({"unseen_level": 1} if i == 1 else {})
    assert (sum(asked) == count and len(asked) < count) or count == 2
    assert sorted(name for one in seen for name in one.ids) == sorted(
        f"n-{i}" for i in range(count)
    )


def test_a_fault_of_the_model_reaches_all_that_asked_together_and_no_detail_does(caplog):
    def broken(columns):
        raise RuntimeError("a secret of ours")

    app = made(broken)

    async def all_at_once():
        async with client(app) as one:
            return await asyncio.gather(*(one.post("/predict", json=ROW) for _ in range(8)))

    for reply in [*asyncio.run(all_at_once()), ask(app, json=[ROW, ROW])]:
        assert reply.status_code == 500 and reply.json()["error"]["code"] == "internal"
        assert "secret" not in reply.text and "Traceback" not in reply.text
    assert "RuntimeError" in caplog.text


def test_beyond_what_can_be_in_hand_clients_are_told_to_come_back():
    app = made(concurrency=3)

    shed_enough = asyncio.Event()

    async def wait(request):
        await asyncio.wait_for(shed_enough.wait(), 60)
        return await_reply

    await_reply = app.routes["GET", "/healthz"](None)
    app.routes["POST", "/predict"] = wait

    async def all_at_once():
        async with client(app) as one:
            asked = [asyncio.create_task(one.post("/predict", json=ROW)) for _ in range(10)]
            while sum(task.done() for task in asked) < 7:
                await asyncio.sleep(0.01)
            paths = ("/readyz", "/ping", "/v2/health/live")
            probes = await asyncio.gather(*map(one.get, paths))
            shed_enough.set()
            return await asyncio.gather(*asked), probes

    replies, probes = asyncio.run(all_at_once())
    shed = [reply for reply in replies if reply.status_code == 503]
    assert len(shed) == 7 and {reply.headers["retry-after"] for reply in shed} == {"1"}
    assert {reply.json()["error"]["code"] for reply in shed} == {"overloaded"}
    assert [probe.status_code for probe in probes] == [200] * 3 and not app.guard.in_hand


def test_a_long_request_leaves_the_event_loop_to_others():
    entered, go = threading.Event(), threading.Event()

    def slow(columns):
        if len(columns["income"]) > 1:
            entered.set()
            assert go.wait(60)
        return model(columns)

    app = made(slow, max_rows=10_000)

    async def together():
        async with client(app) as one:
            long = asyncio.create_task(one.post("/predict", json=[ROW] * 5000))
            await asyncio.to_thread(entered.wait, 60)
            quick = await one.post("/predict", json=ROW), await one.get("/readyz")
            assert not long.done()
            go.set()
            return [(await long), *quick]

    assert [reply.status_code for reply in asyncio.run(together())] == [200] * 3


def test_with_a_token_everything_but_probes_is_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODML_ROOT", str(tmp_path))
    (tmp_path / "tokens.txt").write_text(f"# ours\n\n{TOKEN}\n{TOKEN}-2\n")
    app = made(tokens="tokens.txt")
    for headers in (
        {},
        *(
            {"authorization": text}
            for text in ("", "Bearer", "Bearer x", f"Basic {TOKEN}", "Bearer é")
        ),
    ):
        reply = ask(app, json=ROW, headers={k: v.encode() for k, v in headers.items()})
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "unauthorized")
        assert reply.headers["www-authenticate"].startswith("Bearer")
        assert reply.json()["error"]["message"] == FAILURES["unauthorized"][1]
    for path in ("/metadata", "/docs", "/openapi.json", "/metrics", "/nowhere", "/"):
        assert ask(app, "GET", path).status_code == 401
    for path in ("/healthz", "/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready"):
        assert ask(app, "GET", path).status_code == 200
    for token in (TOKEN, f"{TOKEN}-2"):
        reply = ask(app, json=ROW, headers={"authorization": f"bearer {token}"})
        assert reply.status_code == 200
    browser = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    page = ask(app, "GET", "/docs", headers={"authorization": f"Basic {browser}"})
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")


def test_outcomes_are_taken_as_json_alone_and_not_in_any_number(tmp_path):
    app = made(log=str(tmp_path / "log"), max_bytes=10**7)

    def told(outcomes, **headers):
        content = json.dumps(outcomes).encode()
        reply = ask(app, path="/feedback", content=content, headers=headers)
        return reply.status_code, reply.json().get("error", reply.json()).get("code")

    one, as_json = {"id": "a", "label": "yes"}, {"content-type": "application/json"}
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        headers = {"content-type": media} if media else {}
        assert told(one, **headers) == (415, "wrong_media"), "a page on another site can send it"
    assert told([one] * (MOST_LABELS + 1), **as_json) == (413, "too_many_rows")
    assert told([one] * MOST_LABELS, **as_json) == (202, None)
    close_app(app)
    assert ask(made(log=str(tmp_path)), path="/feedback", json={"id": 7, "label": "no"}).is_success


def test_tokens_rotate_without_a_restart_and_fail_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODML_ROOT", str(tmp_path))
    file = tmp_path / "tokens.txt"
    file.write_text(f"{TOKEN}-old\n")
    guard = Guard(Serve(tokens="tokens.txt"), {"PRODML_TOKENS": f"{TOKEN}-env, {TOKEN}-env-2"})

    def good(name):
        guard.tokens.looked = 0.0
        return guard.tokens.good(f"Bearer {TOKEN}-{name}")

    assert good("old") and good("env") and good("env-2") and not good("new")
    file.write_text(f"{TOKEN}-new\n{TOKEN}-old\n")
    assert good("old") and good("new")
    file.write_text(f"{TOKEN}-new\n")
    assert not good("old") and good("new")
    file.write_text("short\n")
    assert not good("new") and good("env")
    file.unlink()
    assert not good("new") and good("env")
    file.write_text(f"{TOKEN}-new\n")
    assert good("new")


def test_a_bad_file_of_tokens_is_told_of_once_for_each_change_and_never_what_is_in_it(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("PRODML_ROOT", str(tmp_path))
    file = tmp_path / "tokens.txt"
    file.write_text(f"{TOKEN}-old\n")
    guard = Guard(Serve(tokens="tokens.txt"), {})

    def warned():
        for _ in range(3):
            guard.tokens.looked = 0.0
            good = guard.tokens.good(f"Bearer {TOKEN}-old")
        told = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return good, told

    assert warned() == (True, [])
    for content in (b"a-secret\n", b"another\n", b"\xff" * 20, b"# none\n"):
        file.write_bytes(content)
        good, told = warned()
        assert not good and len(told) == 1 and "tokens.txt" in told[0], content
        assert "secret" not in told[0] and "another" not in told[0] and "none" not in told[0]
    file.unlink()
    good, told = warned()
    assert not good and len(told) == 1
    file.write_text(f"{TOKEN}-old\n")
    assert warned() == (True, [])
    file.unlink()
    assert len(warned()[1]) == 1, "it is another change"


def test_tokens_that_cannot_be_are_told_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODML_ROOT", str(tmp_path))
    with pytest.raises(Mistake, match="no file tokens"):
        made(tokens="tokens.txt")
    (tmp_path / "tokens.txt").write_text("x" * (SHORTEST - 1))
    with pytest.raises(Mistake, match=str(SHORTEST)):
        made(tokens="tokens.txt")
    (tmp_path / "tokens.txt").write_text("# nobody yet\n")
    assert ask(made(tokens="tokens.txt"), json=ROW).status_code == 401


def test_asked_to_stop_it_says_so_answers_still_and_hurries():
    app, begun = made(drain=1.5, timeout=60), asyncio.Event()

    async def wait(request):
        begun.set()
        await asyncio.sleep(60)

    app.routes["POST", "/slow"] = wait

    async def scenario():
        async with client(app) as one:
            slow = asyncio.create_task(one.post("/slow", json=ROW))
            await begun.wait()
            app.guard.stop()
            ready = [await one.get(path) for path in ("/readyz", "/v2/health/ready", "/ping")]
            alive = [await one.get(path) for path in ("/livez", "/healthz")]
            answered = await one.post("/predict", json=ROW)
            return [*ready, *alive, answered, await slow]

    began = time.monotonic()
    replies = asyncio.run(scenario())
    assert [reply.status_code for reply in replies[3:]] == [200, 200, 200, 503]
    assert replies[0].status_code == 503 and {r.status_code for r in replies[1:3]} <= {400, 503}
    assert time.monotonic() - began < 30


def test_closing_ends_what_was_begun_and_calls_each_closer_once():
    app, closed = made(), []
    app.closers.append(lambda: closed.append(1))
    close_app(app)
    close_app(app)
    assert closed == [1]


def test_inflating_stops_at_the_limit():
    bomb = gzip.compress(bytes(10**7)) * 20
    began = time.thread_time()
    with pytest.raises(Unanswerable):
        inflate(bomb, 10**6)
    assert time.thread_time() - began < 0.2
    assert inflate(b"", 10) == b"" and len(inflate(gzip.compress(bytes(10**6)), 10**6)) == 10**6


def test_websockets_are_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(made()({"type": "websocket"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1000}]


def test_a_signal_after_the_loop_has_ended_still_ends_the_process():
    closed = []

    async def made():
        return gentle(Guard(Serve(), {}), lambda: closed.append(True))

    asyncio.run(made())()
    assert closed == [True]


# Rows that come together.


class Asked(Together):
    """One that remembers how many rows it asked about at once, in which round of the loop."""

    def __init__(self):
        contract = small_contract()
        super().__init__(partial(score, even_chances(contract)), Single(contract))
        self.sizes = []

    def settle(self, waiting):
        self.sizes.append(len(waiting))
        super().settle(waiting)


async def come(together, rounds):
    """Nothing; a row comes in each of the `rounds` of the loop, and all were answered."""
    row = together.single.read(b'{"age": 30, "job": "clerk"}')
    tasks = []
    for many in rounds:
        tasks += [asyncio.create_task(together.answer(row)) for _ in range(many)]
        await asyncio.sleep(0)
    replies = await asyncio.gather(*tasks)
    assert len(replies) == sum(rounds) and {reply.status for reply in replies} == {200}


@pytest.mark.parametrize(
    "rounds, sizes",
    [
        ([1], [1]),  # alone
        ([8], [8]),
        ([2, 3, 1], [6]),  # each round brought more
        ([1, 0, 0, 0, 1], [1, 1]),  # long after each other
        ([4, 0, 0, 0, 2, 1], [4, 3]),
    ],
)
def test_rows_wait_while_each_round_of_the_loop_brings_more(rounds, sizes):
    together = Asked()
    asyncio.run(come(together, rounds))
    assert together.sizes == sizes


def test_who_had_company_lately_waits_a_round_for_it_and_who_had_none_does_not():
    together = Asked()
    asyncio.run(come(together, [1, 1, 0, 0, 0, 0]))
    assert together.sizes == [1, 1], "the first was alone, and was asked about at once"
    together = Asked()
    together.patience.lately = 8
    asyncio.run(come(together, [1, 1, 0, 0, 0, 0]))
    assert together.sizes == [2] and together.patience.lately == 2


def test_an_endless_stream_of_rows_makes_nobody_wait_for_long():
    together = Asked()
    asyncio.run(come(together, [1, *[2] * 100]))
    assert max(together.sizes) <= 2 * ROUNDS + 3 and len(together.sizes) >= 5
