"""The stability gate sees a model that hangs on its seed, and leaves a steady one alone."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import binom

from prodml.contract import Column, Contract
from prodml.gates.ensemble import averages, bands, smoothed
from prodml.gates.slices import slice_findings, slice_losses, weak_slices
from prodml.gates.stability import by_seed, churn, cv_intervals, spread, stability
from prodml.gates.stress import DAMAGES, drop, fragile, quality, stress


@pytest.fixture(scope="module")
def table():
    r = np.random.default_rng(0)
    features = pd.DataFrame(r.normal(size=(2000, 3)).astype(np.float32), columns=list("abc"))
    features["town"] = r.choice(np.array(["Oslo", "Rome"], object), 2000)
    target = (features["a"] + r.normal(size=2000) > 0).astype(int).to_numpy()
    return features, target


def model(tilt=0.0, steep=2.0):
    def predict(features):
        score = expit(steep * (features["a"].fillna(0) + tilt * features["b"].fillna(0)))
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


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_keeps_types_columns_and_the_rows_it_was_given(table, kind):
    features, _ = table
    flagged = features.assign(flag=np.float32(1.0))
    before = flagged.copy()
    found = DAMAGES[kind](flagged, 0.3, np.random.default_rng(0))
    pd.testing.assert_frame_equal(flagged, before)
    assert (found.dtypes == flagged.dtypes).all() and not found.equals(flagged)
    assert kind in ("missing", "stale") or (found["flag"] == 1).all()
    assert DAMAGES[kind](flagged, 0.0, np.random.default_rng(0)).equals(flagged)


def test_damage_that_hits_one_row_in_ten_hits_one_row_in_ten(table):
    features, target = table
    curve = stress("binary", model(), features, target, kinds=("unit", "extreme"))
    share = curve[curve["severity"] == 0.1]["hit"]
    assert share.between(0.08, 0.12).all()


def test_the_contract_flags_what_is_out_of_range_or_unseen(table):
    features, target = table
    numbers = tuple(Column(n, "number", "feature", minimum=-5, maximum=5) for n in "abc")
    levels = Column("town", "category", "feature", levels=("Oslo", "Rome"))
    contract = Contract("toy", "binary", "y", ("no", "yes"), (*numbers, levels))
    curve = stress("binary", model(), features, target, contract, severities=(0.1,))
    flagged = curve.set_index("kind")["flagged"]
    assert flagged["unseen"] == flagged["unit"] == 1 and flagged["extreme"] > 0.95
    assert flagged["noise"] < 0.05 and flagged["stale"] < 0.05


def test_a_column_the_model_lives_on_is_the_most_fragile(table):
    worst = fragile("binary", model(), *table)
    assert worst["column"][0] == "a" and worst["low"][0] > 0.2 and worst["high"][1:].max() < 0.01


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_interval_of_a_paired_drop_covers_it(task):
    r, covered = np.random.default_rng(2), 0

    def world(rows):
        x = r.normal(size=rows)
        noise = r.normal(size=rows)
        if task == "regression":
            return x + noise, x, x + 0.5 * r.normal(size=rows)
        y = (x + noise > 0).astype(int)
        told = [expit(z) for z in (x, x + 0.7 * r.normal(size=rows))]
        return y, *(np.column_stack([1 - p, p]) for p in told)

    truth = np.mean([drop(task, *world(20_000))[0] for _ in range(20)])
    for _ in range(200):
        _, low, high = drop(task, *world(600))
        covered += low <= truth <= high
    assert covered >= binom.ppf(0.001, 200, 0.95)


def test_without_a_change_nothing_is_lost(table):
    features, target = table
    told = model()(features)
    value, low, high = drop("binary", target, told, told)
    assert value == 0 and -0.001 < low < 0 < high < 0.001


def test_intervals_of_cross_validation_cover_in_the_order_that_is_said():
    """The mean of five folds of 200 rows; the truth is what models of such a size do elsewhere."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold

    r = np.random.default_rng(3)

    def rows(many):
        x = r.normal(size=(many, 3))
        return x, (x[:, 0] + r.normal(size=many) > 0).astype(int)

    far = rows(50_000)
    truth = np.mean([LogisticRegression().fit(*rows(160)).score(*far) for _ in range(30)])
    held = {"plain": 0, "student": 0, "nadeau_bengio": 0}
    for _ in range(150):
        x, y = rows(200)
        scores = []
        for inside, outside in KFold(5).split(x):
            fitted = LogisticRegression().fit(x[inside], y[inside])
            scores.append(fitted.score(x[outside], y[outside]))
        ends = cv_intervals(scores)
        reach = 1.96 * np.std(scores, ddof=1) / 5**0.5
        ends["plain"] = (np.mean(scores) - reach, np.mean(scores) + reach)
        for name, (low, high) in ends.items():
            held[name] += low <= truth <= high
    assert held["nadeau_bengio"] >= binom.ppf(0.001, 150, 0.95)
    assert held["plain"] < held["student"] <= held["nadeau_bengio"]


