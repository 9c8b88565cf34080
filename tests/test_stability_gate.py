"""The stability gate sees a model that hangs on its seed, and leaves a steady one alone."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from prodml.gates.stability import by_seed, churn, drop, holed, noisy, spread, stability


@pytest.fixture(scope="module")
def table():
    r = np.random.default_rng(0)
    features = pd.DataFrame(r.normal(size=(2000, 3)).astype(np.float32), columns=list("abc"))
    features["town"] = r.choice(np.array(["Oslo", "Rome"], object), 2000)
    target = (features["a"] + r.normal(size=2000) > 0).astype(int).to_numpy()
    return features, target


def model(tilt=0.0, steep=2.0):
    def predict(features):
        score = 1 / (
            1 + np.exp(-steep * (features["a"].fillna(0) + tilt * features["b"].fillna(0)))
        )
        return np.column_stack([1 - score, score])

    return predict


LIMITS = {"max_seed_deviation": 0.02, "max_churn": 0.1, "max_noise_drop": 0.05}


def test_a_steady_model_passes(table):
    found = stability("binary", model(), *table, LIMITS, refit=lambda seed: model(0.01 * seed))
    assert found.verdict == "pass"


def test_a_model_that_hangs_on_its_seed_fails(table):
    found = stability("binary", model(), *table, LIMITS, refit=lambda seed: model(1.5 * seed))
    assert {f.measure for f in found.of("fail")} == {"seed_deviation", "churn"}


def test_training_is_asked_for_only_where_a_limit_needs_it(table):
    def never(*_):
        raise AssertionError("trained again for nothing")

    found = stability("binary", model(), *table, {"max_noise_drop": 0.05}, refit=never, folds=never)
    assert [f.measure for f in found.findings] == ["noise_drop"]


def test_one_refit_is_not_enough_for_a_spread(table):
    features, target = table
    (finding,) = by_seed("binary", [model()(features)], target, {"max_seed_deviation": 0.02})
    assert finding.verdict == "inconclusive"


def test_the_interval_of_a_spread_covers_it():
    r = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        _, low, high = spread(r.normal(0, 0.01, 5))
        covered += low <= 0.01 <= high
    assert covered >= binom.ppf(0.001, 400, 0.95)


def test_churn_of_numbers_is_a_share_of_their_spread():
    first = np.array([1.0, 2.0, 3.0])
    assert churn("regression", first, first + 1, 0.5, scale=2.0).tolist() == [0.5] * 3


def test_noise_keeps_types_flags_and_texts(table):
    features, _ = table
    flagged = features.assign(flag=np.float32(1.0))
    nudged = noisy(flagged)
    assert (nudged.dtypes == flagged.dtypes).all() and (nudged["flag"] == 1).all()
    assert (nudged["town"] == flagged["town"]).all() and not (nudged["a"] == flagged["a"]).any()


def test_holes_are_missing_numbers_and_empty_levels(table):
    features, _ = table
    found = holed(features, 0.5)
    assert 0.4 < found["a"].isna().mean() < 0.6 and 0.4 < (found["town"] == "").mean() < 0.6


def test_without_a_change_nothing_is_lost(table):
    features, target = table
    told = model()(features)
    assert drop("binary", target, told, told) == (0.0, 0.0, 0.0)
