"""Looks count each row once, whatever is killed when; their alarms hold one budget; all is told."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import monitored as project_ini
import numpy as np
import pandas as pd
import pytest
from listeners import hook
from monitored import PASSED, monitored, told
from processes import BIN, free_port, post, prodml, server, until
from released import plain
from scipy.stats import binom

from prodml.contract import Column, Contract, read_contract
from prodml.demo import stream
from prodml.frame import check_frame
from prodml.gates.candidate import make_candidate
from prodml.gates.current import outcomes
from prodml.gates.drift import look as look_at
from prodml.gates.evidence import Evidence, later_rows, load_evidence
from prodml.gates.examine import examine_drift, examine_fairness, examine_performance
from prodml.gates.kept import Addition, Plan, keep, kept_rows, read_plan
from prodml.gates.performance import Answers, performance
from prodml.gates.reference import reference_profile
from prodml.ini import parse_settings
from prodml.release.store import seal
from prodml.serve.answers import read_feedback, read_predictions
from prodml.serve.segments import Segments
from prodml.settings import Mistake
from prodml.snapshot import Parts
from prodml.watch import monitor
from prodml.watch.lock import Busy, alone
from prodml.watch.looks import looks, looks_folder
from prodml.watch.news import arrive


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(settings, release) of the demo's first half year, not to be changed."""
    return monitored(tmp_path_factory.mktemp("made"))


@pytest.fixture
def own(made, tmp_path):
    """(settings, release) of a copy, to be looked at."""
    settings, release = made
    shutil.copytree(settings.root, tmp_path / "own", symlinks=True)
    root = tmp_path / "own"
    return replace(settings, root=root), root / release.relative_to(settings.root)


ONE = """
import sys
from prodml.gates.kept import keep
from prodml.ini import read_settings
from prodml.release.store import find_release
from prodml.watch.looks import looks_folder
from prodml.watch.news import arrive
settings = read_settings(sys.argv[1])
plan, new = arrive(settings, find_release(settings), as_of=sys.argv[2])
print(keep(looks_folder(settings) / f"{plan.number:05d}", plan, new))
"""


def one_look(settings, as_of):
    """The folder of a look, made by a process of its own, without its reports."""
    command = [sys.executable, "-c", ONE, str(settings.root), as_of]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def one_here(settings, release, as_of):
    """The folder of a look, made in this process, without its reports."""
    plan, new = arrive(settings, release, as_of=as_of)
    return keep(looks_folder(settings) / f"{plan.number:05d}", plan, new)


def state(evidence, current):
    """All that the detectors hold after the last look, as arrays."""
    e, asked = evidence, current.asked or evidence.settings.monitor
    moved, seen, _ = examine_drift(e, current)
    watched = look_at(e.reference, seen, 0.3, 0.3, asked.looks, asked.alpha).watched
    harm, tables, guess = examine_performance(e, current)
    fair = examine_fairness(e, current)[0]
    found = [one.table.to_numpy(float) for one in tables]
    verdicts = [(f.verdict, f.value) for r in (moved, harm, fair) for f in r.findings]
    return [*watched, *found, guess.expected], verdicts


@pytest.mark.slow
def test_processes_that_look_one_after_another_hold_what_one_look_holds(made, own, tmp_path):
    """To the last bit: a look a process, looks in one process, one look at all, and no monitor."""
    settings, release = own
    days = [f"2024-{month:02d}-05" for month in (9, 10, 11)] + ["2025-02-03", "2025-03-02"]
    last = [one_look(settings, day) for day in days][-1]
    shutil.copytree(made[0].root, tmp_path / "once", symlinks=True)
    once = replace(settings, root=tmp_path / "once")
    whole = one_here(once, release, days[-1])
    evidence = load_evidence(release)
    several, single = (kept_rows(evidence.contract, place) for place in (last, whole))
    assert read_plan(last).first + read_plan(last).windows == read_plan(whole).windows == 8
    pd.testing.assert_frame_equal(several.rows, single.rows)
    one, two = state(evidence, several), state(evidence, single)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one[0], two[0], strict=True))
    assert one[1] == two[1] and len(one[0]) >= 6
    plain = later_rows(evidence, "demo", "2024-07-01", "2025-03-01", as_of="2025-03-02")
    plain = replace(plain, asked=several.asked)
    three = state(evidence, plain)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one[0], three[0], strict=True))


QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}


