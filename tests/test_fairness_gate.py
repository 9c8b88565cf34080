"""The fairness gate: how often it errs where the truth is known, and what few rows make it say."""

import numpy as np
import pandas as pd
import pytest
from fairlearn import metrics
from scipy.stats import binom

from prodml.gates.fairness import compare, compare_errors, fairness
from prodml.gates.groups import counted, difference_interval, group_table, groups_of
from prodml.settings import Mistake
from prodml.verdict import Verdict

SELECTION = "selection_rate_difference"
PEERS = {
    SELECTION: metrics.demographic_parity_difference,
    "true_positive_rate_difference": metrics.true_positive_rate_difference,
    "false_positive_rate_difference": metrics.false_positive_rate_difference,
    "equalized_odds_difference": metrics.equalized_odds_difference,
}


def people(rates, rows, seed=0, base=0.5):
    """Targets, decisions and groups: group i has `rows[i]` rows and is selected at `rates[i]`."""
    r = np.random.default_rng(seed)
    group = np.repeat([f"g{i}" for i in range(len(rates))], rows)
    decided = (r.random(len(group)) < np.repeat(rates, rows)).astype(int)
    return (r.random(len(group)) < base).astype(int), decided, group


@pytest.mark.parametrize("measure", PEERS)
def test_differences_are_those_of_fairlearn(measure):
    y, d, g = people([0.3, 0.45, 0.5], [300, 200, 150], 1)
    value, low, high = difference_interval(counted(y, d, g)[1], measure, 0.95)
    assert value == pytest.approx(PEERS[measure](y, d, sensitive_features=g))
    assert 0 <= low < value < high <= 1


def test_the_table_is_fairlearns_but_for_rates_of_nobody():
    y, d, g = people([0.3, 0.5], [200, 100], 2)
    y[g == "g1"] = 0
    table = group_table("binary", y, d, g).set_index(["measure", "group"])
    frame = metrics.MetricFrame(
        metrics=metrics.selection_rate, y_true=y, y_pred=d, sensitive_features=g
    )
    assert table.loc["selection_rate", "value"].tolist() == frame.by_group.tolist()
    assert metrics.true_positive_rate(y[g == "g1"], d[g == "g1"]) == 0, "Fairlearn's answer"
    nobody = table.loc[("true_positive_rate", "g1")]
    assert np.isnan(nobody["value"]) and nobody["rows"] == 0 and (nobody["high"] == 1)
    found = compare(y, d, g, "sex", "true_positive_rate_difference", 0.9)
    assert found.verdict is Verdict.INCONCLUSIVE and "g1 has no rows" in found.why
    wild = np.array(["a", "b", "c"] * 100)
    several = group_table("multiclass", np.arange(300) % 4, np.arange(300) % 3, wild)
    numbers = group_table("regression", np.arange(300.0), np.arange(300.0) + 1, wild)
    assert several["measure"].unique().tolist() == ["accuracy"] and (numbers["value"] == 1).all()


@pytest.mark.parametrize(
    "rates, rows",
    [
        ([0.3, 0.4], [300, 300]),
        ([0.3, 0.3, 0.4, 0.4, 0.4], [300] * 5),
        ([0.3] * 5 + [0.4] * 5, [200] * 10),
        ([0.02, 0.12], [150, 800]),
    ],
)
def test_at_the_limit_neither_verdict_is_given_often(rates, rows):
    """The true difference is the limit: a failure is wrong, and so is a pass."""
    wrong, repeats = {"pass": 0, "fail": 0}, 200
    for seed in range(repeats):
        found = compare(*people(rates, rows, seed), "sex", SELECTION, max(rates) - min(rates))
        if found.verdict in wrong:
            wrong[found.verdict.value] += 1
    assert max(wrong.values()) <= binom.ppf(0.999, repeats, 0.03), wrong


def test_fair_models_with_many_groups_are_not_failed_and_unfair_ones_are():
    fair = [compare(*people([0.3] * 10, [150] * 10, s), "sex", SELECTION, 0.02) for s in range(150)]
    assert sum(f.verdict is Verdict.FAIL for f in fair) <= binom.ppf(0.999, 150, 0.025)
    assert all(f.verdict is not Verdict.PASS for f in fair), "150 rows do not show two points"
    large = compare(*people([0.3] * 5, [20000] * 5), "sex", SELECTION, 0.1)
    unfair = compare(*people([0.3, 0.3, 0.55], [2000] * 3), "sex", SELECTION, 0.1)
    assert large.verdict is Verdict.PASS and unfair.verdict is Verdict.FAIL
    assert "g2 0.5" in unfair.why, "the groups that differ are named"


def test_a_small_group_is_named_and_never_a_silent_pass():
    y, d, g = people([0.3, 0.3, 0.3], [3000, 3000, 40], 3)
    found = compare(y, d, g, "sex", SELECTION, 0.2)
    assert found.verdict is Verdict.INCONCLUSIVE and "g2 has 40, 100 needed" in found.why
    assert compare(y, d, g, "sex", SELECTION, 0.2, minimum_rows=30).rows == 6040
    y, d, g = people([0.1, 0.6, 0.3], [3000, 3000, 40], 3)
    assert compare(y, d, g, "sex", SELECTION, 0.2).verdict is Verdict.FAIL, "unfair without it"
    only = compare(y, d, np.full(len(y), "one"), "sex", SELECTION, 0.2)
    assert only.verdict is Verdict.INCONCLUSIVE and "one group only" in only.why


