"""The explorers answer, refuse and decide: in Python, and in a browser by JupyterLab and Voila."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from explored import explored
from processes import free_port
from services import program

from prodml.gates.evidence import load_evidence
from prodml.gates.examine import examine_drift, examine_fairness
from prodml.lab import explore as opened
from prodml.lab.challenge import Challenge
from prodml.lab.contest import contest, decide
from prodml.lab.errand import send
from prodml.lab.launcher import Launcher
from prodml.lab.moved import came_later
from prodml.release.registry import Outrun, open_registry
from prodml.release.store import seal
from prodml.settings import Mistake
from prodml.verdict import GateResult, judge

REASON = "it is simpler to serve and no worse"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """(settings, champion, challenger) of a small project."""
    return explored(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def evidence(project):
    return load_evidence(project[1])


def test_what_if_answers_as_the_release_does(project, evidence):
    one = opened.what_if(evidence, project[0])
    for row in (0, 5, 17):
        one.row.value = row
        assert one.asked.prediction[0] == pytest.approx(evidence.prediction[row], abs=1e-5)
        assert one.asked.label in one.answer.value
        assert one.asked.told.gap < 1e-4
    before = one.reasons.value
    control = one.form.inputs["debt_ratio"].control
    control.value = control.max
    assert one.reasons.value != before and "beyond what training saw" in one.odd.value
    one.form.inputs["job"].control.value = "(not seen in training)"
    assert "training never saw such a job" in one.odd.value
    one.form.inputs["income"].missing.value = True
    assert one.form.values["income"] is None and "income = missing" in one.reasons.value


def test_a_suggestion_leads_to_the_other_answer_and_leaves_immutable_columns(project, evidence):
    one = opened.what_if(evidence, project[0])
    before = one.asked.label, one.form.values["age"]
    one.suggestions.button.click()
    assert one.suggestions.tries.children
    one.suggestions.tries.children[0].click()
    assert one.asked.label != before[0] and one.form.values["age"] == before[1]
    assert one.suggestions.told.value == ""  # it was about the row before


def test_the_threshold_is_judged_by_the_fairness_gate(project, evidence):
    one = opened.threshold(evidence, project[0])
    gate = [f for f in examine_fairness(evidence)[0].findings if f.measure.endswith("difference")]
    assert list(one.judge.at(evidence.threshold).findings) == gate
    one.slider.value = 0.2
    assert "With this threshold" in one.verdict.value
    whole = one.all.value
    one.slider.value = 0.8
    assert one.all.value != whole


def test_drift_says_what_the_gate_says(project, evidence):
    one = opened.over_time(evidence, project[0])
    current = came_later(evidence, project[0])
    found = {f.slice: f.why for f in examine_drift(evidence, current)[0].findings}
    for name in one.moved.columns[:3]:
        one.column.value = name
        level = found[name].partition(" since")[0].partition(":")[0]
        assert f"{name}: {level}" in one.told.value or level == "not enough data"
        assert one.chart.value.startswith("<svg")
    assert "alert at 2025" in "".join(
        (setattr(one.column, "value", name), one.chart.value)[1] for name in one.moved.columns
    )


def test_nothing_is_promoted_without_reason_author_or_a_good_comparison(project, tmp_path):
    settings, champion, _ = project
    ini = (settings.root / "settings.ini").read_text().replace("margin = 0.05", "margin = 0.0001")
    candidate = settings.folder / "candidates" / "xgboost"
    (candidate / "settings.ini").write_text(ini)
    gate = GateResult("fairness", (judge("rate", 0, 0, 0.1, 0.3, "max", 900),))
    strict = seal(candidate, [], [gate], settings, "run-strict")
    one = Challenge(settings, wait=True)
    one.signature.approve.click()
    assert "compare the two first" in one.signature.told.value
    one.roster.challenger.value = strict.name
    one.roster.compare.click()
    assert "the champion stays" in one.page.value
    one.signature.reason.value = REASON
    one.signature.approve.click()
    assert "so the champion stays. Nothing was changed" in one.signature.told.value
    one.roster.challenger.value = project[2].name
    one.roster.compare.click()
    assert "may take the champion" in one.page.value
    for author, reason, said in (("Ada", "better", "15 signs"), (" ", REASON, "who decides")):
        one.signature.author.value, one.signature.reason.value = author, reason
        one.signature.approve.click()
        assert said in one.signature.told.value
    registry = open_registry(settings)
    assert registry.current() == champion.name and len(registry.journal("champion")) == 1


def test_a_promotion_is_written_down_and_an_outrun_one_is_told(tmp_path):
    settings, champion, challenger = explored(tmp_path)
    late = contest(settings, champion.name, challenger.name)
    one = Challenge(settings, wait=True)
    one.roster.compare.click()
    one.signature.author.value, one.signature.reason.value = "Ada <b>", REASON
    one.signature.approve.click()
    assert (
        "entry 2 by Ada &lt;b&gt;" in one.signature.told.value
        and REASON in one.roster.journal.value
    )
    entry = open_registry(settings).journal("champion")[-1]
    assert (entry.before, entry.after) == (champion.name, challenger.name)
    assert entry.evidence["comparison"]["verdict"] == "pass"
    registry = open_registry(settings)
    registry.rollback(author="Bob", reason="back to the one we know")
    registry.promote(challenger.name, alias="other", author="Bob", reason="another alias")
    registry.promote(challenger.name, author="Bob", reason="and forth again")
    moved = replace(late, challenger=champion.name)
    with pytest.raises(Outrun, match="Bob"):
        decide(settings, replace(moved, champion="0" * 12), "Ada", REASON)
    assert registry.journal("champion")[-1].author == "Bob"


def test_reports_run_aside_and_can_be_cancelled(project):
    settings = project[0]
    one = Launcher(settings, wait=True)
    one.run.click()
    assert "choose one gate" in one.advance.told.value
    one.choice.release.value, one.choice.gates.value, one.choice.since.value = (
        project[1].name,
        ("stability",),
        "2025",
    )
    one.run.click()
    assert (
        "looks at the test part" in one.advance.told.value and one.advance.bar.bar_style == "danger"
    )
    asked = {**one.choice.asked, "since": ""}
    errand = send(asked)
    threading.Timer(2, errand.cancel).start()
    begun = time.monotonic()
    with pytest.raises(Mistake, match="cancelled"):
        errand.listen(lambda text, share: None)
    assert time.monotonic() - begun < 120 and errand.process.poll() is not None


# In a real browser

CHROMIUM = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync".split()
CHROMIUM += "--disable-background-networking --disable-component-update".split()
CHROMIUM += ["--disable-dev-shm-usage"]
PATIENCE = 120_000  # milliseconds for what comes within a second on a machine with nothing to do
USER = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}


@pytest.fixture
def browser():
    """A headless Chromium, for one test: an event loop runs meanwhile, which others must not see.

    Without one the test is skipped, but not where CI is true.
    """
    path = program("chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as started:
        shown = started.chromium.launch(executable_path=path, args=CHROMIUM)
        yield shown
        shown.close()


@contextlib.contextmanager
def exploring(folder, place, *more):
    """The address that `prodml explore` prints, once it answers; the command is ended after."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        env[name] = str(place / name.lower())
    env["JUPYTERLAB_SETTINGS_DIR"] = str(place / "user")
    env["JUPYTERLAB_WORKSPACES_DIR"] = str(place / "workspaces")
    for name, told in USER.items():
        file = place / "user" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told))
    command = [Path(sys.executable).parent / "prodml", "explore", "--port", free_port(), *more]
    log = place / "log"
    with open(log, "w") as out:
        started = subprocess.Popen(
            [*map(str, command), "--project", str(folder)],
            **{"stdout": out, "stderr": subprocess.STDOUT, "env": env, "start_new_session": True},
        )
    try:
        yield answered(log, started)
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


