"""The demo stream keeps its promises: the same month always, events at their time and no other."""

import numpy as np
import pandas as pd
import pytest

from prodml.demo import NOTE, ONSETS, stream


def default_rate(frame):
    return (frame["default"] == "yes").mean()


@pytest.mark.parametrize("months", [[7], [7, 8], [3, 7], range(24), reversed(range(8))])
def test_a_month_is_the_same_whatever_is_asked_for(months):
    alone = stream([7], rows=50)
    found = stream(months, rows=50)
    of_month = found[found["applied_on"].dt.to_period("M") == "2024-08"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, of_month)


def test_another_seed_is_another_world():
    assert not stream([0], seed=1)["income"].equals(stream([0], seed=2)["income"])


@pytest.mark.parametrize("event", ONSETS)
def test_an_event_changes_nothing_before_its_month(event):
    without = {name: month for name, month in ONSETS.items() if name != event}
    before = range(ONSETS[event])
    pd.testing.assert_frame_equal(stream(before, rows=30), stream(before, rows=30, onsets=without))
    after = [ONSETS[event]]
    assert not stream(after, rows=30).equals(stream(after, rows=30, onsets=without))


def test_events_do_what_their_names_say():
    auc = pytest.importorskip("sklearn.metrics").roc_auc_score
    first, second = stream(range(12)), stream(range(12, 16))
    assert (second["channel"] == "app").mean() > 4 * (first["channel"] == "app").mean()
    quiet, worse = stream(range(16, 20), onsets={}), stream(range(16, 20), onsets={"prior": 16})
    assert default_rate(worse) > default_rate(quiet) + 0.08
    turned = stream(range(20, 24), onsets={"concept": 20})
    ranking = [auc(d["default"] == "yes", stream_truth(d)) for d in (first, turned)]
    assert ranking[0] > 0.78 and ranking[1] < 0.65


def stream_truth(frame):
    """The first year's truth for `frame`, gaps filled: what a model of that year would say."""
    from prodml.demo import true_probability

    filled = frame.fillna({"income": frame["income"].median(), "history_years": 7.8})
    return true_probability(filled, prior=False, concept=False)


def test_the_true_probability_is_true():
    year = stream(range(12))
    bins = pd.qcut(year["true_probability"], 10)
    seen = (year["default"] == "yes").groupby(bins, observed=True).mean()
    said = year["true_probability"].groupby(bins, observed=True).mean()
    assert np.abs(seen - said).max() < 0.05


def test_values_are_missing_and_mostly_on_the_web():
    year = stream(range(12))
    share = year["income"].isna().groupby(year["channel"]).mean()
    assert share["web"] == pytest.approx(0.18, abs=0.03)
    assert share["branch"] == pytest.approx(0.06, abs=0.02)
    assert stream([0], missing=0).notna().all(axis=None)


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_groups_differ_moderately_until_labels_are_biased(seed):
    """By a model that never sees `group`: fairness limits can be met, and can be missed."""
    pytest.importorskip("sklearn")
    gaps = [selection_gap(stream(range(12), seed=seed, label_bias=bias)) for bias in (0, 0.3)]
    assert 0.02 < gaps[0] < 0.12 < 0.18 < gaps[1]


def selection_gap(frame):
    """The difference in selection rate between groups, by a boosted model on the last quarter."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    features = frame[["age", "income", "debt_ratio", "history_years", "inquiries"]].copy()
    for name in ("channel", "job", "purpose", "area"):
        features[name] = frame[name].astype("category")
    late, new = (frame["default"] == "yes").to_numpy(), np.arange(len(frame)) >= 9000
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=50)
    risk = model.fit(features[~new], late[~new]).predict_proba(features[new])[:, 1]
    chosen = pd.Series(risk >= np.quantile(risk, 1 - late[~new].mean()))
    return float(np.ptp(chosen.groupby(frame["group"][new].to_numpy()).mean()))


def test_the_area_tells_the_group_and_the_truth_does_not_use_it():
    year = stream(range(6))
    by_area = (year["group"] == "B").groupby(year["area"]).mean()
    assert by_area["z00"] > 0.8 and by_area["z30"] < 0.2


def test_it_says_that_it_is_synthetic():
    assert NOTE.startswith("SYNTHETIC")
    assert stream([0], rows=3)["application_id"].str.startswith("SYN-").all()