def test_a_group_of_few_positives_is_not_certain():
    """Three positives, all found: a plain bootstrap would give an interval without width."""
    y, d, g = people([1.0, 0.95], [200, 2000], 4)
    y[g == "g0"], d = 0, d
    y[:3] = 1
    counts = counted(y, d, g)[1]
    _, low, high = difference_interval(counts, "true_positive_rate_difference", 0.95)
    assert low == 0 and high > 0.2


def test_groups_cover_missing_values_dates_and_numbers():
    ages = pd.Series([18.0, 30, 45, 60, np.nan] * 40) + pd.Series(range(200)) / 100
    named = groups_of(ages)
    assert (named[4::5] == "missing").all() and len(set(named)) == 5
    future = groups_of(pd.Series([17.0, 99.0, np.nan]), ages)
    assert set(future) <= set(named), "later rows fall into the training rows' groups"
    assert groups_of(pd.Series(["<b>", None, "x"], dtype=object)).tolist() == [
        "<b>",
        "missing",
        "x",
    ]
    assert groups_of(pd.Series([1.0, 0.0, np.nan])).tolist() == ["1", "0", "missing"]
    assert groups_of(pd.Series(pd.array([1, 2, None], "Int64"))).tolist() == ["1", "2", "missing"]
    assert groups_of(pd.Series(named)).tolist() == named.tolist(), "naming twice changes nothing"
    big = groups_of(pd.Series(range(9_000_000, 9_000_100)))
    assert len(set(big)) == 4 and "missing" not in big
    assert (groups_of(pd.Series([np.nan] * 3)) == "missing").all()


def test_missing_values_are_examined_as_their_own_group():
    y, d, g = people([0.3, 0.3, 0.7], [1000, 1000, 500], 5)
    column = pd.Series(g, dtype=object).where(g != "g2")
    limits = {"max_selection_rate_difference": 0.2}
    result = fairness("binary", y, d, pd.DataFrame({"sex": column}), limits)
    assert result.verdict is Verdict.FAIL and "missing 0." in result.findings[0].why


def test_errors_of_numbers_by_group():
    r, g = np.random.default_rng(6), np.array(["a", "b", "c", "d"] * 300)
    error = np.abs(r.normal(size=1200))
    found = compare_errors(error, g, "sex", 1.2)
    means = [error[g == name].mean() for name in "abcd"]
    assert found.value == pytest.approx(max(means) / error.mean()) and found.low < found.value
    worse = compare_errors(np.where(g == "d", 3 * error, error), g, "sex", 1.2)
    assert worse.verdict is Verdict.FAIL and worse.low > 1.2
    assert compare_errors(error[:40], g[:40], "sex", 1.2).verdict is Verdict.INCONCLUSIVE
    assert compare_errors(error * 0, g, "sex", 1.2).verdict is Verdict.INCONCLUSIVE
    failed = 0
    for seed in range(150):
        noise = np.abs(np.random.default_rng(seed).normal(size=1200))
        failed += compare_errors(noise, g, "sex", 1.02).verdict is Verdict.FAIL
    assert failed <= binom.ppf(0.999, 150, 0.025)


def test_several_classes_are_compared_by_accuracy():
    r, g = np.random.default_rng(7), np.array(["a", "b"] * 2000)
    y = r.integers(0, 3, 4000)
    right = r.random(4000) < np.where(g == "a", 0.9, 0.6)
    d = np.where(right, y, (y + 1) % 3)
    table = pd.DataFrame({"sex": g})
    result = fairness("multiclass", y, d, table, {"max_accuracy_difference": 0.1})
    gap = abs(right[g == "a"].mean() - right[g == "b"].mean())
    assert result.verdict is Verdict.FAIL and result.findings[0].value == pytest.approx(gap)
    assert (
        fairness("binary", y > 0, d > 0, table, {"max_accuracy_difference": 0.9}).verdict == "pass"
    )


@pytest.mark.parametrize(
    "task, key",
    [
        ("regression", "max_selection_rate_difference"),
        ("multiclass", "max_equalized_odds_difference"),
        ("binary", "max_mae_ratio"),
    ],
)
def test_limits_that_do_not_fit_are_inconclusive(task, key):
    y, d, g = people([0.3, 0.3], [200, 200])
    result = fairness(task, y, d, pd.DataFrame({"sex": g}), {key: 1})
    assert result.verdict is Verdict.INCONCLUSIVE and task in result.findings[0].why
    with pytest.raises(Mistake, match="no limit"):
        fairness(task, y, d, pd.DataFrame({"sex": g}), {key + "s": 1})


def test_nothing_examined_is_a_warning_unless_declared():
    y, d, g = people([0.3, 0.3], [200, 200])
    limits, nobody = {"max_selection_rate_difference": 0.2}, pd.DataFrame(index=range(400))
    silent = fairness("binary", y, d, nobody, limits)
    assert silent.verdict is Verdict.WARN and "no sensitive columns" in silent.findings[0].why
    unlimited = fairness("binary", y, d, pd.DataFrame({"sex": g}), {}, none_declared=True)
    assert unlimited.verdict is Verdict.WARN and "no limits" in unlimited.findings[0].why
    assert fairness("binary", y, d, nobody, limits, none_declared=True).verdict is Verdict.PASS