def answered(log, process):
    """The address with its token, once the server answers; another token is refused."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-2000:]
        if found := re.search(r"^http://127\.0\.0\.1:\S+token=\S+$", log.read_text(), re.M):
            with contextlib.suppress(urllib.error.URLError, OSError):
                with urllib.request.urlopen(re.sub("token=.*", "token=x", found[0])) as page:
                    assert "login" in page.url  # not the page itself
                return found[0]
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


def watched(browser):
    """A page, and the addresses outside of this machine that it asked for."""
    page, outside = browser.new_page(viewport={"width": 1360, "height": 1000}), []
    page.set_default_timeout(PATIENCE)
    own = ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")

    def failed(request):  # one that the policy forbids never leaves
        if request.url in outside and "csp" in (request.failure or "").lower():
            outside.remove(request.url)

    page.on("request", lambda r: None if r.url.startswith(own) else outside.append(r.url))
    page.on("requestfailed", failed)
    return page, outside


def run_all(page):
    """Nothing; runs the notebook that is open in JupyterLab, as often as its kernel needs.

    What is asked before the kernel is ready is not done, and a kernel that died while it started
    (another process took its port) is told in a dialog: a person reads it and asks again.
    """
    from playwright.sync_api import TimeoutError

    said, end = [], time.monotonic() + 240
    ready = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first
    while time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            for dialog in page.locator("dialog.jp-Dialog").all():
                said.append(dialog.inner_text(timeout=5_000))
                dialog.locator("button.jp-mod-accept").click(timeout=5_000)
            page.locator(".jp-Notebook .jp-Cell").first.click(timeout=5_000)
            ready.wait_for(state="attached", timeout=20_000)
            page.get_by_role("menuitem", name="Run", exact=True).click(timeout=5_000)
            page.get_by_text("Run All Cells", exact=True).click(timeout=5_000)
            page.locator(".prodml-answer").wait_for(timeout=20_000)
            return
    shown = page.locator(".jp-Notebook").inner_text()[-1500:]
    raise AssertionError(f"the notebook did not run; dialogs: {said}; it shows: {shown}")


def drive(page, settings, challenger, many):
    """What a person does: move, decide, run; the journal holds `many` entries after."""
    from playwright.sync_api import expect

    expect(page.locator(".prodml-answer")).to_be_visible()
    reasons = page.locator("svg[aria-label^='What moved']")
    before = reasons.get_attribute("aria-label")
    page.locator(".widget-slider .noUi-handle").nth(2).focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    expect(reasons).not_to_have_attribute("aria-label", before)
    page.get_by_role("tab", name="Threshold").click()
    expect(page.locator(".prodml-verdict")).to_be_visible()
    page.get_by_role("tab", name="Challenger").click()
    assert page.get_by_label("challenger").input_value().startswith(challenger.name)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".prodml-compared")).to_contain_text("pass")
    page.get_by_role("button", name="Approve and promote").click()
    expect(page.locator(".prodml-told.error")).to_contain_text("needs a reason")
    assert len(open_registry(settings).journal("champion")) == many - 1
    page.get_by_label("reason").fill(REASON)
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Approve and promote").click()
    expect(page.locator(".prodml-decided")).to_contain_text(f"entry {many}")
    expect(page.locator(".prodml-journal")).to_contain_text(REASON)
    assert open_registry(settings).current() == challenger.name
    page.get_by_role("tab", name="Reports").click()
    page.get_by_label("gates").select_option("drift")
    page.get_by_role("button", name="Run the reports").click()
    expect(page.locator(".prodml-run")).to_contain_text("drift")
    return page.locator(".prodml-run a").get_attribute("href")


def test_explored_in_the_browser(tmp_path, browser):
    """In JupyterLab one promotes the challenger, and in the app the former champion again."""
    from playwright.sync_api import expect

    settings, champion, challenger = explored(tmp_path / "project")
    with exploring(settings.root, tmp_path) as address:
        page, outside = watched(browser)
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector("#jupyterlab-splash", state="detached")
        run_all(page)
        way = drive(page, settings, challenger, 2)
        assert way.startswith("/files/reports/")
        with page.context.expect_page() as other:
            page.locator(".prodml-run a").click()
        expect(other.value.locator("body")).to_contain_text("newest rows")
        assert not outside
        page.close()
    with exploring(settings.root, tmp_path / "app", "--app", "--theme", "dark") as address:
        page, outside = watched(browser)
        page.goto(address, wait_until="domcontentloaded")
        assert drive(page, settings, champion, 3).startswith("data:text/html;base64,")
        assert not outside
        page.close()


def test_an_errand_is_cancelled_also_where_its_parent_ignores_the_signal():
    """As a JupyterLab does that was begun in the background of a shell."""
    start = 'print(\'{"text": "on", "share": 0.1}\', flush=True); import time; time.sleep(600)'
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        slow = send({}, start)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(Mistake, match="cancelled"):
        slow.listen(lambda text, share: slow.cancel())
    assert slow.process.returncode == -signal.SIGINT  # by itself, not by force
