"""A run is tried again, ended in time, never doubled, always on record; each clock can start it."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from listeners import hook
from processes import BIN, prodml, required, until

from prodml.deployment import Notify, Schedule
from prodml.settings import Mistake, Settings
from prodml.watch import schedule as runner
from prodml.watch.forms import all_schedules, crontab, longest, systemd, workflows
from prodml.watch.notify import Alarm, tell
from prodml.watch.schedule import history, run_schedule

STAND_IN = """
import json, os, sys, time
from pathlib import Path
place = Path(sys.argv[sys.argv.index("--project") + 1])
tries = len(list(place.glob("try-*"))) + 1
(place / f"try-{tries}").write_text(" ".join(sys.argv[1:]))
plan = json.loads((place / "plan.json").read_text())
code, said, seconds = plan[min(tries, len(plan)) - 1]
end = time.monotonic() + seconds
while time.monotonic() < end and not (place / "enough").exists():
    time.sleep(0.05)
print(said, flush=True)
print("beside it", file=sys.stderr)
raise SystemExit(code)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that makes a project whose command ends as planned, try by try."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(runner, "prodml_command", lambda: [sys.executable, str(script)])

    def make(*plan, notify=None, **more):
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        one = Schedule("nightly", **{"command": "monitor --as-of 2026-01-01", **more})
        return Settings(root=tmp_path, schedules=(one,), notify=notify or Notify())

    return make


FAIL = '{"verdict": "fail", "reports": {"drift": "fail"}}'
BROKEN = '{"verdict": "fail", "reports": {"drift": "error"}}'


@pytest.mark.parametrize(
    ("plan", "status", "tries"),
    [
        ([(0, "{}", 0)], "done", 1),
        ([(1, FAIL, 0)], "alarm", 1),
        ([(3, "{}", 0)], "inconclusive", 1),
        ([(1, "", 0), (2, '{"error": "x"}', 0), (0, "{}", 0)], "done", 3),
        ([(1, BROKEN, 0), (1, FAIL, 0)], "alarm", 2),
        ([(137, "", 0)], "error", 3),
        ([(1, '{"error": "refused"}', 0)], "error", 3),
    ],
)
def test_what_is_no_answer_is_tried_again_and_what_is_one_is_not(stand_in, plan, status, tries):
    settings, waits = stand_in(*plan, retry_wait=7.0), []
    ran = run_schedule(settings, "nightly", waits.append)
    assert (ran.status, ran.tries) == (status, tries) and waits == [7.0, 14.0][: tries - 1]
    assert history(settings) == [ran] and ran.ended >= ran.began
    asked = (settings.root / "try-1").read_text().split()
    assert asked[:3] == ["monitor", "--as-of", "2026-01-01"] and asked[-1] == "--json"


def test_a_command_that_does_not_end_is_ended_with_all_that_it_started(stand_in, tmp_path):
    settings = stand_in((0, "{}", 600), timeout=1.0, retries=0)
    start = time.monotonic()
    ran = run_schedule(settings, "nightly")
    assert ran.status == "timeout" and time.monotonic() - start < 300
    code = "import subprocess, sys, time\n"
    code += "p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); time.sleep(600)"
    for seconds in (1.5, 10, 60):  # a busy machine may need more to come to the print
        _, said, _ = runner.attempt([sys.executable, "-c", code], seconds)
        if said:
            break

    def gone():
        with contextlib.suppress(ProcessLookupError):
            return os.kill(int(said), 0)
        return True

    assert until(gone)


def test_two_runs_of_one_schedule_never_overlap(stand_in):
    settings = stand_in((0, "{}", 600))
    code = "import sys\nfrom prodml.watch import schedule as s\nfrom prodml.settings import *\n"
    code += "s.prodml_command = lambda: [sys.executable, sys.argv[2]]\n"
    code += "one = Schedule('nightly', 'monitor --as-of 2026-01-01')\n"
    code += "s.run_schedule(Settings(root=Path(sys.argv[1]), schedules=(one,)), 'nightly')\n"
    command = [sys.executable, "-c", "from pathlib import Path\n" + code]
    command += [str(settings.root), str(settings.root / "stand_in.py")]
    first = subprocess.Popen(command)
    assert until((settings.root / "try-1").exists)
    second = run_schedule(settings, "nightly")
    (settings.root / "enough").touch()
    assert first.wait(300) == 0 and second.status == "overlap" and str(first.pid) in second.said
    assert [one.status for one in history(settings)] == ["overlap", "done"]
    assert not (settings.root / "try-2").exists()


