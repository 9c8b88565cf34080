"""The application without its server: in Lambda's own runtime client, and mounted in others."""

import base64
import contextlib
import gzip
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from processes import free_port, prodml, required, server
from released import FAILED, INI, released, sealed, told
from starlette.applications import Starlette
from starlette.routing import Mount

from prodml.release.attestation import Refused
from prodml.serve.answers import read_predictions
from prodml.serve.app import close_app, create_app
from prodml.serve.build import checks
from prodml.serve.function import lambda_handler, render_function, service_app
from prodml.settings import Serve


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return released(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """What `prodml build --function` makes."""
    (small.settings.root / "settings.ini").write_text(INI)
    home = {"BENTOML_HOME": str(tmp_path_factory.mktemp("bentoml"))}
    run = prodml("build", "--function", "--json", "-p", small.settings.root, env=home)
    assert run.returncode == 0, run.stderr
    made = Path(json.loads(run.stdout)["function"])
    assert made == small.settings.root.resolve() / "functions" / small.folder.name
    return made


@pytest.fixture
def app(small):
    return create_app(small.folder, **checks(small.settings))


# Events -------------------------------------------------------------------------------------------


def url_event(method, path, body="", query="", headers=None, stage="$default"):
    """What API Gateway (HTTP API) and function URLs send: version 2.0."""
    http = {"method": method, "path": path, "sourceIp": "192.0.2.1", "protocol": "HTTP/1.1"}
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {"content-type": "application/json", "host": "x.example", **(headers or {})},
        "requestContext": {"http": http, "stage": stage, "requestId": "1"},
        **encoded(body),
    }


def rest_event(method, path, body="", query="", headers=None):
    """What API Gateway's REST API sends: version 1.0, some of it twice."""
    made = {"Content-Type": "application/json", "Host": "x.example", **(headers or {})}
    asked = urllib.parse.parse_qs(query)
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": made,
        "multiValueHeaders": {name: [value] for name, value in made.items()},
        "queryStringParameters": {name: values[-1] for name, values in asked.items()} or None,
        "multiValueQueryStringParameters": asked or None,
        "requestContext": {"stage": "prod", "identity": {"sourceIp": "192.0.2.1"}},
        **encoded(body),
    }


