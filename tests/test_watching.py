"""A service that is watched, as it runs: two workers, a log, real Prometheus, kills and a stop."""

import datetime as dt
import json
import os
import re
import shutil
import signal
import time
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from processes import BIN, eventually, free_port, post, server, until
from prometheus_client.parser import text_string_to_metric_families
from released import released
from services import program, running
from test_workers import workers

from prodml.files import template_path
from prodml.release.apart import stale_at
from prodml.release.attestation import FILE, Refused, attest, public_pem, signing_key, verify
from prodml.serve.answers import labelled_predictions, read_predictions
from prodml.serve.build import render_service
from prodml.serve.families import COUNTERS, LEVELS
from prodml.serve.function import service_app
from prodml.serve.metrics import DRIFT
from prodml.serve.wire import Request
from prodml.settings import Limits, Serve, Settings, Waiver
from prodml.verdict import GateResult, judge


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    serve = Serve(workers=2, log="log", log_flush=0.5)
    return released(tmp_path_factory.mktemp("small"), profiled=True, serve=serve)


@pytest.fixture
def service(small, tmp_path):
    """(port, URL, the log's folder, a function that stops the server) of two workers."""
    folder, port = render_service(small.settings, small.folder), free_port()
    command = [BIN / "bentoml", "serve", "--host", "127.0.0.1", "--port", port]
    environment = {"BENTOML_HOME": str(tmp_path), "PRODML_ROOT": str(tmp_path)}
    ending = server(command, port, tmp_path / "output", environment, folder)
    url, ended = ending.__enter__(), []

    def stop():
        if not ended:
            ended.append(True)
            ending.__exit__(None, None, None)

    yield port, url, tmp_path / "log", stop
    stop()
    shutil.rmtree(folder, ignore_errors=True)


