"""The correctness gate: how often it is wrong, on inputs whose truth is known, and on bad input."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn import metrics

from prodml.gates.correctness import (
    calibration,
    correctness,
    duplicates,
    leakage,
    measure_interval,
    measured,
    parity,
    reliability,
)
from prodml.settings import Mistake
from prodml.verdict import Verdict, proportion_interval

NAMES = ["accuracy", "balanced_accuracy", "f1", "precision", "recall", "roc_auc", "mcc"]
NAMES += ["average_precision", "log_loss", "brier_score"]


def at_most(rate, repeats):
    """The count that a rate of `rate` exceeds in fewer than one of a thousand simulations."""
    return binom.ppf(0.999, repeats, rate)


def binary(rows, seed, shift=0.0):
    """Outcomes, and two-class probabilities that are off by `shift` in log-odds."""
    r = np.random.default_rng(seed)
    z = r.normal(-1, 1, rows)
    outcome = (r.random(rows) < 1 / (1 + np.exp(-z))).astype(int)
    said = 1 / (1 + np.exp(-(z + shift)))
    return outcome, np.column_stack([1 - said, said])


@pytest.mark.parametrize("name", NAMES)
def test_binary_measures_are_those_of_sklearn(name):
    y, p = binary(500, 1)
    decided = (p[:, 1] >= 0.4).astype(int)
    of = getattr(metrics, {"brier_score": "brier_score_loss"}.get(name, name + "_score"), None)
    of = metrics.matthews_corrcoef if name == "mcc" else of or getattr(metrics, name)
    scored = name in ("roc_auc", "average_precision", "log_loss", "brier_score")
    value, low, high = measure_interval(name, "binary", y, p, 0.4)
    assert value == pytest.approx(of(y, p[:, 1] if scored else decided))
    assert low < value < high


def test_multiclass_and_regression_measures_are_those_of_sklearn():
    r = np.random.default_rng(2)
    p, y = r.dirichlet([1, 1, 1], 400), r.integers(0, 3, 400)
    f1 = metrics.f1_score(y, p.argmax(1), average="macro")
    assert measure_interval("macro_f1", "multiclass", y, p)[0] == pytest.approx(f1)
    assert measure_interval("log_loss", "multiclass", y, p)[0] == pytest.approx(
        metrics.log_loss(y, p)
    )
    y, p = r.normal(size=300), r.normal(size=300)
    for name, truth in (
        ("rmse", metrics.root_mean_squared_error(y, p)),
        ("mae", metrics.mean_absolute_error(y, p)),
        ("r2", metrics.r2_score(y, p)),
    ):
        value, low, high = measure_interval(name, "regression", y, p)
        assert value == pytest.approx(truth) and low < value < high


@pytest.mark.parametrize("name, limit, bound", [("accuracy", 0.8, "min"), ("roc_auc", 0.8, "min")])
def test_a_model_at_the_limit_seldom_gets_a_verdict(name, limit, bound):
    """At the limit both a pass and a failure are wrong; each happens in 2.5 % of the cases."""
    r, repeats, wrong = np.random.default_rng(3), 60, {"pass": 0, "fail": 0}
    for _ in range(repeats):
        y = r.integers(0, 2, 400)
        if name == "accuracy":
            right = r.random(400) < limit
            p = np.eye(2)[np.where(right, y, 1 - y)]
        else:  # two normals 1.19 apart have an area of .8 between them
            score = 1 / (1 + np.exp(-(r.normal(size=400) + 1.1902 * y)))
            p = np.column_stack([1 - score, score])
        (finding,) = measured("binary", y, p, 0.5, {f"{bound}_{name}": limit})
        if finding.verdict in wrong:
            wrong[finding.verdict.value] += 1
    assert max(wrong.values()) <= at_most(0.035, repeats), wrong


def test_calibration_is_not_failed_for_noise_nor_passed_by_luck():
    failed = passed = 0
    for seed in range(120):
        y, p = binary(400, seed)
        failed += calibration(y, p)[1] > 0.01
        y, p = binary(1000, seed, shift=0.5)  # the true error in ten groups is 0.0944
        passed += calibration(y, p)[2] < 0.0944
    assert failed <= at_most(0.025, 120) and passed <= at_most(0.025, 120)
    found = [calibration(*binary(4000, seed, shift=0.5)) for seed in range(20)]
    assert all(low > 0.05 for _, low, _ in found), "a real error is found"
    assert np.mean([value for value, _, _ in found]) == pytest.approx(0.0944, abs=0.01)


def test_five_right_answers_prove_little():
    y = np.array([0, 1, 1, 0, 1])
    limits = {"min_roc_auc": 0.9, "min_accuracy": 0.9, "min_f1": 0.9, "min_balanced_accuracy": 0.9}
    found = measured("binary", y, np.eye(2)[y], 0.5, limits)
    assert {f.verdict for f in found} == {Verdict.INCONCLUSIVE}
    assert found[1].low == pytest.approx(proportion_interval(5, 5)[0])


def test_reliability_groups_hold_every_row_once():
    y, p = binary(777, 5)
    for task, prediction in (("binary", p), ("multiclass", p), ("regression", p[:, 1])):
        bins = reliability(task, y, prediction)
        assert bins["rows"].sum() == 777 and (bins["low"] <= bins["came"]).all()
    assert len(reliability("binary", y, np.full((777, 2), 0.5))) == 1, "one answer, one group"


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_leak_is_named_and_an_honest_feature_is_not(task):
    r = np.random.default_rng(6)
    y = {"binary": r.integers(0, 2, 3000), "multiclass": r.integers(0, 3, 3000)}.get(
        task, r.normal(size=3000)
    )
    table = pd.DataFrame({"noise": r.normal(size=3000), "weak": y + r.normal(0, 1, 3000)})
    table = table.astype(np.float32).assign(word=pd.Series(["a", "b", ""] * 1000, dtype=object))
    (clean,) = leakage(table, y, task, 0.98)
    assert clean.verdict is Verdict.PASS and clean.slice == "weak"
    leaked = table.assign(**{"<b>late": np.float32(-2) * y.astype(np.float32)})
    (found,) = leakage(leaked, y, task, 0.98)
    assert found.verdict is Verdict.FAIL and found.slice == "<b>late" and "Drop it" in found.why
    leaked["<b>late"] = leaked["<b>late"].mask(r.random(3000) < 0.3)
    (gap,) = leakage(leaked, y, task, 0.98)
    assert gap.slice == "<b>late" and gap.value < 0.98, "missing values are a bin of their own"


def test_a_leak_that_cannot_be_looked_for_is_inconclusive():
    table = pd.DataFrame({"x": np.arange(50, dtype=np.float32)})
    (found,) = leakage(table, np.ones(50, int), "binary", 0.98)
    assert found.verdict is Verdict.INCONCLUSIVE


def test_duplicates_count_rows_alike_in_features_and_target():
    r = np.random.default_rng(7)
    train = pd.DataFrame({"x": r.random(100), "y": r.integers(0, 2, 100)})
    test = pd.concat([train.head(10), train.tail(10).assign(y=lambda t: 1 - t["y"])])
    found = duplicates(train, test, 0.05)
    assert found.value == 0.5 and found.verdict is Verdict.WARN and "10 of 20" in found.why
    assert duplicates(train, test, 0.5).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "served, says",
    [
        (np.array([[0.4, 0.6], [np.nan, np.nan]]), "finite"),
        (np.array([0.4, 0.6]), "shape"),
        (np.array([[0.4, 0.6], [0.2, 0.8]]), "1 of 2 rows"),
    ],
)
def test_parity_fails_for_answers_that_differ(served, says):
    ours = np.array([[0.4, 0.6], [0.3, 0.7]])
    found = parity(ours, served, 1e-4)
    assert found.verdict is Verdict.FAIL and says in found.why
    assert parity(ours, ours + 1e-6, 1e-4).verdict is Verdict.PASS
    assert parity(served, ours, 1e-4).verdict is Verdict.FAIL, "either side"


def test_one_class_in_the_test_part_is_inconclusive():
    y, p = np.zeros(300, int), np.tile([0.8, 0.2], (300, 1))
    limits = {"min_roc_auc": 0.7, "max_calibration_error": 0.5, "max_log_loss": 1}
    found = measured("binary", y, p, 0.5, limits)
    assert {f.verdict for f in found} == {Verdict.INCONCLUSIVE}
    assert all("one class" in f.why for f in found)


def test_limits_that_do_not_fit_are_never_passed_over():
    y, p = binary(300, 8)
    (found,) = measured("binary", y, p, 0.5, {"max_rmse": 99})
    assert found.verdict is Verdict.INCONCLUSIVE and "binary task" in found.why
    with pytest.raises(Mistake, match="min_roc_auc"):
        measured("binary", y, p, 0.5, {"min_roc_auk": 0.5})
    with pytest.raises(Mistake):
        measured("binary", y, p, 0.5, {"max_roc_auc": 0.5})
    assert correctness("binary", y, p, {}).verdict is Verdict.WARN, "no limits, nothing proved"


def test_the_gate_holds_every_part_together():
    y, p = binary(600, 9)
    table = pd.DataFrame({"x": p[:, 1], "target": y}).astype(np.float32)
    limits = {"min_roc_auc": 0.6, "max_leakage": 0.98}
    train, same = (table.iloc[:400], y[:400]), parity(p, p, 1e-5, "onnx")
    rest = {"more": [same], "train": train, "test_features": table.iloc[400:], "run_id": "r"}
    result = correctness("binary", y[400:], p[400:], limits, **rest)
    assert [f.measure for f in result.findings] == ["roc_auc", "leakage", "duplicates", "parity"]
    assert result.verdict is Verdict.FAIL and result.of("fail")[0].slice == "target"
    assert result.run_id == "r"
