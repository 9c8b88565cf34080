"""What is counted, over several workers and over their deaths, and how Prometheus reads it."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from services import program
from small import even_chances, small_contract

from prodml.contract import check_rows
from prodml.gates.reference import reference_profile
from prodml.serve import tally as tally_page
from prodml.serve.families import folded
from prodml.serve.metrics import STAGES, Metrics, Observers, Visit, metrics_route
from prodml.serve.scorer import score
from prodml.serve.tally import Tally, add, merge_dead, pack, shared_folder, unpack
from prodml.serve.wire import Request
from prodml.settings import Serve

ODD = 'a "quoted" name\nwith \\ and ünïcode'
CONTRACT = small_contract(ODD)
SCORER = even_chances(CONTRACT)


def watching(scorer, serve):
    own = Observers(serve)
    own.follow(scorer, None)
    own.metrics.paths = {"/predict"}
    return own


def draw(rows, seed=0):
    g = np.random.default_rng(seed)
    ages = g.integers(18, 90, rows)
    return pd.DataFrame({"age": ages, ODD: g.choice(["clerk", "farmer"], rows)})


def with_profile(folder):
    """The scorer of a release in `folder` that holds a profile."""
    told = np.full((2000, 2), 0.5)
    kept = reference_profile(CONTRACT, draw(2000), draw(2000), told)
    (folder / "profile.bin").write_bytes(kept.to_bytes())
    return replace(SCORER, folder=folder)


def answered(rows, seed=0):
    return score(SCORER, check_rows(CONTRACT, draw(rows, seed).to_dict("records")))


def shown(own):
    """{(name, sorted labels): value} of all that `/metrics` shows, read by Prometheus' parser."""
    reply = metrics_route(own)(Request("GET", "/metrics", "", {}, b""))
    assert reply.status == 200 and reply.media.startswith("text/plain; version=0.0.4")
    text = reply.body.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("prodml_") and family.documentation
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def total(found, name, /, **labels):
    wanted = set(labels.items())
    return sum(v for (n, *of), v in found.items() if n == name and wanted <= set(of))


@pytest.fixture
def busy(tmp_path):
    """Observers that have seen something of everything."""
    own = watching(with_profile(tmp_path), Serve(log=str(tmp_path / "log")))
    own.recorder(answered(500))
    own.recorder(score(SCORER, check_rows(CONTRACT, [{"age": 500, ODD: "pilot"}])))
    for stage in STAGES[:-1]:
        own.metrics.observe(stage, 0.0003)
    own.metrics.end(Visit("/predict", 200, "", 0.0004, {}))
    own.metrics.end(Visit("/predict", 422, "rows_refused", 0.0004, {"wrong_type": 3}))
    own.metrics.end(Visit("/wp-login", 404, "no_such_path", 0.0001, {}))
    own.recorder.settle()
    yield own
    own.close()


def test_everything_counted_is_shown(busy):
    found = shown(busy)
    assert total(found, "prodml_requests_total", path="/predict", status="200") == 1
    assert total(found, "prodml_requests_total", path="other", status="404") == 1
    assert total(found, "prodml_refusals_total", code="rows_refused") == 1
    assert total(found, "prodml_problems_total", code="wrong_type", outcome="refused") == 3
    assert total(found, "prodml_problems_total", code="unseen_level", outcome="answered") == 1
    assert total(found, "prodml_rows_total", release="release-1", arm="champion") == 501
    assert total(found, "prodml_stage_seconds_count", stage="parse") == 1
    assert total(found, "prodml_stage_seconds_sum", stage="parse") == pytest.approx(0.0003)
    assert total(found, "prodml_score_count") == 501 and total(found, "prodml_score_sum") == 250.5
    assert total(found, "prodml_score_bucket", le="0.5") == 501
    assert total(found, "prodml_score_bucket", le="0.45") == 0
    assert total(found, "prodml_log_rows_total", what="predictions") == 501
    assert total(found, "prodml_log_bytes_total") > 10_000
    assert total(found, "prodml_log_folder_bytes") == total(found, "prodml_log_bytes_total")
    assert total(found, "prodml_drift_rows", window="hour", column="age") == 501
    assert total(found, "prodml_drift", window="total", column=ODD) < 0.05
    assert total(found, "prodml_drift_floor", window="total", column=ODD) > 0
    assert total(found, "prodml_memory_bytes") > 1e7 and total(found, "prodml_workers") == 1
    assert total(found, "prodml_release_info", release="release-1", name="credit") == 1
    assert total(found, "prodml_recorder_failures_total") == 0
    assert not any("wp-login" in str(key) for key in found)


