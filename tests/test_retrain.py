"""A retrain to its end: promoted, kept, outrun, cut off at every step, and as a command."""

import datetime as dt
import json
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import typer
from listeners import hook
from monitored import monitored
from processes import prodml
from released import PASSED, demo_lines

from prodml.commands import change as commands
from prodml.gates.candidate import make_candidate, silent
from prodml.ini import parse_settings, read_settings
from prodml.release.registry import open_registry
from prodml.release.store import seal
from prodml.report.run import Run
from prodml.settings import Data, Mistake, Settings
from prodml.verdict import Verdict
from prodml.watch import retrain as module
from prodml.watch.attempts import Attempt, attempts, attempts_folder, keep
from prodml.watch.lock import Busy, alone
from prodml.watch.looks import Look, Seen, looks_folder
from prodml.watch.monitor import look
from prodml.watch.policy import Decision
from prodml.watch.retrain import Retrained, labelled_rows, retrain

INI = demo_lines("2024-07-01", drop="true_probability, group")
INI += """[limits]
required = correctness
[correctness]
min_roc_auc = 0.60
[retrain]
window = 120
"""


@dataclass(frozen=True)
class Sealed:
    release: Path
    run_id: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()


def sealed(settings, progress):
    """A release of what is asked for, without its reports."""
    many = len(list((settings.folder / "candidates").glob("*")))
    folder = make_candidate(settings.folder / "candidates" / f"c{many}", settings)
    gate = replace(PASSED, gate=settings.limits.required[0])
    return Sealed(seal(folder, [], [gate], settings, f"r{many}"), f"r{many}", Verdict.PASS)


@pytest.fixture
def project(tmp_path):
    """(settings, the champion's name) of a project that learned from half a year."""
    (tmp_path / "settings.ini").write_text(INI)
    settings = read_settings(tmp_path / "settings.ini")
    champion = sealed(settings, None).release.name
    open_registry(settings).promote(champion, author="ada", reason="the first")
    return settings, champion


def looked(settings, release, *alarms):
    """Nothing; a look at `release` is on record, with `alarms`."""
    place = looks_folder(settings) / "0001"
    place.mkdir(parents=True)
    seen = (Seen("performance", "fail", "", ""),)
    span = "2025-11-01", "2025-12-01", "2025-12-01"
    look = Look(1, release, *span, Verdict.FAIL, 1, 900, 1, 0, seen, alarms)
    (place / "look.json").write_text(look.to_json())


def current(settings):
    return open_registry(settings).current()


def test_an_alarm_makes_a_challenger_that_is_better_the_champion(project):
    settings, old = project
    looked(settings, old, "performance fail: ranking_drop: +0.2", "drift notice: shift (income)")
    done = retrain(settings, sealed, as_of="2026-01-01")
    assert done.promoted and done.decision.trigger == "performance"
    new = current(settings)
    entry = open_registry(settings).journal("champion")[-1]
    assert (entry.before, entry.after) == (old, new) == (old, done.attempt.release)
    assert entry.author == "prodml retrain" and "gain_in_roc_auc: +" in entry.reason
    assert entry.evidence["attempt"] == done.attempt.name
    assert entry.evidence["asked"].startswith("performance: ranking_drop")
    assert attempts(settings) == [done.attempt] and done.attempt.entry == entry.number
    kept = pd.read_parquet(attempts_folder(settings) / f"{done.attempt.name}.parquet")
    assert kept["applied_on"].min() > pd.Timestamp("2025-08-20") and kept["default"].notna().all()
    again = retrain(settings, sealed, as_of="2026-01-02")
    assert not again.decision.retrain and "7 must pass" in again.decision.reason


def test_the_champion_may_win(project):
    settings, old = project
    done = retrain(settings, sealed, "to see", as_of="2025-03-01")
    assert done.attempt.state == "kept" and not done.promoted and current(settings) == old
    assert "to be above 0" in done.attempt.why and len(open_registry(settings).journal()) == 1


def test_a_look_at_another_release_and_a_broken_report_ask_for_nothing(project):
    settings, old = project
    looked(settings, "0123456789ab", "performance fail: ranking_drop: +0.2")
    assert not retrain(settings, sealed, as_of="2026-01-01").decision.retrain
    (looks_folder(settings) / "0001" / "look.json").unlink()
    (looks_folder(settings) / "0001").rmdir()
    looked(settings, old, "performance error: the kernel died", "drift notice: shift (age)")
    assert not retrain(settings, sealed, as_of="2026-01-01").decision.retrain
    assert attempts(settings) == []


