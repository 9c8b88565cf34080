"""Profiles add up exactly, and the drift gate is wrong no more often than it says."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from prodml.contract import Column, Contract
from prodml.gates.drift import drift, look, table
from prodml.gates.two_sample import two_sample
from prodml.profile import PREDICTION, Bins, Profile, profile, read_profile
from prodml.settings import Mistake
from prodml.sketch import sketch_rows
from prodml.stats.effect import stability_index

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


KNOWN = profile(rows(6000, 0), CONTRACT, windows=np.arange(6000) // 200, sketch=False)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=5), st.randoms())
def test_parts_counted_in_any_order_add_up_to_the_whole(cuts, chance):
    table = rows(400, 1)
    edges = sorted({0, 400, *cuts})
    parts = [table[a:b] for a, b in itertools.pairwise(edges)]
    chance.shuffle(parts)
    merged = profile(parts[0], like=KNOWN, sketch=False)
    for part in parts[1:]:
        merged = merged.merge(profile(part, like=KNOWN, sketch=False))
    whole = profile(table, like=KNOWN, sketch=False)
    assert all((merged.total(n) == whole.total(n)).all() for n in whole.bins)


def test_the_file_is_the_same_bytes_for_the_same_rows_and_comes_back():
    content = KNOWN.to_bytes()
    windows = np.arange(6000) // 200
    assert profile(rows(6000, 0), CONTRACT, windows=windows, sketch=False).to_bytes() == content
    assert read_profile(content).to_bytes() == content


@pytest.mark.parametrize("content", [b"", b"PK", b"not a profile"])
def test_what_is_no_profile_is_told(content):
    with pytest.raises(Mistake, match="not a profile"):
        read_profile(content)


def test_profiles_of_different_bins_do_not_add_up():
    with pytest.raises(Mistake, match="different bins"):
        KNOWN.merge(profile(rows(100, 2), CONTRACT, sketch=False))


def test_whylogs_counts_the_same_rows_and_nulls():
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


LIMITS = {"max_shift": 0.1}


def counted(table, looks=1):
    windows = np.arange(len(table)) * looks // len(table)
    return profile(table, like=KNOWN, windows=windows, sketch=False)


def findings(table, looks=1):
    found = drift(KNOWN, counted(table, looks), LIMITS, looks=365).findings
    return {f.slice: f for f in found}


def test_every_kind_of_change_has_its_word():
    new = rows(2000, 7)
    new.loc[::20, "town"] = "Bergen"
    wide = rows(4000, 8)
    wide["x"] *= 1.5
    fewer = rows(2000, 9)
    fewer["town"] = fewer["town"].where(np.random.default_rng(1).random(2000) < 0.5, "Oslo")
    for changed, column, word in (
        (rows(2000, 4, shift=0.6), "x", "location"),
        (wide, "x", "tails"),
        (rows(2000, 4, missing=0.4), "x", "missing"),
        (new, "town", "new levels"),
        (fewer, "town", "level Oslo"),
    ):
        found = findings(changed)[column]
        assert found.verdict == "warn" and found.why.startswith("alert: " + word), found
        assert found.low > found.limit and "not yet harm" in found.why


def test_the_first_new_levels_are_noticed_and_a_few_do_not_alert():
    table = rows(5000, 10)
    table.loc[:49, "town"] = "Bergen"  # 1 % of the rows
    found = findings(table)["town"]
    assert found.why.startswith("notice") and "0.0% → 1.5%" in found.why


def test_columns_that_lose_their_bond_are_found_by_the_pair():
    r = np.random.default_rng(1)
    first = r.normal(size=9000)
    bound = pd.DataFrame({"a": first, "b": 0.6 * first + 0.8 * r.normal(size=9000)})
    loose = bound[6000:].assign(b=r.permutation(bound["b"][6000:]))
    known = profile(bound[:6000], windows=np.arange(6000) // 200, sketch=False)
    seen = table(look(known, profile(loose, like=known, sketch=False))).set_index("column")
    assert seen.loc["(pairs)", "level"] == "alert" and seen.loc["(pairs)", "what"] == "a with b"
    assert (seen.loc[["a", "b"], "level"] == "calm").all()


def test_a_change_is_dated_and_what_matters_comes_first():
    r = np.random.default_rng(2)
    calm = pd.DataFrame(r.normal(size=(10_000, 3)), columns=["a", "b", "c"])
    later = pd.DataFrame(r.normal(size=(10_000, 3)), columns=["a", "b", "c"])
    later.loc[5000:, ["a", "b"]] += 0.3
    known = profile(calm, windows=np.arange(10_000) // 500, sketch=False)
    known = Profile(known.bins, known.counts, known.pairs, b"", {"a": 0.1, "b": 0.9, "c": 0.0})
    current = profile(later, like=known, windows=np.arange(10_000) // 500, sketch=False)
    seen = table(look(known, current))
    assert seen["column"].tolist()[:2] == ["b", "a"] and seen["since"].tolist()[:2] == [11, 11]
    assert seen.set_index("column").loc["c", "level"] == "calm"


def answers(share, rows, windows=1):
    """Profiles of answers of which a share lies above the edge."""
    bins = {PREDICTION: Bins(edges=(0.5,))}
    high = np.random.default_rng(windows).binomial(rows, share, windows)
    counts = np.column_stack([rows - high, high, np.zeros(windows, int)])
    return Profile(bins, {PREDICTION: counts}, np.zeros((windows, 3, 0)))


def test_only_a_change_of_the_answers_fails():
    before = answers(0.1, 300, 30)
    limits = {"max_prediction_shift": 0.2}
    assert drift(before, answers(0.9, 1000), limits).verdict == "fail"
    assert drift(before, answers(0.1, 1000), limits).verdict == "pass"


@pytest.mark.parametrize("rows", [0, 6])
def test_hardly_any_rows_are_not_enough_to_say(rows):
    found = drift(answers(0.1, 300, 30), answers(0.1, rows), {"max_prediction_shift": 0.2})
    assert found.verdict == "inconclusive" and "not enough data" in found.findings[0].why


def test_a_reference_of_few_windows_or_no_limits_is_no_pass():
    few = drift(answers(0.1, 300, 5), answers(0.1, 1000), {"max_prediction_shift": 0.2})
    assert few.verdict == "inconclusive" and "10 are needed" in few.findings[0].why
    assert drift(answers(0.1, 300, 30), answers(0.1, 1000), {}).verdict == "warn"


def test_windows_that_resemble_their_neighbours_void_the_promise_and_it_is_said():
    r = np.random.default_rng(4)
    wave = np.sin(np.arange(6000) / 600)[:, None]
    season = pd.DataFrame(r.normal(size=(6000, 2)) + wave, columns=["a", "b"])
    known = profile(season, windows=np.arange(6000) // 200, sketch=False)
    found = drift(known, profile(season[:500], like=known, sketch=False), LIMITS)
    (one,) = [f for f in found.findings if f.measure == "dependence"]
    assert one.verdict == "warn" and "not promised" in one.why
    plain = drift(KNOWN, counted(rows(500, 12)), LIMITS)
    assert not [f for f in plain.findings if f.measure == "dependence"]


def test_a_classifier_is_at_a_loss_without_a_change_as_often_as_it_says():
    r, wrong = np.random.default_rng(5), 0
    for seed in range(60):
        tables = [pd.DataFrame(r.normal(size=(400, 4)), columns=list("abcd")) for _ in range(2)]
        wrong += two_sample(*tables, confidence=0.9, seed=seed).low > 0.5
    assert wrong <= binom.ppf(0.999, 60, 0.05)


def test_a_classifier_needs_rows_of_both():
    few = pd.DataFrame({"a": np.arange(30.0)})
    apart = two_sample(few, few[:5])
    assert np.isnan(apart.auc)
    found = drift(KNOWN, counted(rows(500, 3)), {"max_two_sample_auc": 0.6}, apart=apart)
    assert found.verdict == "inconclusive"


def test_rows_without_a_counted_column_are_told():
    with pytest.raises(Mistake, match="no column 'town'"):
        profile(rows(10, 1)[["x"]], like=KNOWN)


def test_the_same_value_in_another_precision_or_type_falls_into_the_same_bin():
    values = pd.Series(np.round(np.random.default_rng(6).random(2000), 1))
    known = profile(pd.DataFrame({"v": values}), sketch=False)
    for same in (values.astype(np.float32), values.astype(str), values.astype("Float64")):
        assert (known.bins["v"].count(same) == known.total("v")).all()
    odd = pd.Series(["0.5", "much", None, "inf"])
    assert known.bins["v"].count(odd)[-1] == 3