def looked(settings, *options, **more):
    return prodml("monitor", "-p", settings.root, "--json", *options, **more)


@pytest.mark.slow
def test_a_look_that_is_killed_at_any_point_is_ended_by_the_next(made, tmp_path):
    """Killed early, when its rows lie there, in the report, after it: the findings are the same."""
    root = tmp_path / "killed"
    shutil.copytree(made[0].root, root, symlinks=True)
    text = (root / "settings.ini").read_text() + "reports = drift\n"
    (root / "settings.ini").write_text(text)
    calm = tmp_path / "calm"
    shutil.copytree(root, calm, symlinks=True)
    settings, quiet = (parse_settings(text, place / "settings.ini") for place in (root, calm))
    assert looked(quiet, "--as-of", "2024-10-05").returncode in (0, 1, 3)
    command = list(map(str, [BIN / "prodml", "monitor", "-p", root, "--as-of", "2024-10-05"]))
    place, pages = looks_folder(settings) / "00001", settings.reports / "monitor" / "look-00001"
    signs = (looks_folder(settings) / "lock", place, pages / "drift.ipynb", pages / "drift.json")
    for sign in signs:
        process = subprocess.Popen(command, **QUIET)
        deadline = time.monotonic() + 600
        while not sign.exists():
            assert process.poll() is None and time.monotonic() < deadline, sign
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not looks(settings) or sign == signs[-1]
    assert looked(settings, "--as-of", "2024-10-05").returncode in (0, 1, 3)
    assert len(list(looks_folder(settings).glob("[0-9]*"))) == len(looks(settings)) == 1
    contract = read_contract((made[1] / "contract.json").read_text())
    a, b = (kept_rows(contract, looks_folder(s) / "00001") for s in (settings, quiet))
    pd.testing.assert_frame_equal(a.rows, b.rows)
    assert np.array_equal(a.target, b.target) and looks(settings) == looks(quiet)
    again = looked(settings, "--as-of", "2024-10-05")
    assert again.returncode == 0 and told(again)["verdict"] is None and len(looks(settings)) == 1


def test_two_monitors_at_once_are_one(own):
    settings, _ = own
    with alone(looks_folder(settings) / "lock", "monitor"):
        process = looked(settings)
    assert process.returncode == 2 and "another monitor is at work" in told(process)["error"]
    assert f"process {os.getpid()}" in told(process)["error"]


def test_a_lock_whose_owner_was_killed_holds_nobody_up(tmp_path):
    code = "import sys, time\nfrom prodml.watch.lock import alone\n"
    code += "with alone(sys.argv[1], 'monitor'):\n print('in', flush=True)\n time.sleep(600)"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    with pytest.raises(Busy, match=f"process {process.pid}"), alone(tmp_path / "lock", "monitor"):
        pass
    process.kill()
    process.wait()
    with alone(tmp_path / "lock", "monitor"):
        pass


@pytest.mark.slow
def test_a_year_of_the_demo_is_calm_and_then_alarms_with_its_evidence(own):
    """Exit 0 or 3 before the first onset, 1 after the last; the page shows every look."""
    settings, _ = own
    calm = looked(settings, "--as-of", "2024-12-05")
    assert calm.returncode in (0, 3) and not told(calm)["alarms"], calm.stdout
    nothing = looked(settings, "--as-of", "2024-12-20")
    assert nothing.returncode == 0 and told(nothing)["verdict"] is None
    harm = looked(settings, "--as-of", "2026-01-05")
    facts = told(harm)
    assert harm.returncode == 1 and facts["verdict"] == "fail", facts
    assert any(alarm.startswith("performance fail") for alarm in facts["alarms"])
    second = looks(settings)[-1]
    assert second.alarmed("performance") and second.alarmed("drift") and second.windows == 13
    page = Path(facts["page"]).read_text()
    assert "SYNTHETIC" in page and page.count("<tr>") == 3 and "://" not in page
    for run in second.runs:
        assert (settings.reports / "monitor" / run.page).exists()


