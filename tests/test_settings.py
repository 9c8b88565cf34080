"""settings.ini: every slip is told with its line and what would be right."""

import pytest
from conftest import ROOT

from prodml.ini import parse_settings, read_settings
from prodml.settings import Mistake

GOOD = """[project]
name = churn
[data]
source = customers.csv
target = left
[model]
trials = 3
[correctness]
min_roc_auc = 0.75
[waiver.fairness]
reason = pilot with two branches only
by = A. Person
until = 2027-01-31
"""

SLIPS = {
    "unknown section": ("[model]", "[modle]", ["line 6", "'model'"]),
    "unknown key": ("trials", "trails", ["line 7", "'trials'"]),
    "unknown limit": ("min_roc_auc", "min_roc_auk", ["line 9", "min_roc_auc"]),
    "limit on the wrong side": ("min_roc_auc", "max_roc_auc", ["line 9", "min_roc_auc"]),
    "not a whole number": ("trials = 3", "trials = 3.5", ["line 7", "whole number"]),
    "not a number": ("= 0.75", "= high", ["line 9", "not a number"]),
    "not finite": ("= 0.75", "= nan", ["line 9", "not a number"]),
    "no trials": ("trials = 3", "trials = 0", ["line 7", "at least one"]),
    "bad date": ("2027-01-31", "31.1.2027", ["line 13", "a date such as"]),
    "waiver without a name": ("by = A. Person\n", "", ["line 10", "by"]),
    "waiver of no gate": ("waiver.fairness", "waiver.beauty", ["line 10", "no gate"]),
    "no target": ("target = left\n", "", ["line 3", "target"]),
    "key given twice": ("trials = 3", "trials = 3\ntrials = 4", ["trials", "already exists"]),
    "no section": ("[project]\n", "", ["no section headers"]),
    "not key = value": ("trials = 3", "trials", ["key = value"]),
    "query without a database": ("target = left", "target = left\nquery = select 1", ["query"]),
}


PROMISES = (
    GOOD
    + """[behaviour.richer]
kind = direction
column = income
times = 1.1
expect = down
tolerance = 0.02
max_failures = 0.05
[behaviour.channel]
kind = invariance
column = channel
values = web, "branch, main"
[behaviour.sound]
kind = example
rows = income = 9e4 and job = cook
       "debt and due" = 0
at_least = 0.1
at_most = 0.2
[slice.young]
where = age < 30 and job != "" and "a = b" >= -2
min_accuracy = 0.6
[slice.all]
where = income =
"""
)

BROKEN = {
    "no kind": ("kind = direction\n", "", ["line 14", "invariance, direction, example"]),
    "unknown kind": ("= direction", "= dircetion", ["line 15", "one of"]),
    "unknown key": ("times = 1.1", "tims = 1.1", ["line 17", "'times'"]),
    "not a number": ("times = 1.1", "times = much", ["line 17", "a number"]),
    "not above one": ("times = 1.1", "times = 0.9", ["line 17", "more than 1"]),
    "two changes": ("times = 1.1", "times = 1.1\nadd = 3", ["only one of"]),
    "no change": ("times = 1.1\n", "", ["line 14", "values (rising), add or times"]),
    "no way": ("expect = down\n", "", ["line 14", "up or down"]),
    "another way": ("expect = down", "expect = lower", ["line 18", "up or down"]),
    "negative tolerance": ("= 0.02", "= -0.02", ["line 19", "0 or more"]),
    "none may fail": ("= 0.05", "= 0", ["line 20", "no rows prove"]),
    "all may fail": ("= 0.05", "= 1", ["line 20"]),
    "an invariance that expects": (
        'values = web, "branch, main"',
        "expect = up",
        ["line 24", "same, or nothing"],
    ),
    "an example with a column": ("at_least = 0.1", "column = job", ["line 29", "leave it out"]),
    "an example with tolerance": ("at_least = 0.1", "tolerance = 1", ["line 29", "bounds instead"]),
    "an example of nothing": (
        'rows = income = 9e4 and job = cook\n       "debt and due" = 0\n',
        "",
        ["line 25", "such as: income"],
    ),
    "an example without an answer": (
        "at_least = 0.1\nat_most = 0.2\n",
        "",
        ["line 25", "a class, or else"],
    ),
    "a row that is no row": (
        "income = 9e4 and job",
        "income 9e4 and job",
        ["line 27", "column, sign"],
    ),
    "a row that is a range": ("income = 9e4 and", "income > 9e4 and", ["line 27", "only ="]),
    "a slice of nothing": (
        'where = age < 30 and job != "" and "a = b" >= -2\n',
        "",
        ["line 31", "says no rows"],
    ),
    "a condition that is none": ("age < 30", "age", ["line 32", "is no condition"]),
    "a word compared": ("age < 30", "age < old", ["line 32", "not a number"]),
    "an unknown limit": ("min_accuracy", "min_acuracy", ["line 33", "'min_accuracy'"]),
    "a limit of all rows": ("min_accuracy = 0.6", "max_leakage = 1", ["line 33", "no setting"]),
    "no name": ("[slice.all]", "[slice.]", ["no section"]),
    "the same name twice": ("[slice.all]", "[slice.young]", ["already exists"]),
}


