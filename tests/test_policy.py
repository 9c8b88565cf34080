"""A policy is replayed on the past: on the demo against the truth, and on three real tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from prodml.data import read
from prodml.demo import START, stream
from prodml.deployment import Retrain
from prodml.ini import parse_settings
from prodml.settings import Mistake
from prodml.watch.past import make_past
from prodml.watch.policy import Moment, Tried, decide
from prodml.watch.simulate import known_onsets, replay, simulate

GATES = """
[performance]
max_error_increase = 0.05
max_calibration_shift = 0.05
max_ranking_drop = 0.05
[drift]
max_shift = 0.1
max_prediction_shift = 0.3
"""


def asked(data, model="xgboost", more=""):
    """Settings of one quick model, the usual gates, and what is said in `more`."""
    return parse_settings(
        f"[data]\n{data}\n[model]\ncandidates = {model}\ntrials = 1\n{GATES}{more}"
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_policy_never_breaks_its_own_brakes(seed):
    """Random years: the budget, the cool-down and the labels are kept whatever happens."""
    generator = np.random.default_rng(seed)
    policy = Retrain(
        on=("drift", "performance", "schedule"),
        every=float(generator.integers(5, 60)),
        cool_down=float(generator.integers(0, 20)),
        budget=int(generator.integers(1, 9)),
        minimum_labels=int(generator.integers(1, 900)),
        window=float(generator.choice([0, 60])),
    )
    start, tried = pd.Timestamp("2026-01-01").to_pydatetime(), []
    for day in range(500):
        now = (pd.Timestamp(start) + pd.Timedelta(days=day)).to_pydatetime()
        gates = [gate for gate in ("drift", "performance") if generator.random() < 0.3]
        labels = int(generator.integers(0, 1500))
        moment = Moment(now, start, labels, dict.fromkeys(gates, "why"), tuple(tried))
        decision = decide(policy, moment)
        assert decision == decide(policy, moment) and decision.reason
        if decision.retrain:
            assert labels >= policy.minimum_labels
            assert not tried or (now - tried[-1].at).days >= policy.cool_down
            tried.append(Tried(now, decision.trigger, bool(generator.random() < 0.3)))
        year = [one for one in tried if (now - one.at).days < 365]
        assert len(year) <= policy.budget
    assert tried


def test_a_policy_without_triggers_leaves_it_to_people():
    now = pd.Timestamp("2026-06-01").to_pydatetime()
    moment = Moment(now, now, 9999, {"performance": "harm", "drift": "moved"})
    assert not decide(Retrain(on=()), moment).retrain
    assert decide(Retrain(on=()), moment, "the law has changed").retrain


def test_a_replay_knows_no_label_before_it_came_and_no_row_of_tomorrow():
    settings = asked(
        "source = demo\ntarget = default\ntime = applied_on\nid = application_id",
        more="[monitor]\nperiod = 1MS\nlabel_delay = 45\n[retrain]\nwindow = 90\n",
    )
    past = make_past(stream(range(9), rows=100), settings)
    for look in range(3, 9):
        rows, now = past.known(look), past.rows["applied_on"][past.look == look].max()
        assert rows["applied_on"].max() <= now - pd.Timedelta(days=45)
        assert rows["applied_on"].min() > now - pd.Timedelta(days=90)
    with pytest.raises(Mistake, match="name the time column"):
        make_past(past.rows, replace(settings, data=replace(settings.data, time="")))


@pytest.mark.slow
def test_the_demo_is_found_and_recovers_against_the_truth():
    """Onsets in months 12, 16 and 20: found at once or within three looks; all is made good."""
    settings = asked(
        "source = demo\ntarget = default\npositive = yes\ntime = applied_on\n"
        "id = application_id\nsensitive = sex, group\nuntil = 2025-01-01",
        more="[monitor]\nperiod = 1MS\n[retrain]\nwindow = 150\n",
    )
    rows = stream(range(30)).drop(columns="true_probability")
    onsets = known_onsets(settings)
    seen = simulate(make_past(rows, settings), onsets)
    looks, costs = seen.replayed.looks, seen.costs.set_index("line")
    assert seen.onsets["alarm"].max() <= 3 and seen.false == 0
    assert not seen.calm.attempts  # in shuffled rows nothing is tried
    concept = START + pd.DateOffset(months=20)
    late = looks[looks["since"] >= concept + pd.DateOffset(months=6)]
    before = looks[looks["until"] < concept]
    assert late["never"].mean() < 0.6 < 0.7 < late["policy"].mean()
    assert abs(late["policy"] - late["always"]).mean() < 0.03
    assert before["policy"].mean() > before["always"].mean() - 0.005
    assert costs.loc["policy", "fits"] < costs.loc["always", "fits"]


@pytest.mark.slow
def test_bank_marketing_by_quarter_gains_from_retraining(data):
    settings = asked(
        f"source = {data}/bank_marketing.csv.gz\ntarget = y\npositive = yes\n"
        "time = contact_date\ndrop = duration, month, day",
        more="[monitor]\nperiod = 1QS\n[retrain]\non = drift, performance, schedule\nwindow = 180\n"
        "minimum_labels = 300\n",
    )
    past = make_past(read(settings.data), settings, "2008-07-01")
    seen = replay(past)
    looks = seen.looks
    first = int(np.argmax(looks["tried"] == "promoted")) + 1
    after = looks.iloc[first:]
    assert (after["policy"] > after["never"] + 0.03).mean() >= 0.8 and len(after) >= 5
    assert (looks["policy"] >= looks["never"] - 1e-9).mean() >= 0.9
    quarter = looks[looks["since"] == "2010-07-01"].iloc[0]
    assert quarter["policy"] > quarter["never"] + 0.1 and quarter["always"] > 0.68


@pytest.mark.slow
def test_a_year_of_looks_at_the_census_retrains_nothing(data):
    """Weekly looks through 2016, days drawn within the year: nothing changes, nothing is tried."""
    frame = pd.read_csv(data / "acs_employment_ma.csv.gz", low_memory=False)
    frame = frame[frame["year"] < 2017].sample(60_000, random_state=0)
    days = np.random.default_rng(0).integers(0, 365, len(frame))
    year = pd.to_datetime(frame.pop("year").astype(str) + "-01-01")
    frame["day"] = year + pd.to_timedelta(days, unit="D")
    settings = asked(
        "source = x.csv\ntarget = employed\ntime = day", more="[monitor]\nperiod = 7D\n"
    )
    seen = replay(make_past(frame.reset_index(drop=True), settings, "2016-01-01"), only=True)
    assert len(seen.looks) >= 52 and not seen.attempts
    assert (seen.looks["alarms"] == "").all()


@pytest.mark.slow
def test_fifty_years_of_weather_promote_no_challenger_that_would_hurt(data):
    """Retraining always loses a little; the policy tries by drift and by the year, and keeps."""
    settings = asked(
        f"source = {data}/ne_weather.csv.gz\ntarget = rain\ntime = day_index",
        more="[retrain]\non = drift, performance, schedule\nevery = 365\nwindow = 1460\n",
    )
    seen = simulate(make_past(read(settings.data), settings), shuffle=False)
    looks = seen.replayed.looks
    assert len(seen.replayed.attempts) >= 15
    assert not any(one.promoted for one in seen.replayed.attempts)
    worse = looks["always"] < looks["never"]
    assert worse.mean() > 0.5 and (looks["policy"] == looks["never"]).all()