def log_of(folder, release, rows, answers, at, ids, classes, arm="champion"):
    """Nothing; writes answers into a prediction log as the server does."""
    fields = dict.fromkeys(("id", "release", "arm", "problems"), "text") | {"at": "number"}
    told = {"id": ids, "release": [release] * len(ids), "arm": [arm] * len(ids)}
    told |= {"problems": [""] * len(ids), "at": at}
    for name in rows:
        number = pd.api.types.is_numeric_dtype(rows[name])
        fields[f"feature:{name}"] = "real" if number else "text"
        values = rows[name].to_numpy(np.float32) if number else rows[name].astype(str).tolist()
        told[f"feature:{name}"] = values
    for name, values in zip(classes, answers.T, strict=True):
        fields[f"prediction:{name}"] = "number"
        told[f"prediction:{name}"] = np.ascontiguousarray(values)
    segments = Segments(folder)
    segments.write("predictions", fields, told)
    segments.close()


@pytest.fixture
def logged(own):
    """(settings, release, the rows, their ids) of a project whose log holds July and August."""
    settings, release = own
    settings = replace(settings, monitor=replace(settings.monitor, predictions="", label_delay=5.0))
    settings = replace(settings, serve=replace(settings.serve, log="log"))
    evidence = load_evidence(release)
    frame = stream(range(6, 8))
    names = [column.name for column in evidence.contract.features]
    answers = evidence.model.predict(check_frame(evidence.contract, frame).features)
    at = frame["applied_on"].astype("datetime64[s]").astype(int).to_numpy(float) + 3600.0
    ids = frame["application_id"].tolist()
    where = settings.root / "log"
    classes = evidence.contract.classes
    log_of(where, release.name, frame[names], answers, at, ids, classes)
    log_of(where, "another", frame[names][:50], answers[:50], at[:50], ids[:50], classes)
    shadow = answers[:50, ::-1]
    log_of(where, release.name, frame[names][:50], shadow, at[:50], ids[:50], classes, "challenger")
    log_of(where, release.name, frame[names][:9], answers[:9], at[:9] + 60, ids[:9], classes)
    return settings, release, frame.assign(applied_on=at), ids


def feedback(settings, ids, labels, at):
    segments = Segments(settings.root / "log")
    known = {"id": ids, "label": labels, "at": np.full(len(ids), float(at))}
    segments.write("feedback", {"id": "text", "label": "text", "at": "number"}, known)
    segments.close()


def test_the_log_is_read_as_it_was_answered_and_outcomes_when_they_are_due(logged):
    settings, release, frame, ids = logged
    place = one_here(settings, release, "2024-08-02")
    plan = read_plan(place)
    assert plan.windows == 1 and "open until" in plan.waiting["0"] and not plan.judged
    contract = read_contract((release / "contract.json").read_text())
    seen = kept_rows(contract, place)
    assert sorted(seen.rows["(id)"]) == sorted(ids[:1000])  # once each, no rival, no shadow
    assert np.isnan(seen.target).all() and arrive(settings, release, as_of="2024-08-03") is None
    stamp = pd.Timestamp("2024-08-20").timestamp()
    feedback(settings, ids, frame["default"].tolist(), stamp)
    assert arrive(settings, release, as_of="2024-08-10") is None  # nobody knew them by then
    late = one_here(settings, release, "2024-08-25")
    assert read_plan(late).judged == (0,) and read_plan(late).windows == 0
    both = kept_rows(contract, late)
    wanted = frame.set_index("application_id")["default"]
    labels = [contract.classes[int(value)] for value in both.target]
    assert labels == wanted[both.rows["(id)"]].tolist() and len(both.looks) == 1


def test_what_is_in_the_log_a_moment_after_a_look_is_counted_by_the_next(logged):
    """As when a look falls between an answer and the second in which the server writes it down."""
    settings, release, frame, ids = logged
    first = one_here(settings, release, "2024-08-01")
    evidence = load_evidence(release)
    names = [column.name for column in evidence.contract.features]
    answers = evidence.model.predict(check_frame(evidence.contract, frame).features)[:3]
    end = pd.Timestamp("2024-08-01").timestamp()
    late, gone = ["late-1", "late-2", ids[0]], ["long ago"] * 3
    where, classes = settings.root / "log", evidence.contract.classes
    at = end - np.array([0.5, 3000.0, 0.5])
    log_of(where, release.name, frame[names][:3], answers, at, late, classes)
    log_of(where, release.name, frame[names][:3], answers, at - 86_400, gone, classes)
    second = one_here(settings, release, "2024-09-01")
    seen = kept_rows(evidence.contract, second).rows["(id)"]
    assert seen.is_unique and {"late-1", "late-2"} < {*seen} and "long ago" not in {*seen}
    assert len(seen) == len(frame) + 2 and read_plan(first).until == read_plan(second).since


