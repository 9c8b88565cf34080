"""JupyterLab's own scheduler, as it runs: reports by our manager, schedules by their notebook."""

import json
import shutil
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest
from monitored import monitored
from processes import free_port, prodml
from services import running

from prodml.files import template_path

TOKEN = "of-this-test-alone"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(settings, release, the server's folder, a function that asks it)."""
    pytest.importorskip("jupyter_scheduler")
    place = tmp_path_factory.mktemp("lab")
    more = "[schedule.nightly]\ncommand = release list\nretries = 0\n"
    settings, release = monitored(place / "project", more)
    work, port = place / "work", free_port()
    made = prodml(
        *("schedule", "jupyter", "-p", settings.root, "--out", work, "--config", place / "config")
    )
    assert made.returncode == 0, made.stderr
    for name in ("drift", "performance"):
        shutil.copy(template_path(f"reports/{name}.ipynb"), work)
    env = {f"JUPYTER_{name}_DIR": str(place / name.lower()) for name in ("CONFIG", "DATA")}
    env |= {"JUPYTER_RUNTIME_DIR": str(place / "runtime"), "JUPYTER_TOKEN": TOKEN}
    command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += [f"--ServerApp.root_dir={work}", "--ServerApp.jpserver_extensions"]
    command[-1] += "={'jupyter_scheduler': True}"
    command += [f"--SchedulerApp.db_url=sqlite:///{place}/scheduler.sqlite"]

    def ask(path, body=None):
        url = f"http://127.0.0.1:{port}/scheduler/{path}"
        head = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data, head), timeout=120) as reply:
            return json.load(reply)

    with running(command, port, place / "server.log", env=env):
        yield SimpleNamespace(settings=settings, release=release, work=work, ask=ask)


def ended(lab, notebook, **parameters):
    """The job of `notebook` once it has ended, and the texts that it left, by form."""
    (kind, *_) = lab.ask("runtime_environments")
    asked = {"name": notebook, "input_uri": notebook, "output_formats": ["ipynb", "html"]}
    asked |= {"runtime_environment_name": kind["name"], "parameters": parameters}
    number, deadline = lab.ask("jobs", asked)["job_id"], time.monotonic() + 600
    while True:
        job = lab.ask(f"jobs/{number}")
        if job["status"] in ("COMPLETED", "FAILED") or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    staged = {
        path.suffix: path.read_text()
        for path in (lab.work.parent / "data").rglob(f"{number}/*")
        if path.suffix in (".ipynb", ".html") and path.name != notebook
    }
    return job, staged


@pytest.mark.slow
def test_a_report_runs_through_the_manager_with_typed_parameters(lab):
    job, staged = ended(lab, "drift.ipynb", release=str(lab.release), source="demo",
                        since="2024-07-01", until="2024-12-01")  # fmt: skip
    assert job["status"] == "COMPLETED", job["status_message"]
    assert "prodml-verdict" in staged[".html"] or "banner" in staged[".html"]
    cells = json.loads(staged[".ipynb"])["cells"]
    assert any('since = "2024-07-01"' in "".join(cell["source"]) for cell in cells)


@pytest.mark.slow
def test_a_report_that_fails_is_a_job_that_failed_and_says_why(lab):
    job, staged = ended(
        lab, "performance.ipynb", release=str(lab.release), source="demo", since="2025-09-01"
    )
    assert job["status"] == "FAILED" and "error_increase" in job["status_message"]
    assert staged[".html"]  # the evidence is there all the same
    job, _ = ended(lab, "drift.ipynb", run="1")
    assert job["status"] == "FAILED" and "no parameter 'run'" in job["status_message"]


@pytest.mark.slow
def test_a_schedule_is_started_by_its_notebook(lab):
    job, staged = ended(lab, "nightly.ipynb")
    assert job["status"] == "COMPLETED", job["status_message"]
    told = prodml("schedule", "history", "-p", lab.settings.root, "--json").stdout
    runs = json.loads(told)["runs"]
    assert [(one["name"], one["status"]) for one in runs] == [("nightly", "done")]
    assert lab.release.name in staged[".ipynb"]
