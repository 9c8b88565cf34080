"""One client's haste is told to that client, in its own words, and to nobody else."""

import asyncio
import re
from dataclasses import replace

import httpx
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from processes import BIN, free_port, server
from released import released
from test_app import ROW, TOKEN, made

from prodml.ini import parse_settings
from prodml.serve.build import render_service
from prodml.serve.messages import FAILURES
from prodml.serve.rate import Rates
from prodml.settings import Mistake, Serve

OTHER = "another-token-of-sufficient-length"


def ask(app, *requests, peer="192.0.2.1"):
    """The replies to (method, path, headers) one after the other, from one address."""

    async def all_of_them():
        transport = httpx.ASGITransport(app, client=(peer, 5000))
        async with httpx.AsyncClient(transport=transport, base_url="http://model") as client:
            told = []
            for method, path, headers in requests:
                body = {"json": ROW} if method == "POST" else {}
                told.append(await client.request(method, path, headers=headers, **body))
            return told

    return asyncio.run(all_of_them())


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_who_asks_too_often_is_told_to_wait_and_others_are_not():
    app = made(rate=0.01, burst=3)
    replies = ask(app, *[("POST", "/predict", {})] * 5)
    assert [reply.status_code for reply in replies] == [200] * 3 + [429] * 2
    assert replies[-1].json()["error"]["code"] == "too_often" and FAILURES["too_often"][0] == 429
    assert 90 < int(replies[-1].headers["retry-after"]) <= 100
    assert ask(app, ("POST", "/predict", {}), peer="192.0.2.2")[0].status_code == 200
    named = ask(app, ("POST", "/predict", bearer("anything-that-nobody-checks")))
    assert named[0].status_code == 429, "a header that nobody checks makes no new client"


def test_probes_and_metrics_are_never_limited_and_what_is_refused_is_counted():
    app = made(rate=0.01, burst=1)
    paths = ("/healthz", "/livez", "/readyz", "/ping", "/health", "/v2/health/live")
    paths = (*paths, "/v2/health/ready", "/metrics")
    assert [r.status_code for r in ask(app, *[("POST", "/predict", {})] * 3)] == [200, 429, 429]
    replies = ask(app, *[("GET", path, {}) for path in paths * 3])
    assert {reply.status_code for reply in replies} == {200}
    told = replies[-1].text
    assert re.search(r'prodml_refusals_total\{code="too_often"\} 2\.0', told)
    assert re.search(r'prodml_requests_total\{path="/predict",status="429"\} 2\.0', told)


def test_metrics_want_a_token_and_no_room(monkeypatch):
    monkeypatch.setenv("PRODML_TOKENS", TOKEN)
    for limits in ({}, {"rate": 100}):
        app = made(concurrency=1, **limits)
        app.guard.in_hand.add("a request that takes long")
        asked = [
            ("POST", "/predict"),
            ("GET", "/metadata"),
            ("GET", "/metrics"),
            ("GET", "/readyz"),
        ]
        replies = ask(app, *[(*one, bearer(TOKEN)) for one in asked])
        assert [reply.status_code for reply in replies] == [503, 503, 200, 200]
        assert ask(app, ("GET", "/metrics", {}))[0].status_code == 401


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v2/models/credit/infer", "error"),
        ("/v1/models/credit:predict", "error"),
        ("/invocations", "message"),
    ],
)
def test_other_servers_clients_are_told_in_their_own_words(path, form):
    app = made(rate=0.01, burst=1)
    first, second = ask(app, ("POST", path, {}), ("POST", path, {}))
    assert first.status_code == 400 and second.status_code == 429  # the first was no good request
    assert second.json()["code"] == "too_often" and second.json()[form].startswith("too_often: ")
    assert int(second.headers["retry-after"]) == 100