def test_the_table_of_the_lesson_names_what_is_shown(busy):
    """What the page on metrics promises is there, and what is there is promised."""
    page = Path(__file__).parents[1] / "nbs/serve/540_metrics.ipynb"
    cells = json.loads(page.read_text())["cells"]
    table = "".join(next(c["source"] for c in cells if "| what it says |" in "".join(c["source"])))
    lines = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    promised = {
        name.partition("{")[0]
        for line in lines
        for name in line.replace("`", "").split(", ")
        if "}" not in name or "{" in name
    }
    text = metrics_route(busy)(Request("GET", "/metrics", "", {}, b"")).body.decode()
    there = {
        line.split()[2].removeprefix("prodml_") for line in text.splitlines() if "# TYPE" in line
    }
    assert {name.strip() for name in promised} == there


def test_promtool_has_nothing_to_say(busy):
    text = metrics_route(busy)(Request("GET", "/metrics", "", {}, b"")).body
    run = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True)
    assert (run.returncode, run.stdout + run.stderr) == (0, b"")


def test_without_metrics_nothing_is_counted_off_the_path(tmp_path):
    scorer = with_profile(tmp_path)
    own = watching(scorer, Serve(log=str(tmp_path / "log"), metrics=False))
    own.recorder(answered(5))
    own.close()
    assert (
        not own.gauge.counts and not own.metrics.rows and own.log.written.rows["predictions"] == 5
    )
    quiet = watching(scorer, Serve(metrics=True, gauge=False))
    quiet.recorder(answered(5))
    quiet.close()
    assert {key[0] for key in quiet.gauge.counts} == {"score"} and quiet.log is None


@settings(max_examples=100)
@given(st.lists(st.floats(0, 5000), max_size=50))
def test_times_fall_into_buckets_that_prometheus_can_add(seconds):
    metrics = Metrics()
    for one in seconds:
        metrics.observe("whole", one)
    shown = folded(metrics.times["whole"])
    assert sum(shown) == len(seconds)
    for power in range(3, 25):
        inside = sum(math.floor(one * 1e6) < 2**power for one in seconds)
        assert sum(shown[: power - 2]) == inside


def test_observing_costs_little():
    """Not a benchmark: only that nobody puts a lock or a dictionary of labels there."""
    metrics, many = Metrics(), 20_000
    begin = time.process_time()
    for _ in range(many):
        metrics.observe("parse", 0.0003)
    assert (time.process_time() - begin) / many < 10e-6


# Several workers.


WORKER = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from test_metrics import SCORER, Visit, answered, watching
    from prodml.settings import Serve

    own = watching(SCORER, Serve(workers=2))
    number = int(sys.argv[1])
    for i in range(number):
        own.recorder(answered(1))
        own.metrics.end(Visit("/predict", 200, "", 0.0004, {{}}))
    own.in_hand = range(number)
    own.recorder.settle()
    print("ready", flush=True)
    sys.stdin.read()
