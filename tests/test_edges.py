"""Edge cases and parity: every kind of wrong answer is found, and no record means no pass."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import prodml.gates.doors as doors_page
from prodml.contract import Column, Contract
from prodml.gates.candidate import make_candidate
from prodml.gates.doors import edge_cases, two_doors
from prodml.gates.edges import (
    RECORD,
    Copies,
    compared_rows,
    edge_finding,
    insane,
    parity_findings,
    read_answers,
    record_answers,
    recorded_places,
)
from prodml.gates.evidence import load_evidence
from prodml.gates.examine import examine, examine_correctness
from prodml.ini import parse_settings
from prodml.settings import Mistake
from prodml.verdict import Verdict

CLASSES = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}


def contract(task="binary", **policy):
    columns = (
        Column("x", "number", "feature", True, -2, 3, fill=0.5, **policy),
        Column("age", "integer", "feature", False, 18, 90, fill=40.0, **policy),
        Column("owner", "boolean", "feature", False, 0, 1, fill=0.0, **policy),
        Column(
            "town", "category", "feature", False, levels=("Oslo", "Rome"), fill="Rome", **policy
        ),
    )
    return Contract("toy", task, "y", CLASSES[task], columns)


def answers(task, score):
    if task == "regression":
        return score * 100
    rest = len(CLASSES[task]) - 1
    return np.column_stack([(1 - score) / rest] * rest + [score])


def sane(task):
    def predict(rows):
        x = np.nan_to_num(rows["x"].to_numpy(float)).clip(-5, 5) + (rows["town"] == "Oslo")
        return answers(task, 1 / (1 + np.exp(-x.to_numpy(float))))

    return predict


def names(found):
    return [edge.name for edge in found]


def test_every_kind_of_edge_is_there():
    found = set(names(edge_cases(contract())))
    kinds = ["missing", "not a number", "text", "a number as text", "infinite", "minus infinite"]
    kinds += ["zero", "minus zero", "the smallest number", "huge", "minus huge", "too large"]
    kinds += ["its least", "its greatest", "below its least", "beyond its greatest"]
    assert {f"x: {kind}" for kind in kinds} <= found and {f"age: {kind}" for kind in kinds} <= found
    assert {"owner: 0", "owner: 1", "owner: 2", "owner: missing"} <= found
    assert {"town: the level Oslo", "town: a level never seen", "town: an empty text"} <= found
    assert {"the usual row", "an unknown column", "all missing", "corner 1", "corner 8"} <= found
    assert len(found) == len(edge_cases(contract())), "no name twice"


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("policy", ["reject", "flag", "impute"])
def test_both_doors_let_in_the_same_and_a_sane_model_passes(task, policy):
    asked = contract(task, on_missing=policy, on_unseen=policy, on_range=policy)
    features, wrong = two_doors(asked, edge_cases(asked))
    assert not wrong, wrong
    assert ("x: huge" in features.index) is (policy != "reject")
    assert "x: too large" not in features.index and "owner: 2" not in features.index
    finding, table = edge_finding(asked, {"notebook": sane(task), "onnx": sane(task)}, 1e-4)
    assert finding.verdict is Verdict.PASS and finding.value == 0 and table.empty


def test_doors_that_differ_are_found(monkeypatch):
    real = doors_page.check_frame

    def lenient(*asked):
        found = real(*asked)
        return found._replace(rejected=np.zeros_like(found.rejected))

    monkeypatch.setattr(doors_page, "check_frame", lenient)
    _, wrong = two_doors(contract(), edge_cases(contract()))
    assert "the row door refuses it, the table door does not" in wrong["x: infinite"]
    monkeypatch.setattr(doors_page, "check_frame", lambda *asked: real(*asked)._replace(
        features=real(*asked).features.assign(x=np.float32(1))))  # fmt: skip
    _, wrong = two_doors(contract(), edge_cases(contract()))
    assert "other features" in wrong["the usual row"]


def test_an_edge_that_must_be_refused_and_is_not(monkeypatch):
    monkeypatch.setattr(doors_page, "LARGEST", 1e20)
    _, wrong = two_doors(contract(), edge_cases(contract()))
    assert wrong == {"x: too large": "it is let in", "age: too large": "it is let in"}


def spoilt(change):
    """The binary model with its answers changed by `change(rows, answers)`."""
    return lambda rows: change(rows, sane("binary")(rows))


def when(column, value):
    def where(rows):
        return (
            (rows[column] == value).to_numpy() if value == value else rows[column].isna().to_numpy()
        )

    return where


def put(where, value):
    return spoilt(lambda rows, told: np.where(where(rows)[:, None], value, told))


def raising(rows):
    if (rows["town"] == "Oslo").any():
        raise ValueError("never heard of it")
    return sane("binary")(rows)


BAD = {
    "missing is no number": (put(when("x", np.nan), np.nan), "x: missing", "no number"),
    "infinite": (put(when("age", 90), np.inf), "age: its greatest", "no finite number"),
    "beyond one": (put(when("owner", 1), [[-0.5, 1.5]]), "owner: 1", "none"),
    "sums to two": (put(when("town", "Oslo"), [[1.0, 1.0]]), "town: the level Oslo", "none"),
    "an error": (raising, "town: the level Oslo", "error"),
    "its place": (
        spoilt(lambda rows, told: np.roll(told, 1, axis=0)),
        "the usual row",
        "another order",
    ),
    "company": (
        spoilt(lambda rows, told: told + (len(rows) > 1) * np.array([[-0.01, 0.01]])),
        "the usual row",
        "alone",
    ),
    "doubles": (
        spoilt(lambda rows, told: told + (len(rows) > 80) * np.array([[-0.01, 0.01]])),
        "the usual row",
        "twice",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_every_kind_of_insane_answer_is_found(name):
    predict, edge, why = BAD[name]
    features, _ = two_doors(contract(), edge_cases(contract()))
    assert 40 < len(features) < 80
    found = insane(contract(), predict, features)
    assert edge in found and why in found[edge], found
    finding, table = edge_finding(contract(), {"notebook": predict}, 1e-4)
    assert finding.verdict is Verdict.FAIL and finding.value == len(table) == len(found)
    assert f"{len(found)} of {finding.rows} edge cases fail" in finding.why


def test_a_converted_model_that_differs_at_one_level_is_found():
    other = put(when("town", "Oslo"), [[0.5, 0.5]])
    finding, table = edge_finding(contract(), {"notebook": sane("binary"), "onnx": other}, 1e-4)
    assert finding.verdict is Verdict.FAIL and set(table["where"]) == {"onnx"}
    assert "town: the level Oslo" in set(table["edge"])


def test_a_contract_that_lets_nobody_in_fails():
    asked = contract(on_missing="reject")
    asked = replace(asked, columns=tuple(replace(c, fill=None, nullable=False, minimum=None)
                                         for c in asked.columns))  # fmt: skip
    asked = replace(asked, columns=asked.columns[1:3])
    finding, _ = edge_finding(asked, {"notebook": lambda rows: 1 / 0}, 1e-4)
    assert finding.verdict is Verdict.FAIL


@pytest.fixture
def kept(tmp_path):
    """A folder with a record, the rows, and the places of those recorded."""
    features, _ = two_doors(contract(), edge_cases(contract()))
    (tmp_path / "model.skops").write_bytes(b"skops")
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    record_answers(tmp_path, sane("binary"), contract(), features)
    rows = compared_rows(contract(), features)
    return tmp_path, rows.iloc[recorded_places(contract(), len(features), len(rows))]


def test_the_record_is_exact(kept):
    folder, rows = kept
    assert np.array_equal(read_answers(folder, rows), sane("binary")(rows))


def tampered(folder, **change):
    path = folder / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda f: (f / RECORD).unlink(), "no record"),
        (lambda f: (f / RECORD).write_text("{"), "no record"),
        (lambda f: (f / RECORD).write_text("[]"), "no record"),
        (lambda f: tampered(f, schema="other/1"), "other rows"),
        (lambda f: tampered(f, files={}), "another model.skops"),
        (lambda f: tampered(f, answers=[[0.5, 0.5]]), "other rows"),
        (lambda f: tampered(f, answers="none"), "no record"),
        (lambda f: (f / "model.skops").write_bytes(b"new"), "another model.skops"),
        (lambda f: (f / "model.onnx").write_bytes(b"new"), "another model.onnx"),
        (lambda f: (f / "model.onnx").unlink(), "another model.onnx"),
    ],
)
def test_a_record_that_proves_nothing_is_refused(kept, spoil, word):
    folder, rows = kept
    spoil(folder)
    with pytest.raises(Mistake, match=word):
        read_answers(folder, rows)


def test_a_record_of_other_rows_is_refused(kept):
    folder, rows = kept
    with pytest.raises(Mistake, match="other rows"):
        read_answers(folder, rows.assign(x=rows["x"] + 1))
    with pytest.raises(Mistake, match="other rows"):
        read_answers(folder, rows.iloc[1:])


def test_each_copy_that_differs_fails_and_is_named():
    ours, places = np.tile([0.4, 0.6], (50, 1)), np.arange(10)
    off = ours.copy()
    off[3] = [0.5, 0.5]
    late = ours.copy()
    late[30] = [0.5, 0.5]

    def verdicts(*copies, native=False):
        return [f.verdict.value for f in parity_findings(Copies(*copies, places), 1e-4, native)]

    assert verdicts(ours, ours, ours[:10]) == ["pass", "pass"]
    assert verdicts(off, off, ours[:10]) == ["fail", "fail"], "both copies left the notebook"
    assert verdicts(ours, off, ours[:10]) == ["pass", "fail"]
    assert verdicts(ours, late, ours[:10]) == ["pass", "fail"], "a row that was not recorded"
    assert verdicts(ours, ours, None) == ["fail", "pass"]
    assert verdicts(ours, None, ours[:10]) == ["pass", "fail"]
    assert verdicts(ours, None, ours[:10], native=True) == ["pass", "pass"]
    assert verdicts(ours, np.full((50, 2), np.nan), ours[:10]) == ["pass", "fail"]
    assert verdicts(ours, ours, np.full((10, 2), np.nan)) == ["fail", "fail"]


INI = """
[data]
source = demo
target = {target}
time = applied_on
id = application_id
until = 2024-04-01
drop = {drop}
[model]
candidates = {kind}
trials = 1
[correctness]
max_parity = 0.0001
"""
TARGETS = {"binary": "default", "multiclass": "purpose", "regression": "income"}


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("kind", ["linear", "forest", "xgboost"])
def test_real_candidates_pass_their_edges_and_all_copies_agree(task, kind, tmp_path):
    drop = ", ".join({"true_probability", "default"} - {TARGETS[task]})
    text = INI.format(target=TARGETS[task], drop=drop, kind=kind)
    folder = make_candidate(tmp_path / "one", parse_settings(text, tmp_path / "settings.ini"))
    evidence = load_evidence(folder)
    result, _, failing, copies = examine_correctness(evidence)
    assert failing.empty, failing
    told = {f.slice: f for f in result.findings if f.measure == "parity"}
    assert told["skops"].value == 0 and told["skops"].verdict is Verdict.PASS
    assert told["onnx"].verdict is Verdict.PASS and len(copies.pairs()) == 3
    (folder / "model.onnx").unlink()
    assert {f.slice for f in examine(evidence, "correctness").of("fail")} == {"skops", "onnx"}


def test_a_candidate_whose_answers_were_never_recorded_fails(tmp_path):
    text = INI.format(target="default", drop="true_probability", kind="linear")
    folder = make_candidate(tmp_path / "one", parse_settings(text, tmp_path / "settings.ini"))
    (folder / RECORD).unlink()
    (failed,) = examine(load_evidence(folder), "correctness").of("fail")
    assert failed.slice == "skops" and "train again" in failed.why


def test_a_slip_in_a_promise_is_told_before_training(tmp_path):
    text = INI.format(target="default", drop="true_probability", kind="linear")
    for slip, word in (
        ("[slice.a]\nwhere = channnel = web\n", "'channel'"),
        ("[slice.a]\nwhere = channel < 3\n", "ask with = or !="),
        ("[slice.a]\nwhere = age = old\n", "is a number"),
        ("[behaviour.a]\nkind = invariance\ncolumn = chanel\n", "'channel'"),
    ):
        settings = parse_settings(text + slip, tmp_path / "settings.ini")
        with pytest.raises(Mistake, match=word):
            make_candidate(tmp_path / "one", settings)
        assert not (tmp_path / "one").exists()


def test_rows_beyond_the_record_are_spread_evenly():
    places = recorded_places(contract(), 1_000_000, 1_000_050)
    assert len(places) == 10_050 and places[0] == 0 and places[9_999] == 999_999
    assert pd.Series(np.diff(places[:10_000])).max() <= 101
