"""A challenger beside the champion, and releases exchanged under load, by servers too."""

import asyncio
import gc
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from processes import BIN, console_said, free_port, post, prodml, server, until
from released import FAILED, PASSED, Released, released, sealed, told

from prodml.release.attestation import Refused
from prodml.release.store import seal
from prodml.serve.answers import read_predictions
from prodml.serve.app import App, change, create_app
from prodml.serve.build import checks, point_project, render_service
from prodml.serve.challenger import Pair, load_pair
from prodml.serve.door import is_chosen
from prodml.serve.pointer import CURRENT, Checks, Follower, Pointer, look, write_pointer
from prodml.serve.pointing import point
from prodml.serve.scorer import load_scorer
from prodml.settings import Mistake, Serve


@dataclass
class Two:
    """Two releases of one project: what a notebook says of the same rows with either."""

    old: Released
    new: Released

    @property
    def checks(self):
        return Checks(**checks(self.old.settings))

    def by_release(self):
        return {one.folder.name: one for one in (self.old, self.new)}

    def wrong(self, rows, answer):
        """The largest difference between an answer and the notebook of the release it names."""
        largest = 0.0
        for row, said in zip(rows, answer["predictions"], strict=True):
            one = self.by_release()[said.get("release", answer["release"])]
            largest = max(largest, np.abs(told(one, [said]) - one.answers[row]).max())
            if one.threshold is not None:
                positive = one.answers[row][1] >= one.threshold
                assert (said["label"] == one.contract.classes[1]) == positive
        return largest


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    old = released(tmp_path_factory.mktemp("old"), serve=Serve(workers=2))
    new = released(tmp_path_factory.mktemp("new"), kind="linear")
    candidate = new.settings.folder / "candidates" / "one"
    folder = seal(candidate, [], [PASSED], old.settings, "run-2")
    assert new.rows == old.rows and np.abs(new.answers - old.answers).max() > 0.01
    return Two(old, replace(new, settings=old.settings, folder=folder))


def app_of(two, **serve):
    """The application of the old release, challenged as `serve` says."""
    return create_app(two.old.folder, **checks(two.old.settings), serve=Serve(**serve))


def ask(app, path, body):
    """(status, answer) of the application, without a network."""
    sent, data = [], body if isinstance(body, bytes) else json.dumps(body).encode()

    async def receive():
        return {"type": "http.request", "body": data}

    async def send(message):
        sent.append(message)

    method = "GET" if body is None else "POST"
    scope = {"type": "http", "path": path, "method": method, "headers": []}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def named(two, rows, prefix="person"):
    """The rows with ids of their own."""
    return [two.old.rows[row] | {"id": f"{prefix}-{row}"} for row in rows]


def canary(two, share=0.3):
    return {"challenger": two.new.folder.name, "challenge": "canary", "canary_share": share}


# Who may stand beside whom.


def test_a_challenger_that_is_not_genuine_or_failed_is_refused_at_start(two, tmp_path):
    touched = shutil.copytree(two.new.folder, tmp_path / two.new.folder.name)
    (touched / "contract.json").chmod(0o644)
    (touched / "contract.json").write_text(two.old.contract.to_json() + " ")
    with pytest.raises(Refused, match=r"contract.json was edited"):
        app_of(two, challenger=str(touched))
    failed = sealed(two.new, tmp_path / "failed", FAILED)
    with pytest.raises(Refused, match="not trusted here"):
        app_of(two, challenger=str(failed.folder))
    worse = tmp_path / "worse"
    shutil.copytree(two.old.settings.folder / "candidates" / "one", worse)
    (worse / "note.txt").write_text("another content, another name")
    bad = seal(worse, [], [FAILED], two.old.settings, "run-3")
    with pytest.raises(Refused, match=f"{bad.name} did not pass"):
        app_of(two, challenger=bad.name)
    with pytest.raises(Mistake, match="no release called 'nobody'"):
        app_of(two, challenger="nobody")
    with pytest.raises(Mistake, match="cannot challenge itself"):
        app_of(two, challenger=two.old.folder.name)


def test_a_challenger_of_other_features_is_refused_with_a_sentence(two):
    champion = load_scorer(two.old.folder)
    contract = champion.contract
    for columns, sentence in (
        (tuple(c for c in contract.columns if c.name != "age"), "does not take the feature 'age'"),
        ((replace(contract.features[0], name="x"), *contract.columns), "wants 'x' besides"),
    ):
        other = replace(champion, contract=replace(contract, columns=columns), release="other")
        with pytest.raises(Mistake, match=sentence):
            Pair(champion, other)
    for change_ in ({"task": "regression"}, {"classes": ("a", "b")}, {"target": "x"}):
        other = replace(champion, contract=replace(contract, **change_), release="other")
        with pytest.raises(Mistake, match=f"another {next(iter(change_))}"):
            Pair(champion, other)