def test_rows_that_came_and_cannot_be_used_are_not_called_silence(own):
    settings, release = own
    rows = stream(range(6, 8)).assign(income="a lot")
    rows.to_csv(settings.root / "later.csv", index=False)
    asked = replace(settings.monitor, predictions="later.csv")
    with pytest.raises(Mistake, match=r"2000 rows came between .* the contract refuses them"):
        arrive(replace(settings, monitor=asked), release, as_of="2024-09-05")


@pytest.mark.parametrize("delay", [0.0, 3.0])
def test_late_rows_of_a_table_are_counted_where_the_window_waits_for_them(own, delay):
    """What comes in the three days after the end of a month is of that month, or of none."""
    settings, release = own
    settings = replace(
        settings, monitor=replace(settings.monitor, predictions="rows.csv", row_delay=delay)
    )
    whole = stream(range(6, 9)).sort_values("applied_on", ignore_index=True)
    late = whole.index[whole["applied_on"] < "2024-08-01"][-40:]
    first = whole.drop(late)
    first[first["applied_on"] < "2024-08-02"].to_csv(settings.root / "rows.csv", index=False)
    if delay:
        assert arrive(settings, release, as_of="2024-08-02") is None
    else:
        one_here(settings, release, "2024-08-02")
    whole.to_csv(settings.root / "rows.csv", index=False)
    look = one_here(settings, release, "2024-09-10")
    evidence = load_evidence(release)
    seen = {*kept_rows(evidence.contract, look).rows["(id)"]}
    names = {*whole.loc[late, "application_id"].astype(str)}
    assert len(names) == 40 and names & seen == (names if delay else set())
    assert read_plan(look).until[:10] == "2024-09-01"


def test_a_delay_of_rows_is_in_days(own):
    settings, release = own
    rows = stream(range(6, 8)).assign(applied_on=range(2000))
    rows.to_csv(settings.root / "rows.csv", index=False)
    asked = replace(settings.monitor, predictions="rows.csv", row_delay=1.0, period="")
    with pytest.raises(Mistake, match="row_delay is in days and needs a time column of dates"):
        arrive(replace(settings, monitor=asked), release, since="0")


def test_an_outcome_that_is_corrected_after_it_was_judged_changes_nothing(logged):
    settings, release, frame, ids = logged
    stamp = pd.Timestamp("2024-08-01").timestamp()
    feedback(settings, ids[:1000], frame["default"].tolist()[:1000], stamp)
    first = one_here(settings, release, "2024-08-20")
    feedback(settings, ids[:1000], ["yes"] * 1000, stamp + 9)
    second = one_here(settings, release, "2024-09-20")
    contract = read_contract((release / "contract.json").read_text())
    before, after = kept_rows(contract, first).target, kept_rows(contract, second).target
    assert np.array_equal(before, after[: len(before)])


def test_outcomes_of_a_table_and_of_a_database_bring_the_sensitive_columns(logged):
    import sqlalchemy

    settings, release, _frame, _ids = logged
    known = stream(range(6, 8))[["application_id", "default", "sex"]]
    known.to_csv(settings.root / "late.csv", index=False)
    url = f"sqlite:///{settings.root}/late.db"
    with sqlalchemy.create_engine(url).begin() as connection:
        known.to_sql("ended", connection, index=False)
    contract = read_contract((release / "contract.json").read_text())
    for labels, query in (("late.csv", ""), (url, "select * from ended")):
        asked = replace(settings.monitor, labels=labels, labels_query=query)
        plan, new = arrive(replace(settings, monitor=asked), release, as_of="2024-09-20")
        assert plan.judged == (0, 1) and set(new.outcomes["sex"]) == {"F", "M"}
    place = keep(looks_folder(settings) / "00001", plan, new)
    seen = kept_rows(contract, place)
    result, decided = examine_fairness(load_evidence(release), seen)
    assert result.verdict in ("pass", "inconclusive") and len(decided.target) == 2000
    bare = replace(seen, rows=seen.rows.drop(columns="sex"))
    (lost,) = examine_fairness(load_evidence(release), bare)[0].findings
    assert lost.verdict == "inconclusive" and "table of labels" in lost.why