def balancer_event(method, path, body="", query="", headers=None):
    """What a load balancer sends, with lists of headers switched on."""
    made = {"content-type": "application/json", "host": "x.example", **(headers or {})}
    return {
        "requestContext": {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:x"}},
        "httpMethod": method,
        "path": path,
        "multiValueHeaders": {name: [value] for name, value in made.items()},
        "multiValueQueryStringParameters": urllib.parse.parse_qs(query),
        **encoded(body),
    }


def encoded(body):
    if isinstance(body, bytes):
        return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
    text = body if isinstance(body, str) else json.dumps(body)
    return {"body": text or None, "isBase64Encoded": False}


SENDERS = [url_event, rest_event, balancer_event]


def read(answer):
    """(status, body) of what a handler returned."""
    body = answer.get("body") or ""
    data = base64.b64decode(body) if answer.get("isBase64Encoded") else body.encode()
    return answer["statusCode"], json.loads(data or b"null")


@pytest.mark.parametrize("event", SENDERS)
def test_every_sender_gets_the_answers_of_predict(small, app, event):
    handler, client = lambda_handler(app), TestClient(app)
    rows = small.rows[:300]
    status, answer = read(handler(event("POST", "/predict", {"rows": rows}), None))
    assert status == 200
    assert np.abs(told(small, answer["predictions"]) - small.answers[:300]).max() < 1e-6
    as_bytes = read(handler(event("POST", "/predict", json.dumps(rows).encode()), None))[1]
    served = client.post("/predict", json=rows).json()
    for other in (as_bytes, served):
        assert np.array_equal(told(small, other["predictions"]), told(small, answer["predictions"]))
    single = [read(handler(event("POST", "/predict", row), None))[1] for row in rows[:20]]
    found = told(small, [one["predictions"][0] for one in single])
    assert np.abs(found - small.answers[:20]).max() < 1e-6


@pytest.mark.parametrize("event", SENDERS)
def test_bad_requests_get_their_usual_answer(small, app, event):
    handler, client = lambda_handler(app), TestClient(app)
    bad = small.rows[0] | {"age": "forty-secret"}
    asked = [
        ("POST", "/predict", bad),
        ("POST", "/predict", b"\xff\xfe"),
        ("POST", "/predict", ""),
        ("POST", "/predict", "[" * 5000),
        ("GET", "/predict", ""),
        ("GET", "/nowhere", ""),
        ("GET", "/readyz", ""),
        ("GET", "/metadata", ""),
    ]
    for method, path, body in asked:
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        expected = client.request(method, path, content=content)
        status, answer = read(handler(event(method, path, body), None))
        assert (status, answer) == (expected.status_code, expected.json()), path
        assert "secret" not in json.dumps(answer)


def test_a_zipped_body_is_read_like_any_other(small, app):
    body = gzip.compress(json.dumps(small.rows[:5]).encode())
    headers = {"content-encoding": "gzip"}
    expected = TestClient(app).post("/predict", content=body, headers=headers)
    status, answer = read(
        lambda_handler(app)(url_event("POST", "/predict", body, headers=headers), None)
    )
    assert status == expected.status_code
    if status == 200:
        assert len(answer["predictions"]) == 5


def test_stages_and_base_paths_are_cut_off(app):
    handler = lambda_handler(app)
    for path in ("/prod/readyz", "/readyz"):
        assert read(handler(url_event("GET", path, stage="prod"), None))[0] == 200
    assert read(handler(url_event("GET", "/production/readyz", stage="prod"), None))[0] == 404
    assert read(handler(url_event("GET", "/prod", stage="prod"), None))[0] == 200
    behind = lambda_handler(app, base_path="/credit")
    assert read(behind(rest_event("GET", "/credit/readyz"), None))[0] == 200


def test_what_is_no_request_is_an_error_of_the_caller(app):
    handler = lambda_handler(app)
    for event in ({}, {"Records": []}, [], None, "text"):
        with pytest.raises(ValueError, match="no HTTP request"):
            handler(event, None)
    for broken in ({"headers": {"host": "a:b:c"}}, {"body": "!!!", "isBase64Encoded": True}):
        status, answer = read(handler(url_event("POST", "/predict") | broken, None))
        assert (status, answer["error"]["code"]) in ((400, "bad_event"), (400, "not_json"))


@pytest.mark.parametrize("event", SENDERS)
def test_what_was_answered_is_written_before_the_process_is_frozen(small, tmp_path, event):
    """The recorder's thread never wakes here, as in a function that is not asked again."""
    serve = Serve(log=str(tmp_path / "log"), log_flush=3600)
    app = create_app(small.folder, **checks(small.settings), serve=serve)
    app.own.recorder.pause = 3600.0
    handler = lambda_handler(app)
    for number, rows in enumerate((small.rows[:3], small.rows[3:4]), 1):
        assert read(handler(event("POST", "/predict", rows), None))[0] == 200
        assert len(list((tmp_path / "log").glob("predictions*"))) == number
    kept = read_predictions(tmp_path / "log")
    assert len(kept) == 4 and not list((tmp_path / "log").glob("*.part"))
    assert np.abs(kept["prediction:yes"] - small.answers[:4, 1]).max() < 1e-6
    assert read(handler(event("POST", "/predict", "{"), None))[0] == 400
    assert app.own.metrics.refusals == {"not_json": 1} and not app.own.recorder.waiting.queue


# Lambda's own runtime client ----------------------------------------------------------------------


class RuntimeInterface(ThreadingHTTPServer):
    """What runs beside a function in Lambda: it hands out events and takes the answers."""

    PATH = "/2018-06-01/runtime"

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Conversation)
        self.handle_error = lambda *_: None  # a function that was ended leaves its question open
        self.events, self.answers = queue.Queue(), queue.Queue()
        self.daemon_threads = True

    def invoke(self, event, timeout=300):
        """(kind, what the function said) of one event."""
        self.events.put(event)
        return self.answers.get(timeout=timeout)