# The share.


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_share_of_ids_is_exact_within_chance(two, share):
    champion, challenger = load_scorer(two.old.folder), load_scorer(two.new.folder)
    ids = [f"customer {number}" for number in range(40_000)]
    for other in ("a", "b", "c"):
        pair = Pair(champion, replace(challenger, release=other), "canary", share)
        turn = pair.chosen(ids)
        assert abs(turn.sum() - share * len(ids)) <= 5 * (len(ids) * share * (1 - share)) ** 0.5
    first = Pair(champion, challenger, "canary", 0.5).chosen(ids)
    second = Pair(champion, replace(challenger, release="d"), "canary", 0.5).chosen(ids)
    assert abs((first == second).mean() - 0.5) < 0.02  # another trial, other people


def test_the_choice_does_not_depend_on_the_process():
    code = (
        "from prodml.serve.door import is_chosen;"
        "print([is_chosen(str(i), 0.3, b'salt') for i in range(200)])"
    )
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(run.stdout.lower()) == [
            is_chosen(str(i), 0.3, b"salt") for i in range(200)
        ]


# The canary.


def test_a_split_request_gets_each_row_from_its_arm_in_order(two):
    app, heard = app_of(two, **canary(two)), []
    app.observers.append(heard.append)
    rows = list(range(300))
    status, answer = ask(app, "/predict", named(two, rows))
    assert status == 200 and answer["release"] == two.old.folder.name
    assert two.wrong(rows, answer) < 1e-6
    said = [one["release"] for one in answer["predictions"]]
    turn = app.pair.chosen([f"person-{row}" for row in rows])
    assert said == np.where(turn, two.new.folder.name, two.old.folder.name).tolist()
    assert [one["id"] for one in answer["predictions"]] == [f"person-{row}" for row in rows]
    ids = {one.arm: one.ids for one in heard}
    assert set(ids["champion"]) | set(ids["challenger"]) == {f"person-{row}" for row in rows}
    assert len(ids["champion"]) + len(ids["challenger"]) == 300
    assert app.trial.tally["canary_rows"] == turn.sum() > 50


def test_one_row_names_its_release_at_the_top_and_the_same_id_stays_with_its_arm(two):
    arms = {}
    for _ in range(2):  # two applications: a restart, or another worker
        app = app_of(two, **canary(two))
        for row in range(40):
            _, answer = ask(app, "/predict", named(two, [row])[0])
            assert two.wrong([row], answer) < 1e-6 and "release" not in answer["predictions"][0]
            assert arms.setdefault(row, answer["release"]) == answer["release"]
    assert len(set(arms.values())) == 2


def test_every_protocol_asks_the_same_arm_and_a_named_version_only_itself(two):
    app = app_of(two, **canary(two))
    rows = list(range(60))
    sent = named(two, rows)
    _, answer = ask(app, "/predict", sent)
    expected = [one["probability"] for one in answer["predictions"]]
    _, invoked = ask(app, "/invocations", {"dataframe_records": sent})
    assert [one["probability"] for one in invoked["predictions"]] == expected
    assert [o["label"] for o in invoked["predictions"]] == [
        o["label"] for o in answer["predictions"]
    ]
    name = next(path for _, path in app.routes if path.endswith(":predict"))
    base = name.rpartition("/")[2].partition(":")[0]
    _, tensors = ask(app, f"/v1/models/{base}:predict", {"instances": sent})
    assert [one["probability"] for one in tensors["predictions"]] == expected
    assert [one["label"] for one in tensors["predictions"]] == [
        o["label"] for o in answer["predictions"]
    ]
    assert [one["release"] for one in tensors["predictions"]] == [
        o["release"] for o in answer["predictions"]
    ]
    frame = {c.name: [row[c.name] for row in sent] for c in two.old.contract.features}
    kinds = {c.name: "FP64" if c.numeric else "BYTES" for c in two.old.contract.features}
    inputs = [{"name": n, "shape": [60], "datatype": kinds[n], "data": v} for n, v in frame.items()]
    status, inferred = ask(app, f"/v2/models/{base}/infer", {"id": "q", "inputs": inputs})
    assert status == 200, inferred
    outputs = {one["name"]: one["data"] for one in inferred["outputs"]}
    turn = app.pair.chosen([f"q-{row}" for row in rows])
    expected = np.where(turn, two.new.folder.name, two.old.folder.name).tolist()
    assert outputs["release"] == expected and len(set(expected)) == 2
    notebook = np.where(turn, two.new.answers[rows, 1], two.old.answers[rows, 1])
    assert np.abs(np.array(outputs["probability"]) - notebook).max() < 1e-6
    own = f"/v1/models/{base}/versions/{two.old.folder.name}:predict"
    status, alone = ask(app, own, {"instances": sent})
    found = [one["probability"] for one in alone["predictions"]]
    assert status == 200 and np.abs(np.array(found) - two.old.answers[rows, 1]).max() < 1e-6
    assert ask(app, own.replace(two.old.folder.name, two.new.folder.name), {})[0] == 404