def shown(url):
    """{(name, labels): value} of all that `/metrics` shows."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=120) as reply:
        text = reply.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}


def total(found, name, /, **labels):
    return sum(v for (n, *of), v in found.items() if n == name and set(labels.items()) <= set(of))


def ask(small, url, many, start=0, **changed):
    """The ids of so many rows, asked for one by one, each over a connection of its own."""
    ids = []
    for i in range(start, start + many):
        status, answer = post(f"{url}/predict", small.rows[i % len(small.rows)] | changed)
        assert status == 200
        ids.append(answer["predictions"][0]["id"])
    return ids


def living(url):
    """The numbers of the processes whose memory is told."""
    return {dict(of)["worker"] for name, *of in shown(url) if name == "prodml_memory_bytes"}


@pytest.mark.slow
def test_a_service_is_watched_through_kills_and_to_its_end(small, service):
    port, url, log, stop = service
    first = ask(small, url, 200)
    assert post(f"{url}/predict", [{"age": "x"}])[0] == 422

    def published():
        one = shown(url)
        assert total(one, "prodml_rows_total") == total(one, "prodml_score_count") == 200
        assert total(one, "prodml_requests_total", path="/predict", status="422") == 1
        assert total(one, "prodml_refusals_total", code="rows_refused") == 1
        assert total(one, "prodml_workers") == 2
        assert total(one, "prodml_log_rows_total", what="predictions") == 200
        assert total(one, "prodml_drift_rows", window="hour", column="age") == 200
        for stage in ("parse", "validate", "predict", "log", "encode"):
            assert total(one, "prodml_stage_seconds_count", stage=stage) >= 200, stage

    eventually(published)  # they are, once a second
    for _ in range(6):  # whichever worker is asked
        published()
    killed = workers(port)[0].pid
    os.kill(killed, signal.SIGKILL)
    assert until(lambda: len(living(url) - {str(killed)}) == 2)
    second = ask(small, url, 100, start=200)
    outcomes = [
        {"id": name, "label": small.contract.classes[i % 2]} for i, name in enumerate(second)
    ]
    assert post(f"{url}/feedback", outcomes) == (202, {"taken": 100})
    assert post(f"{url}/feedback", {"id": "a", "label": "perhaps"})[0] == 422

    def still():
        one = shown(url)
        assert total(one, "prodml_rows_total") == 300 and total(one, "prodml_workers") == 2

    eventually(still)
    third = ask(small, url, 20, start=300)
    stop()
    frame = read_predictions(log)
    assert set(first + second + third) == set(frame["id"]) and frame["id"].is_unique
    told = labelled_predictions(log)
    assert told["label"].notna().sum() == 100 and told.attrs["orphans"] == 0
    names = [column.name for column in small.contract.features]
    assert set(names) <= set(frame.columns) and set(frame["release"]) == {small.folder.name}
    answers = dict(zip(first, small.answers[:200, 1], strict=True))
    logged = frame.set_index("id").loc[first, f"prediction:{small.contract.classes[1]}"]
    assert max(abs(logged[name] - answers[name]) for name in first) < 1e-6


def expressions():
    """(place, expression) of every query of the dashboard and of every alarm."""
    board = json.loads(template_path("deploy/grafana/served.json").read_text())
    found = [(p["title"], t["expr"]) for p in board["panels"] for t in p["targets"]]
    groups = yaml.safe_load(template_path("deploy/prometheus/rules.yml").read_text())["groups"]
    return found + [(rule["alert"], rule["expr"]) for one in groups for rule in one["rules"]]


def test_the_end_of_the_evidence_is_told_beforehand(small):
    folder = render_service(small.settings, small.folder)
    told = service_app(folder).routes["GET", "/metrics"](Request("GET", "/metrics", "", {}, b""))
    (line,) = re.findall(r"^prodml_evidence_stale\S+ (\S+)$", told.body.decode(), re.M)
    days = small.settings.release.max_age_days
    assert -3600 < float(line) - time.time() - days * 86400 < 60
    shutil.rmtree(folder)


def test_evidence_that_needs_a_waiver_ends_with_it(tmp_path):
    """Told is the second from which `verify` refuses."""
    failed = GateResult("fairness", (judge("rate", 0.5, 0.4, 0.6, 0.1, "max", 900),))
    passed = GateResult("drift", (judge("rate", 0, 0, 0.1, 0.3, "max", 900),))
    today = dt.datetime.now(dt.UTC).date()
    waivers = [Waiver("drift", "not needed", "Ada", today)]
    waivers += [Waiver("fairness", "small", "Ada", today + dt.timedelta(n)) for n in (3, 5)]
    limits = replace(Limits(), required=("fairness", "drift"))
    settings = Settings(root=tmp_path, limits=limits, waivers=tuple(waivers))
    (tmp_path / "data.json").write_text('{"digest": "00"}')
    key = signing_key(settings)
    (tmp_path / FILE).write_text(attest(tmp_path, [failed, passed], settings, key))
    end = dt.datetime.fromtimestamp(stale_at(tmp_path, 90), dt.UTC)
    assert end.date() == today + dt.timedelta(6)
    verify(tmp_path, [public_pem(key)], now=end - dt.timedelta(seconds=1))
    with pytest.raises(Refused, match="fairness"):
        verify(tmp_path, [public_pem(key)], now=end)
    assert stale_at(tmp_path, 1) < end.timestamp()


def test_the_dashboard_and_the_alarms_ask_for_what_is_there():
    counters = {f"prodml_{name}_total" for name in COUNTERS}
    single = "workers", "release_info", "evidence_stale_timestamp_seconds"
    plain = {f"prodml_{name}" for name in (*LEVELS, *DRIFT, *single)}
    parts = ("bucket", "sum", "count")
    histograms = {f"prodml_{n}_{part}" for n in ("stage_seconds", "score") for part in parts}
    for place, expression in expressions():
        names = set(re.findall(r"prodml_\w+", expression))
        assert names and names <= counters | plain | histograms, place


@pytest.mark.slow
def test_prometheus_answers_every_question_of_the_dashboard(small, service, tmp_path):
    binary, port = program("prometheus"), free_port()
    _, url, _, _ = service
    rules = template_path("deploy/prometheus/rules.yml")
    target = {"targets": [url.removeprefix("http://")]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "prodml", "static_configs": [target]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [binary, f"--config.file={tmp_path}/prometheus.yml"]
    command += [f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    with running(command, port, tmp_path / "prometheus.log"):

        def query(expression):
            plain = expression.replace("$__rate_interval", "10s")
            asked = urllib.parse.urlencode({"query": plain})
            address = f"http://127.0.0.1:{port}/api/v1/query?{asked}"
            with urllib.request.urlopen(address, timeout=120) as reply:
                told = json.load(reply)
            assert told["status"] == "success", expression
            return told["data"]["result"]

        quiet = {
            "RowsBreakTheContract",
            "EvidenceGrowsStale",
            "LogLosesRows",
            "PredictionsFail",
            "PredictionsSlow",
        }

        def answered():
            ask(small, url, 20, age=90)
            post(f"{url}/predict", [{"age": "x"}])
            for place, expression in expressions():
                found = query(expression)
                assert found or place in quiet or "dropped" in expression, place
            moved = {one["metric"]["column"] for one in query(dict(expressions())["RowsDrift"])}
            assert "age" in moved
            assert query('ALERTS{alertname="RowsDrift", column="age"}')

        eventually(answered)
    assert Path(rules).exists()