def test_limits_on_folds_damage_and_slices_are_each_judged(table):
    features, target = table
    limits = {"max_fold_deviation": 0.05, "min_cv_quality": 0.6, "max_unit_drop": 0.5}
    limits |= {"max_unseen_drop": 0.1, "max_slice_loss": 0.3}
    search = weak_slices(features, slice_losses("binary", target, model()(features)))
    scores = [0.84, 0.85, 0.83, 0.84, 0.86]
    found = stability(
        *("binary", model(), features, target, limits),
        *(lambda seed: model(), lambda: scores),
        search=search,
    )
    measures = [f.measure for f in found.findings]
    assert measures == ["fold_deviation", "cv_quality", "unit_drop", "unseen_drop", "slice_loss"]
    assert found.verdict == "pass", found
    bare = stability(*("binary", model(), features, target, limits), lambda seed: model())
    assert bare.verdict == "inconclusive"  # no folds were run: nothing to judge


def slices_of(many, rows, weak=0.0, seed=0):
    """A column of `many` levels with `rows` each, all right nine times in ten but perhaps one."""
    r = np.random.default_rng(seed)
    level = np.repeat(np.arange(many), rows)
    wrong = r.random(many * rows) < np.where(level == 0, 0.1 + weak, 0.1)
    names = np.array([f"l{i:02d}" for i in range(many)], object)
    return pd.DataFrame({"shop": names[level]}), wrong.astype(float)


def test_among_equal_slices_none_is_called_weak_more_often_than_said():
    found = 0
    for seed in range(60):
        features, wrong = slices_of(12, 300, seed=seed)
        found += slice_findings(weak_slices(features, wrong), 0.05)[0].verdict != "pass"
    assert found <= binom.ppf(0.999, 60, 0.05)


def test_a_slice_that_is_twice_as_often_wrong_is_found_and_sized():
    hits = 0
    for seed in range(20):
        features, wrong = slices_of(12, 1000, weak=0.2, seed=seed)
        (one, *_) = slice_findings(weak_slices(features, wrong), 0.05)
        hits += one.verdict == "fail" and one.slice == "shop = l00" and one.low <= 0.2 <= one.high
    assert hits >= 17


def test_too_few_rows_for_any_slice_are_inconclusive():
    features, wrong = slices_of(12, 20)
    (one,) = slice_findings(weak_slices(features, wrong), 0.05)
    assert one.verdict == "inconclusive" and "too few" in one.why


def test_an_ensemble_of_more_models_changes_its_mind_less():
    r = np.random.default_rng(4)
    truth = r.random(2000)
    target = (r.random(2000) < truth).astype(int)
    told = [np.clip(truth + 0.2 * r.normal(size=2000), 0, 1) for _ in range(8)]
    models = [np.column_stack([1 - p, p]) for p in told]
    table = averages("binary", models, target)
    assert table["churn"].is_monotonic_decreasing and len(table) == 4
    assert table["quality"].iloc[-1] > table["quality"].iloc[0]
    offer = bands("binary", models[0], models[1], target)
    assert offer["churn"].is_monotonic_decreasing
    assert offer["churn"][0] == churn("binary", models[0], models[1], 0.5, 1.0).mean()


def test_smoothing_never_invents_an_answer():
    r = np.random.default_rng(5)
    old, new = r.dirichlet(np.ones(3), 500), r.dirichlet(np.ones(3), 500)
    for task, a, b in (("multiclass", old, new), ("binary", old[:, :2], new[:, :2])):
        told = smoothed(task, a, b, 0.1, 0.5, 1.0)
        assert ((told == a).all(axis=1) | (told == b).all(axis=1)).all()
    assert quality("multiclass", old.argmax(axis=1), old) == 1
