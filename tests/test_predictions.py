"""The prediction log: what is on the disk after kills, full disks and strangers in the folder."""

import contextlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import until
from small import even_chances, small_contract

from prodml.contract import Column, Contract, check_rows
from prodml.serve import batches
from prodml.serve.answers import labelled_predictions, read_feedback, read_predictions
from prodml.serve.outcomes import BadOutcome, read_outcomes
from prodml.serve.predictions import PredictionLog, Recorder, is_logged
from prodml.serve.scorer import Answered, Scorer, score
from prodml.serve.segments import Segments, encode, salvage
from prodml.serve.single import Single
from prodml.serve.whole import Segment, whole_messages

CONTRACT = small_contract()
SCORER = even_chances(CONTRACT)


def answered(ids, scorer=SCORER):
    rows = [{"age": 20 + i % 50, "job": "clerk"} for i in range(len(ids))]
    return score(scorer, check_rows(scorer.contract, rows), ids)


READER = Single(CONTRACT)


def plain(ids, arm="champion"):
    """As `answered`, by the way of single rows that came together."""
    rows = [READER.read(b'{"age": %d, "job": "clerk"}' % (20 + i % 50)) for i in range(len(ids))]
    return replace(score(SCORER, READER.stack(rows), ids), arm=arm)


def ids(start, many):
    return [f"id-{i}" for i in range(start, start + many)]


WRITER = """
    import sys, time, os
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from test_predictions import plain
    from prodml.serve.predictions import PredictionLog, Recorder

    log = PredictionLog(Path(sys.argv[1]), flush=0.1, megabytes=100)
    recorder = Recorder([log], pause=0.025)
    worker, i = sys.argv[2], 0
    while True:
        recorder(plain([f"{{worker}}-{{i}}"]))
        i += 1
        print(i, log.written.rows["predictions"], flush=True)
        time.sleep(0.0005)
"""


def writer(folder, worker):
    code = textwrap.dedent(WRITER).format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", code, str(folder), worker]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def flushed(process, times):
    """(answers, rows written by then) that a writer told of after so many flushes."""
    seen, told = {0}, (0, 0)
    while len(seen) <= times:
        told = numbers_in(process.stdout.readline())
        seen.add(told[1])
    return told


def numbers_in(line):
    """(answers, rows written by then), of a whole line of a writer."""
    answers, written = line.split()
    return int(answers), int(written)


def last_seen(process, early):
    """What a killed writer told of last, the torn line left out; `early` if no whole line came."""
    *lines, _ = process.stdout.read().split("\n")
    return numbers_in(lines[-1]) if lines else early


def test_killed_at_any_moment_what_was_flushed_is_there_and_is_flushed_often(tmp_path):
    """Two workers in one folder, killed and started again, three times each."""
    told, generator = {}, random.Random(7)
    for turn in range(3):
        pair = {f"w{n}t{turn}": writer(tmp_path, f"w{n}t{turn}") for n in range(2)}
        early = {name: flushed(process, 2) for name, process in pair.items()}
        time.sleep(generator.random() / 2)
        for name, process in pair.items():
            process.send_signal(signal.SIGKILL)
            told[name] = last_seen(process, early[name])
            process.wait()
            assert told[name][0] >= told[name][1] >= early[name][1] > 0
    frame = read_predictions(tmp_path)
    assert frame["id"].is_unique and set(frame["prediction:yes"]) == {0.5}
    for name, (answers, written) in told.items():
        numbers = frame["id"][frame["id"].str.startswith(f"{name}-")].str.rpartition("-")[2]
        found = set(numbers.astype(int))
        assert found == set(range(len(found))), "a hole in the middle"
        assert written <= len(found), (name, answers, written, len(found))
    assert list(tmp_path.glob("*.part")), "kills leave open segments"
    assert salvage(tmp_path) > 0 and not list(tmp_path.glob("*.part"))
    pd.testing.assert_frame_equal(read_predictions(tmp_path), frame)


