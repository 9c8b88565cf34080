"""The live gauge: the counts of a profile, without its libraries, and no wolf cried."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from prodml.contract import Column, Contract, check_rows
from prodml.gates.reference import current_profile, reference_profile
from prodml.profile import PREDICTION, make_bins, profile
from prodml.serve import gauge as gauge_page
from prodml.serve.batches import gather
from prodml.serve.gauge import (
    Gauge,
    answers,
    count,
    custom,
    index,
    make_ruler,
    read_reference,
    readings,
    shift,
)
from prodml.serve.scorer import Answered, Scorer, score
from prodml.settings import Mistake
from prodml.stats.effect import stability_index

FEATURES = (
    Column("amount", "number", "feature", minimum=0.0, maximum=1e6, fill=100.0, on_range="flag"),
    Column("age", "integer", "feature", minimum=18, maximum=90, fill=40.0),
    Column("owns", "boolean", "feature", minimum=0, maximum=1, fill=1.0),
    Column("job", "category", "feature", levels=("clerk", "farmer", "none"), fill="clerk"),
    Column("place", "category", "feature", levels=("å", "b"), fill="b", on_missing="impute"),
)


def contract(task="binary", classes=("no", "yes")):
    same = Column("land", "category", "ignored", levels=("XX",), note="the same in every row")
    return Contract("credit", task, "y", classes, (*FEATURES, same))


def draw(rows, seed, shift=0.0):
    """Rows with missing values, rare levels and a few beyond the range."""
    g = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "amount": g.lognormal(6, 1.2, rows).round(2),
            "age": g.normal(45 + shift, 12, rows).round(),
            "owns": g.integers(0, 2, rows).astype(float),
            "job": g.choice(["clerk", "farmer", "none", "pilot"], rows, p=[0.6, 0.3, 0.09, 0.01]),
            "place": g.choice(["å", "b"], rows),
            "land": "XX",
        }
    )
    for name in ("amount", "job", "place"):
        frame.loc[g.random(rows) < 0.03, name] = None
    return frame


def told(seed, rows, task):
    g = np.random.default_rng(seed)
    if task == "regression":
        return g.normal(10, 3, rows)
    found = g.dirichlet([2] * (2 if task == "binary" else 3), rows)
    return found


def batch_of(known, frame, prediction, most=10**6):
    rows = [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in frame.drop(columns="land").to_dict("records")
    ]
    checked = check_rows(known, rows, most=most)
    assert not checked.rejected
    ids = tuple(str(i) for i in range(len(rows)))
    scorer = Scorer("release-1", known, {}, lambda columns: prediction)
    return gather([Answered(scorer, checked, prediction, ids, time.time())])[0]


TASKS = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "regression": ()}


@pytest.mark.parametrize("task", TASKS)
def test_the_counts_are_those_of_a_profile_of_the_same_rows(task):
    known, train, later = contract(task, TASKS[task]), draw(3000, 1), draw(700, 2)
    kept = reference_profile(known, train, train, told(3, 3000, task))
    reference = read_reference(kept.to_bytes())
    for name in kept.bins:
        part = reference.part(name, reference.counts)
        np.testing.assert_array_equal(part, kept.counts[name])
    prediction = told(4, 700, task)
    counts = count(reference, batch_of(known, later, prediction))
    again = current_profile(known, kept, later, prediction)
    for name in kept.bins:
        found = reference.part(name, counts)
        expected = again.total(name) * (name != "land")  # the model does not see it
        np.testing.assert_array_equal(found, expected, err_msg=name)
    assert set(kept.bins) == {*(c.name for c in FEATURES), "land", PREDICTION}
    np.testing.assert_array_equal(answers(known, prediction), answers(known, prediction))


VALUES = st.lists(st.floats(width=32), min_size=1, max_size=60)


@settings(max_examples=200)
@given(VALUES, VALUES)
def test_any_number_falls_in_the_bin_of_the_profile(train, later):
    bins = make_bins(pd.Series(train, dtype="float32"))
    ruler = make_ruler(vars(bins))
    assert ruler.size == bins.size
    values = np.array(later, np.float32)
    np.testing.assert_array_equal(ruler.place(values), bins.place(pd.Series(values)))


@settings(max_examples=100)
@given(st.lists(st.integers(0, 500), min_size=2, max_size=42), st.data())
def test_the_index_is_that_of_the_report(reference, data):
    size = len(reference)
    current = data.draw(st.lists(st.integers(0, 50), min_size=size, max_size=size))
    n, m = np.array(reference), np.array(current)
    expected, found = stability_index(n, m)[0], index(n, m)[0]
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("freedom", [1, 3, 11, 40])
def test_chance_is_the_quantile_of_chi_square_where_there_are_many_rows(freedom):
    counts = np.full(freedom + 1, 10_000_000)
    rows = counts.sum() / 2
    chance = index(counts, counts)[1]
    assert chance * rows + freedom == pytest.approx(
        chi2.isf(0.001, freedom), rel=0.06
    )  # Wilson and Hilferty


@pytest.mark.parametrize("rows", [20, 50, 200, 2000])
@pytest.mark.parametrize("bins", [2, 12, 42])
def test_without_drift_chance_is_hardly_ever_exceeded(rows, bins):
    """Even and very uneven bins: at most 1 % of looks, 1 in 1000 for hundreds of rows."""
    g = np.random.default_rng(bins * rows)
    for share in (np.ones(bins), 0.5 ** np.arange(bins).clip(0, 12)):
        share = share / share.sum()
        looks = 1500
        pairs = zip(
            g.multinomial(4000, share, looks), g.multinomial(rows, share, looks), strict=True
        )
        above = sum(value > chance for value, chance in (index(*pair) for pair in pairs))
        assert above <= (15 if rows < 100 else 9), above


def test_drift_that_matters_is_seen_with_few_rows():
    g, seen = np.random.default_rng(5), 0
    edges = np.quantile(g.normal(size=4000), np.linspace(0, 1, 41)[1:-1])
    for _ in range(200):
        one, other = g.normal(size=4000), g.normal(1.0, 1, size=200)
        value, chance = index(
            *(np.bincount(edges.searchsorted(x), minlength=40) for x in (one, other))
        )
        seen += value > chance
    assert seen > 190


def test_ordinary_variation_of_the_reference_is_no_drift():
    """Windows that differ among themselves raise the floor for a window like them."""
    g = np.random.default_rng(6)
    days = np.array([g.multinomial(2000, [0.5 + d, 0.5 - d]) for d in g.normal(0, 0.05, 20)])
    usual = custom(days)
    assert usual > 0.01
    like = [g.multinomial(2000, [0.5 + d, 0.5 - d]) for d in g.normal(0, 0.05, 200)]
    above = [index(days.sum(axis=0), one) for one in like]
    alone = np.mean([value > chance for value, chance in above])
    with_usual = np.mean([value > chance + usual for value, chance in above])
    assert alone > 0.5 and with_usual < 0.05


def test_readings_see_what_moved_and_not_the_rest_and_forget_after_an_hour(monkeypatch):
    known, train = contract(), draw(6000, 1)
    kept = reference_profile(known, train, train, told(3, 6000, "binary"))
    live = Gauge()
    live.watch("release-1", known, read_reference(kept.to_bytes()))
    live.take(batch_of(known, draw(400, 8), told(9, 400, "binary")))
    assert not [o.column for o in readings(live, live.counts) if o.index > o.floor]
    now = time.time()
    monkeypatch.setattr(gauge_page.time, "time", lambda: now + 4000)
    live.tick()
    live.take(batch_of(known, draw(400, 10, shift=15), told(11, 400, "binary")))
    found = {(o.window, o.column): o for o in readings(live, live.counts)}
    moved = {key for key, o in found.items() if o.index > o.floor}
    assert ("hour", "age") in moved and {name for _, name in moved} == {"age"}
    assert found["hour", "age"].rows == 400 and found["total", "age"].rows == 800
    assert 0.8 < found["hour", "age"].shift < 1.5 and abs(found["hour", "amount"].shift) < 0.2
    assert ("hour", "land") not in found


def test_a_release_without_a_reference_has_scores_alone():
    known = contract()
    live = Gauge()
    live.take(batch_of(known, draw(100, 1), told(2, 100, "binary")))
    assert [key[0] for key in live.counts] == ["score"] and readings(live, live.counts) == []


def test_an_imputed_missing_value_counts_as_missing():
    known = contract()
    kept = profile(draw(2000, 1), known, sketch=False)
    reference = read_reference(kept.to_bytes())
    scorer = Scorer("r", known, {}, lambda c: np.full((len(c["age"]), 2), 0.5))
    row = {"amount": 5.0, "age": 30, "owns": True, "job": "clerk"}  # no place
    columns = [replace(c, nullable=c.name != "place") for c in known.columns]
    strict = replace(known, columns=tuple(columns))
    checked = check_rows(strict, [row])
    assert checked.columns["place"].tolist() == ["b"]
    counts = count(reference, gather([score(scorer, checked)])[0])
    assert reference.part("place", counts).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("cut", [0, 10, 300, -30])
def test_what_is_no_profile_is_said_to_be_none(cut):
    content = profile(draw(200, 1), contract(), sketch=False).to_bytes()
    with pytest.raises(Mistake, match=r"profile\.bin"):
        read_reference(content[:cut])


def test_shift_is_nothing_where_there_is_nothing():
    assert np.isnan(shift(np.array([]), np.array([1, 2])))
    assert np.isnan(shift(np.array([1.0, 0.0]), np.array([0, 5])))


def test_the_gauge_needs_none_of_the_laboratory():
    heavy = {"pandas", "sklearn", "xgboost", "whylogs", "scipy", "pyarrow"}
    code = f"import sys, prodml.serve.metrics; print(*({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