def test_every_lack_is_a_sentence_that_says_what_would_be_right(logged, tmp_path):
    settings, release, _frame, _ids = logged

    def said(changed, **more):
        with pytest.raises(Mistake) as mistake:
            arrive(changed, release, **more)
        return str(mistake.value)

    asked, serve = settings.monitor, settings.serve
    assert "[serve] log" in said(replace(settings, serve=replace(serve, log="")))
    assert "no prediction log" in said(replace(settings, serve=replace(serve, log="elsewhere")))
    (settings.root / "empty").mkdir()
    assert "no answers yet" in said(replace(settings, serve=replace(serve, log="empty")))
    assert "is not a date" in said(settings, as_of="yesterday")
    table = settings.root / "late.csv"
    for content, word in (
        ("x,default\n1,yes\n", "application_id"),
        ("application_id,default\n,yes\n", "have no application_id"),
        ("application_id,x\na,1\n", "default"),
        ("application_id,default\na,yes\na,no\n", "two outcomes"),
        ("application_id,default\na,1\nb,0\n", "such as '1'; right is no, yes"),
    ):
        table.write_text(content)
        changed = replace(settings, monitor=replace(asked, labels="late.csv"))
        assert word in said(changed, as_of="2024-09-20"), content
    table.write_text("application_id,default\n")  # nothing is decided yet
    assert arrive(changed, release, as_of="2024-09-20")[0].waiting["0"].startswith("0% of its rows")
    table.write_text("application_id,default\n7,yes\n8,no\n")  # of other rows
    waits = arrive(changed, release, as_of="2024-09-20")[0].waiting["0"]
    assert "such as 'SYN-" in waits and waits.endswith("here and '7' there")
    one_here(settings, release, "2024-09-20")
    assert "keep its log" in said(settings, as_of="2024-12-20")
    assert "first one only" in said(settings, as_of="2024-12-20", since="2024-01-01")
    other = replace(settings, monitor=replace(asked, predictions="log"))
    with pytest.raises(Mistake, match="begin with its first request"):
        arrive(other, shutil.copytree(release, tmp_path / "0123456789ab"))


class Honest:
    """A model that knows the true chance, up to nothing."""

    def __init__(self):
        self.info = {"threshold": 0.5, "candidate": "honest"}

    def predict(self, features):
        chance = 1 / (1 + np.exp(-features["x"].to_numpy(float)))
        return np.column_stack([1 - chance, chance])


TOY = Contract(
    *("toy", "binary", "y", ("no", "yes")),
    columns=(
        Column("x", "number", "feature", nullable=True),
        Column("z", "number", "feature", nullable=True),
        Column("town", "category", "feature", levels=("Oslo", "Rome")),
        Column("sex", "category", "sensitive", levels=("F", "M")),
        Column("y", "category", "target", levels=("no", "yes")),
    ),
)
LOOKS, ROWS, YEARS = 20, 150, 40
TOY_INI = f"""
[data]
source = none.csv
target = y
sensitive = sex
[drift]
max_shift = 0.1
max_prediction_shift = 0.1
[performance]
max_error_increase = 0.02
max_calibration_shift = 0.02
max_ranking_drop = 0.02
[fairness]
max_accuracy_difference = 0.001
[monitor]
looks = {LOOKS}
"""


def people(generator, rows, shift=0.0):
    x = generator.normal(size=rows) + shift
    frame = pd.DataFrame({"x": x, "z": generator.normal(size=rows)})
    frame["town"] = generator.choice(["Oslo", "Rome"], rows)
    frame["sex"] = generator.choice(["F", "M"], rows)
    frame["y"] = np.where(generator.random(rows) < 1 / (1 + np.exp(-x)), "yes", "no")
    return frame