def test_a_failing_canary_is_replaced_by_the_champion_and_counted(two):
    app = app_of(two, **canary(two, 0.5))
    broken = replace(app.pair.challenger, run=lambda columns: 1 / 0)
    app.swap(replace(app.pair, challenger=broken))
    rows = list(range(100))
    status, answer = ask(app, "/predict", named(two, rows))
    assert status == 200 and two.wrong(rows, answer) < 1e-6
    assert {one["release"] for one in answer["predictions"]} == {two.old.folder.name}
    for row in range(10):
        status, answer = ask(app, "/predict", named(two, [row]))
        assert status == 200 and answer["release"] == two.old.folder.name
    assert app.trial.tally["canary_failed"] >= app.pair.chosen([f"person-{r}" for r in rows]).sum()
    nan = replace(broken, run=lambda columns: np.full((len(columns["age"]), 2), np.nan))
    app.swap(replace(app.pair, challenger=nan))
    assert two.wrong(rows, ask(app, "/predict", named(two, rows))[1]) < 1e-6


def test_single_rows_that_are_asked_about_together_each_name_their_release_at_the_top(two):
    """Sixteen requests in hand at once, as a busy server has them."""
    app = app_of(two, **canary(two, 0.5))

    async def one(row):
        sent, body = [], json.dumps(named(two, [row])[0]).encode()

        async def receive():
            return {"type": "http.request", "body": body}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/predict", "method": "POST", "headers": []}
        await app(scope, receive, send)
        return json.loads(sent[1]["body"])

    async def all_at_once():
        return await asyncio.gather(*map(one, range(16)))

    heard = []
    app.observers.append(heard.append)
    answers = asyncio.run(all_at_once())
    assert max(len(told_.ids) for told_ in heard) > 1  # they were
    turn = app.pair.chosen([f"person-{row}" for row in range(16)])
    for row, answer in enumerate(answers):
        assert answer["release"] == (two.new if turn[row] else two.old).folder.name
        assert two.wrong([row], answer) < 1e-6 and "release" not in answer["predictions"][0]


def test_rows_without_an_id_are_answered_by_either(two):
    app = app_of(two, **canary(two, 0.5))
    seen = Counter(ask(app, "/predict", two.old.rows[0])[1]["release"] for _ in range(60))
    assert set(seen) == set(two.by_release())


def test_what_the_contract_refuses_is_refused_whoever_would_answer(two):
    app = app_of(two, **canary(two, 0.5))
    bad = [row | {"age": "forty"} if n == 7 else row for n, row in enumerate(named(two, range(20)))]
    status, answer = ask(app, "/predict", bad)
    assert status == 422 and [p["row"] for p in answer["problems"]] == [7]
    odd = [row | {"age": 140} if n % 3 == 0 else row for n, row in enumerate(named(two, range(20)))]
    status, answer = ask(app, "/predict", odd)
    assert status == 200 and answer["counts"] == {"out_of_range": 7}
    assert [p["row"] for p in answer["problems"]] == list(range(0, 20, 3))