def test_a_segment_cut_or_spoilt_anywhere_gives_its_whole_messages(tmp_path):
    fields = {"id": "text", "age": "real"}
    parts = [
        encode(fields, {"id": ids(i, 3), "age": np.arange(3, dtype=np.float32)}, start=i == 0)
        for i in range(4)
    ]
    whole, ends = b"".join(parts), np.cumsum([len(part) for part in parts]).tolist()
    for cut in range(0, len(whole), 7):
        many, end = whole_messages(whole[:cut])
        kept = max([0, *(e for e in ends if e <= cut)])
        assert end >= kept and (end == kept or end < ends[0])  # or the schema alone
        if many > 1:
            rows = pa.ipc.open_stream(whole[:end]).read_all().num_rows
            assert rows == 3 * sum(e <= cut for e in ends)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_are_walked_without_a_fault(content):
    for start in (b"", b"\xff\xff\xff\xff\x10\x00\x00\x00"):
        many, end = whole_messages(start + content)
        assert 0 <= end <= len(start + content) and many >= 0


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=50)
@given(st.lists(st.tuples(TEXT, st.floats(width=32), st.floats()), min_size=1, max_size=20))
def test_what_is_encoded_is_what_pyarrow_reads(rows):
    texts, reals, numbers = zip(*rows, strict=True)
    columns = {"t": np.array(texts, object), "r": np.array(reals, "f4"), "n": np.array(numbers)}
    content = encode({"t": "text", "r": "real", "n": "number"}, columns, start=True)
    table = pa.ipc.open_stream(content).read_all()
    assert table["t"].to_pylist() == list(texts)
    np.testing.assert_array_equal(table["r"].to_numpy(), columns["r"])
    np.testing.assert_array_equal(table["n"].to_numpy(), columns["n"])


@contextlib.contextmanager
def file_limit(size):
    """No file may grow beyond `size` bytes in this process: what a full disk looks like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_drops_rows_says_so_once_and_ends(tmp_path, caplog):
    log = PredictionLog(tmp_path)
    recorder = Recorder([log])
    recorder(answered(ids(0, 10)))
    recorder.settle(last=False)
    log._due = 0
    with file_limit(next(tmp_path.iterdir()).stat().st_size + 100):  # a part of a message fits
        for start in (100, 200):
            recorder(answered(ids(start, 50)))
            log._due = 0
            recorder.settle(last=False)
    assert log.written.dropped == {("predictions", "full"): 100}
    recorder(answered(ids(300, 5)))
    recorder.close()
    assert log.written.rows["predictions"] == 15 and recorder.failed == 0
    found = read_predictions(tmp_path)["id"].tolist()
    assert sorted(found) == sorted(ids(0, 10) + ids(300, 5))
    said = [r.getMessage() for r in caplog.records if "logged" in r.getMessage()]
    full = f"rows are not logged: the disk of {tmp_path} is full"
    assert said == [full, "rows are logged again"]


def test_a_disk_that_is_really_full(tmp_path):
    """On a file system of 300 kB, where mounting is allowed."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", place])
    if made.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        log = PredictionLog(place / "log")
        filler = place / "filler"
        filler.write_bytes(b" " * 250_000)
        recorder = Recorder([log])
        for start in range(0, 5000, 1000):
            recorder(answered(ids(start, 1000)))
            recorder.settle()
        full = log.written.dropped["predictions", "full"]
        assert full > 0 and recorder.failed == 0
        filler.unlink()
        recorder(answered(ids(9000, 10)))
        recorder.close()
        assert len(read_predictions(place / "log")) == 5010 - full
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_folder_that_cannot_be_is_counted_until_it_can(tmp_path):
    place = tmp_path / "log"
    place.write_text("a file is in the way")
    log = PredictionLog(place)
    recorder = Recorder([log])
    recorder(answered(ids(0, 3)))
    recorder.settle()
    assert log.written.dropped == {("predictions", "unwritable"): 3}
    place.unlink()
    recorder(answered(ids(3, 3)))
    recorder.settle()
    assert read_predictions(place)["id"].tolist() == ids(3, 3) and recorder.failed == 0


