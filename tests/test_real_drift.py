"""Real tables: what did not drift raises no alarm, what did raises one, and seasons do no harm."""

import numpy as np
import pandas as pd
import pytest
from xgboost import XGBClassifier

from prodml.frame import learn_contract, make_table
from prodml.gates.drift import drift, look, table
from prodml.gates.performance import Answers, performance
from prodml.gates.reference import reference_windows
from prodml.profile import profile
from prodml.settings import Data, Settings

LIMITS = {"max_error_increase": 0.05, "max_calibration_shift": 0.05, "max_ranking_drop": 0.05}


def parts(data, name, time, drop, share):
    """The rows up to a share of the time, and those after; rows of one time in no order."""
    frame = pd.read_csv(data / f"{name}.csv.gz", low_memory=False).sample(frac=1, random_state=0)
    frame = frame.sort_values(time, kind="stable").drop(columns=drop).reset_index(drop=True)
    edge = frame[time].iloc[int(len(frame) * share) - 1]
    return frame[frame[time] <= edge], frame[frame[time] > edge].reset_index(drop=True)


def watched(data, name, target, time, drop=(), share=0.33, looks=30, positive=""):
    """The drift of the later rows in so many looks, and the performance of a model of the early."""
    early, later = parts(data, name, time, list(drop), share)
    settings = Settings(data=Data(target=target, positive=positive, time=time))
    contract = learn_contract(early, settings)
    windows = reference_windows(early, time, "")
    known = profile(early, contract, windows=windows, sketch=False)
    place = np.arange(len(later)) * looks // len(later)
    current = profile(later, like=known, windows=place, sketch=False)
    half = len(early) * 2 // 3
    learn, judge, new = (make_table(contract, p) for p in (early[:half], early[half:], later))

    def prepared(features):
        levels = {c.name: list(c.levels) for c in contract.features if not c.numeric}
        return features.assign(**{n: pd.Categorical(features[n], v) for n, v in levels.items()})

    model = XGBClassifier(n_estimators=80, max_depth=4, learning_rate=0.1, n_jobs=1)
    model.set_params(enable_categorical=True).fit(prepared(learn.features), learn.target)
    old, now = (
        Answers(p.target, model.predict_proba(prepared(p.features)).astype(float))
        for p in (judge, new)
    )
    place = np.arange(len(new.target)) * looks // len(new.target)
    rows = [np.flatnonzero(place == i) for i in range(looks)]
    harm = performance("binary", old, now, rows, LIMITS, horizon=365)[0]
    return known, current, harm


def test_the_census_of_three_years_raises_no_alarm(data):
    """277,677 rows that hardly change: with so many rows every row-wise test would alarm."""
    known, current, harm = watched(data, "acs_employment_ma", "employed", "year", share=0.2)
    assert not look(known, current).alarms("alert").any()
    assert harm.verdict == "pass"


@pytest.mark.parametrize(
    ("name", "target", "time", "drop", "positive"),
    [
        ("bank_marketing", "y", "contact_date", ("duration", "month", "day"), "yes"),
        ("elec2", "price_up", "timestamp", ("date", "nswprice"), ""),
    ],
)
def test_tables_that_drift_raise_an_alarm(data, name, target, time, drop, positive):
    known, current, harm = watched(data, name, target, time, drop, positive=positive)
    alerts = look(known, current).alarms("alert")
    assert alerts[:12].any() and harm.of("fail", "warn")


def test_a_feature_that_never_moved_is_seen_to_start(data):
    """The Victorian market joined in May 1997: two columns that were constant begin to move."""
    known, current, _ = watched(data, "elec2", "price_up", "timestamp", ("date", "nswprice"))
    seen = table(look(known, current)).set_index("column")
    for name in ("vicprice", "transfer"):
        assert known.bins[name].constant and seen.loc[name, "level"] == "alert"
        assert seen.loc[name, "what"] == "outside the range"


def test_fifty_years_of_weather_move_the_inputs_and_do_no_harm(data):
    known, current, harm = watched(data, "ne_weather", "rain", "day_index", looks=33)
    found = drift(known, current, {"max_shift": 0.1}, looks=365)
    assert found.verdict != "fail"  # an input may warn
    assert harm.verdict != "fail"