def test_somebody_who_promotes_meanwhile_is_not_overruled(project):
    settings, old = project
    other = replace(settings, data=replace(settings.data, until="2024-06-01"))

    def make(asked, progress):
        made = sealed(asked, progress)
        theirs = sealed(other, progress).release.name
        open_registry(settings).promote(theirs, author="bob", reason="mine")
        return made

    done = retrain(settings, make, "to see", as_of="2026-01-01")
    assert done.attempt.state == "outrun" and "bob" in done.attempt.why
    assert open_registry(settings).journal()[-1].author == "bob" and current(settings) != old


def test_one_at_a_time_and_never_without_a_champion(project, tmp_path):
    settings, _ = project
    with alone(attempts_folder(settings) / "lock", "retrain"), pytest.raises(Busy):
        retrain(settings, sealed, "to see")
    none = parse_settings(INI, tmp_path / "none" / "settings.ini")
    with pytest.raises(Mistake, match="nothing is the champion"):
        retrain(none, sealed, "to see")


def test_data_that_makes_no_model_is_a_failed_attempt(project):
    settings, old = project

    def make(asked, progress):
        raise Mistake("the disk is full")

    done = retrain(settings, make, "to see", as_of="2026-01-01")
    assert done.attempt.state == "failed" and "disk is full" in done.attempt.why
    assert current(settings) == old
    with pytest.raises(Mistake, match="no outcome"):
        without = settings.root / "rows.csv"
        rows = labelled_rows(settings, as_of="2026-01-01").drop(columns="default")
        rows.to_csv(without, index=False)
        labelled_rows(settings, str(without))


def test_a_comparison_that_breaks_down_is_no_victory_of_the_champion(project, monkeypatch):
    settings, old = project
    looked(settings, old, "drift alert: shift (income): since look 3 of 9")
    broken = Run("comparison", "r", "error", "DeadKernelError", None, 1.0, Path("a"), Path("b"))
    monkeypatch.setattr(module, "compare_releases", lambda *told, **more: (broken, Path("c")))
    done = retrain(settings, sealed, as_of="2026-01-01")
    assert done.attempt.state == "failed" and "DeadKernelError" in done.attempt.why
    monkeypatch.undo()
    soon = retrain(settings, sealed, as_of="2026-01-02")
    assert soon.decision.trigger == "drift" and "7 must pass" in soon.decision.reason
    again = retrain(settings, sealed, as_of="2026-01-09")
    assert again.decision.trigger == "drift" and again.attempt.state == "promoted"


@pytest.mark.parametrize(
    ("state", "severity", "code"), [("failed", "error", 1), ("refused", "warn", 0)]
)
def test_an_attempt_that_came_to_nothing_is_told_once_and_so_is_its_end(
    tmp_path, monkeypatch, state, severity, code
):
    """As a schedule runs it: the command, day after day, by the channels of [notify]."""
    now, days = dt.datetime(2026, 1, 1), iter(range(1, 9))
    with hook() as web:
        text = f"[data]\nsource = demo\n[notify]\nwebhook = http://127.0.0.1:{web.port}/\n"
        (tmp_path / "settings.ini").write_text(text)
        settings = read_settings(tmp_path / "settings.ini")

        def day(trigger, state=""):
            """The command on the next day, when an attempt comes to `state`, if to any."""
            attempt, at = None, (now + next(days) * dt.timedelta(days=1)).isoformat()
            if state:
                head = Attempt(at.replace(":", ""), at, "0a", trigger, "it moved")
                attempt = keep(settings, head, state=state, why="no space is left")
            said = Retrained(Decision(bool(state), trigger, "because"), attempt)
            monkeypatch.setattr(module, "retrain", lambda *told, **more: said)
            with pytest.raises(typer.Exit) as end:
                commands.retrain(project=tmp_path, as_json=True)
            return end.value.exit_code

        assert day("drift", state) == code
        (alarm,) = web[0]["alarms"]
        assert alarm["severity"] == severity and "no space is left" in alarm["text"]
        assert day("drift") == 0 and day("drift", state) == code and len(web) == 1  # one episode
        assert day("") == 0  # nothing asks for it any more
        assert len(web) == 2 and web[1]["over"] == [alarm["key"]]
        assert day("drift", state) == code and day("drift", "kept") == 0
        assert len(web) == 4 and web[3]["over"] == [alarm["key"]]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_retrain
from prodml.ini import read_settings
from prodml.watch import retrain as module

keep = module.keep