def killed(settings):
    """Nothing; a run of the project was killed without a word."""
    code = "import sys, time\nfrom prodml.watch import schedule as s\nfrom pathlib import Path\n"
    code += "from prodml.settings import *\ns.attempt = lambda *told: time.sleep(600)\n"
    code += "one = Schedule('nightly')\n"
    code += "told = {'schedules': (one,), 'notify': Notify(webhook=sys.argv[2])}\n"
    code += "s.run_schedule(Settings(root=Path(sys.argv[1]), **told), 'nightly')\n"
    command = [sys.executable, "-c", code, str(settings.root), settings.notify.webhook]
    before, process = len(history(settings)), subprocess.Popen(command)
    assert until(lambda: len(history(settings)) > before)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert history(settings)[0].status == "running"


def test_a_run_that_was_killed_is_known_to_have_died_and_the_next_one_runs(stand_in):
    settings = stand_in((0, "{}", 0))
    killed(settings)
    assert run_schedule(settings, "nightly").status == "done"
    assert [one.status for one in history(settings)] == ["done", "died"]
    assert history(settings)[1].said == "it was killed, or its machine stopped"


def test_a_death_is_told_once_by_the_next_run_before_it_does_anything(stand_in):
    with hook() as web:
        notify = Notify(webhook=f"http://127.0.0.1:{web.port}/")
        settings = stand_in((0, "{}", 0), notify=notify)
        killed(settings)
        assert not len(web)
        for _ in range(2):  # the first tells, although it dies as well; the second knows
            killed(settings)
            (alarm,) = web[0]["alarms"]
            assert len(web) == 1 and alarm["severity"] == "error"
            said = "schedule nightly died, begun at .*: it was killed, or its machine stopped"
            assert re.fullmatch(said, alarm["text"])
        assert run_schedule(settings, "nightly").status == "done"
        assert len(web) == 2 and web[1]["over"] == [alarm["key"]]
        assert [one.status for one in history(settings)] == ["done", "died", "died", "died"]


@pytest.mark.parametrize("way", ["notify", "notify/told.json"])
def test_a_death_that_cannot_be_told_stops_no_later_run(stand_in, way):
    """A file where a folder must be, and a folder where a file must be: nothing can be kept."""
    with hook() as web:
        settings = stand_in((0, "{}", 0), notify=Notify(webhook=f"http://127.0.0.1:{web.port}/"))
        killed(settings)
        place = settings.folder / way
        if way == "notify":
            place.write_text("in the way")
        else:
            place.mkdir(parents=True)
        with pytest.raises(OSError):
            tell(settings, [Alarm("a", "error", "a", "a")], {"a"})
        assert run_schedule(settings, "nightly").status == "done"
        assert [one.status for one in history(settings)] == ["done", "died"]


def test_a_run_that_is_told_to_end_leaves_nothing_behind_it(stand_in):
    """What it has started would run beside the next one."""
    settings = stand_in((0, "{}", 600))
    noted = "(place / 'pid').write_text(str(os.getpid()))\nend ="
    (settings.root / "pid.py").write_text(STAND_IN.replace("end =", noted))
    run = "import sys\nfrom pathlib import Path\nfrom prodml.watch import schedule as s\n"
    run += (
        "from prodml.settings import *\ns.prodml_command = lambda: [sys.executable, sys.argv[2]]\n"
    )
    run += "one = Schedule('nightly', 'monitor')\n"
    run += "s.run_schedule(Settings(root=Path(sys.argv[1]), schedules=(one,)), 'nightly')\n"
    command = [sys.executable, "-c", run, str(settings.root), str(settings.root / "pid.py")]
    process = subprocess.Popen(command)
    noted = settings.root / "pid"
    assert until(lambda: noted.exists() and noted.read_text())
    process.terminate()
    assert process.wait(300) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)