def simulated(seed, place, shift=0.0):
    """The gates that raised an alarm in a year of looks, through the rows kept on the disk."""
    generator, model = np.random.default_rng(seed), Honest()
    settings = parse_settings(TOY_INI, place / "settings.ini")
    parts = Parts(*(people(generator, n) for n in (3000, 1500, 1500)), how="")
    known = reference_profile(TOY, parts.train, parts.validation, model.predict(parts.validation))
    (place / "profile.bin").write_bytes(known.to_bytes())
    evidence = Evidence(place, settings, TOY, model, parts)
    asked = replace(settings.monitor, alpha=settings.monitor.alpha / 3)
    for look in range(LOOKS):
        rows = people(generator, ROWS, shift)
        number = np.arange(ROWS) + look * ROWS
        ended = pd.DataFrame({"row": number, "target": outcomes(TOY, rows), "came": pd.NaT})
        plan = Plan(look + 1, "r", "", "", "", look, 1, (look,), asked=asked)
        windows, told = np.full(ROWS, look), model.predict(rows)
        new = Addition(rows.drop(columns="y"), told, windows, ended.assign(sex=rows["sex"]))
        new = replace(new, rows=new.rows.drop(columns="sex"))
        last = keep(place / "looks" / f"{look + 1:05d}", plan, new)
    current, alarms = kept_rows(TOY, last), set()
    _, seen, _ = examine_drift(evidence, current)
    drift = look_at(evidence.reference, seen, 0.1, 0.1, asked.looks, asked.alpha)
    alarms |= {"drift"} if (drift.alarms("notice") | drift.alarms("alert")).any() else set()
    old = Answers(evidence.test.target, evidence.prediction)
    now = Answers(current.target.astype(int), current.prediction)
    limits = settings.limits.performance
    told = performance("binary", old, now, current.looks, limits, 0.5, LOOKS, asked.alpha)[1]
    if any((one.table["evidence"] >= 1).any() for one in told):
        alarms.add("performance")
    for look in range(LOOKS):
        upto = current.windows <= look
        part = replace(
            current,
            **{n: getattr(current, n)[upto] for n in ("rows", "features", "prediction", "target")},
            windows=current.windows[upto],
            table=current.table.loc[:look],
        )
        if examine_fairness(evidence, part)[0].verdict == "fail":
            alarms.add("fairness")
    return alarms


@pytest.mark.slow
def test_a_monitor_cries_wolf_in_as_few_years_as_it_promises(tmp_path):
    """Years without a change, three reports, one budget, all through the rows kept on the disk."""
    found = []
    for seed in range(YEARS):
        place = tmp_path / str(seed)
        place.mkdir()
        found.append(simulated(seed, place))
        shutil.rmtree(place)
    wrong = sum(bool(alarms) for alarms in found)
    assert wrong <= binom.ppf(0.999, YEARS, 0.05), found


def test_the_simulation_finds_a_change_where_there_is_one(tmp_path):
    assert "drift" in simulated(1, tmp_path, shift=0.5)


@pytest.mark.slow
def test_a_year_of_the_census_gives_no_alert(data, tmp_path):
    """52 weeks of 2016 and 2017 under a model of 2015: what did not change wakes nobody."""
    frame = pd.read_csv(data / "acs_employment_ma.csv.gz")
    frame = frame[frame["year"] <= 2017].sample(frac=0.5, random_state=0)
    generator = np.random.default_rng(0)
    later = frame["year"] > 2015
    days = np.where(later, generator.integers(366, 366 + 364, len(frame)), 0)
    days = np.where(later, days, generator.integers(0, 365, len(frame)))
    frame["day"] = pd.Timestamp("2015-01-01") + pd.to_timedelta(days, "D")
    frame["person"] = np.arange(len(frame))
    frame.drop(columns="year").to_csv(tmp_path / "census.csv", index=False)
    text = """
[data]
source = census.csv
target = employed
time = day
id = person
until = 2016-01-01
sensitive = SEX
[model]
candidates = linear
trials = 1
[limits]
required = drift
[drift]
max_shift = 0.1
max_prediction_shift = 0.1
[performance]
max_error_increase = 0.05
max_calibration_shift = 0.05
max_ranking_drop = 0.05
[fairness]
max_accuracy_difference = 0.1
[monitor]
predictions = census.csv
period = 7D
looks = 52
"""
    (tmp_path / "settings.ini").write_text(text)
    settings = parse_settings(text, tmp_path / "settings.ini")
    seal(make_candidate(tmp_path / "one", settings), [], [PASSED], settings)
    process = looked(settings, timeout=900)
    facts = told(process)
    assert process.returncode == 0 and looks(settings)[0].windows == 52, facts
    assert not [a for a in facts["alarms"] if " notice:" not in a], facts
    evidence = load_evidence(next((settings.folder / "releases").glob("[!.]*/")))
    current = kept_rows(evidence.contract, looks_folder(settings) / "00001")
    _, seen, _ = examine_drift(evidence, current)
    asked = current.asked
    every = look_at(evidence.reference, seen, 0.1, 0.1, asked.looks, asked.alpha)
    assert not every.alarms("alert").any()


