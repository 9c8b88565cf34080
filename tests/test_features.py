"""Rows by entity id: the same answers as whole rows, and a clear one when the store fails."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import BIN, free_port, post, required, server
from redis.exceptions import RedisError
from released import released, told
from services import redis_server, running

from prodml.serve import decoder
from prodml.serve.app import create_app
from prodml.serve.build import checks, render_service
from prodml.serve.entities import write_features
from prodml.serve.features import STRIKES, Features
from prodml.serve.stores import StoredRow, open_store
from prodml.settings import Mistake, Serve

HELD = ("income", "age", "job")  # what the client says itself


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return released(tmp_path_factory.mktemp("small"), id="application_id")


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """The URL of a Redis that is shared by the tests that leave it alone."""
    port = free_port()
    with redis_server(port, tmp_path_factory.mktemp("redis")):
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture(scope="module")
def dynamo(tmp_path_factory):
    """The URL of a table in moto's server, which lives in an environment of its own."""
    folder, port = tmp_path_factory.mktemp("moto"), free_port()
    required(folder / "venv", ["moto[dynamodb]>=5.1", "flask", "flask-cors"])
    command = [folder / "venv/bin/moto_server", "-H", "127.0.0.1", "-p", port]
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with pytest.MonkeyPatch.context() as patch, running(command, port, folder / "log"):
        for name, value in keys.items():
            patch.setenv(name, value)
        import botocore.session

        url = f"http://127.0.0.1:{port}"
        client = botocore.session.get_session().create_client(
            "dynamodb", "eu-west-1", endpoint_url=url
        )
        client.create_table(
            TableName="features",
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        yield f"dynamodb://features?region=eu-west-1&endpoint={url}"


STORES = ("memory", "sqlite", "redis", pytest.param("dynamo", marks=pytest.mark.slow))


@pytest.fixture(params=STORES)
def url(request, tmp_path):
    """The URL of an empty store of each kind (of Redis and DynamoDB: shared)."""
    kind = request.param
    if kind in ("redis", "dynamo"):
        return request.getfixturevalue(kind)
    return f"memory:{tmp_path}" if kind == "memory" else f"sqlite:///{tmp_path / 'features.db'}"


def application(one, url, **more):
    """The app of the release `one` with the store at `url`, which is given much time."""
    serve = Serve(**{"features": url, "features_timeout": 60.0, **more})
    return create_app(one.folder, **checks(one.settings), serve=serve)


async def asked(app, *bodies, path="/predict"):
    """(status, answer, headers, seconds) of each body, all posted at once."""
    transport = httpx.ASGITransport(app)

    async def ask(client, body):
        start = time.monotonic()
        got = await client.post(path, json=body)
        return got.status_code, got.json(), got.headers, time.monotonic() - start

    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await asyncio.gather(*(ask(client, body) for body in bodies))


def ask(app, body):
    """(status, answer) of one body."""
    return asyncio.run(asked(app, body))[0][:2]


def stored(one):
    """The rows of the test part as a pipeline writes them."""
    return [row | {"customer": name} for name, row in zip(one.ids, one.rows, strict=True)]


def thin(one):
    """The rows of the test part as a client sends them: an id, and what only the client knows."""
    return [
        {"application_id": name} | {key: row[key] for key in HELD}
        for name, row in zip(one.ids, one.rows, strict=True)
    ]


def test_an_id_gets_the_answer_of_the_whole_row(small, url):
    assert write_features(url, stored(small), id="customer") == len(small.rows)
    app = application(small, url)
    status, answer = ask(app, thin(small)[:1000])
    whole = ask(app, small.rows[:1000])[1]
    assert status == 200 and len(small.rows) > 300
    assert np.array_equal(told(small, answer["predictions"]), told(small, whole["predictions"]))
    assert np.abs(told(small, answer["predictions"]) - small.answers[:1000]).max() < 1e-6
    assert [one["id"] for one in answer["predictions"]] == small.ids[:1000]
    assert answer["counts"] == whole["counts"]
    single = [ask(app, row)[1]["predictions"][0] for row in thin(small)[:5]]
    assert np.array_equal(told(small, single), told(small, whole["predictions"][:5]))


def test_a_thousand_ids_are_one_question(small, url):
    rows = [small.rows[i % len(small.rows)] | {"shop": f"shop {i}"} for i in range(1000)]
    write_features(url, rows, id="shop")
    app = application(small, url, features_entity="shop")
    store, calls = app.features.asker.store, []
    app.features.asker.store = Spy(store, calls)
    asked = [{"shop": f"shop {i}"} for i in (*range(1000),)]
    status, answer = ask(app, asked[:999] + asked[:1])
    assert status == 200 and [len(call) for call in calls] == [999] and answer["problems"] == []
    expected = small.answers[[i % len(small.rows) for i in (*range(999), 0)]]
    assert np.abs(told(small, answer["predictions"]) - expected).max() < 1e-6
    assert ask(app, [*asked, asked[0]])[1]["error"]["code"] == "too_many_rows"


@pytest.mark.parametrize("path", ["/predict", "/v1/models/credit-demo:predict"])
def test_a_long_body_is_worked_on_aside(small, tmp_path, monkeypatch, path):
    app, seen = application(small, f"sqlite:///{tmp_path}/f.db", features_entity="shop"), []
    check = decoder.check_rows

    def noted(*given, **named):
        seen.append(threading.current_thread() is threading.main_thread())
        return check(*given, **named)

    monkeypatch.setattr(decoder, "check_rows", noted)
    for many in (1, 900):
        rows = [small.rows[i % len(small.rows)] | {"odd": "x" * 100} for i in range(many)]
        sent = rows if path == "/predict" else {"instances": rows}
        assert asyncio.run(asked(app, sent, path=path))[0][0] == 200
    assert seen == [True, False]


class Spy:
    """A store that notes what it is asked."""

    def __init__(self, store, calls):
        self.store, self.calls = store, calls

    def get_many(self, ids):
        self.calls.append(ids)
        return self.store.get_many(ids)


def test_redis_is_asked_once_for_many(redis):
    store = open_store(redis)
    before = store.client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"]
    store.get_many([f"id {i}" for i in range(1000)])
    assert store.client.info("commandstats")["cmdstat_mget"]["calls"] == before + 1


def test_what_is_no_string_in_redis_is_no_row_and_is_written_over(redis):
    """A hash, as another program may leave it; what Redis refuses otherwise is still refused."""
    store, row = open_store(redis), [{"id": "kind", "x": 1, "at": 1_700_000_000}]
    store.client.hset("features:kind", "x", "2")
    assert store.get_many(["kind"]) == [None]
    write_features(redis, row, id="id", at="at")
    write_features(redis, [row[0] | {"x": 3, "at": row[0]["at"] - 1}], id="id", at="at")
    assert store.get_many(["kind"])[0].values["x"] == 1
    store.client.acl_setuser(
        "blind", enabled=True, passwords=["+word"], keys=["*"], commands=["+@all", "-get"]
    )
    try:
        with pytest.raises(RedisError, match=r"permission|this command"):
            write_features(redis.replace("//", "//blind:word@"), row, id="id", at="at")
    finally:
        store.client.acl_deluser("blind")


def test_older_rows_never_replace_newer_ones(url):
    names = [f"age {i}" for i in range(150)]
    new = [{"id": name, "x": 2, "at": 1_700_000_000 + i} for i, name in enumerate(names)]
    write_features(url, new, id="id", at="at")
    write_features(url, [row | {"x": 1, "at": row["at"] - 1} for row in new], id="id", at="at")
    write_features(url, [row | {"x": 3} for row in new[:10]], id="id", at="at")
    write_features(url, [row | {"x": 4, "at": row["at"] + 0.001} for row in new[10:20]], "id", "at")
    found = [row.values["x"] for row in open_store(url).get_many(names)]
    assert found == [3] * 10 + [4] * 10 + [2] * 130
    assert open_store(url).get_many(names)[0].at == 1_700_000_000


def test_ids_and_values_come_back_as_they_were(url):
    odd = ["o'hara", 'a"b', "日本", "a b:c/d", "*", "0", "x" * 400, "%s", "\\", "a\nb"]
    values = {"n": -1.5e-7, "big": 2**60, "t": "zażółć", "b": True, "none": None}
    store = open_store(url)
    store.put_many((name, StoredRow(values | {"own": name}, 1.5)) for name in odd)
    found = store.get_many([*odd, "absent", "O'HARA"])
    assert found[-2:] == [None, None]
    assert [row.values for row in found[:-2]] == [values | {"own": name} for name in odd]
    assert store.get_many([]) == []


def test_what_the_request_says_wins(small, tmp_path):
    url = f"sqlite:///{tmp_path / 'f.db'}"
    write_features(url, stored(small), id="customer")
    app, row, name = application(small, url), small.rows[0], small.ids[0]
    for said in ({"age": 33}, {"job": "nurse", "income": 1.0}, {"income": None}):
        by_id = ask(app, {"application_id": name} | said)[1]["predictions"]
        whole = ask(app, row | said)[1]["predictions"]
        assert np.array_equal(told(small, by_id), told(small, whole)), said
    changed = ask(app, {"application_id": name, "income": row["income"] / 9})[1]
    assert changed["predictions"][0] != ask(app, {"application_id": name})[1]["predictions"][0]


def test_the_store_follows_the_pipeline(small, url):
    """New values are answered with as soon as they are written: nothing is kept in between."""
    app, name = application(small, url, features_entity="who"), "turn"
    for row in small.rows[:5]:
        write_features(url, [row | {"who": name}], id="who")
        by_id, whole = ask(app, {"who": name})[1], ask(app, row)[1]
        assert np.array_equal(told(small, by_id["predictions"]), told(small, whole["predictions"]))


@pytest.mark.parametrize("policy", ["reject", "flag", "impute"])
def test_stale_features(small, url, policy):
    now = time.time()
    write_features(url, [small.rows[0] | {"who": "fresh"}], id="who", at=now - 50)
    write_features(url, [small.rows[1] | {"who": "stale"}], id="who", at=now - 7000)
    more = {"features_entity": "who", "features_max_age": 3600, "features_stale": policy}
    app = application(small, url, **more)
    status, answer = ask(
        app, [{"who": "fresh"}, {"who": "stale"}, small.rows[1] | {"who": "stale"}]
    )
    (problem,) = answer["problems"]
    assert (problem["row"], problem["column"], problem["code"]) == (1, "who", "stale_features")
    assert answer["counts"] == {"stale_features": 1}
    if policy == "reject":
        assert (status, answer["error"]["code"]) == (422, "rows_refused")
        assert problem["action"] == "rejected" and ask(app, {"who": "fresh"})[0] == 200
        return
    usual = ask(app, small.contract.example())[1]["predictions"]
    expected = [answer["predictions"][2]] if policy == "flag" else usual
    assert status == 200 and problem["action"] == {"flag": "flagged", "impute": "imputed"}[policy]
    assert np.array_equal(told(small, answer["predictions"][1:2]), told(small, expected))


@pytest.mark.parametrize("policy", ["reject", "flag", "impute"])
def test_unknown_entities(small, tmp_path, policy):
    app = application(small, f"memory:{tmp_path}", features_unknown=policy)
    row = {"application_id": "nobody-secret", "age": 40}
    status, answer = ask(app, row)
    assert "secret" not in json.dumps(answer["problems"])
    assert answer["problems"][0]["code"] == "unknown_entity"
    assert answer["problems"][0]["column"] == "application_id"
    if policy == "reject":
        assert status == 422 and answer["counts"] == {"unknown_entity": 1}
    elif policy == "impute":
        usual = ask(app, small.contract.example() | {"age": 40})[1]["predictions"]
        assert answer["counts"] == {"unknown_entity": 1}
        assert np.array_equal(told(small, answer["predictions"]), told(small, usual))
    else:
        bare = ask(app, {"age": 40})[1]
        assert answer["counts"] == {"unknown_entity": 1} | bare["counts"]
        assert np.array_equal(told(small, answer["predictions"]), told(small, bare["predictions"]))


def test_one_bad_entity_among_good_ones_is_named(small, tmp_path):
    url = f"memory:{tmp_path}"
    write_features(url, stored(small), id="customer")
    rows = thin(small)[:6]
    rows[1]["application_id"], rows[2]["application_id"] = ["list-secret"], 4.5
    rows[3]["application_id"], rows[4]["application_id"] = "x" * 501, True
    rows[5]["application_id"] = "nobody"
    status, answer = ask(application(small, url), rows)
    assert status == 422 and "secret" not in json.dumps(answer)
    found = {(p["row"], p["code"]) for p in answer["problems"] if p["action"] == "rejected"}
    expected = {(row, "wrong_type") for row in (1, 2, 3, 4)} | {(5, "unknown_entity")}
    assert found == expected


def test_what_lies_in_the_store_is_checked_like_a_request(small, url):
    bad = {"text": "forty-secret", "far": 1e39, "odd": -5, "none": None}
    for name, value in bad.items():
        open_store(url).put_many([(name, StoredRow(small.rows[0] | {"age": value}, time.time()))])
    app = application(small, url, features_entity="who")
    for name, value in bad.items():
        by_id, whole = ask(app, {"who": name}), ask(app, small.rows[0] | {"age": value})
        assert by_id[0] == whole[0] and "secret" not in json.dumps(by_id[1])
        kept = ("problems", "counts", "error")
        assert {k: by_id[1].get(k) for k in kept} == {k: whole[1].get(k) for k in kept}


def test_only_the_models_features_are_taken(small, tmp_path):
    url = f"memory:{tmp_path}"
    write_features(url, [small.rows[0] | {"who": 7, "shoe_size": 44, "default": "yes"}], id="who")
    status, answer = ask(application(small, url, features_entity="who"), {"who": 7})
    assert status == 200 and answer["problems"] == []


def test_an_unreadable_record_is_an_unknown_entity(small, tmp_path, redis):
    database = tmp_path / "f.db"
    write_features(f"sqlite:///{database}", stored(small)[:1], id="customer")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE features SET row = '{\"at\": 1'")
    connection.close()
    open_store(redis).client.set(f"features:{small.ids[0]}", b"\xff\x00")
    for url in (f"sqlite:///{database}", redis):
        answer = ask(application(small, url), thin(small)[0])[1]
        assert answer["counts"] == {"unknown_entity": 1}
        write_features(url, stored(small)[:1], id="customer")  # it stands in nobody's way
        assert ask(application(small, url), thin(small)[0])[1]["counts"] == {}


# A store that fails -------------------------------------------------------------------------------


def unavailable(result):
    """Whether it is the documented answer for a store that does not."""
    status, answer, headers, _ = result
    code = answer.get("error", {}).get("code")
    return (status, code) == (503, "store_unavailable") and int(headers["retry-after"]) >= 1


def test_a_store_killed_in_the_middle_and_back_again(small, tmp_path):
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    app = application(small, url, features_timeout=20)
    rows = thin(small)

    async def story():
        with redis_server(port, tmp_path) as process:
            write_features(url, stored(small), id="customer")
            before = await asked(app, *rows[:20])
            load = asyncio.create_task(asked(app, *rows[:200]))
            await asyncio.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(60)
            during = await load
        dead = await asked(app, *rows[:50])
        whole = await asked(app, *small.rows[:5])
        with redis_server(port, tmp_path):
            write_features(url, stored(small), id="customer")
            await asyncio.sleep(1.1)
            after = await asked(app, *rows[:20])
        return before, during, dead, whole, after

    before, during, dead, whole, after = asyncio.run(story())
    assert {one[0] for one in before} == {one[0] for one in after} == {one[0] for one in whole}
    assert before[0][0] == 200
    assert all(one[0] == 200 or unavailable(one) for one in during)
    assert all(map(unavailable, dead)) and max(one[3] for one in dead) < 20


def test_no_message_holds_the_password_of_the_store():
    url = f"redis://user:secret-word@127.0.0.1:{free_port()}/0"
    for wrong in (url, f"{url}?nonsense=1", url.replace("redis:", "redos:")):
        with pytest.raises((Mistake, OSError, RedisError)) as failed:
            open_store(wrong, 0.1).get_many(["a"])
        assert "secret-word" not in str(failed.value)


@pytest.mark.parametrize("url", ["redis://", "redis://localhost:port/0", "sqlite://f.db"])
def test_an_address_that_is_none_is_told_what_one_looks_like(url):
    with pytest.raises(Mistake, match="sqlite:///FILE, redis://HOST:PORT/0, dynamodb://TABLE"):
        open_store(url)


def test_a_slow_store_costs_its_time_out_and_nobody_else_waits(small, tmp_path):
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    with redis_server(port, tmp_path) as process:
        write_features(url, stored(small), id="customer")
        app = application(small, url, features_timeout=2)
        assert ask(app, thin(small)[0])[0] == 200
        os.kill(process.pid, signal.SIGSTOP)

        async def story():
            slow = asyncio.create_task(asked(app, *thin(small)[:100]))
            await asyncio.sleep(0.05)
            beside = await asked(app, *small.rows[:20])
            return await slow, beside, await asked(app, *thin(small)[:10])

        slow, beside, rest = asyncio.run(story())
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(1.1)
        again = ask(app, thin(small)[0])
    assert all(map(unavailable, slow)) and max(one[3] for one in slow) < 10
    assert {one[0] for one in beside} == {200}
    assert max(one[3] for one in beside) < 1.9, "whole rows waited for the store"
    assert all(map(unavailable, rest)) and max(one[3] for one in rest) < 1.9, (
        "it was not left alone"
    )
    assert again[0] == 200


def test_a_dead_store_is_left_alone_and_asked_again(small, tmp_path):
    app = application(small, f"sqlite:///{tmp_path / 'later.db'}")
    calls = []
    app.features.asker.store = Spy(app.features.asker.store, calls)
    one = thin(small)[0]
    assert [ask(app, one)[0] for _ in range(10)] == [503] * 10 and len(calls) == STRIKES
    write_features(f"sqlite:///{tmp_path / 'later.db'}", stored(small), id="customer")
    time.sleep(1.1)
    assert ask(app, one)[0] == 200 and len(calls) == STRIKES + 1
    (tmp_path / "later.db").write_bytes(b"no database" * 1000)


def test_a_hanging_store_does_not_keep_the_process(small):
    """Threads that are stuck are given up; their number is bounded."""
    code = """
import asyncio, time
from prodml.serve.features import Asker
from prodml.serve.wire import Unanswerable
class Stuck:
    def get_many(self, ids): time.sleep(6)
    def close(self): pass
async def ask(asker):
    try: await asker.fetch(['a'])
    except Unanswerable as error: return error.status
async def main():
    asker = Asker(Stuck(), 0.05)
    start = time.monotonic()
    told = await asyncio.gather(*(ask(asker) for _ in range(100)))
    print(set(told), time.monotonic() - start < 5, len(asker.pool._threads) <= 8)
    asker.close()
asyncio.run(main())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.stdout.split() == ["{503}", "True", "True"], run.stderr


# Writing ------------------------------------------------------------------------------------------


def test_readers_see_whole_batches_while_a_writer_writes(tmp_path):
    url, names = f"sqlite:///{tmp_path / 'f.db'}", [f"id {i}" for i in range(1000)]
    code = f"""
from prodml.serve.entities import write_features
for turn in range(10_000):
    rows = ({{"id": name, "turn": turn}} for name in {names!r})
    write_features({url!r}, rows, id="id", at=turn + 1)
"""
    write_features(url, ({"id": name, "turn": -1} for name in names), id="id", at=0.5)
    store, seen = open_store(url), set()
    writer = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 120
    while len(seen) < 20 and time.monotonic() < end:
        turns = {row.values["turn"] for row in store.get_many(names)}
        assert len(turns) == 1, "half a batch was read"
        seen |= turns
    writer.kill()  # in the middle of a batch, more likely than not
    writer.wait()
    assert len(seen) >= 20 and len({row.values["turn"] for row in store.get_many(names)}) == 1
    write_features(url, [{"id": names[0], "turn": "after"}], id="id")
    assert store.get_many(names)[0].values["turn"] == "after"


def test_frames_are_written_as_they_are(tmp_path):
    url = f"sqlite:///{tmp_path / 'f.db'}"
    frame = pd.DataFrame(
        {
            "id": np.arange(25_000),
            "x": np.arange(25_000) / 3,
            "n": pd.array([1, None] * 12_500, dtype="Int64"),
            "s": pd.Categorical(["a", None, "b", "a", "c"] * 5_000),
            "b": [True, False] * 12_500,
            "day": pd.date_range("2026-01-01", periods=25_000, freq="min", tz="UTC"),
        }
    )
    assert write_features(url, frame, id="id", at="day") == 25_000
    first, last = open_store(url).get_many(["1", "24999"])
    assert first == StoredRow({"x": 1 / 3, "n": None, "s": None, "b": False}, 1_767_225_660.0)
    assert last.values == {"x": 24_999 / 3, "n": None, "s": "c", "b": False}
    naive = frame.assign(day=frame["day"].dt.tz_localize(None), id=frame["id"] + 100_000)
    write_features(url, naive[:3], id="id", at="day")
    assert open_store(url).get_many(["100001"])[0].at == first.at


@pytest.mark.parametrize(
    ("rows", "at", "words"),
    [
        ([{"id": 1, "x": 1}, {"id": 2, "x": float("inf")}], None, "row 1, 'x'"),
        ([{"id": 1, "x": 1}, {"x": 1}], None, "row 1 has no column 'id'"),
        ([{"id": 1, "x": 1}, {"id": None, "x": 1}], None, "row 1, 'id'"),
        ([{"id": 1, "x": 1}, {"id": 2.0, "x": 1}], None, "row 1, 'id'"),
        ([{"id": 1, "x": 1}, {"id": "", "x": 1}], None, "row 1, 'id'"),
        ([{"id": 1, "x": 1}, {"id": 2, "x": [1]}], None, "row 1, 'x'"),
        ([{"id": 1, "t": 5}, {"id": 2, "t": None}], "t", "row 1, the time"),
        ([{"id": 1, "t": 5}, {"id": 2, "t": "soon"}], "t", "row 1, the time"),
        ([{"id": 1, "t": 5}, {"id": 2}], "t", "row 1 has no column 't'"),
        ([{"id": 1, "t": 5}, {"id": 2, "t": pd.NaT}], "t", "row 1, the time"),
    ],
)
def test_a_row_that_cannot_be_kept_is_named_and_nothing_is_written(tmp_path, rows, at, words):
    url = f"sqlite:///{tmp_path / 'f.db'}"
    write_features(url, [{"id": 0, "x": 0}], id="id")
    with pytest.raises(Mistake, match=re.escape(words)):
        write_features(url, rows, id="id", at=at)
    assert open_store(url).get_many(["1", "0"])[0] is None


# The server ---------------------------------------------------------------------------------------


def test_a_model_without_an_id_column_says_what_to_do(small, tmp_path):
    contract = replace(
        small.contract, columns=tuple(c for c in small.contract.columns if c.role != "id")
    )
    with pytest.raises(Mistake, match="features_entity"):
        Features(contract, Serve(features="memory:"))
    with pytest.raises(Mistake, match="no feature store"):
        Features(small.contract, Serve(features="sqlite:///"))
    with pytest.raises(Mistake, match="dynamodb"):
        Features(small.contract, Serve(features="dynamodb://t?endpoint=nonsense&region=eu-west-1"))


@pytest.mark.parametrize("name", ["redis", "botocore"])
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    url = {"redis": "redis://localhost", "botocore": "dynamodb://t?region=eu-west-1"}[name]
    extra = {"redis": "redis", "botocore": "aws"}[name]
    with pytest.raises(Mistake, match=rf"pip install 'prodml\[{extra}\]'"):
        open_store(url)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    st.lists(st.fixed_dictionaries({}, optional={"application_id": values, "age": values}) | values)
)
def test_no_row_makes_it_fail(small, tmp_path, rows):
    app = application(small, f"memory:{tmp_path}", features_unknown="flag")
    try:
        status, answer = ask(app, rows)
    finally:
        app.features.close()
    assert status in (200, 400, 413, 422) and isinstance(answer, dict)


def test_the_service_reads_the_projects_file(small, tmp_path):
    """A relative file lies in the project, and the server loads no laboratory to read it."""
    serve = Serve(features="sqlite:///online.db", features_timeout=60)
    one = replace(small.settings, serve=serve)
    folder = render_service(one, small.folder)
    write_features(f"sqlite:///{one.root / 'online.db'}", stored(small), id="customer")
    port, place = free_port(), {"PRODML_ROOT": str(one.root.resolve())}
    command = [BIN / "bentoml", "serve", "--host", "127.0.0.1", "--port", port]
    environment = {"BENTOML_HOME": str(tmp_path), **place}
    with server(command, port, tmp_path / "log", environment, folder) as url:
        status, answer = post(f"{url}/predict", thin(small)[:300])
        with ThreadPoolExecutor(8) as pool:
            singles = list(pool.map(lambda row: post(f"{url}/predict", row), thin(small)[:100]))
        assert post(f"{url}/predict", {"application_id": "nobody"})[0] == 422
    assert status == 200
    assert np.abs(told(small, answer["predictions"]) - small.answers[:300]).max() < 1e-6
    found = told(small, [answer["predictions"][0] for _, answer in singles])
    assert np.abs(found - small.answers[:100]).max() < 1e-6
    code = (
        "import service, sys;"
        "print(*({'pandas', 'sklearn', 'redis', 'botocore', 'scipy'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        **{"cwd": folder, "capture_output": True, "text": True, "check": True},
        env={**os.environ, **place},
    )
    assert run.stdout.split() == []