def test_a_folder_removed_under_the_log_begins_again(tmp_path):
    place = tmp_path / "log"
    log = PredictionLog(place)
    for start in (0, 10):
        log.take(batches.gather([answered(ids(start, 3))])[0])
        log.flush()
        if start == 0:
            for path in place.iterdir():
                path.unlink()
            place.rmdir()
    assert read_predictions(place)["id"].tolist() == ids(10, 3)
    assert place.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in place.iterdir())


def test_the_folder_stays_within_its_bounds_whoever_writes(tmp_path):
    logs = [PredictionLog(tmp_path, megabytes=0.2) for _ in range(3)]
    for turn in range(30):
        for n, log in enumerate(logs):
            log.take(batches.gather([answered(ids(turn * 1000 + n * 100_000, 200))])[0])
            log._due = 0
            log.tick()
            assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 200_000
    assert sum(log.segments.deleted for log in logs) > 5
    newest = read_predictions(tmp_path)["id"].str.removeprefix("id-").astype(int) % 100_000
    assert newest.max() == 29_199 and newest.min() > 5_000


def test_a_living_segment_is_left_alone_and_a_dead_one_is_not(tmp_path):
    segment = Segment(tmp_path, "predictions-1-1")
    code = (
        "import sys; from pathlib import Path; from prodml.serve.segments import salvage;"
        "print(salvage(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, tmp_path]
    content = encode({"id": "text"}, {"id": ["a"]}, start=True)
    segment.append(content + encode({"id": "text"}, {"id": ["b"]}, start=False)[:-1])  # as if torn
    assert subprocess.check_output(command, text=True) == "0\n" and segment.path.exists()
    os.close(segment.handle)
    assert subprocess.check_output(command, text=True) == "1\n"
    assert (tmp_path / "predictions-1-1.arrows").read_bytes() == content


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["plain", "other", "look"]),
            st.sampled_from([1, 2, 7, 100, 127, 128, 129, 900, 1024, 1025, 3000]),
            st.sampled_from(["champion", "challenger"]),
        ),
        max_size=30,
    )
)
def test_every_row_that_waited_comes_out_once_as_it_went_in(turns):
    queue, went, came, start = batches.Queue(), Counter(), Counter(), 0

    def look():
        for batch in (batch for piece in queue.pieces() for batch in piece):
            told = batch.columns["age"], batch.prediction[:, 1], batch.at
            came.update((*row, batch.arm) for row in zip(batch.ids, *told, strict=True))
            assert set(batch.columns) == {"age", "job"}
            assert batch.columns["job"].tolist() == ["clerk"] * len(batch.ids)

    for kind, many, arm in turns:
        if kind == "look":
            look()
            continue
        one = plain(ids(start, many), arm) if kind == "plain" else answered(ids(start, many))
        start += many
        queue.put(one)
        rows = zip(one.ids, one.checked.columns["age"], one.prediction[:, 1], strict=True)
        went.update((*row, one.at, one.arm) for row in rows)
    look()
    assert came == went and queue.given == queue.taken == start


def test_threads_that_write_while_another_reads_lose_nothing():
    queue, came, ended = batches.Queue(), Counter(), threading.Event()

    def write(worker):
        for i in range(400):
            queue.put(plain([f"{worker}-{i}-{n}" for n in range(5)]))

    def read():
        while True:
            last = ended.is_set()
            for piece in queue.pieces():
                came.update(name for batch in piece for name in batch.ids)
            if last:
                return

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    reader.join()
    assert len(came) == 4 * 400 * 5 and set(came.values()) == {1}