def test_levels_that_only_one_of_them_knows_reach_it_alone(two):
    """A level is taken from the champion's contract: the challenger alone knows it then."""
    challenger, champion = load_scorer(two.old.folder), load_scorer(two.old.folder)
    job = champion.contract.column("job")
    gone = job.levels[0]
    fewer = tuple(
        replace(c, levels=job.levels[1:], fill=job.levels[1]) if c.name == "job" else c
        for c in champion.contract.columns
    )
    champion = replace(champion, contract=replace(champion.contract, columns=fewer), release="few")
    app = App(Pair(champion, challenger, "canary", 0.5))
    rows = [number for number, row in enumerate(two.old.rows) if row["job"] == gone][:40]
    status, answer = ask(app, "/predict", named(two, rows))
    assert status == 200 and len(rows) == 40
    missing = App(champion)
    for number, said in zip(rows, answer["predictions"], strict=True):
        if said["release"] == "few":  # it is told, and reads the value as missing
            blind = ask(missing, "/predict", two.old.rows[number])[1]["predictions"][0]
            assert said["probability"] == blind["probability"]
        else:
            assert abs(said["probability"] - two.old.answers[number][1]) < 1e-6
    few = sum(said["release"] == "few" for said in answer["predictions"])
    assert answer["counts"] == {"unseen_level": few} and 5 < few < 35


# The shadow.


def test_the_shadow_is_logged_under_the_same_ids_and_never_returned(two):
    app, heard = app_of(two, challenger=two.new.folder.name), []
    app.observers.append(heard.append)
    rows = list(range(120))
    for start in range(0, 120, 40):
        status, answer = ask(app, "/predict", named(two, rows[start : start + 40]))
        assert status == 200 and two.new.folder.name not in json.dumps(answer)
        assert two.wrong(rows[start : start + 40], answer) < 1e-6
        assert answer["release"] == two.old.folder.name
    app.trial.settle()
    arms = {arm: [one for one in heard if one.arm == arm] for arm in ("champion", "challenger")}
    ids = {arm: [name for one in told for name in one.ids] for arm, told in arms.items()}
    assert ids["champion"] == ids["challenger"] == [f"person-{row}" for row in rows]
    found = np.concatenate([one.prediction for one in arms["challenger"]])
    assert np.abs(found - two.new.answers[:120]).max() < 1e-6
    assert {one.scorer.release for one in arms["challenger"]} == {two.new.folder.name}
    assert app.trial.tally == {"shadow_rows": 120}


def test_a_full_queue_drops_and_counts_and_delays_nobody(two):
    app = app_of(two, challenger=two.new.folder.name)
    let_go, run = threading.Event(), app.pair.challenger.run

    def slow(columns):
        let_go.wait(600)
        return run(columns)

    app.swap(replace(app.pair, challenger=replace(app.pair.challenger, run=slow)))
    app.trial.most = 50
    began = time.perf_counter()
    for row in range(200):
        status, answer = ask(app, "/predict", named(two, [row]))
        assert status == 200 and two.wrong([row], answer) < 1e-6
    assert time.perf_counter() - began < 300  # the challenger would have taken 600 s for one row
    assert app.trial.tally["shadow_dropped"] == 150
    let_go.set()
    app.trial.settle()
    assert app.trial.tally["shadow_rows"] == 50
    assert ask(app, "/predict", named(two, [0]))[0] == 200
    app.trial.settle()
    assert app.trial.tally["shadow_rows"] == 51


def test_a_failing_shadow_fails_alone_and_only_where_it_fails(two, caplog):
    app = app_of(two, challenger=two.new.folder.name)
    app.trial.pause = 3600
    run = app.pair.challenger.run

    def picky(columns):
        if (columns["age"] > 120).any():
            raise RuntimeError("too old")
        return run(columns)

    app.swap(replace(app.pair, challenger=replace(app.pair.challenger, run=picky)))
    for row in range(30):
        more = {"age": 130} if row == 17 else {}
        assert ask(app, "/predict", two.old.rows[row] | more)[0] == 200
    app.trial.settle()
    assert app.trial.tally["shadow_rows"] == 29 and app.trial.tally["shadow_failed"] == 1
    assert "RuntimeError" in caplog.text


# Taking over.


def test_a_request_in_hand_ends_with_the_release_it_began_with(two):
    app = app_of(two)
    began, let_go, run = threading.Event(), threading.Event(), app.pair.champion.run

    def slow(columns):
        began.set()
        let_go.wait(300)
        return run(columns)

    app.swap(Pair(replace(app.pair.champion, run=slow)))
    found = []
    thread = threading.Thread(target=lambda: found.append(ask(app, "/predict", two.old.rows[:3])))
    thread.start()
    assert began.wait(300)
    assert change(app, two.old.folder.parent.parent, two.checks, Pointer(two.new.folder.name))
    status, answer = ask(app, "/predict", two.old.rows[:3])
    assert answer["release"] == two.new.folder.name and two.wrong(range(3), answer) < 1e-6
    assert ask(app, "/metadata", None)[1]["release"] == two.new.folder.name
    let_go.set()
    thread.join(300)
    status, answer = found[0]
    assert status == 200 and answer["release"] == two.old.folder.name
    assert two.wrong(range(3), answer) < 1e-6


