"""Every measure is scikit-learn's, and its interval holds the truth as often as it says."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn import metrics

from prodml.gates.correctness import measure_interval
from prodml.measure import BY_TASK, SMALLER_IS_BETTER, decide
from prodml.settings import MEASURES


def sample(task, rows, seed):
    """A target, and predictions that are somewhat off."""
    r = np.random.default_rng(seed)
    if task == "binary":
        z = r.normal(-1, 1.2, rows)
        said = 1 / (1 + np.exp(-(z + 0.3)))
        return (r.random(rows) < 1 / (1 + np.exp(-z))).astype(int), np.column_stack(
            [1 - said, said]
        )
    if task == "multiclass":
        z = r.normal([0, 0.5, -0.5], 1.2, (rows, 3))
        true, said = np.exp(z), np.exp(0.7 * z)
        true, said = (p / p.sum(axis=1, keepdims=True) for p in (true, said))
        return (true.cumsum(axis=1) > r.random((rows, 1))).argmax(axis=1), said
    said = r.normal(20, 2, rows)
    return said + r.normal(0.2, 1, rows), said


TRUTHS = {task: sample(task, 200_000, 1) for task in BY_TASK}
CASES = [(task, name) for task in BY_TASK for name in BY_TASK[task]]


@pytest.mark.parametrize(("task", "name"), CASES)
def test_intervals_hold_the_truth(task, name):
    """On 300 rows, at most 8 % of the 95 % intervals miss: held by a binomial bound."""
    y, p = TRUTHS[task]
    truth = BY_TASK[task][name](y, p, decide(task, p), np.ones(len(y)))
    missed, widths = 0, []
    for seed in range(60):
        value, low, high = measure_interval(name, task, *sample(task, 300, seed + 10))
        missed += not low <= truth <= high
        widths.append(high - low)
        assert low <= value <= high
    assert missed <= binom.ppf(0.999, 60, 0.08), missed
    few, many = (measure_interval(name, task, *sample(task, rows, 5)) for rows in (300, 4800))
    assert many[2] - many[1] < 0.6 * (few[2] - few[1]), "more rows, a narrower interval"


def peers(task, y, p, d, w):
    """What scikit-learn says, by our names."""
    said = dict(sample_weight=w)
    found = {}
    if task != "regression":
        found = {
            "accuracy": metrics.accuracy_score(y, d, **said),
            "balanced_accuracy": metrics.balanced_accuracy_score(y, d, **said),
            "macro_f1": metrics.f1_score(y, d, average="macro", zero_division=0, **said),
            "macro_precision": metrics.precision_score(
                y, d, average="macro", zero_division=0, **said
            ),
            "mcc": metrics.matthews_corrcoef(y, d, **said),
            "log_loss": metrics.log_loss(y, p, **said),
        }
    if task == "binary":
        s = p[:, 1]
        found |= {
            "roc_auc": metrics.roc_auc_score(y, s, **said),
            "average_precision": metrics.average_precision_score(y, s, **said),
            "brier_score": metrics.brier_score_loss(y, s, **said),
            "f1": metrics.f1_score(y, d, **said),
            "precision": metrics.precision_score(y, d, zero_division=0, **said),
            "recall": metrics.recall_score(y, d, **said),
            "specificity": metrics.recall_score(y, d, pos_label=0, **said),
        }
    if task == "multiclass":
        areas = [metrics.roc_auc_score(y == k, p[:, k], **said) for k in range(3)]
        found |= {"roc_auc": np.mean(areas), "brier_score": metrics.brier_score_loss(y, p, **said)}
    if task == "regression":
        found |= {
            "rmse": metrics.root_mean_squared_error(y, p, **said),
            "mae": metrics.mean_absolute_error(y, p, **said),
            "median_absolute_error": metrics.median_absolute_error(y, p, **said),
            "mape": metrics.mean_absolute_percentage_error(y, p, **said),
            "r2": metrics.r2_score(y, p, **said),
        }
    return found


@pytest.mark.parametrize("task", BY_TASK)
def test_measures_are_those_of_sklearn_with_and_without_weights(task):
    for seed, cut in ((1, 0.5), (2, 0.3), (3, 1.1)):
        y, p = sample(task, 400, seed)
        p = np.round(p, 2) / np.round(p, 2).sum(axis=1, keepdims=True) if p.ndim > 1 else p
        weights = [np.ones(400), np.random.default_rng(seed).multinomial(400, [1 / 400] * 400)]
        for w in weights:
            there = w > 0
            rows = y[there], p[there], decide(task, p, cut)[there], w[there].astype(float)
            theirs = peers(task, *rows)
            for name, value in theirs.items():
                assert BY_TASK[task][name](*rows) == pytest.approx(value, abs=1e-9), (name, cut)
    assert set(BY_TASK[task]) - set(theirs) <= {"skill", "calibration_error"}


def test_every_measure_can_be_limited_on_its_one_side():
    for name in {name for task in BY_TASK.values() for name in task}:
        side = "max" if name in SMALLER_IS_BETTER else "min"
        assert f"{side}_{name}" in MEASURES["correctness"], name


def test_a_percentage_of_nothing_is_no_number():
    y, p = sample("regression", 300, 1)
    y[7] = 0
    assert np.isnan(measure_interval("mape", "regression", y, p)[0])


def test_a_higher_confidence_is_a_wider_interval():
    y, p = sample("binary", 300, 1)
    for name in BY_TASK["binary"]:
        usual, sure = (measure_interval(name, "binary", y, p, 0.5, c) for c in (0.95, 0.999))
        assert sure[1] <= usual[1] and usual[2] <= sure[2] and sure[2] <= max(1, usual[2] * 2)