"""


def worker(number, folder):
    code = textwrap.dedent(WORKER).format(tests=str(Path(__file__).parent))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(number)],
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
        env=os.environ | {"PRODML_METRICS": str(folder)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_any_worker_tells_of_all_and_the_dead_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODML_METRICS", str(tmp_path))
    own = watching(SCORER, Serve(workers=2))
    workers = [worker(number, tmp_path) for number in (3, 5)]
    try:
        found = shown(own)
        assert total(found, "prodml_requests_total") == total(found, "prodml_rows_total") == 8
        assert total(found, "prodml_stage_seconds_count", stage="whole") == 8
        assert total(found, "prodml_workers") == 3 and total(found, "prodml_in_flight") == 8
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait()
        found = shown(own)
        assert (
            total(found, "prodml_requests_total") == 8 and total(found, "prodml_score_count") == 8
        )
        assert total(found, "prodml_workers") == 2 and total(found, "prodml_in_flight") == 5
        workers[1].stdin.close()  # ends well
        workers[1].wait()
        found = shown(own)
        assert total(found, "prodml_requests_total") == 8 and total(found, "prodml_workers") == 1
        assert merge_dead(tmp_path, most=0) == 2
        assert total(shown(own), "prodml_requests_total") == 8
    finally:
        own.close()
        for process in workers:
            process.kill()
            process.wait()


def test_no_sum_is_smaller_than_one_before_while_workers_come_and_go(tmp_path):
    """Readers, writers, deaths and mergers at once; every sum that is seen only grows."""
    code = """
        import random, sys, time
        from pathlib import Path
        import numpy as np
        from prodml.serve.tally import Tally, merge_dead
        folder, generator = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
        end = time.monotonic() + 2.5
        count = 0
        while time.monotonic() < end:
            tally = Tally(folder)
            own = 0
            for _ in range(generator.randrange(1, 8)):
                own += 1
                count += 1
                tally.publish({("n",): np.array([float(own)])}, {})
            tally.close()
            merge_dead(folder, most=3)
        print(count)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    writers = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(2)
    ]
    reader, seen = Tally(tmp_path), [0.0]
    while any(process.poll() is None for process in writers):
        reader.publish({}, {})
        totals, _ = reader.read()
        seen.append(float(totals.get(("n",), np.zeros(1))[0]))
    counts = [int(process.communicate()[0]) for process in writers]
    assert all(process.returncode == 0 for process in writers)
    falls = [(a, b) for a, b in pairwise(seen) if b < a]
    assert not falls and len(seen) > 20
    assert float(reader.read()[0][("n",)][0]) == sum(counts) > 100
    reader.close()
    assert len(list(tmp_path.glob("*.tally"))) < 12


def test_a_folder_that_is_not_ours_alone_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = shared_folder("release")
    folder.rmdir()
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="alone"):
        shared_folder("release")
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="alone"):
        shared_folder("release")
    own = watching(SCORER, Serve(workers=4))
    assert total(shown(own), "prodml_workers") == 1
    own.close()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_folders_of_servers_that_ended_are_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = shared_folder("release")
    gone = tmp_path / f"{ours.name.split('-')[0]}-{ours.name.split('-')[1]}-999999999-5-release"
    reused = tmp_path / f"{'-'.join(ours.name.split('-')[:3])}-1-release"
    for folder in (gone, reused):
        folder.mkdir()
    stranger = tmp_path / "prodml-somebody-else"
    stranger.mkdir()
    assert shared_folder("release") == ours
    assert not gone.exists() and not reused.exists() and stranger.exists()


def test_a_full_disk_shows_the_worker_s_own_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODML_METRICS", str(tmp_path))
    own = watching(SCORER, Serve())
    own.metrics.end(Visit("/predict", 200, "", 0.1, {}))
    assert total(shown(own), "prodml_requests_total") == 1

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tally_page.Path, "write_bytes", full)
    own.metrics.end(Visit("/predict", 200, "", 0.1, {}))
    assert total(shown(own), "prodml_requests_total") == 2
    own.recorder.settle()
    assert own.recorder.failed == 1
    monkeypatch.undo()
    own.close()


KEYS = st.lists(st.text(max_size=5), min_size=1, max_size=3).map(tuple)
TOTALS = st.dictionaries(KEYS, st.lists(st.floats(0, 1e9), min_size=1, max_size=4), max_size=5)


@settings(max_examples=100)
@given(TOTALS, st.dictionaries(KEYS, st.floats(-1e9, 1e9), max_size=3))
def test_what_is_packed_is_unpacked(found, levels):
    totals = {key: np.array(value, float) for key, value in found.items()}
    again, told, _ = unpack(pack(totals, levels))
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in totals.items()}
    assert told == levels
    add(again, totals)
    assert all(again[key].tolist() == (2 * totals[key]).tolist() for key in totals)


def test_a_page_is_quick_enough_for_the_event_loop(busy):
    """Not a benchmark: the page is made between two requests, so it must not take long."""
    shown(busy)
    begin = time.process_time()
    for _ in range(5):
        metrics_route(busy)(Request("GET", "/metrics", "", {}, b""))
    assert (time.process_time() - begin) / 5 < 0.1


def test_counters_only_know_names_of_ours(busy):
    text = metrics_route(busy)(Request("GET", "/metrics", "", {}, b"")).body.decode()
    types = Counter(line.split()[3] for line in text.splitlines() if line.startswith("# TYPE"))
    assert set(types) == {"counter", "gauge", "histogram"}