def test_a_pointer_that_does_not_stand_changes_nothing_and_says_so(two, tmp_path, caplog):
    folder = tmp_path / "service"
    for one in (two.old, two.new):
        shutil.copytree(one.folder, folder / "release" / one.folder.name)
    place = folder / "release" / two.old.folder.name
    app = create_app(place, **checks(two.old.settings), pointer=folder / CURRENT)
    app.started = True  # the thread is left out: the test looks by itself
    look(app.follower)
    assert app.follower.refused == "" and app.scorer.release == two.old.folder.name
    touched = folder / "release" / two.new.folder.name / "model.onnx"
    kept = touched.read_bytes()
    touched.chmod(0o644)
    touched.write_bytes(kept + b"\0")
    for text, why in (
        (Pointer(two.new.folder.name).to_json(), "model.onnx was edited"),
        (Pointer(two.old.folder.name, two.new.folder.name).to_json(), "model.onnx was edited"),
        (Pointer("nobody").to_json(), "no release called 'nobody'"),
        ('{"champion": "', "no JSON object"),
        ('{"champion": "a", "canary_share": 7}', "canary_share"),
        ("", "no JSON object"),
    ):
        (folder / CURRENT).write_text(text)
        look(app.follower)
        assert why in app.follower.refused and why in caplog.text
        status, answer = ask(app, "/predict", two.old.rows[:2])
        assert status == 200 and two.wrong(range(2), answer) < 1e-6
        assert answer["release"] == two.old.folder.name
    assert app.follower.tally == {"refused": 6, "changed": 0}
    write_pointer(folder, Pointer(two.new.folder.name))
    look(app.follower)
    assert app.follower.tally["refused"] == 7
    touched.write_bytes(kept)
    app.follower.ask_again()
    look(app.follower)
    assert (app.follower.tally["changed"], app.follower.refused) == (1, "")
    wishes = app.routes["GET", "/metrics"](None).body.decode()
    assert 'prodml_pointer_wishes_total{outcome="refused"} 7.0' in wishes
    assert 'prodml_pointer_wishes_total{outcome="changed"} 1.0' in wishes
    assert ask(app, "/predict", two.old.rows[0])[1]["release"] == two.new.folder.name
    (folder / CURRENT).unlink()
    look(app.follower)
    assert ask(app, "/predict", two.old.rows[0])[1]["release"] == two.new.folder.name


def test_a_pointer_that_is_no_text_is_refused_once_for_each_writing(tmp_path):
    follower = Follower(tmp_path / CURRENT, lambda pointer: True)
    for writing in (1, 2):
        follower.path.write_bytes(b"\xff\xfe{" * writing)
        for _ in range(4):
            look(follower)
        assert follower.tally == {"refused": writing, "changed": 0}
        assert "no JSON object" in follower.refused


def test_a_start_goes_by_the_pointer_and_fails_with_it(two, tmp_path):
    folder = tmp_path / "service"
    for one in (two.old, two.new):
        shutil.copytree(one.folder, folder / "release" / one.folder.name)
    place, asked = folder / "release" / two.old.folder.name, checks(two.old.settings)
    write_pointer(folder, Pointer(two.new.folder.name[:8], two.old.folder.name, "canary", 0.25))
    app = create_app(place, **asked, pointer=folder / CURRENT)
    assert app.pair.champion.release == two.new.folder.name and app.pair.share == 0.25
    write_pointer(folder, Pointer("nobody"))
    with pytest.raises(Mistake, match="nobody"):
        create_app(place, **asked, pointer=folder / CURRENT)


