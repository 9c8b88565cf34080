"""The whole life of a model, once, with real processes: nothing here is mended by hand.

serve -> log -> outcomes -> monitor -> retrain -> compare -> promote -> hot swap -> monitor.
"""

import itertools
import json
import threading
import time
import urllib.request

import pandas as pd
import pytest
from conftest import ROOT
from processes import BIN, free_port, post, prodml, server, until

from prodml.demo import stream

WINDOW = 4.0  # seconds: a period of the monitor, which is a day or a month elsewhere
SETTINGS = f"""
[monitor]
period = {WINDOW:g}s
looks = 60
reports = drift, performance
[retrain]
on = performance, drift
minimum_labels = 500
window = 110
"""
LEFT_OUT = ("[monitor]", "[retrain]", "[behaviour.")  # what was sure of the world before it changed


def changed(text):
    """The demo's settings: the log kept, a monitor's day of a few seconds, little made twice."""
    kept, skip = [], False
    for line in text.splitlines():
        if line.startswith("["):
            skip = line.startswith(LEFT_OUT)
        if not skip:
            kept.append(line)
    text = "\n".join(kept).replace(";log = predictions", "log = predictions")
    text = text.replace("[limits]", "[limits]\nrequired = correctness, drift")
    text = text.replace("candidates = linear, forest, xgboost", "candidates = linear")
    text = text.replace("source = demo ", "source = rows.csv\nsince = 2024-07-01 ")
    return text + SETTINGS


def told(done, *codes):
    """What a command answered in JSON, its exit code one of `codes`."""
    assert done.returncode in codes, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    return json.loads(done.stdout)


def sent(url, rows, features):
    """Nothing; the rows were asked about, in requests of a hundred, and their outcomes told."""
    for start in range(0, len(rows), 100):
        part = rows.iloc[start : start + 100]
        asked = json.loads(part[["application_id", *features]].to_json(orient="records"))
        status, answer = post(f"{url}/predict", asked)
        assert status == 200 and len(answer["predictions"]) == len(part), answer
        pairs = zip(part["application_id"], part["default"], strict=True)
        outcomes = [{"id": name, "label": label} for name, label in pairs]
        assert post(f"{url}/feedback", outcomes)[0] == 202


def windows(url, rows, features, many):
    """Nothing; the rows were sent in `many` periods of the monitor."""
    size = len(rows) // many
    for number in range(many):
        began = time.monotonic()
        sent(url, rows.iloc[number * size : (number + 1) * size], features)
        time.sleep(max(0.0, WINDOW - (time.monotonic() - began)))


def follows(url, release):
    """Whether the server comes to answer with `release`; in two seconds, if it is not busy."""
    return until(lambda: served(url) == release)


def served(url):
    with urllib.request.urlopen(f"{url}/metadata", timeout=120) as reply:
        return json.load(reply)["release"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    place = tmp_path_factory.mktemp("cycle")
    stream(rows=3000).to_csv(place / "rows.csv", index=False)
    text = changed((ROOT / "settings.ini").read_text())
    (place / "settings.ini").write_text(text)
    made = told(prodml("run", "--json", cwd=place), 0)
    told(prodml("promote", "latest", "--reason", "the first of its kind", "--json", cwd=place), 0)
    return place, made


@pytest.mark.slow
def test_a_model_is_watched_replaced_and_watched_again(project, tmp_path):
    place, made = project
    first, port = made["release"].rpartition("/")[2], free_port()
    contract = json.loads((place / made["release"] / "contract.json").read_text())
    features = [c["name"] for c in contract["columns"] if c["role"] == "feature"]
    calm = stream(months=range(6, 12), seed=99, rows=2000).assign(
        application_id=lambda rows: "calm-" + rows["application_id"]
    )
    late = stream(months=range(20, 24), seed=99, rows=2000)
    failures, stop = [], threading.Event()

    def ask_all_the_time(url):
        rows = late.tail(4000).sample(frac=1, random_state=0)  # one row again and again would drift
        for row in itertools.cycle(json.loads(rows[features].to_json(orient="records"))):
            status, answer = post(f"{url}/predict", row)
            if status != 200:
                failures.append(answer)
            if stop.wait(0.02):
                return

    command = [BIN / "prodml", "serve", "--port", port]
    with server(command, port, tmp_path / "serve.log", cwd=place) as url:
        assert served(url) == first
        since = pd.Timestamp.now("UTC").tz_localize(None).isoformat()
        windows(url, calm, features, 3)
        time.sleep(WINDOW + 1.5)
        looked = told(prodml("monitor", "--json", "--since", since, cwd=place), 0, 3)
        assert looked["release"] == first and looked["rows"] > 1000 and not looked["alarms"], looked

        windows(url, late, features, 4)
        time.sleep(WINDOW + 1.5)
        looked = told(prodml("monitor", "--json", cwd=place), 1)
        assert looked["alarms"], looked

        watcher = threading.Thread(target=ask_all_the_time, args=[url], daemon=True)
        watcher.start()
        retrained = told(prodml("retrain", "--json", "--as-of", "2026-01-01", cwd=place), 0)
        assert retrained["promoted"], retrained
        second = retrained["attempt"]["release"]
        assert follows(url, second) and second != first
        stop.set()
        watcher.join()
        assert not failures
        history = told(prodml("history", "--json", cwd=place), 0)["entries"]
        assert [one["after"] for one in history] == [first, second]
        assert history[1]["author"] == "prodml retrain" and "gain" in history[1]["reason"]

        windows(url, late.tail(4000), features, 1)
        time.sleep(WINDOW + 1.5)
        looked = told(prodml("monitor", "--json", "--since", since, cwd=place), 0, 3)
        assert looked["release"] == second and not looked["alarms"], looked

        told(prodml("rollback", "--reason", "to see that it can be", "--json", cwd=place), 0)
        assert follows(url, first)