BROKEN = """{"cells": [{"cell_type": "code", "execution_count": null, "id": "a", "metadata":
{"tags": ["parameters"]}, "outputs": [], "source": "release = ''\\nlook = ''\\nrun_id = ''"},
{"cell_type": "code", "execution_count": null, "id": "b", "metadata": {}, "outputs": [],
"source": "raise MemoryError"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}"""


@pytest.mark.slow
def test_a_report_that_broke_down_is_run_again_alone_and_at_last_told_as_an_error(
    own, tmp_path, monkeypatch
):
    settings, _ = own
    settings = replace(
        settings, monitor=replace(settings.monitor, reports=("drift", "performance"))
    )
    (tmp_path / "performance.ipynb").write_text(BROKEN)
    whole = monitor.template_path
    places = {"reports/performance.ipynb": tmp_path / "performance.ipynb"}
    monkeypatch.setattr(monitor, "template_path", lambda name: places.get(name) or whole(name))
    first = monitor.look(settings, "2024-10-05")
    page = settings.reports / "monitor" / "look-00001" / "drift.json"
    stamp = page.stat().st_mtime_ns
    assert first.verdict == "fail" and any("MemoryError" in alarm for alarm in first.alarms)
    assert looks(settings) == []  # it is not over
    places.clear()
    second = monitor.look(settings, "2024-11-05")  # the same rows, whatever the day
    assert looks(settings) == [second] and second.until == first.until
    assert {run.report: run.status for run in second.runs}.keys() == {"drift", "performance"}
    assert not any(run.status == "error" for run in second.runs)
    assert page.stat().st_mtime_ns == stamp  # what had ended was not run again
    places["reports/performance.ipynb"] = tmp_path / "performance.ipynb"
    tries = [monitor.look(settings, "2024-11-05") for _ in range(3)]
    assert len({one.number for one in tries}) == 1 and looks(settings)[-1] == tries[-1]
    assert tries[-1].alarmed("performance", "error")
    assert monitor.look(settings, "2024-11-06") is None


@pytest.mark.slow
def test_a_look_is_told_once(own):
    settings, _ = own
    with hook() as web:
        text = (settings.root / "settings.ini").read_text() + "reports = drift\n"
        text += "[notify]\nwebhook = $HOOK\n"
        (settings.root / "settings.ini").write_text(text)
        env = {"HOOK": f"http://127.0.0.1:{web.port}/"}
        first = looked(settings, "--as-of", "2026-01-05", env=env)
        again = looked(settings, "--as-of", "2026-01-06", env=env)
    assert told(first)["alarms"] and told(first)["untold"] == [] and again.returncode == 0
    assert len(web) == 1 and "Look 1" in web[0]["about"]
    assert {alarm["source"] for alarm in web[0]["alarms"]} == {"drift"}


@pytest.mark.slow
def test_what_a_real_server_answers_and_is_told_is_looked_at(tmp_path, monkeypatch):
    """`prodml serve` with its log, /feedback, and two looks at it while it is running."""
    served = "[serve]\nlog = log\nlog_flush = 0.2\n[monitor]"
    ini = project_ini.INI.replace("predictions = demo\nperiod = 1MS\n", "reports = performance\n")
    monkeypatch.setattr(project_ini, "INI", ini.replace("[monitor]", served))
    settings, release = monitored(tmp_path / "served")
    contract = read_contract((release / "contract.json").read_text())
    names = [column.name for column in contract.features]
    people, port, root = stream(range(6, 7)), free_port(), settings.root.resolve()
    rows = [
        {name: plain(value) for name, value in zip(names, row, strict=True)}
        for row in people[names][:800].itertuples(index=False)
    ]
    command = [BIN / "prodml", "serve", "-p", root, "--port", port]
    with server(command, port, tmp_path / "server.log") as url:
        ids = [one["id"] for one in post(f"{url}/predict", rows)[1]["predictions"]]
        ended = zip(ids, people["default"], strict=False)
        outcomes = [{"id": one, "label": label} for one, label in ended]
        assert post(f"{url}/feedback", outcomes)[0] == 202
        log = root / "log"
        assert until(lambda: len(read_predictions(log)) == len(read_feedback(log)) == 800)
        first, again = looked(settings), looked(settings)
    assert first.returncode in (0, 3) and told(first)["rows"] == 800, first.stderr
    assert again.returncode == 0 and told(again)["verdict"] is None, again.stderr
    seen = kept_rows(contract, looks_folder(settings) / "00001")
    assert [len(look) for look in seen.looks] == [800] and set(seen.rows["(id)"]) == set(ids)
