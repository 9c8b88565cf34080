"""The service as it runs: BentoML's own server on loopback, from the folder and from the store."""

import asyncio
import contextlib
import gzip
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import BIN, free_port, post, prodml, server, until
from released import FAILED, INI, PASSED, released, sealed, told

from prodml.ini import read_settings
from prodml.release.attestation import Refused
from prodml.release.store import seal
from prodml.serve.answers import read_predictions
from prodml.serve.app import App, create_app
from prodml.serve.build import build, checks, not_learned, render_service
from prodml.serve.scorer import load_scorer
from prodml.settings import Serve


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return released(tmp_path_factory.mktemp("small"), serve=Serve(max_rows=700))


@pytest.fixture(scope="module")
def built(small, tmp_path_factory):
    """(service folder, tag, environment) of a Bento in a store of its own."""
    home = tmp_path_factory.mktemp("bentoml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(home))
        folder, tag = build(small.settings, small.folder)
    return folder, tag, {"BENTOML_HOME": str(home)}


def serving(target, folder, environment, log):
    """A running `bentoml serve` of `target`, as the context manager of its URL."""
    port = free_port()
    command = [BIN / "bentoml", "serve", *target, "--host", "127.0.0.1", "--port", port]
    return server(command, port, log, environment, folder)


@pytest.fixture(scope="module")
def url(built, tmp_path_factory):
    """The service served by a plain `bentoml serve` in the rendered folder."""
    folder, _, environment = built
    with serving([], folder, environment, tmp_path_factory.mktemp("log") / "log") as found:
        yield found


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=120) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_every_row_of_the_test_part_gets_the_notebooks_answer(small, url):
    found = []
    for start in range(0, len(small.rows), 500):
        status, answer = post(f"{url}/predict", {"rows": small.rows[start : start + 500]})
        assert status == 200 and answer["release"] == small.folder.name
        found += answer["predictions"]
    assert len(found) == len(small.answers) > 300
    assert np.abs(told(small, found) - small.answers).max() < 1e-6
    decided = [one["label"] == small.contract.classes[1] for one in found]
    assert decided == (small.answers[:, 1] >= small.threshold).tolist()


def test_the_three_forms_of_a_request_get_the_same_answer(small, url):
    row = small.rows[0]
    answers = [post(f"{url}/predict", body) for body in (row, [row], {"rows": [row]})]
    ids = [answer["predictions"][0].pop("id") for _, answer in answers]
    assert answers[0][0] == 200 and answers[0] == answers[1] == answers[2] and len(set(ids)) == 3


def test_what_is_unusual_is_answered_and_told(small, url):
    row = small.rows[0] | {"job": "astronaut-secret", "age": 140, "shoe_size": 9}
    status, answer = post(f"{url}/predict", row)
    assert status == 200 and "secret" not in json.dumps(answer)
    assert answer["counts"] == {"unseen_level": 1, "out_of_range": 1, "unknown_column": 1}
    assert {(p["row"], p["column"]) for p in answer["problems"]} >= {(0, "job"), (0, "age")}


def test_bad_requests_each_get_their_answer(small, url):
    row, path = small.rows[0], f"{url}/predict"
    status, answer = post(path, [row, row | {"age": "forty-secret"}, "secret", row | {"age": 1e39}])
    assert status == 422 and "secret" not in json.dumps(answer)
    expected = {(1, "wrong_type"), (2, "not_an_object"), (3, "not_finite")}
    found = {(p["row"], p["code"]) for p in answer["problems"] if p["action"] == "rejected"}
    assert found == expected
    assert set(answer["problems"][0]) == {"row", "column", "code", "action", "message"}
    assert post(path, b"<html>secret")[0] == 400 and post(path, b"")[0] == 400
    assert post(path, b'{"age": NaN}')[0] == 400 and post(path, b"\xff\xfe")[0] == 400
    assert post(path, b"[" * 200_000)[0] == 400
    assert post(path, b'{"age": 1e400}')[0] in (400, 422)
    assert post(path, [row] * 701)[1]["error"]["code"] == "too_many_rows"
    assert post(path, b" " * 5_000_000)[0] == 413
    assert get(path)[0] == 405 and get(f"{url}/etc/passwd")[0] == 404
    assert post(path, row)[0] == 200