def test_point_refuses_before_it_writes_and_copies_what_lies_elsewhere(two, tmp_path):
    folder = tmp_path / "service"
    (folder / "release").mkdir(parents=True)
    (folder / "service.json").write_text(json.dumps({"checks": checks(two.old.settings)}))
    point(folder, two.old.folder, challenger=two.new.folder)
    assert sorted(p.name for p in (folder / "release").iterdir()) == sorted(two.by_release())
    before = (folder / CURRENT).read_bytes()
    strange = sealed(two.old, tmp_path / "other", PASSED)
    candidate = shutil.copytree(tmp_path / "other" / "candidate", tmp_path / "strange")
    (candidate / "note.txt").write_text("another content, another name")
    strange = seal(candidate, [], [PASSED], strange.settings, "run-4")
    for arguments in (
        {"champion": "nobody"},
        {"champion": two.old.folder, "challenger": two.old.folder},
        {"champion": two.old.folder, "challenger": two.new.folder, "challenge": "duel"},
        {"champion": two.old.folder, "challenger": two.new.folder, "canary_share": 2},
        {"champion": two.old.folder, "checks": Checks([])},
        {"champion": two.old.folder, "checks": Checks(two.checks.trusted_keys, -1)},
        {"champion": strange},
    ):
        with pytest.raises(Mistake):
            point(folder, **arguments)
        assert (folder / CURRENT).read_bytes() == before
    assert len(list((folder / "release").iterdir())) == 2
    with pytest.raises(Mistake, match=r"no service\.json"):
        point(two.old.folder.parent.parent, two.old.folder)
    assert point(folder, two.new.folder.name[:7]).champion == two.new.folder.name


def resident():
    """Bytes of resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_old_models_are_freed(two):
    app = app_of(two)
    folder, names = two.old.folder.parent.parent, [two.new.folder.name, two.old.folder.name]

    def swap(times):
        for number in range(times):
            gone = weakref.ref(app.pair.champion)
            change(app, folder, two.checks, Pointer(names[number % 2]))
            assert ask(app, "/predict", two.old.rows[:50])[0] == 200
            # observers may hold it a while
            assert until(lambda gone=gone: gc.collect() >= 0 and gone() is None)

    swap(6)
    before = resident()
    swap(20)
    assert resident() - before < 10e6, f"{(resident() - before) / 1e6:.1f} MB more"


def test_the_hang_up_signal_asks_again(tmp_path):
    code = """
import os, signal, sys, time
from pathlib import Path
from prodml.serve.pointer import CURRENT, Follower, Pointer, write_pointer
from prodml.settings import Mistake
asked = []
def change(pointer):
    asked.append(pointer.champion)
    raise Mistake("not yet")
folder = Path(sys.argv[1])
write_pointer(folder, Pointer("a"))
follower = Follower(folder / CURRENT, change, every=60)
follower.start()
def refused(wanted):
    end = time.monotonic() + 60
    while follower.tally['refused'] < wanted and time.monotonic() < end:
        time.sleep(0.01)
for wanted in (1, 2, 3):
    refused(wanted)
    os.kill(os.getpid(), signal.SIGHUP)
refused(4)
follower.close()
print(asked, follower.tally['refused'])
"""
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=300
    )
    assert run.stdout.split("\n")[0] == "['a', 'a', 'a', 'a'] 4", run.stdout + run.stderr


# The server: two workers, under load.


class Load:
    """Clients that ask without a pause until they are stopped, and keep every answer."""

    def __init__(self, url, two, clients=4):
        self.place, self.two, self.going = url.removeprefix("http://"), two, True
        self.told, self.faults = [], []
        self.threads = [threading.Thread(target=self.ask, args=(n,)) for n in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.stop()

    def stop(self):
        self.going = False
        for thread in self.threads:
            thread.join(300)

    def more(self, many, seconds=300):
        """Nothing; so many more were answered, or failed."""
        wanted, end = len(self.told) + many, time.monotonic() + seconds
        while len(self.told) + len(self.faults) < wanted and time.monotonic() < end:
            time.sleep(0.05)

    def releases(self):
        """How many rows each release has answered."""
        found = Counter()
        for *_, answer in self.told:
            found.update(one.get("release", answer["release"]) for one in answer["predictions"])
        return found

    def ask(self, number):
        connection = http.client.HTTPConnection(self.place, timeout=120)
        turn = 0
        while self.going:
            first, turn = (number * 37 + turn * 3) % (len(self.two.old.rows) - 3), turn + 1
            rows = list(range(first, first + 1 + turn % 3))
            body = json.dumps(named(self.two, rows)).encode()
            began = time.monotonic()
            try:
                connection.request("POST", "/predict", body, {"content-type": "application/json"})
                reply = connection.getresponse()
                answer = json.loads(reply.read())
                if reply.status != 200:
                    raise RuntimeError(f"{reply.status}: {answer}")
                self.told.append((began, time.monotonic(), rows, answer))
            except Exception as error:
                self.faults.append(repr(error))
                connection.close()
            if turn % 20 == 0:  # other connections may reach the other worker
                connection.close()
            time.sleep(0.005)


@pytest.fixture(scope="module")
def service(two, tmp_path_factory):
    """(service folder, environment, folder of the log) of a service with two workers."""
    home, log = tmp_path_factory.mktemp("bentoml"), tmp_path_factory.mktemp("log")
    asked = replace(two.old.settings, serve=Serve(workers=2, log=str(log)))
    return render_service(asked, two.old.folder), {"BENTOML_HOME": str(home)}, log


def serving(service, log):
    port = free_port()
    command = [BIN / "bentoml", "serve", "--host", "127.0.0.1", "--port", port]
    return server(command, port, log, service[1], service[0])


def workers_of(folder):
    """The process ids of the workers of the service in `folder`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes().decode().split("\0")
            here = Path(os.readlink(place / "cwd")) == folder
        except OSError:
            continue
        if here and any("worker" in word for word in said) and "--worker-id" in said:
            found.append(int(place.name))
    return found


