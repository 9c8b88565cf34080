"""Declared slices: a bad one is found, a fair one is not failed by chance, none passes unseen."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from prodml.gates.slices import declared_slices, slice_rows
from prodml.settings import Mistake, Slice, read_conditions
from prodml.verdict import Verdict


def frame(rows, seed=0):
    r = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": r.integers(18, 80, rows),
            "job": r.choice(["cook", "clerk", "rock and roll"], rows),
            "income": pd.Series(r.normal(size=rows)).mask(r.random(rows) < 0.1),
            "owner": r.random(rows) < 0.5,
            "area": r.choice([f"z{i}" for i in range(10)], rows),
        }
    )


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("age < 30", lambda f: f["age"] < 30),
        ("age >= 30 and job = cook", lambda f: (f["age"] >= 30) & (f["job"] == "cook")),
        ("age = 30", lambda f: f["age"] == 30),
        ("age != 30.0", lambda f: f["age"] != 30),
        ('job = "rock and roll"', lambda f: f["job"] == "rock and roll"),
        ("job != cook and age <= 20", lambda f: (f["job"] != "cook") & (f["age"] <= 20)),
        ("income =", lambda f: f["income"].isna()),
        ('income != ""', lambda f: f["income"].notna()),
        ("income != 3", lambda f: f["income"].notna()),
        ("income > -1", lambda f: f["income"] > -1),
        ("owner = yes", None),
        ("owner = true", lambda f: f["owner"]),
        ("owner = 0", lambda f: ~f["owner"]),
    ],
)
def test_conditions_choose_the_rows_they_say(where, rows):
    table = frame(500)
    if rows is None:
        assert not slice_rows(table, read_conditions(where)).any()
        return
    found = slice_rows(table, read_conditions(where))
    assert found.any() and np.array_equal(found, rows(table).to_numpy())


@pytest.mark.parametrize(
    ("where", "word"),
    [("agee < 3", "'age'"), ("job < 3", "ask with"), ("age = old", "a number")],
)
def test_conditions_that_cannot_be_asked(where, word):
    with pytest.raises(Mistake, match=word):
        slice_rows(frame(10), read_conditions(where))


TEN = [Slice(f"z{i}", read_conditions(f"area = z{i}")) for i in range(10)]
LIMITS = {"min_accuracy": 0.8, "min_recall": 0.8, "max_leakage": 0.9}


def outcome(table, seed, right):
    """Outcomes, and sure answers that are right at the rate `right` (rows,)."""
    r = np.random.default_rng(seed)
    y = r.integers(0, 2, len(table))
    hit = r.random(len(table)) < right
    return y, np.eye(2)[np.where(hit, y, 1 - y)]


def held(table, seed, right, slices=TEN, **more):
    return declared_slices(slices, "binary", table, outcome(table, seed, right), LIMITS, **more)


def test_twenty_chances_share_one_promise():
    """At the limit everywhere: a failure or pass anywhere in 2.5 % of the runs, each."""
    repeats, wrong = 60, {"fail": 0, "pass": 0}
    for seed in range(repeats):
        found = held(frame(3000, seed), seed, 0.8)
        assert len(found) == 20, "two limits in ten slices; leakage is no measure of a slice"
        for verdict in wrong:
            wrong[verdict] += any(one.verdict == verdict for one in found)
    assert max(wrong.values()) <= binom.ppf(0.999, repeats, 0.025), wrong


def test_a_bad_slice_fails_and_the_others_do_not():
    for seed in range(10):
        table = frame(5000, seed)
        found = held(table, seed, np.where(table["area"] == "z3", 0.6, 0.93))
        assert {one.slice for one in found if one.verdict is Verdict.FAIL} == {"slice z3"}
        passed = [one for one in found if one.slice != "slice z3"]
        assert np.mean([one.verdict is Verdict.PASS for one in passed]) > 0.9


def test_small_and_empty_slices_are_inconclusive_and_named():
    slices = [
        Slice("few", read_conditions("age = 20")),
        Slice("nobody", read_conditions("age > 200"), {"min_roc_auc": 0.5}),
    ]
    found = held(frame(600), 1, 1.0, slices)
    assert [one.slice for one in found] == ["slice few", "slice few", "slice nobody"]
    assert {one.verdict for one in found} == {Verdict.INCONCLUSIVE}
    assert "100 are needed" in found[0].why and found[2].why.startswith("0 rows of 600")
    (none,) = held(frame(600), 1, 1.0, [slices[1]], minimum_rows=0)
    assert none.verdict is Verdict.INCONCLUSIVE, "not even when no minimum is asked"


def test_own_limits_replace_those_of_everyone():
    own = Slice("cooks", read_conditions("job = cook"), {"min_accuracy": 0.99})
    (found,) = held(frame(3000), 1, 0.8, [own])
    assert found.limit == 0.99 and found.verdict is Verdict.FAIL


def test_one_class_in_a_slice_is_said():
    table = frame(1000)
    y = (table["job"] == "cook").astype(int).to_numpy()
    p = np.full((1000, 2), 0.5)
    one = Slice("cooks", read_conditions("job = cook"), {"min_roc_auc": 0.6})
    (found,) = declared_slices([one], "binary", table, (y, p), {})
    assert found.verdict is Verdict.INCONCLUSIVE and "one class" in found.why