def dying(settings, attempt, **changed):
    state = changed.get("state", "training")
    if state == "promoted":
        os.kill(os.getpid(), signal.SIGKILL)  # the alias has moved, the record has not
    made = keep(settings, attempt, **changed)
    if state == {state!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return made

module.keep = dying
settings = read_settings({ini!r})
module.retrain(settings, test_retrain.sealed, "to see", as_of="2026-01-01")
"""


@pytest.mark.slow
@pytest.mark.parametrize("state", ["training", "sealed", "compared", "promoted"])
def test_a_retrain_that_is_killed_at_a_step_can_be_run_again(project, state):
    settings, old = project
    ini = str(settings.root / "settings.ini")
    code = KILLED.format(tests=str(Path(__file__).parent), state=state, ini=ini)
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=900)
    assert dead.returncode == -signal.SIGKILL, dead.stderr[-2000:]
    served = current(settings)
    assert (served == old) == (state != "promoted")
    made = len(list((settings.folder / "candidates").glob("*")))
    done = retrain(settings, sealed, "to see", as_of="2026-01-01")
    assert done.promoted and current(settings) == done.attempt.release != old
    again = len(list((settings.folder / "candidates").glob("*"))) - made
    assert again == (state == "training")  # a sealed challenger is not made twice
    states = [one.state for one in attempts(settings)]
    assert states == (["abandoned"] if state == "training" else []) + ["promoted"]
    assert len(open_registry(settings).journal()) == 2


@pytest.mark.slow
def test_what_the_monitor_wrote_down_asks_for_the_retrain(tmp_path):
    """The monitor's own alarms, after the demo's rule has changed, make a challenger champion."""
    settings, old = monitored(tmp_path, "[retrain]\nwindow = 120\n")
    open_registry(settings).promote(old.name, author="ada", reason="the first")
    calm = look(settings, as_of="2024-10-01")
    assert not any(" alert:" in one or " fail:" in one for one in calm.alarms), calm.alarms
    assert not retrain(settings, sealed, as_of="2024-10-01").decision.retrain
    alarmed = look(settings, as_of="2025-12-01")
    assert any(one.startswith("performance fail:") for one in alarmed.alarms), alarmed.alarms
    done = retrain(settings, sealed, as_of="2025-12-01")
    assert done.promoted and done.decision.trigger == "performance", done
    assert current(settings) == done.attempt.release != old.name


@pytest.mark.slow
def test_the_commands_retrain_and_simulate(tmp_path):
    text = INI.replace("linear", "linear, xgboost").replace("min_roc_auc = 0.60", "")
    (tmp_path / "settings.ini").write_text(text + "[monitor]\nperiod = 1MS\n")
    first = prodml("run", "-p", tmp_path, "--json")
    release = Path(json.loads(first.stdout)["release"]).name
    none = prodml("retrain", "-p", tmp_path)
    assert none.returncode == 2 and "nothing is the champion" in none.stderr
    assert prodml("promote", release, "--reason", "the first", "-p", tmp_path).returncode == 0
    calm = prodml("retrain", "--as-of", "2025-03-01", "-p", tmp_path)
    assert calm.returncode == 0 and calm.stdout.startswith("no retrain: no alarm")
    asked = ("retrain", "--because", "a new rule", "--as-of", "2026-01-01", "-p", tmp_path)
    told = json.loads(prodml(*asked, "--json").stdout)
    assert told["promoted"] and told["attempt"]["trigger"] == "request", told
    journal = json.loads(prodml("history", "-p", tmp_path, "--json").stdout)["entries"]
    assert journal[-1]["after"] == told["attempt"]["release"] != release
    tried = prodml("simulate", "--start", "2025-06-01", "--no-shuffle", "-p", tmp_path, "--json")
    seen = json.loads(tried.stdout)
    assert tried.returncode == 0 and seen["verdict"] == "pass", tried.stdout + tried.stderr
    page = (tmp_path / "reports" / seen["report"].split("reports/")[1]).read_text()
    assert '<img alt="never: mean' in page and "SYNTHETIC" in page


def test_more_retrains_than_comparisons_would_break_the_promise():
    with pytest.raises(Mistake, match=r"comparisons: the budget of \[retrain\], at least"):
        parse_settings(INI + "budget = 24\n")
    assert parse_settings(INI + "budget = 24\n[compare]\ncomparisons = 24\n").retrain.budget == 24


def test_the_pages_of_a_retrained_demo_say_that_it_is_synthetic(tmp_path, monkeypatch):
    """Its rows come from the file that was kept, which does not say where they came from."""
    (tmp_path / "settings.ini").write_text("[data]\nsource = demo\ntarget = default\n")
    made = {}

    def stand_in(settings, make, *told, **more):
        made["make"] = make
        return Retrained(Decision(False, "", "calm"))

    def pages(*told, note, **more):
        made["note"] = note
        raise Mistake("far enough")

    monkeypatch.setattr("prodml.watch.retrain.retrain", stand_in)
    monkeypatch.setattr("prodml.pipeline.run_reports", pages)
    monkeypatch.setattr("prodml.pipeline.train", lambda *told: tmp_path)
    with pytest.raises(typer.Exit):
        commands.retrain(project=tmp_path)
    kept = replace(Settings(root=tmp_path), data=Data(source=str(tmp_path / "kept.parquet")))
    with pytest.raises(Mistake, match="far enough"):
        made["make"](kept, silent)
    assert made["note"].startswith("SYNTHETIC")