def answered_rows(counts):
    """The rows that were answered, of the counts of a server."""
    return sum(value for name, value in counts.items() if name.startswith("prodml_rows_total"))


def published(url, rows, seconds=300):
    """The metrics of the server, and its counts of rows, once both workers have told all of them.

    Each publishes its own once a second.
    """
    end, counts = time.monotonic() + seconds, {}
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{url}/metrics", timeout=120) as reply:
            shown = reply.read().decode()
        lines = [line.rpartition(" ") for line in shown.splitlines() if "_rows_total{" in line]
        counts = {name: float(value) for name, _, value in lines}
        shadowed = counts.get('prodml_challenger_rows_total{what="shadow_rows"}', 0)
        if answered_rows(counts) == rows + shadowed and 'outcome="refused"} 2.0' in shown:
            break
        time.sleep(0.5)
    return shown, counts


def test_no_request_is_lost_while_releases_are_exchanged_under_load(two, service, tmp_path):
    folder = service[0]
    (folder / CURRENT).unlink(missing_ok=True)  # of another test, as is what was logged
    shutil.rmtree(service[2])
    new, old = two.new.folder, two.old.folder
    wishes = [
        {"champion": new},
        {"champion": old.name, "challenger": new.name, "challenge": "canary", "canary_share": 0.4},
        {"champion": new.name, "challenger": old.name},
        {"champion": old.name},
        {"champion": new.name},
    ]
    followed = [
        *(f"{new.name}\n", f"{old.name}, canary {new.name}\n", f"{new.name}, shadow {old.name}\n"),
        *(f"{old.name}\n", f"{new.name}\n"),
    ]
    arms, log = {}, tmp_path / "log"
    with serving(service, log) as url, Load(url, two) as load:
        load.more(100)
        starts, ends = [], []
        for wish, words in zip(wishes, followed, strict=True):
            ends.append(time.monotonic())
            point(folder, **wish)
            starts.append(console_said(log, f"now serving {words}", 4 if len(starts) == 4 else 2))
            load.more(150)
        write_pointer(folder, Pointer("nobody"))
        console_said(log, "no release called 'nobody'", 2)  # each worker says so
        load.more(50)
        assert len(workers_of(folder)) == 2
        load.stop()
        asked_for = load.releases()
        shown, counts = published(url, sum(asked_for.values()))
    assert load.faults == [] and len(load.told) > 300
    assert 'prodml_pointer_wishes_total{outcome="changed"} 10.0' in shown  # five, two workers
    assert 'prodml_pointer_wishes_total{outcome="refused"} 2.0' in shown
    shadowed = counts['prodml_challenger_rows_total{what="shadow_rows"}']
    assert sum(asked_for.values()) + shadowed == answered_rows(counts)
    assert counts['prodml_challenger_rows_total{what="canary_rows"}'] > 20 and shadowed > 20
    logged = read_predictions(service[2])
    assert len(logged) == sum(asked_for.values()) + shadowed
    for release, one in two.by_release().items():
        part = logged[logged["release"] == release]
        rows = part["id"].str.removeprefix("person-").astype(int)
        classes = [f"prediction:{name}" for name in one.contract.classes]
        assert np.abs(part[classes].to_numpy() - one.answers[rows]).max() < 1e-6
        assert (part["arm"] == "challenger").sum() > 20
    assert max(two.wrong(rows, answer) for _, _, rows, answer in load.told) < 1e-6
    allowed = [{w["champion"], w.get("challenger")} for w in wishes]
    allowed = [{Path(str(name)).name for name in names if name} for names in allowed]
    allowed[2] = {new.name}  # the shadow is never returned
    spans = list(zip(starts, [*ends[1:], float("inf")], allowed, strict=True))
    for began, ended, rows, answer in load.told:
        for start, end, names in spans:
            if began > start and ended < end:
                assert answer["release"] in names
                told_ = {said.get("release", answer["release"]) for said in answer["predictions"]}
                assert told_ <= names
                if len(names) == 2:
                    for row, said in zip(rows, answer["predictions"], strict=True):
                        of = said.get("release", answer["release"])
                        assert arms.setdefault(row, of) == of
    assert set(arms.values()) == {old.name, new.name}
    pair = load_pair(
        folder, Pointer(old.name, new.name, "canary", 0.4), Checks(**checks(two.old.settings))
    )
    for row, of in arms.items():
        assert (of == new.name) == pair.chosen([f"person-{row}"])[0]