def test_a_good_token_is_the_client_wherever_it_comes_from(monkeypatch):
    monkeypatch.setenv("PRODML_TOKENS", f"{TOKEN},{OTHER}")
    app, post = made(rate=0.01, burst=2), ("POST", "/predict")
    one = ask(app, (*post, bearer(TOKEN)))
    basic = httpx.BasicAuth("anyone", TOKEN)._auth_header
    two = ask(app, (*post, {"authorization": basic}), (*post, bearer(TOKEN)), peer="192.0.2.9")
    assert [reply.status_code for reply in one + two] == [200, 200, 429]
    assert ask(app, (*post, bearer(OTHER)))[0].status_code == 200
    guesses = ask(app, *[("GET", "/metrics", bearer(f"guess-{i}")) for i in range(4)])
    assert [reply.status_code for reply in guesses] == [401, 401, 429, 429]
    assert ask(app, ("GET", "/metrics", bearer(TOKEN)))[0].status_code == 200
    assert TOKEN not in str(vars(app)) and OTHER not in str(vars(app))


@settings(max_examples=200)
@given(
    rate=st.floats(0.01, 1000),
    burst=st.integers(0, 50),
    pauses=st.lists(st.floats(0, 5), min_size=1, max_size=80),
)
def test_no_more_are_let_in_than_a_bucket_gives(rate, burst, pauses):
    clock = [0.0]
    rates, let_in, waits = Rates(Serve(rate=rate, burst=burst), now=lambda: clock[0]), [], []
    for pause in pauses:
        clock[0] += pause
        seconds = rates.wait("one")
        waits.append(seconds)
        if not seconds:
            let_in.append(clock[0])
    room = burst or max(1, -(-rate // 1))
    for first, start in enumerate(let_in):
        for last, end in enumerate(let_in[first:], first):
            assert last - first + 1 <= room + (end - start) * rate + 1e-3
    assert waits[0] == 0 and all(seconds <= 1 / rate + 1e-9 for seconds in waits)
    if waits[-1]:
        clock[0] += waits[-1]
        assert rates.wait("one") < 1e-6 / rate, "who waits as long as told is let in"


def test_the_memory_of_clients_is_bounded():
    rates = Rates(Serve(rate=1), most=100)
    for number in range(1000):
        rates.wait(f"client {number}")
    assert len(rates.full) == 100 and "client 999" in rates.full


@pytest.mark.parametrize(
    ("line", "told"),
    [("rate = -1", "rate"), ("burst = 5", "beside a rate"), ("rate = 5\nburst = 0.5", "burst")],
)
def test_settings_that_cannot_be_are_refused(line, told):
    text = f"[data]\ntarget = y\n[serve]\n{line}\n"
    with pytest.raises(Mistake, match=rf"line [45].*{told}"):
        parse_settings(text)


def test_the_description_tells_of_it_where_it_is_limited():
    def listed(app):
        described = ask(app, ("GET", "/openapi.json", {}))[0].json()
        OpenAPIV31SpecValidator(described).validate()
        items = [(path, one) for path, item in described["paths"].items() for one in item.values()]
        assert described["x-failures"]["too_often"][0] == 429
        return {path for path, one in items if "429" in one["responses"]}

    assert listed(made()) == set()
    found = listed(made(rate=100))
    assert {"/predict", "/invocations", "/v2/models/credit/infer", "/docs"} <= found
    assert not {"/metrics", "/readyz", "/ping", "/v2/health/live"} & found
    assert "rate = " in (ROOT / "settings.ini").read_text()


def test_a_real_server_knows_who_asks(tmp_path):
    """BentoML hands on the address, and what a proxy of this machine says of who is behind it."""
    small = released(tmp_path / "small", kind="linear")
    serve = Serve(rate=0.001, burst=2)
    folder, port = render_service(replace(small.settings, serve=serve), small.folder), free_port()
    command = [BIN / "bentoml", "serve", "--host", "127.0.0.1", "--port", port]
    home = {"BENTOML_HOME": str(tmp_path)}
    with server(command, port, tmp_path / "log", home, folder) as url:

        def codes(**headers):
            one = {"json": small.rows[0], "headers": headers, "timeout": 120}
            return [httpx.post(f"{url}/predict", **one).status_code for _ in range(3)]

        assert codes() == [200, 200, 429]
        probes = [httpx.get(f"{url}{path}", timeout=120) for path in ("/readyz", "/metrics")]
        assert [reply.status_code for reply in probes] == [200, 200]
        behind = {"x-forwarded-for": "192.0.2.77"}
        assert codes(**behind) == [200, 200, 429]