def test_forms_of_http_pass_through_bentoml(small, url):
    place, body = url.removeprefix("http://"), json.dumps(small.rows[:2]).encode()
    json_type = {"content-type": "application/json"}

    def asked(method, path="/predict", sent=None, **headers):
        one = http.client.HTTPConnection(place, timeout=120)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        one.request(method, path, sent, json_type | named)
        reply = one.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()

    exact = json.loads(asked("POST", sent=body)[2])["predictions"]
    chunks = iter([body[:7], body[7:30], body[30:]])  # sent as Transfer-Encoding: chunked
    zipped = asked("POST", sent=gzip.compress(body), content_encoding="gzip")
    for status, headers, answer in (asked("POST", sent=chunks), zipped):
        found = json.loads(answer)["predictions"]
        assert status == 200 and [one["label"] for one in found] == [one["label"] for one in exact]
        assert headers["x-content-type-options"] == "nosniff"
    status, headers, answer = asked("HEAD", "/metadata")
    assert status == 200 and not answer and int(headers["content-length"]) > 100
    assert asked("OPTIONS")[:2][1]["allow"] == "POST, OPTIONS"
    bomb = gzip.compress(bytes(10**8))
    assert asked("POST", sent=bomb, content_encoding="gzip")[0] == 413
    assert asked("POST", sent=body, content_type="application/x-www-form-urlencoded")[0] == 415
    table, sink = pa.Table.from_pylist(small.rows[:600]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    media = "application/vnd.apache.arrow.stream"
    _, headers, answer = asked("POST", sent=sink.getvalue(), content_type=media, accept=media)
    found = pa.ipc.open_stream(answer).read_all().to_pylist()
    assert headers["content-type"] == media
    assert np.abs(told(small, found) - small.answers[: len(found)]).max() < 1e-6


def test_metadata_holds_an_example_that_is_answered(url):
    told = json.loads(get(f"{url}/metadata")[1])
    status, answer = post(f"{url}/predict", told["example"])
    assert status == 200 and answer["problems"] == [] and told["classes"]
    described = json.loads(get(f"{url}/openapi.json")[1])["paths"]
    for path in ("/healthz", "/livez", "/readyz"):
        with urllib.request.urlopen(url + path, timeout=120) as reply:
            media = reply.headers["content-type"].partition(";")[0]
        assert media in described[path]["get"]["responses"]["200"]["content"], path


def test_other_protocols_and_the_page_are_there_behind_bentoml(small, url):
    row = small.rows[0]
    expected = post(f"{url}/predict", row)[1]["predictions"][0]["probabilities"]
    name = f"{url}/v1/models/credit-demo/versions/{small.folder.name}:predict"
    status, answer = post(name, {"instances": [row]})
    assert status == 200 and answer["predictions"][0]["probabilities"] == [*expected.values()]
    status, answer = post(f"{url}/invocations", {"dataframe_records": [row]})
    assert status == 200 and answer["predictions"][0]["probabilities"] == expected
    status, answer = post(f"{url}/v2/models/credit-demo/infer", {"inputs": []})
    assert status == 400 and answer["error"].startswith("wrong_form: ")
    status, page = get(f"{url}/docs")
    assert status == 200 and small.folder.name in page.decode() and b"[[TITLE]]" not in page
    assert json.loads(get(f"{url}/openapi.json")[1])["info"]["title"] == "credit demo"


def test_the_bento_in_the_store_answers_too(small, built, tmp_path):
    _, tag, environment = built
    assert re.fullmatch(rf"credit-demo:{small.folder.name}", tag)
    with serving([tag], tmp_path, environment, tmp_path / "log") as url:
        status, answer = post(f"{url}/predict", small.rows[:50])
    assert status == 200
    assert np.abs(told(small, answer["predictions"]) - small.answers[:50]).max() < 1e-6


def test_the_bento_needs_nothing_but_itself(built):
    """Its own copy of prodml is used; no heavy library, key, or index address is in it."""
    bento = next(Path(built[2]["BENTOML_HOME"]).glob("bentos/*/*/src"))
    code = (
        "import service, prodml, sys; print(prodml.__file__);"
        "print(*({'pandas', 'sklearn', 'xgboost', 'shap', 'whylogs', 'scipy'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=bento, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [str(bento / "prodml/__init__.py"), ""]
    texts = [p for p in bento.parent.rglob("*") if p.suffix in (".yaml", ".txt", ".json", ".in")]
    for path in texts:
        assert not re.search(r"PRIVATE KEY|index-url|://\S+:\S+@", path.read_text()), path
    packages = (bento / "requirements.lock").read_text()
    assert "onnxruntime==" in packages and "scikit-learn" not in packages


def test_building_again_replaces_the_bento_and_plain_bentoml_builds_it_too(
    small, built, monkeypatch
):
    folder, tag, environment = built
    monkeypatch.setenv("BENTOML_HOME", environment["BENTOML_HOME"])
    (folder / "service.py").write_text("spoilt")
    relative = replace(small.settings, root=Path(os.path.relpath(small.settings.root)))
    assert build(relative, small.folder) == (folder, tag)
    run = subprocess.run(
        [BIN / "bentoml", "build", "-o", "tag"], cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0 and "__tag__:credit-demo:" in run.stdout, run.stderr
    assert tag not in run.stdout and (folder.parent / ".gitignore").read_text() == "*\n"


def test_a_secret_is_needed_to_serve_and_none_to_build(small, built, tmp_path, monkeypatch):
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "store"))
    guarded = replace(small.settings, serve=Serve(tokens="tokens.txt"))
    guarded = replace(guarded, root=shutil.copytree(small.settings.root, tmp_path / "project"))
    folder, _ = build(guarded, guarded.folder / "releases" / small.folder.name)
    by_hand = [BIN / "bentoml", "build", "-o", "tag"]
    assert subprocess.run(by_hand, cwd=folder, capture_output=True).returncode == 0
    serve = [BIN / "bentoml", "serve", "service:Service", "--port", str(free_port())]
    run = subprocess.run(serve, cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode and "there is no file tokens.txt" in run.stderr + run.stdout


def test_what_is_kept_outlives_the_service(small, tmp_path, monkeypatch):
    """A folder of `build` is made anew, and BentoML's store is emptied and exported: neither keeps
    the rows that customers sent, whoever started the server and wherever."""
    monkeypatch.delenv("PRODML_ROOT", raising=False)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "store"))
    root = shutil.copytree(small.settings.root, tmp_path / "project")
    (root / "settings.ini").write_text("")
    logged = replace(small.settings, root=root, serve=Serve(log="log", log_flush=0.1))
    folder, tag = build(logged, root / ".prodml" / "releases" / small.folder.name)
    other = tmp_path / "elsewhere"
    other.mkdir()
    for target, place, kept in ([], folder, root), ([tag], other, other):
        with serving(target, place, {"PWD": str(place)}, tmp_path / "output") as url:
            assert post(f"{url}/predict", small.rows[:3])[0] == 200
        assert list(read_predictions(kept / "log")["arm"]) == ["champion"] * 3, target
        found = [path for path in tmp_path.rglob("log") if path.is_dir()]
        assert set(found) <= {root / "log", other / "log"}, target