def test_a_signalled_worker_asks_again_and_a_restart_goes_by_the_pointer(two, service, tmp_path):
    folder = service[0]
    place, log = folder / "release" / two.new.folder.name, tmp_path / "log"
    point(folder, two.old.folder.name)
    hidden = folder / "release" / ".hidden"
    if not place.exists():
        shutil.copytree(two.new.folder, place)
    with serving(service, log) as url:
        os.rename(place, hidden)
        write_pointer(folder, Pointer(two.new.folder.name))
        console_said(log, "the pointer is not followed", 2)
        assert post(f"{url}/predict", two.old.rows[0])[1]["release"] == two.old.folder.name
        os.rename(hidden, place)
        time.sleep(1.0)
        assert post(f"{url}/predict", two.old.rows[0])[1]["release"] == two.old.folder.name
        for process in workers_of(folder):
            os.kill(process, signal.SIGHUP)
        console_said(log, f"now serving {two.new.folder.name}\n", 2)
        for _ in range(20):
            assert post(f"{url}/predict", two.old.rows[0])[1]["release"] == two.new.folder.name
    with serving(service, tmp_path / "again") as url:
        assert post(f"{url}/predict", two.old.rows[0])[1]["release"] == two.new.folder.name


# From the settings and the command line.


def test_a_service_is_built_with_its_challenger_or_not_at_all(two, tmp_path):
    asked = replace(
        two.old.settings,
        root=two.old.settings.root,
        serve=Serve(challenger=two.new.folder.name[:8]),
    )
    folder = render_service(asked, two.old.folder)
    assert {p.name for p in (folder / "release").iterdir()} == set(two.by_release())
    said = json.loads((folder / "service.json").read_text())
    assert said["serve"]["challenger"] == two.new.folder.name
    place = folder / "release" / said["release"]
    app = create_app(place, **said["checks"], serve=Serve(**said["serve"]))
    assert app.pair.challenger.release == two.new.folder.name
    for name, sentence in (("nobody", "nobody"), (two.old.folder.name, "cannot challenge itself")):
        with pytest.raises(Mistake, match=sentence):
            render_service(replace(asked, serve=Serve(challenger=name)), two.old.folder)


def test_prodml_serve_follows_the_pointer_of_the_project(two, tmp_path):
    root = Path(two.old.settings.root)
    text = """[project]\nname = credit demo\n
        [data]\ntarget = default\npositive = yes\ntime = applied_on\nuntil = 2024-03-01
        drop = true_probability, application_id\n
        [limits]\nrequired = correctness\n
        [correctness]\nmin_roc_auc = 0.5\n
        [serve]\nchallenger = another\n"""
    (root / "settings.ini").write_text("\n".join(line.strip() for line in text.splitlines()))
    refused = prodml("point", "nobody", "-p", root)
    assert refused.returncode == 2 and "nobody" in refused.stderr
    point_project(two.old.settings, two.old.folder.name)
    port = free_port()
    command = [BIN / "prodml", "serve", "-p", root, "--port", port]
    with server(command, port, tmp_path / "log", {"BENTOML_HOME": str(tmp_path)}) as url:
        answer = post(f"{url}/predict", two.old.rows[:5])[1]
        assert answer["release"] == two.old.folder.name and two.wrong(range(5), answer) < 1e-6
        assert "[serve] challenger is not read" in (tmp_path / "log").read_text()
        made = prodml(
            "point", two.new.folder.name, "--challenger", two.old.folder.name, "-p", root, "--json"
        )
        assert made.returncode == 0, made.stderr
        assert json.loads(made.stdout)["challenger"] == two.old.folder.name
        console_said(tmp_path / "log", f"now serving {two.new.folder.name}, shadow ")
        answer = post(f"{url}/predict", two.old.rows[:5])[1]
        assert answer["release"] == two.new.folder.name and two.wrong(range(5), answer) < 1e-6
