"""The scorer answers like the notebook, and refuses what it cannot answer."""

import json
import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from released import PASSED, released, sealed, told

from prodml.contract import Column, Contract, check_rows
from prodml.serve.scorer import Encoder, RowsRefused, Scorer, answer_facts, load_scorer, score
from prodml.settings import Mistake

KINDS = {
    "linear": ("default", "linear", False),
    "forest": ("default", "forest", False),
    "xgboost": ("default", "xgboost", False),
    "skops": ("default", "xgboost", True),
    "multiclass": ("job", "forest", False),
    "regression": ("debt_ratio", "xgboost", False),
}


def answer_of(scorer, rows):
    """The answer of `scorer` to `rows`, as JSON values."""
    return answer_facts(score(scorer, check_rows(scorer.contract, rows)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_answers_are_the_notebooks(kind, tmp_path):
    target, candidate, native = KINDS[kind]
    one = released(tmp_path, target, candidate)
    if native:
        one = sealed(one, tmp_path / "native", PASSED, native=True)
    scorer = load_scorer(one.folder)
    answer = answer_of(scorer, one.rows)
    assert np.abs(told(one, answer["predictions"]) - one.answers).max() < 1e-6
    assert answer["release"] == one.folder.name and len(one.rows) > 300
    if one.contract.task == "binary":
        labels = [p["label"] for p in answer["predictions"]]
        expected = np.where(one.answers[:, 1] >= one.threshold, *one.contract.classes[::-1])
        assert labels == expected.tolist() and len(set(labels)) == 2
    if one.contract.task == "multiclass":
        best = [one.contract.classes[i] for i in one.answers.argmax(axis=1)]
        assert [p["label"] for p in answer["predictions"]] == best
    single = [answer_of(scorer, [row])["predictions"][0] for row in one.rows[:20]]
    assert np.abs(told(one, single) - one.answers[:20]).max() < 1e-6


@pytest.mark.parametrize(
    ("task", "classes"),
    [("binary", ("no", "yes")), ("multiclass", ('a "b"', "c\\d", "é")), ("regression", ())],
)
def test_the_prepared_bytes_are_those_of_the_facts(task, classes):
    contract = Contract("toy", task, "y", classes, (Column("x", "number", "feature", fill=1.0),))
    shares = np.random.default_rng(0).dirichlet(np.ones(len(classes) or 1), 50)
    answer = shares if classes else shares[:, 0]
    for threshold in (None, 0.3):
        scorer = Scorer("r", contract, {"threshold": threshold}, lambda columns: answer)
        answered = score(scorer, check_rows(contract, [{"x": 9}] * 50))
        assert Encoder(scorer).encode(answered) == msgspec.json.encode(answer_facts(answered))


def test_ids_are_the_clients_or_drawn_once_a_request(small):
    scorer = load_scorer(small.folder)
    checked = check_rows(small.contract, small.rows[:3])
    assert score(scorer, checked, ["a", "b", "c"]).ids == ("a", "b", "c")
    first, second, third = score(scorer, checked, ["", "b", ""]).ids
    assert second == "b" and first[:-1] == third[:-1] and first.endswith("-0")
    assert len({*score(scorer, checked).ids, *score(scorer, checked, ["a"]).ids}) == 6


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return released(tmp_path_factory.mktemp("small"), kind="linear")


def test_a_row_with_nothing_in_it_is_answered_and_flagged(small):
    answer = answer_of(load_scorer(small.folder), [{}])
    assert 0 <= answer["predictions"][0]["probability"] <= 1
    required = [c.name for c in small.contract.features if not c.nullable]
    assert [p["column"] for p in answer["problems"]] == required and required
    assert {p["action"] for p in answer["problems"]} == {"flagged"}


def test_no_rows_have_no_answers(small):
    assert answer_of(load_scorer(small.folder), [])["predictions"] == []


def test_one_bad_row_refuses_all_and_is_named(small):
    rows = [dict(row) for row in small.rows[:5]]
    rows[3]["age"] = "fifty-secret"
    with pytest.raises(RowsRefused) as refused:
        answer_of(load_scorer(small.folder), rows)
    assert refused.value.checked.rejected == {3} and "secret" not in str(refused.value)


def test_what_is_no_number_is_never_an_answer(small):
    scorer = load_scorer(small.folder)
    object.__setattr__(scorer, "run", lambda columns: np.full((1, 2), np.nan))
    with pytest.raises(ArithmeticError):
        scorer.predict(check_rows(small.contract, small.rows[:1]).columns)


def spoilt(small, folder, name, content):
    for file in ("contract.json", "model.json", "model.onnx", "model.skops"):
        (folder / file).write_bytes((small.folder / file).read_bytes())
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.onnx", b"garbage", "no ONNX model"),
        ("model.onnx", b"", "no ONNX model"),
        ("model.onnx", None, "no ONNX model"),
        ("model.json", None, "model.json"),
        ("model.json", b"[]", "model.json"),
        ("model.json", b"{", "model.json"),
        ("contract.json", b"{}", "not a contract"),
    ],
)
def test_a_broken_release_says_what_is_broken(small, tmp_path, name, content, words):
    spoilt(small, tmp_path, name, content)
    with pytest.raises(Mistake, match=words):
        load_scorer(tmp_path)


def test_a_contract_with_other_features_is_found_at_once(small, tmp_path):
    contract = json.loads(small.contract.to_json())
    spoilt(small, tmp_path, "contract.json", b"")
    contract["columns"] = [c for c in contract["columns"] if c["name"] != "job"]
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    with pytest.raises(Mistake, match="features of its contract"):
        load_scorer(tmp_path)


def test_scoring_by_onnx_imports_no_laboratory_and_leaves_no_telemetry(small, tmp_path):
    code = (
        "import sys; from prodml.serve.scorer import load_scorer, score;"
        "from prodml.contract import check_rows;"
        f"one = load_scorer({str(small.folder)!r}); score(one, check_rows(one.contract, [{{}}]));"
        "print(*({'pandas', 'sklearn', 'xgboost', 'skops', 'scipy', 'onnx'} & set(sys.modules)))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORT_")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "CI": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]
