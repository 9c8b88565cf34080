"""Late labels are joined and windows closed; harm is found in time, and rarely where none is."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from prodml.frame import learn_contract
from prodml.gates.current import make_current, outcomes, read_rows
from prodml.gates.estimate import estimate, row_errors
from prodml.gates.labels import cut, join_labels, window_table
from prodml.gates.performance import Answers, performance
from prodml.ini import parse_settings
from prodml.settings import Mistake

LIMITS = {"max_error_increase": 0.03, "max_calibration_shift": 0.03, "max_ranking_drop": 0.05}


def answers(generator, rows, tilt=0.0, turned=0.0):
    chance = generator.beta(2, 4, rows)
    target = generator.random(rows) < np.clip(chance + tilt, 0, 1)
    target ^= generator.random(rows) < turned
    return Answers(target.astype(int), np.column_stack([1 - chance, chance]))


def looks(rows, many):
    return np.split(np.arange(rows), many)


def judged(old, new, many=60, **more):
    rows = len(new.target)
    return performance("binary", old, new, looks(rows, many), LIMITS, horizon=365, **more)[0]


def test_a_year_of_labels_without_harm_alarms_as_rarely_as_promised():
    generator = np.random.default_rng(1)
    found = [judged(answers(generator, 2000), answers(generator, 6000)) for _ in range(40)]
    assert sum(one.verdict == "fail" for one in found) <= binom.ppf(0.999, 40, 0.05)


@pytest.mark.parametrize(
    ("change", "measure"),
    [
        ({"turned": 0.3}, "error_increase"),
        ({"turned": 0.4}, "ranking_drop"),
        ({"tilt": 0.15}, "calibration_shift"),
    ],
)
def test_harm_of_each_kind_is_found_and_dated(change, measure):
    generator = np.random.default_rng(2)
    old = answers(generator, 3000)
    calm, harm = answers(generator, 3000), answers(generator, 4000, **change)
    both = Answers(*(np.concatenate(part) for part in zip(calm, harm, strict=True)))
    found = [f for f in judged(old, both, 35).of("fail") if f.measure == measure]
    assert found and all(f.why.startswith("alarm") and f.low > f.limit for f in found)
    begun = [int(f.why.split("since look ")[1].split()[0]) for f in found]
    assert min(abs(look - 16) for look in begun) <= 1


def test_a_regression_is_judged_by_its_error_and_its_bias():
    generator = np.random.default_rng(3)
    limits = {"max_mae_increase": 0.2, "max_bias_shift": 0.2}

    def rows(many, error=1.0, bias=0.0):
        said = generator.normal(size=many)
        return Answers(said + error * generator.normal(size=many) + bias, said)

    old = rows(3000)
    for new, wanted in (
        (rows(4000), set()),
        (rows(4000, error=1.6), {"mae_increase"}),
        (rows(4000, bias=0.8), {"bias_shift"}),
    ):
        found = performance("regression", old, new, looks(4000, 20), limits, horizon=365)[0]
        assert {f.measure for f in found.of("fail")} == wanted, found


def test_classes_beyond_two_are_judged_too():
    generator = np.random.default_rng(4)

    def rows(many, right):
        said = generator.dirichlet([1, 1, 1], many)
        drawn = (said.cumsum(axis=1) > generator.random((many, 1))).argmax(axis=1)
        return Answers(np.where(generator.random(many) < right, drawn, 0), said)

    limits = {"max_error_increase": 0.05, "max_calibration_shift": 0.05}
    old = rows(3000, 1.0)
    calm = performance("multiclass", old, rows(6000, 1.0), looks(6000, 10), limits)[0]
    harm = performance("multiclass", old, rows(6000, 0.5), looks(6000, 10), limits)[0]
    assert calm.verdict == "pass" and {"error_increase"} <= {f.measure for f in harm.of("fail")}


def test_few_labels_are_inconclusive_and_no_looks_too():
    generator = np.random.default_rng(5)
    old, few = answers(generator, 2000), answers(generator, 40)
    one = performance("binary", old, few, looks(40, 1), LIMITS)[0]
    none = performance("binary", old, few, [], LIMITS)[0]
    assert one.verdict == none.verdict == "inconclusive"
    assert "about" in one.findings[0].why and "could not be measured" in none.findings[0].why


def world(generator, rows, move=0.0, rule=0.0):
    """Rows whose outcome is a curve that a straight model misses where they may move to."""
    x = generator.normal(size=(rows, 3))
    x[:, 0] += move
    odds = 1.2 * x[:, 0] - 0.9 * x[:, 0] ** 2 * (x[:, 0] > 0) + 0.8 * x[:, 1] + rule * x[:, 1]
    y = (generator.random(rows) < 1 / (1 + np.exp(-odds))).astype(int)
    return pd.DataFrame(x, columns=list("abc")), y


def straight(rows):
    chance = 1 / (1 + np.exp(-(0.7 * rows["a"] + 0.7 * rows["b"] - 0.2).to_numpy()))
    return np.column_stack([1 - chance, chance])


def test_the_estimate_without_labels_holds_the_truth_where_only_inputs_move():
    generator, covered, gaps = np.random.default_rng(6), 0, []
    for move in np.tile([0.0, 0.5, 1.0, 1.5, -1.0], 4):
        old, y = world(generator, 8000)
        new, truth = world(generator, 2000, move)
        guess = estimate("binary", (old, y, straight(old)), (new, straight(new)))
        error = row_errors("binary", truth, straight(new), 0.5)
        noise = 2 * error.std() / np.sqrt(len(error))
        covered += guess.low - noise <= error.mean() <= guess.high + noise
        gaps.append(guess.recalibrated - error.mean())
    assert covered >= binom.ppf(0.001, 20, 0.95) and np.abs(gaps).mean() < 0.025


def test_a_changed_rule_trips_the_wire_and_moved_inputs_do_not():
    generator = np.random.default_rng(7)
    old, y = world(generator, 8000)
    known = Answers(y, straight(old))
    verdicts = {}
    for name, change in {"moved": {"move": 0.8}, "changed": {"rule": -1.8}}.items():
        new, truth = world(generator, 4000, **change)
        guess = estimate("binary", (old, y, straight(old)), (new, straight(new)))
        found = judged(known, Answers(truth, straight(new)), 10, estimated=guess)
        (verdicts[name],) = [f for f in found.findings if f.measure == "concept_drift"]
    assert verdicts["changed"].verdict == "fail" and "end differently" in verdicts["changed"].why
    assert verdicts["moved"].verdict == "pass" and "blind" in verdicts["moved"].why


def test_where_rows_are_unlike_any_old_one_nothing_is_estimated():
    generator = np.random.default_rng(8)
    old, y = world(generator, 3000)
    new, truth = world(generator, 1000, move=8.0)
    guess = estimate("binary", (old, y, straight(old)), (new, straight(new)))
    assert "unlike the old" in guess.why_not and str(guess).startswith("no estimate")
    found = judged(Answers(y, straight(old)), Answers(truth, straight(new)), 5, estimated=guess)
    (wire,) = [f for f in found.findings if f.measure == "concept_drift"]
    assert wire.verdict == "warn"
    few = estimate("binary", (old, y, straight(old)), (new[:50], straight(new[:50])))
    assert "200 are needed" in few.why_not


@pytest.mark.parametrize(
    ("predictions", "labels", "told"),
    [
        ({"id": [1, 1]}, {"id": [1], "y": [0]}, "repeat an id"),
        ({"id": [1, 2]}, {"id": [1, 1], "y": [0, 1]}, "two outcomes"),
        ({"id": [1, None]}, {"id": [1], "y": [0]}, "have no id"),
        ({"no": [1]}, {"id": [1], "y": [0]}, "no column 'id'"),
        ({"id": [1], "y": [1]}, {"id": [1], "y": [0]}, "both tables have a column 'y'"),
    ],
)
def test_labels_that_cannot_be_joined_are_told(predictions, labels, told):
    with pytest.raises(Mistake, match=told):
        join_labels(pd.DataFrame(predictions), pd.DataFrame(labels), "id")


def test_joining_keeps_every_row_in_its_order():
    generator = np.random.default_rng(9)
    asked = pd.DataFrame({"id": generator.permutation(100), "p": generator.random(100)})
    came = pd.DataFrame({"id": np.arange(50), "y": 1}).sample(frac=1, random_state=0)
    joined = join_labels(asked, came, "id")
    assert joined["id"].tolist() == asked["id"].tolist()
    assert (joined["y"].notna() == (joined["id"] < 50)).all()


@pytest.mark.parametrize("period", ["often", "-1D", "0D"])
def test_a_period_that_is_none_is_told(period):
    days = pd.Series(pd.date_range("2026-01-01", periods=10))
    with pytest.raises(Mistake, match=r"such as 1D, 7D or 1MS"):
        cut(days, 10, period)


@pytest.mark.parametrize("period", ["1D", "7D", "1MS", "12h", "1W"])
def test_every_row_falls_into_one_window_in_order(period):
    generator = np.random.default_rng(10)
    seconds = np.sort(generator.integers(0, 90 * 86400, 400))
    times = pd.Series(pd.Timestamp("2026-01-31") + pd.to_timedelta(seconds, unit="s"))
    windows = cut(times, 400, period)
    assert windows.is_monotonic_increasing and windows.min() == 0


def test_compas_from_april_2014_on_is_not_closed(data):
    """Two years had not passed: only those already arrested again are on file."""
    frame = pd.read_csv(data / "compas_two_years.csv.gz", low_memory=False)
    times = pd.to_datetime(frame["compas_screening_date"])
    order = times.argsort()
    frame, times = (
        frame.iloc[order].reset_index(drop=True),
        times.iloc[order].reset_index(drop=True),
    )
    windows = cut(times, len(frame), "1MS")
    as_of = pd.Timestamp("2016-04-01")
    known = frame["two_year_recid"].notna()
    seen = window_table(windows, known, times, delay=730, as_of=as_of)
    late = seen["start"] >= "2014-04-01"
    assert late.sum() >= 6 and not seen["judged"][late].any()
    assert seen["judged"][seen["end"] < "2014-03-01"].all()
    assert seen["why"][late].str.startswith("open until 2016-").all()
    rates = frame.groupby(windows)["two_year_recid"].mean()
    assert rates[late].min() > 0.9 > 0.6 > rates[~late].max()


def test_windows_with_too_few_labels_are_not_judged():
    windows = pd.Series(np.repeat([0, 1], 50))
    known = pd.Series(np.arange(100) % 50 < np.repeat([45, 20], 50))
    seen = window_table(windows, known, coverage=0.8)
    assert seen["judged"].tolist() == [True, False] and "80%" in seen["why"].iloc[1]


SETTINGS = """
[data]
source = rows.csv
target = late
time = day
id = id
[monitor]
period = 7D
label_delay = 10
[performance]
max_error_increase = 0.1
min_label_coverage = 0.5
"""


def test_rows_and_labels_are_read_from_two_tables(tmp_path):
    generator = np.random.default_rng(11)
    day = pd.date_range("2026-01-01", periods=60).repeat(10)
    rows = pd.DataFrame({"id": np.arange(600), "day": day, "x": generator.normal(size=600)})
    labels = pd.DataFrame({"id": np.arange(500), "late": generator.choice(["yes", "no"], 500)})
    labels["known_on"] = pd.Series(day[:500]) + pd.Timedelta(days=8)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    settings = parse_settings(SETTINGS, tmp_path / "settings.ini")
    frame, came = read_rows(settings, labels="labels.csv")
    assert len(frame) == 600 and came is not None and frame["late"].notna().sum() == 500
    contract = learn_contract(frame.dropna(subset="late"), settings)
    told = lambda part: np.tile([0.6, 0.4], (len(part), 1))  # noqa: E731
    current = make_current(contract, settings, frame, told, came)
    assert np.isnan(outcomes(contract, frame)).sum() == 100
    assert current.table["delay"].dropna().eq(8).all()
    assert current.table["judged"].tolist() == [True] * 7 + [False] * 2
    assert sum(map(len, current.looks)) == 490
    bare = rows.drop(columns="id")
    bare.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(Mistake, match="'id'"):
        read_rows(settings, labels="labels.csv")