def test_promises_are_read():
    settings = parse_settings(PROMISES)
    richer, channel, sound = settings.behaviours
    assert richer.times == 1.1 and richer.tolerance == 0.02 and channel.tolerance is None
    assert channel.values == ("web", "branch, main") and channel.max_failures == 0.01
    assert [len(row) for row in sound.rows] == [2, 1] and sound.at_least == 0.1
    assert sound.rows[1][0].column == "debt and due"
    young, everyone = settings.slices
    assert [str(part) for part in young.where] == ["age < 30", "job != missing", "a = b >= -2"]
    assert young.limits == {"min_accuracy": 0.6} and not everyone.limits
    assert everyone.where[0].value == ""


@pytest.mark.parametrize("slip", BROKEN)
def test_every_broken_promise_is_told(slip):
    right, wrong, words = BROKEN[slip]
    assert right in PROMISES
    with pytest.raises(Mistake) as told:
        parse_settings(PROMISES.replace(right, wrong))
    assert all(word in str(told.value) for word in ["settings.ini", *words]), told.value


def test_a_good_file_is_read():
    settings = parse_settings(GOOD)
    assert settings.waivers[0].by == "A. Person" and settings.model.trials == 3


@pytest.mark.parametrize("slip", SLIPS)
def test_every_slip_is_told(slip):
    right, wrong, words = SLIPS[slip]
    assert right in GOOD
    with pytest.raises(Mistake) as told:
        parse_settings(GOOD.replace(right, wrong))
    assert all(word in str(told.value) for word in ["settings.ini", *words]), told.value


SERVE = {
    "workers": ("0", "1.5"),
    "max_rows": ("0", "many"),
    "max_bulk_rows": ("10",),
    "max_bytes": ("0", "1e6"),
    "max_bulk_bytes": ("1000", "many"),
    "timeout": ("0", "-1", "inf"),
    "concurrency": ("0",),
    "drain": ("-1", "nan"),
    "log_sample": ("1.1", "-0.1"),
    "log_flush": ("0",),
    "log_megabytes": ("0",),
    "metrics": ("maybe", ""),
    "gauge": ("2",),
    "features": ("mysql://host", "/a/file"),
    "features_max_age": ("-1",),
    "features_timeout": ("0",),
    "features_stale": ("ignore",),
    "features_unknown": ("",),
    "challenge": ("duel",),
    "canary_share": ("2",),
}


@pytest.mark.parametrize(("key", "bad"), [(key, bad) for key in SERVE for bad in SERVE[key]])
def test_every_key_of_the_endpoint_is_checked_and_named_with_its_line(key, bad):
    text = "[data]\nsource = a.csv\ntarget = y\n[serve]\n"
    with pytest.raises(Mistake, match=rf"settings.ini, line 5: .*{key}"):
        parse_settings(f"{text}{key} = {bad}\n")