class Conversation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.answers.put(("asks", None)) if not self.server.events.qsize() else None
        body = json.dumps(self.server.events.get()).encode()
        arn = "arn:aws:lambda:eu-west-1:123456789012:function:model"
        self.send_response(200)
        for name, value in {
            "Lambda-Runtime-Aws-Request-Id": f"request-{time.monotonic_ns()}",
            "Lambda-Runtime-Deadline-Ms": str(int(time.time() * 1000) + 30_000),
            "Lambda-Runtime-Invoked-Function-Arn": arn,
            "Lambda-Runtime-Trace-Id": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=0",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        kind = self.path.rpartition("/")[2]
        self.server.answers.put((kind, json.loads(body) if body else None))
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def function(folder, python, log):
    """The interface of a function in `folder` that has loaded, and the seconds that this took."""
    interface = RuntimeInterface()
    threading.Thread(target=interface.serve_forever, daemon=True).start()
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = kept | {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{interface.server_address[1]}",
        "LAMBDA_TASK_ROOT": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    start = time.monotonic()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [python, "-m", "awslambdaric", "function.handler"],
            **{"cwd": folder, "env": environment, "stdout": out, "stderr": subprocess.STDOUT},
        )
    interface.process = process.pid
    try:
        kind, said = interface.answers.get(timeout=300)
        yield interface, kind, said, time.monotonic() - start
    finally:
        process.kill()
        process.wait()
        interface.shutdown()
        interface.server_close()


def test_the_runtime_client_gets_the_answers_of_predict(small, folder, app, tmp_path):
    with function(folder, sys.executable, tmp_path / "log") as (interface, kind, said, _):
        assert kind == "asks", (said, (tmp_path / "log").read_text()[-2000:])

        def ask(event):
            while True:
                kind, answer = interface.invoke(event)
                while kind == "asks":
                    kind, answer = interface.answers.get(timeout=300)
                return kind, answer

        for event in SENDERS:
            kind, answer = ask(event("POST", "/predict", {"rows": small.rows[:200]}))
            status, answer = read(answer)
            assert (kind, status) == ("response", 200), event
            assert np.abs(told(small, answer["predictions"]) - small.answers[:200]).max() < 1e-6
        served = TestClient(app).post("/predict", json=small.rows[:20]).json()["predictions"]
        for row, expected in zip(small.rows[:20], served, strict=True):
            (one,) = read(ask(url_event("POST", "/predict", row))[1])[1]["predictions"]
            assert one | {"id": ""} == expected | {"id": ""}
        kind, said = ask({"Records": []})
        assert kind == "error" and "no HTTP request" in said["errorMessage"]
        assert read(ask(url_event("GET", "/readyz"))[1])[0] == 200
        page = ask(url_event("GET", "/docs", headers={"accept": "text/html"}))[1]
        assert page["statusCode"] == 200 and "</html>" in page["body"]


def test_a_touched_release_starts_no_function(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "function")
    path = next(copy.glob("release/*/contract.json"))
    path.chmod(0o644)
    path.write_text(path.read_text() + " ")
    with function(copy, sys.executable, tmp_path / "log") as (_, kind, said, _):
        assert kind == "error" and "contract.json was edited" in said["errorMessage"]


def test_a_failed_release_becomes_no_function(small, tmp_path):
    bad = sealed(small, tmp_path, FAILED)
    with pytest.raises(Refused, match="roc_auc"):
        render_function(bad.settings, bad.folder)
    assert not any(bad.settings.resolve(".").glob("functions/*/*"))


def test_the_folder_holds_what_it_needs_and_no_more(folder, small):
    names = {path.name for path in folder.iterdir()} - {"__pycache__"}  # of a function that ran
    assert names == {
        *("function.py", "Dockerfile", "requirements.txt", "service.json", "release", "prodml"),
    }
    packages = [line.split("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    assert {"onnxruntime", "mangum", "awslambdaric"} <= set(packages)
    assert not {"bentoml", "pandas", "scikit-learn", "xgboost", "uvicorn"} & set(packages)
    docker = (folder / "Dockerfile").read_text()
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim" in docker
    assert "$" not in docker and (folder.parent / ".gitignore").read_text() == "*\n"
    assert service_app(folder).serve.log == "" and service_app(folder).serve.gauge is False


@pytest.mark.slow
def test_its_requirements_are_all_it_needs(small, folder, tmp_path):
    """In an environment of `requirements.txt` and nothing else, the runtime client is answered."""
    python = required(tmp_path / "venv", ["-r", folder / "requirements.txt", "--no-deps"])
    for _ in range(2):  # once more with the code compiled
        with function(folder, python, tmp_path / "log") as (interface, kind, said, seconds):
            assert kind == "asks", (said, (tmp_path / "log").read_text()[-2000:])
            start = time.monotonic()
            kind, answer = interface.invoke(url_event("POST", "/predict", small.rows[:100]))
            first = time.monotonic() - start
            assert kind == "response" and read(answer)[0] == 200
            found = told(small, read(answer)[1]["predictions"])
            assert np.abs(found - small.answers[:100]).max() < 1e-6
            memory = Path(f"/proc/{interface.process}/status")
            most = memory.read_text().split("VmHWM:")[1].split()[0] if memory.exists() else "nan"
    told_at = f"loaded in {seconds:.2f} s, first answer in {first * 1000:.1f} ms"
    print(f"{told_at}, {float(most) / 1024:.0f} MB of memory")


# Mounting -----------------------------------------------------------------------------------------


def fastapi_parent(app):
    parent = FastAPI()
    parent.mount("/model", app)
    parent.get("/own")(lambda: {"own": True})
    return parent


def starlette_parent(app):
    return Starlette(routes=[Mount("/api", routes=[Mount("/model", app=app)])])


@pytest.mark.parametrize(("parent", "at"), [(fastapi_parent, ""), (starlette_parent, "/api")])
def test_a_mounted_model_answers_below_its_path(small, app, parent, at):
    with TestClient(parent(app)) as client:  # the parent starts and stops
        answer = client.post(f"{at}/model/predict", json=small.rows[:200])
        assert answer.status_code == 200
        found = told(small, answer.json()["predictions"])
        assert np.abs(found - small.answers[:200]).max() < 1e-6
        assert client.get(f"{at}/model/metadata").json()["classes"]
        assert client.get(f"{at}/model/readyz").status_code == 200
        assert client.post(f"{at}/model/predict", json={"age": "x"}).status_code == 422
        assert client.get(f"{at}/model/nowhere").json()["error"]["code"] == "no_such_path"
        assert client.post("/predict", json=small.rows[:1]).status_code == 404
        page = client.get(f"{at}/model/docs")
        assert page.status_code == 200 and "text/html" in page.headers["content-type"]
        described = client.get(f"{at}/model/openapi.json")
        server_at = urllib.parse.urljoin(str(described.url), described.json()["servers"][0]["url"])
        assert client.post(f"{server_at}predict", json=small.rows[0]).status_code == 200
        named = re.findall(r'(?:fetch\(|href=|src=)"([^"#:]+)"', page.text)
        assert {"predict", "openapi.json"} <= set(named), "the page asks its own server"
        found = [client.get(urllib.parse.urljoin(str(page.url), name)) for name in named]
        assert {one.status_code for one in found} <= {200, 405}, named
    if at == "":
        assert client.get("/own").json() == {"own": True}
        assert "/model" not in json.dumps(client.get("/openapi.json").json())
    bare = TestClient(parent(app))  # nobody says that anything starts
    assert bare.post(f"{at}/model/predict", json=small.rows[:1]).status_code == 200


def test_what_build_made_mounts_with_all_that_its_settings_ask_for(small, folder, tmp_path):
    service = shutil.copytree(small.settings.root / "services" / folder.name, tmp_path / "service")
    file = service / "service.json"
    told = json.loads(file.read_text())
    told["serve"] |= {"log": str(tmp_path / "log"), "max_rows": 3}
    file.write_text(json.dumps(told))
    assert service_app(service).serve.log == "", "a function's disk vanishes"
    app = service_app(service, lasting=True)
    client = TestClient(fastapi_parent(app))
    assert client.post("/model/predict", json=small.rows[:4]).status_code == 413
    (one,) = client.post("/model/predict", json=small.rows[0]).json()["predictions"]
    close_app(app)
    assert list(read_predictions(tmp_path / "log")["id"]) == [one["id"]]


@pytest.mark.parametrize("told", [True, False])
def test_what_runs_beside_a_mounted_model_is_started(small, tmp_path, told):
    """Whether somebody says that the server starts or not; once, and ended when it is told so."""
    app = create_app(small.folder, **checks(small.settings), pointer=tmp_path / "current")
    assert app.follower.every <= 1, "a change is followed within two seconds"
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(TestClient(app)) if told else TestClient(fastapi_parent(app))
        path = "/predict" if told else "/model/predict"
        assert app.follower.thread.is_alive() is told
        assert {client.post(path, json=small.rows[0]).status_code for _ in range(3)} == {200}
        assert app.follower.thread.is_alive()
    if not told:
        close_app(app)
    app.follower.thread.join(60)
    assert not app.follower.thread.is_alive()


@pytest.mark.filterwarnings("ignore:The `root_path`")
def test_a_proxys_prefix_is_respected(small, app):
    client = TestClient(fastapi_parent(app), root_path="/behind/proxy")
    answer = client.post("/model/predict", json=small.rows[:3])
    assert answer.status_code == 200 and len(answer.json()["predictions"]) == 3
    fast = FastAPI(root_path="/behind/proxy")  # as one does where the proxy takes the prefix off
    fast.mount("/model", app)
    for path in ("/model/predict", "/behind/proxy/model/predict"):
        assert TestClient(fast).post(path, json=small.rows[:3]).status_code == 200, path
    alone = TestClient(app, root_path="/behind")
    assert alone.post("/behind/predict", json=small.rows[0]).status_code == 200
    assert alone.post("/predict", json=small.rows[0]).status_code == 200


@pytest.mark.parametrize("prefix", ["", "/behind"])
def test_a_mounted_model_runs_in_uvicorn(small, tmp_path, prefix):
    code = f"""
from fastapi import FastAPI
from prodml.serve.app import close_app, create_app
parent = FastAPI()
parent.mount("/model", create_app({str(small.folder)!r}, **{checks(small.settings)!r}))
parent.get("/readyz")(lambda: "ready")
"""
    (tmp_path / "parent.py").write_text(code)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "parent:parent", "--port", port]
    command += ["--root-path", prefix] if prefix else []
    with server(command, port, tmp_path / "log", cwd=tmp_path) as url:
        answer = httpx.post(f"{url}/model/predict", json=small.rows[:300], timeout=120)
        assert httpx.get(f"{url}/model/livez", timeout=120).status_code == 200
    found = told(small, answer.json()["predictions"])
    assert answer.status_code == 200 and np.abs(found - small.answers[:300]).max() < 1e-6
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_nothing_of_the_function_is_loaded_by_the_server():
    code = "import sys, prodml.serve.app; print('mangum' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False" and Path(sys.executable).exists()