def test_a_full_queue_drops_and_counts_and_never_waits(monkeypatch):
    monkeypatch.setattr(batches, "MOST_WAITING", 100)

    seen, free = Counter(), threading.Event()

    class Slow:
        def take(self, batch):
            free.wait(300)
            seen.update(batch.ids)

        def tick(self, last=False):
            pass

    recorder = Recorder([Slow()], pause=0.01)
    for start in range(0, 1000, 10):
        recorder(answered(ids(start, 10)))
    assert not seen, "who gives waits for the sink"
    free.set()
    recorder.close()
    assert sum(seen.values()) + recorder.waiting.dropped == 1000 and recorder.waiting.dropped >= 800
    assert recorder.waiting.given == recorder.waiting.taken


def test_a_sink_that_fails_stops_nobody(tmp_path, caplog):
    class Broken:
        def take(self, batch):
            raise RuntimeError("broken")

        def tick(self, last=False):
            raise RuntimeError("broken")

    log = PredictionLog(tmp_path)
    recorder = Recorder([Broken(), log], pause=0.01)
    recorder(answered(ids(0, 3)))
    assert until(lambda: recorder.failed >= 2)
    recorder.close()
    assert log.written.rows["predictions"] == 3 and recorder.failed >= 2
    assert len(caplog.records) < recorder.failed + 1 or recorder.failed < 4