def test_a_release_is_not_thought_to_refuse_what_it_never_learned_to(small, tmp_path):
    candidate = shutil.copytree(small.settings.folder / "candidates" / "one", tmp_path / "one")
    (candidate / "settings.ini").write_text(INI)
    release = seal(candidate, [], [PASSED], replace(small.settings, root=tmp_path))
    (tmp_path / "settings.ini").write_text(INI.replace("[limits]", "reject = age\n[limits]"))
    run = prodml("build", "-p", tmp_path, env={"BENTOML_HOME": str(tmp_path / "store")})
    assert run.returncode == 0 and "Bento    credit-demo" in run.stdout, run.stderr
    told = f"[data] reject changed since {release.name} was trained"
    assert told in run.stderr and "prodml run" in run.stderr
    assert not not_learned(read_settings(release / "settings.ini"), release)


def test_a_touched_release_does_not_start(built, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / "service")
    path = next(folder.glob("release/*/model.onnx"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    for command in ("serve", "build"):
        run = subprocess.run(
            [
                BIN / "bentoml",
                command,
                *(["--port", str(free_port())] if command == "serve" else []),
            ],
            **{"cwd": folder, "env": {**os.environ, **built[2]}, "timeout": 300},
            **{"capture_output": True, "text": True, "start_new_session": True},
        )
        assert run.returncode != 0 and "model.onnx was edited" in run.stderr + run.stdout, (
            run.stderr
        )
        assert "Traceback" not in run.stderr


def test_a_release_that_failed_or_aged_or_is_anothers_does_not_start(small, tmp_path):
    bad = sealed(small, tmp_path, FAILED)
    with pytest.raises(Refused, match="roc_auc"):
        render_service(bad.settings, bad.folder)
    assert not bad.settings.resolve("services").exists() or not any(
        bad.settings.resolve("services").iterdir()
    )
    asked = checks(small.settings)
    with pytest.raises(Refused, match="stale"):
        create_app(small.folder, **asked | {"max_age_days": -0.1})
    with pytest.raises(Refused, match="key"):
        create_app(small.folder, **asked | {"trusted_keys": checks(bad.settings)["trusted_keys"]})
    with pytest.raises(Refused, match="fairness"):
        create_app(small.folder, **asked | {"required": ["fairness"]})


def test_a_model_without_onnx_is_served_by_scikit_learn(small, built, tmp_path):
    one = sealed(small, tmp_path, PASSED, native=True)
    folder = render_service(one.settings, one.folder)
    assert "scikit-learn==" in (folder / "requirements.lock").read_text()
    with serving([], folder, built[2], tmp_path / "log") as url:
        status, answer = post(f"{url}/predict", one.rows[:100])
    assert status == 200
    assert np.abs(told(one, answer["predictions"]) - one.answers[:100]).max() < 1e-9


def begun(url, body, cut):
    """A connection over which `cut` bytes of a request for /predict were sent."""
    port = int(url.rpartition(":")[2])
    one = socket.create_connection(("127.0.0.1", port), timeout=120)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    one.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body[:cut])
    return one


def children(pid):
    """The ids of the processes that `pid` started."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_asked_to_stop_it_finishes_what_is_in_hand(small, built, tmp_path):
    """SIGTERM reaches the supervisor, as from an orchestrator; a request is half sent."""
    folder, _, environment = built
    body, port = json.dumps(small.rows[:3]).encode(), free_port()
    command = [BIN / "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, **environment}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"

        def ready(status=200):
            with contextlib.suppress(OSError):
                return get(f"{url}/readyz")[0] == status

        assert until(ready), (tmp_path / "log").read_text()
        held = http.client.HTTPConnection("127.0.0.1", port, timeout=60)  # as a pool or proxy does
        held.request("GET", "/readyz")
        assert held.getresponse().read() and held.sock, "it is kept open"
        with begun(url, body, cut=20) as half, begun(url, b"", cut=0) as probe:
            probe.recv(65536)
            process.send_signal(signal.SIGTERM)
            assert until(lambda: ready(503), pause=0.01), "it says that it is about to go"
            held.request("POST", "/predict", body, {"content-type": "application/json"})
            reply = held.getresponse()
            assert reply.status == 200 and reply.read(), "and answers who still comes"
            assert reply.getheader("connection") == "close", "for the last time here"
            time.sleep(2)
            half.sendall(body[20:])
            answer = half.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
        assert b"\r\nconnection: close\r\n" in answer.lower(), "what was in hand says so too"
        assert process.wait(120) == 0
    finally:
        for pid in [*children(process.pid), process.pid] if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)


# The application by itself, without a network.


def asked(app, chunks, path="/predict", method="POST"):
    """(status, answer) of the application; every `http.response` message is counted."""
    sent = []

    async def receive():
        chunk = chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": []}
    asyncio.run(app(scope, receive, send))
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(sent[1]["body"])).encode()
    return sent[0]["status"], msgspec.json.decode(sent[1]["body"] or b"null")


@pytest.fixture(scope="module")
def app(small):
    return App(load_scorer(small.folder), Serve(max_rows=5))


VALUE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
NAMES = ["age", "income", "debt_ratio", "job", "purpose", "applied_on", "default", "x"]
ROW = st.dictionaries(st.sampled_from(NAMES), VALUE | st.lists(VALUE, max_size=2), max_size=6)
quick = settings(max_examples=60)


@quick
@given(body=st.binary(max_size=200) | st.recursive(VALUE, st.lists).map(json.dumps).map(str.encode))
def test_any_bytes_get_an_answer(app, body):
    assert asked(app, [body])[0] in (200, 400, 413, 422)


@quick
@given(rows=st.lists(ROW, max_size=5))
def test_any_rows_get_one_prediction_each_or_a_reason(app, rows):
    status, answer = asked(app, [json.dumps(rows).encode()])
    if status == 200:
        assert [0 <= one["probability"] <= 1 for one in answer["predictions"]] == [True] * len(rows)
    else:
        assert status == 400 or (status, bool(answer["problems"])) == (422, True)


def test_a_body_in_pieces_is_put_together_and_an_endless_one_cut_off(app, small):
    body = json.dumps(small.rows[0]).encode()
    assert asked(app, [body[i : i + 7] for i in range(0, len(body), 7)])[0] == 200
    assert asked(app, [b" " * 1_000_000] * 5)[0] == 413
    pieces = [b" " * 1_000_000] * 1000
    assert asked(app, pieces)[0] == 413 and len(pieces) > 900


def test_a_fault_of_the_model_is_an_answer_and_its_details_stay_in_the_log(small, caplog):
    broken = App(load_scorer(small.folder))

    def fail(columns):
        raise RuntimeError("a secret in a traceback")

    object.__setattr__(broken.scorer, "run", fail)
    status, answer = asked(broken, [json.dumps(small.rows[0]).encode()])
    assert status == 500 and "secret" not in str(answer) and "RuntimeError" in caplog.text


def test_importing_the_server_loads_nothing_heavy():
    heavy = {"pandas", "sklearn", "xgboost", "shap", "whylogs", "scipy", "papermill", "skops"}
    code = f"import sys, prodml.serve.app; print(*({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