def test_a_long_answer_is_an_answer(stand_in):
    """As of a monitor of hundreds of columns."""
    told = json.dumps({"verdict": "fail", "alarms": ["drift alert: shift"] * 5000})
    settings = stand_in((1, told, 0))
    ran = run_schedule(settings, "nightly")
    assert (ran.status, ran.tries) == ("alarm", 1) and len(ran.said) == runner.KEPT < len(told)


def test_a_run_in_vain_is_told_and_so_is_its_end(stand_in):
    with hook() as web:
        notify = Notify(webhook=f"http://127.0.0.1:{web.port}/")
        settings = stand_in((9, "no table", 0), retries=0, notify=notify)
        run_schedule(settings, "nightly")
        (alarm,) = web[0]["alarms"]
        assert alarm["severity"] == "error" and "beside it" in alarm["text"]
        (settings.root / "plan.json").write_text('[[0, "{}", 0]]')
        run_schedule(settings, "nightly")
        assert len(web) == 2 and web[1]["over"] == [alarm["key"]]


def test_a_schedule_that_runs_schedules_or_never_comes_is_a_mistake(stand_in):
    with pytest.raises(Mistake, match="cannot run schedules"):
        run_schedule(stand_in((0, "", 0), command="schedule run nightly"), "nightly")
    with pytest.raises(Mistake, match="never come"):
        all_schedules(stand_in((0, "", 0), cron="0 0 31 2 *"))
    with pytest.raises(Mistake, match="nightly"):
        run_schedule(stand_in((0, "", 0)), "nighty")


INI = """
[project]
name = demo of ours
[data]
source = demo
target = default
[notify]
webhook = $HOOK
quiet = 22:00-07:30
[schedule.nightly]
command = release list
cron = 15 6 * * mon-fri
retries = 0
[schedule.monthly]
command = notify
cron = 0 4 1 */3 *
"""


@pytest.fixture
def project(tmp_path):
    """The folder of a project, with an unkind name."""
    root = tmp_path / "our $50 & 100 % demo"
    root.mkdir()
    (root / "settings.ini").write_text(INI)
    return root


def test_a_line_of_the_crontab_does_what_it_says(project):
    """The command is read as cron reads it: up to the first bare %, by /bin/sh."""
    text = prodml("schedule", "cron", "-p", project).stdout
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line.split()[:5] for line in lines] == [
        "15 6 * * mon-fri".split(),
        "0 4 1 */3 *".split(),
        "30 * * * *".split(),
    ]
    command = lines[0].split(None, 5)[5]
    plain = command.replace(r"\%", "\0")
    assert "%" not in plain
    done = subprocess.run(
        ["/bin/sh", "-c", plain.replace("\0", "%")], env={"PATH": "/usr/bin:/bin"}
    )
    log = (project / ".prodml" / "schedules" / "cron.log").read_text()
    assert done.returncode == 0 and "nightly: done after 1 try" in log
    shown = prodml("schedule", "list", "-p", project).stdout
    assert "nightly: prodml release list" in shown and "last done at" in shown
    assert "1 try\n" in prodml("schedule", "history", "-p", project).stdout
    runs = json.loads(prodml("schedule", "history", "-p", project, "--json").stdout)["runs"]
    assert [run["status"] for run in runs] == ["done"]


def test_systemd_takes_the_units(project):
    made = prodml("schedule", "systemd", "-p", project, "--json")
    files = json.loads(made.stdout)["files"]
    assert [Path(file).name for file in files] == [
        *("prodml-nightly.service", "prodml-nightly.timer"),
        *("prodml-monthly.service", "prodml-monthly.timer"),
    ]
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze here")
    told = subprocess.run([tool, "verify", *files], capture_output=True, text=True)
    said = [line for line in told.stderr.splitlines() if "prodml" in line]
    assert not said, said
    for file in files[1::2]:
        lines = [one for one in Path(file).read_text().splitlines() if one.startswith("OnCalendar")]
        for line in lines:
            one = subprocess.run(
                [tool, "calendar", line.partition("=")[2]], capture_output=True, text=True
            )
            assert one.returncode == 0 and "Next elapse" in one.stdout, one.stderr