def test_many_threads_may_answer(tmp_path):
    log = PredictionLog(tmp_path, flush=0.1)
    recorder = Recorder([log], pause=0.02)

    def answer(worker):
        for i in range(200):
            recorder(answered([f"{worker}-{i}"]))

    threads = [threading.Thread(target=answer, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    assert sorted(read_predictions(tmp_path)["id"]) == sorted(
        f"{n}-{i}" for n in range(4) for i in range(200)
    )


def test_a_sample_is_the_same_everywhere_and_has_its_share(tmp_path):
    names = ids(0, 4000)
    log = PredictionLog(tmp_path, sample=0.25)
    recorder = Recorder([log])
    for start in range(0, 4000, 500):
        recorder(answered(names[start : start + 500]))
    recorder.close()
    found = read_predictions(tmp_path)["id"].tolist()
    assert found == [name for name in names if is_logged(name, 0.25)]
    assert abs(len(found) - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75)
    assert set(found) <= {name for name in names if is_logged(name, 0.5)}
    assert not any(is_logged(name, 0.0) for name in names) and all(
        map(is_logged, names, [1.0] * 4000)
    )


def test_releases_with_other_features_lie_side_by_side(tmp_path):
    other = Contract("x", "regression", "y", (), (Column("id", "number", "feature"),))
    second = Scorer("release-2", other, {}, lambda c: c["id"].astype(float) * 2)
    log = PredictionLog(tmp_path)
    recorder = Recorder([log])
    recorder(answered(["a"]))
    checked = check_rows(other, [{"id": 4}])
    recorder(Answered(second, checked, np.array([8.0]), ("b",), time.time(), "challenger"))
    recorder.close()
    frame = read_predictions(tmp_path).set_index("id")
    assert frame.loc["b", "feature:id"] == 4 and frame.loc["b", "prediction"] == 8
    assert frame["arm"].to_dict() == {"a": "champion", "b": "challenger"}
    assert frame["release"].to_dict() == {"a": "release-1", "b": "release-2"}
    assert frame["age"].notna().to_dict() == {"a": True, "b": False}


def test_problems_are_told_by_row_and_no_name_of_the_client_s_is_kept(tmp_path):
    rows = [{"age": 30, "job": "clerk"}, {"age": 200, "job": "secret", "secret": 1}]
    log = PredictionLog(tmp_path)
    recorder = Recorder([log])
    recorder(score(SCORER, check_rows(CONTRACT, rows), ["a", "b"]))
    recorder.close()
    told = read_predictions(tmp_path)["problems"].tolist()
    assert told[0] == "" and set(told[1].split("; ")) == {
        *("age:out_of_range", "job:unseen_level", "unknown_column")
    }
    assert b"secret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_the_time_asked_for_is_the_time_read(tmp_path):
    log = PredictionLog(tmp_path)
    for i, at in enumerate((1e9, 1e9 + 86_400, 1e9 + 2 * 86_400)):
        one = answered([f"{i}"])
        log.take(batches.gather([Answered(SCORER, one.checked, one.prediction, one.ids, at)])[0])
        log.flush()
    log.tick(last=True)
    day = pd.Timestamp(1e9 + 86_400, unit="s")
    assert read_predictions(tmp_path, since=day)["id"].tolist() == ["1", "2"]
    assert read_predictions(tmp_path, since=day.tz_localize("UTC"))["id"].tolist() == ["1", "2"]
    empty = read_predictions(tmp_path, since=day, until=day)
    assert len(empty) == 0 and len(read_predictions(tmp_path / "none")) == 0
    assert str(empty["at"].dtype).startswith("datetime64[") and "UTC" in str(empty["at"].dtype)


def test_labels_that_come_later_are_joined_and_the_last_word_counts(tmp_path):
    log = PredictionLog(tmp_path)
    recorder = Recorder([log])
    recorder(answered(["a", "b", "c"]))
    recorder(answered(["a"]))  # asked again
    sent = [[{"id": "a", "label": "no"}], {"id": "b", "label": "yes", "at": 1e9}]
    sent += [[{"id": "a", "label": "yes"}, {"id": "stranger", "label": "no"}]]
    for body in sent:
        assert log.outcomes.add(read_outcomes(json.dumps(body).encode(), CONTRACT))
        recorder.settle()
        time.sleep(0.002)
    recorder.close()
    told = labelled_predictions(tmp_path).set_index("id")
    assert told["label"].fillna("").to_dict() == {"a": "yes", "b": "yes", "c": ""}
    assert told.attrs["orphans"] == 1
    assert read_feedback(tmp_path).attrs["corrected"] == 1


VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.sampled_from(["id", "label", "at", "x"])


@settings(max_examples=200)
@given(st.binary(max_size=50) | st.recursive(VALUE | st.dictionaries(KEYS, VALUE), st.lists))
def test_any_outcome_is_taken_or_refused_by_code(found):
    body = found if isinstance(found, bytes) else json.dumps(found).encode()
    for contract in (CONTRACT, Contract("x", "regression", "y", (), ())):
        try:
            for id, label, at in read_outcomes(body, contract):
                assert 0 < len(id) <= 128 and label and math.isfinite(at)
        except BadOutcome as bad:
            assert bad.code in ("not_outcomes", "bad_outcome")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"id": ""}, "an id has 1 to 128 printable characters"),
        ({"label": "maybe"}, "a label is one of no, yes"),
        ({"at": time.time() * 1000}, r"'at' is a time in seconds \(not milliseconds\) since"),
        ({"at": -1}, "'at' is a time in seconds"),
        ({"at": time.time() + 90_000}, "'at' is a time in seconds .* and not in the future$"),
    ],
)
def test_an_outcome_is_refused_for_what_is_wrong_with_it(wrong, right):
    sent = [{"id": "a", "label": "no"}, {"id": "b", "label": "yes"} | wrong]
    with pytest.raises(BadOutcome, match=f"^outcome 1: {right}"):
        read_outcomes(json.dumps(sent).encode(), CONTRACT)


@pytest.mark.parametrize("label", ["1e400", "9" * 400, "9" * 6000, "-1" + "0" * 320, "NaN"])
def test_a_label_too_large_is_refused(label):
    for contract in (CONTRACT, Contract("x", "regression", "y", (), ())):
        with pytest.raises(BadOutcome):
            read_outcomes(f'{{"id": "a", "label": {label}}}'.encode(), contract)


def test_a_log_that_nobody_asked_for_leaves_no_trace(tmp_path):
    Segments(tmp_path / "log")
    PredictionLog(tmp_path / "log")
    assert not list(tmp_path.iterdir())
