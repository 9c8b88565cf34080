"""Real tables: what did not drift raises no alarm, what did raises one, and seasons do no harm."""

import pytest
from benchmarks.drift.harm import watched

from prodml.gates.drift import drift, look, table


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
