"""Profiles add up exactly, and the drift gate is wrong no more often than it says."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from prodml.contract import Column, Contract
from prodml.gates.drift import PREDICTION, drift, stability_index
from prodml.profile import Bins, Profile, profile, read_profile
from prodml.settings import Mistake

CONTRACT = Contract(
    *("toy", "binary", "y", ("no", "yes")),
    columns=(
        Column("x", "number", "feature"),
        Column("town", "category", "feature", levels=("Oslo", "Rome")),
    ),
)


def rows(n, seed, shift=0.0, missing=0.05):
    r = np.random.default_rng(seed)
    x = (r.normal(size=n) + shift).astype(np.float32)
    x[r.random(n) < missing] = np.nan
    return pd.DataFrame({"x": x, "town": r.choice(np.array(["Oslo", "Rome", ""], object), n)})


KNOWN = profile(rows(5000, 0), CONTRACT, sketch=False)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=5), st.randoms())
def test_parts_counted_in_any_order_add_up_to_the_whole(cuts, chance):
    table = rows(400, 1)
    edges = sorted({0, 400, *cuts})
    parts = [table[a:b] for a, b in itertools.pairwise(edges)]
    chance.shuffle(parts)
    merged = profile(parts[0], bins=KNOWN.bins, sketch=False)
    for part in parts[1:]:
        merged = merged.merge(profile(part, bins=KNOWN.bins, sketch=False))
    whole = profile(table, bins=KNOWN.bins, sketch=False)
    assert all((merged.total(n) == whole.total(n)).all() for n in whole.bins)


def test_the_file_is_the_same_bytes_for_the_same_rows_and_comes_back():
    content = KNOWN.to_bytes()
    assert profile(rows(5000, 0), CONTRACT, sketch=False).to_bytes() == content
    assert read_profile(content).to_bytes() == content


@pytest.mark.parametrize("content", [b"", b"PK", b"not a profile"])
def test_what_is_no_profile_is_told(content):
    with pytest.raises(Mistake, match="not a profile"):
        read_profile(content)


def test_profiles_of_different_bins_do_not_add_up():
    with pytest.raises(Mistake, match="different bins"):
        KNOWN.merge(profile(rows(100, 2), CONTRACT, sketch=False))


def test_whylogs_counts_the_same_rows_and_nulls():
    from prodml.profile import sketch_rows

    table = rows(300, 3)
    summary = sketch_rows(profile(table, CONTRACT).sketch)
    assert summary.loc["x", "counts/n"] == 300
    assert summary.loc["x", "counts/null"] == table["x"].isna().sum()
    assert summary.loc["town", "counts/null"] == (table["town"] == "").sum()


@pytest.mark.parametrize("n", [100, 500, 5000])
def test_without_a_change_the_interval_leaves_zero_out_as_often_as_it_says(n):
    """300 looks at a 95 % interval: its lower bound is above zero in at most 2.5 % of them."""
    r = np.random.default_rng(n)
    share = np.full(20, 1 / 20)
    lows = [
        stability_index(r.multinomial(5000, share), r.multinomial(n, share))[1] for _ in range(300)
    ]
    assert sum(low > 0 for low in lows) <= binom.ppf(0.999, 300, 0.025)


def test_the_interval_covers_the_true_index():
    r, before = np.random.default_rng(8), np.full(10, 0.1)
    after = before * np.linspace(0.6, 1.4, 10)
    covered = 0
    for _ in range(200):
        p, q = r.multinomial(4000, before), r.multinomial(2000, after)
        _, low, high = stability_index(p, q)
        middle = (before * 4000 + after * 2000) / 6000
        covered += low <= ((before - after) ** 2 / middle).sum() <= high
    assert covered >= binom.ppf(0.001, 200, 0.95)


def test_a_shift_and_a_feed_that_stops_are_seen():
    limits = {"max_feature_psi": 0.1, "max_missing_difference": 0.1}
    for change, measure in (
        ({"shift": 0.6}, "feature_psi"),
        ({"missing": 0.4}, "missing_difference"),
    ):
        current = profile(rows(2000, 4, **change), bins=KNOWN.bins, sketch=False)
        found = drift(KNOWN, current, limits).findings
        (one,) = [f for f in found if f.measure == measure and f.slice == "x"]
        assert one.verdict == "warn" and one.low > one.limit


def test_only_a_change_of_the_answers_fails():
    bins = {PREDICTION: Bins(edges=(0.5,))}
    before = Profile(bins, {PREDICTION: np.array([[900, 100, 0]])})
    after = Profile(bins, {PREDICTION: np.array([[100, 900, 0]])})
    assert drift(before, after, {"max_prediction_psi": 0.2}).verdict == "fail"
    assert drift(before, before, {"max_prediction_psi": 0.2}).verdict == "pass"


def test_hardly_any_rows_are_not_enough_to_say():
    bins = {PREDICTION: Bins(edges=(0.5,))}
    before = Profile(bins, {PREDICTION: np.array([[900, 100, 0]])})
    few = Profile(bins, {PREDICTION: np.array([[4, 2, 0]])})
    none = Profile(bins, {PREDICTION: np.array([[0, 0, 0]])})
    assert drift(before, few, {"max_prediction_psi": 0.2}).verdict == "inconclusive"
    assert drift(before, none, {"max_prediction_psi": 0.2}).verdict == "inconclusive"