def test_github_takes_the_workflow(project):
    """By the schema of workflows that check-jsonschema carries, and what a schema cannot say."""
    made = json.loads(prodml("schedule", "github", "-p", project, "--json").stdout)["files"]
    tool = BIN / "check-jsonschema"
    command = [tool, "--builtin-schema", "vendor.github-workflows", *made]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    flow = yaml.safe_load(Path(made[0]).read_text())
    assert flow[True]["schedule"] == [{"cron": "15 6 * * mon-fri"}]
    steps = flow["jobs"]["run"]["steps"]
    (step,) = [one for one in steps if "schedule run nightly" in one.get("name", "")]
    assert step["env"] == {"HOOK": "${{ secrets.HOOK }}"}
    assert flow["concurrency"]["cancel-in-progress"] is False
    broken = Path(made[0]).read_text().replace("timeout-minutes: ", "timeout-minutes: soon")
    Path(made[0]).write_text(broken)
    assert subprocess.run(command, capture_output=True).returncode == 1  # the check can fail


@pytest.mark.parametrize(("code", "wanted"), [(0, 0), (1, 1), (3, 0), (124, 124)])
def test_the_step_of_the_workflow_ends_as_the_run_did(tmp_path, code, wanted):
    settings = Settings(root=tmp_path, schedules=(Schedule("nightly"),))
    (made,) = workflows(settings, tmp_path / "flows")
    steps = yaml.safe_load(made.read_text())["jobs"]["run"]["steps"]
    (step,) = [one for one in steps if one.get("name", "").endswith("run nightly")]
    (tmp_path / "prodml").write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / "prodml").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(["bash", "-e", "-c", step["run"]], env={"PATH": path})
    assert done.returncode == wanted


def test_no_clock_ends_a_run_before_its_last_try(tmp_path):
    one = Schedule("nightly", timeout=600, retries=2, retry_wait=60)
    settings = Settings(root=tmp_path, schedules=(one,))
    assert longest(one) == 3 * 600 + 60 + 120 + 60
    (service, _) = systemd(settings, tmp_path / "units")
    assert f"TimeoutStartSec={longest(one)}" in service.read_text()
    (flow,) = workflows(settings, tmp_path / "flows")
    assert yaml.safe_load(flow.read_text())["jobs"]["run"]["timeout-minutes"] * 60 > longest(one)
    assert shlex.split(crontab(settings).splitlines()[1].split(None, 5)[5])[-1] == "2>&1"


PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
found = {name: [dag.max_active_runs, dag.catchup, [t.task_id for t in dag.tasks]]
         for name, dag in bag.dags.items()}
print("FOUND " + json.dumps({"dags": found, "errors": bag.import_errors}))
"""


@pytest.mark.slow
def test_a_real_airflow_parses_the_dags_and_runs_one(project, tmp_path):
    """In an environment of its own; the run is found in prodml's own history."""
    python = required(tmp_path / "airflow", ["apache-airflow>=3.1,<4"])
    airflow = python.parent / "airflow"
    folder = tmp_path / "dags"
    assert prodml("schedule", "airflow", "-p", project, "--out", folder).returncode == 0
    env = {**os.environ, "AIRFLOW_HOME": str(tmp_path / "home"), "NO_COLOR": "1"}
    env |= {"AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__CORE__DAGS_FOLDER": str(folder)}
    env["PATH"] = f"{python.parent}:{env['PATH']}"

    def run(*command):
        told = subprocess.run(
            list(map(str, command)), env=env, capture_output=True, text=True, timeout=900
        )
        assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]
        return told.stdout

    run(airflow, "db", "migrate")
    said = run(python, "-c", PARSE, folder)
    (line,) = [one for one in said.splitlines() if one.startswith("FOUND ")]
    found = json.loads(line.removeprefix("FOUND "))
    assert found["errors"] == {} and found["dags"] == {
        "demo_of_ours_nightly": [1, False, ["run"]],
        "demo_of_ours_monthly": [1, False, ["run"]],
    }
    run(airflow, "dags", "test", "demo_of_ours_nightly", "2026-11-20")
    runs = json.loads(prodml("schedule", "history", "-p", project, "--json").stdout)["runs"]
    assert [(one["name"], one["status"]) for one in runs] == [("nightly", "done")]