def test_what_the_endpoint_is_asked_for_has_its_type():
    text = "[data]\nsource = a.csv\ntarget = y\n[serve]\n"
    asked = "metrics = no\ngauge = yes\nmax_bulk_rows = 5000\nfeatures = redis://localhost:6379/0\n"
    serve = parse_settings(text + asked + "canary_share = 0.25\nlog = predictions\n").serve
    assert (serve.metrics, serve.gauge, serve.max_bulk_rows) == (False, True, 5000)
    assert (serve.features, serve.canary_share, serve.log) == (
        "redis://localhost:6379/0",
        0.25,
        "predictions",
    )


def test_a_comment_after_one_space_is_a_comment():
    assert parse_settings(GOOD.replace("trials = 3", "trials = 3 ; few")).model.trials == 3


def test_no_file_says_how_to_make_one(tmp_path):
    with pytest.raises(Mistake, match="prodml new"):
        read_settings(tmp_path / "settings.ini")


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "settings.ini").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Mistake, match="not UTF-8"):
        read_settings(tmp_path)


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "settings.ini").write_text(GOOD)
    assert read_settings(tmp_path).folder == tmp_path / ".prodml"


def test_the_demo_settings_are_valid():
    assert read_settings(ROOT).data.source == "demo"


LIFE = """[data]
source = loans.csv
target = late
[registry]
url = postgresql+psycopg://registry/releases
[compare]
goal = no_worse
margin = 0.01
max_churn = 0.1
[monitor]
reports = drift, performance
[notify]
slack = $SLACK_URL
smtp = smtp://mail:25
mail_from = models@example.org
mail_to = a@example.org, b@example.org
quiet = 22:00-07:00
zone = Europe/Paris
[retrain]
on = drift, schedule
window = 365
[explain]
immutable = age
[card]
owner = A. Person
[reasons]
Income = an income of {value}
[schedule.nightly]
command = monitor
cron = 0 6 * * *
"""

ODD = {
    "a goal": ("no_worse", "nicer", ["line 7", "better, no_worse"]),
    "no margin": ("margin = 0.01\n", "", ["line 6", "above 0 for no_worse"]),
    "churn": ("max_churn = 0.1", "max_churn = 10", ["line 9", "a share"]),
    "a report": ("drift, performance", "drift, beauty", ["line 11", "performance, fairness"]),
    "an address": ("= $SLACK_URL", "= slack", ["line 13", "https://"]),
    "mail to nobody": ("mail_to = a@example.org, b@example.org\n", "", ["mail_to", "needs"]),
    "quiet hours": ("22:00-07:00", "at night", ["line 17", "22:00-07:00"]),
    "a zone": ("Europe/Paris", "Paris", ["line 18", "Europe/Paris"]),
    "a trigger": ("drift, schedule", "drift, mood", ["line 20", "of drift"]),
    "a window": ("window = 365", "window = -1", ["line 21", "0: all of history"]),
    "a key of the card": ("owner = A.", "ownr = A.", ["line 25", "'owner'"]),
    "a schedule's name": ("schedule.nightly", "schedule.every night", ["line 28", "letters"]),
    "a schedule's key": ("command = monitor", "comand = monitor", ["line 29", "'command'"]),
    "a schedule's time": ("0 6 * * *", "daily", ["line 30", "minute, hour"]),
}


def test_the_life_after_training_is_read():
    read = parse_settings(LIFE)
    assert read.schedules[0].name == "nightly" and read.schedules[0].cron == "0 6 * * *"
    assert read.notify.mail_to == ("a@example.org", "b@example.org")
    assert read.reasons == {"Income": "an income of {value}"} and read.compare.max_churn == 0.1


@pytest.mark.parametrize("right, wrong, told", ODD.values(), ids=ODD)
def test_slips_about_the_life_after_training(right, wrong, told):
    with pytest.raises(Mistake) as mistake:
        parse_settings(LIFE.replace(right, wrong))
    assert all(part in str(mistake.value) for part in told), str(mistake.value)
