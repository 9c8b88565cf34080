"""Reports: nothing that went wrong reads as a pass, and pages are safe to open."""

import json
import os
import re
import time
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from nbformat import v4
from processes import until

from prodml.report.index import TROUBLES, read_reports, write_index
from prodml.report.outcome import check_parameters, outcome
from prodml.report.render import figure, harmless, page
from prodml.report.run import Run, junit, read_run, run_report, run_reports
from prodml.settings import Mistake
from prodml.verdict import MEDIA_TYPE, Finding, GateResult, Verdict

EVIL = "</script><script>document.title='run'</script><img src=x onerror=alert(1)>"
SHOW = """from prodml.verdict import Finding, GateResult, Verdict
finding = Finding("measure", "all", 0.5, 0.4, 0.6, 0.3, "min", Verdict.{word}, "because", 100)
result = GateResult({gate!r}, (finding,), run_id)
result"""
RAISE = "result.raise_if_failed()"


def template(folder, gate, *sources, tag="parameters", parameters='run_id = ""'):
    """A tiny template whose last cell has the tag `verdict`."""
    cells = [v4.new_code_cell(parameters, metadata={"tags": [tag]})]
    cells += [v4.new_code_cell(source) for source in sources]
    cells[-1].metadata["tags"] = [*cells[-1].metadata.get("tags", []), "verdict"]
    path = Path(folder) / f"{gate}.ipynb"
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def show(gate, word="PASS"):
    return SHOW.format(gate=gate, word=word)


STALE = "result = GateResult('stale', (finding,), 'yesterday')\nresult"
OTHER = "GateResult('drift', (finding,), run_id)"
# name -> (status, a word of the error, cells)
CASES = {
    "pass": ("pass", "", (show("pass"), RAISE)),
    "warn": ("warn", "", (show("warn", "WARN"), RAISE)),
    "fail": ("fail", "", (show("fail", "FAIL"), RAISE)),
    "fail_quietly": ("fail", "", (show("fail_quietly", "FAIL"),)),
    "inconclusive": ("inconclusive", "", (show("inconclusive", "INCONCLUSIVE"), RAISE)),
    "killed": ("error", "DeadKernel", (show("killed"), "import os; os.kill(os.getpid(), 9)", "2")),
    "runner_killed": (
        "error",
        "runner",
        (show("runner_killed"), "import os; os.kill(os.getppid(), 9)", "2"),
    ),
    "slow_cell": ("error", "CellTimeout", (show("slow_cell"), "import time; time.sleep(60)")),
    "exit": ("error", "SystemExit", ("import sys; sys.exit(0)", show("exit"))),
    "exit_late": ("error", "SystemExit", (show("exit_late"), "import sys; sys.exit(0)", "2")),
    "raises": ("error", "ZeroDivision", (show("raises"), "1 / 0", "2")),
    "silent": ("error", "no verdict", ("1 + 1",)),
    "stale": ("error", "stale", (show("stale").rsplit("\n", 1)[0], STALE)),
    "twice": ("error", "2 verdicts", (show("twice"), "result")),
    "other": ("error", "'drift'", (show("other").rsplit("\n", 1)[0], OTHER)),
    "false_alarm": (
        "error",
        "GateFailed",
        (show("false_alarm"), "from prodml.verdict import GateFailed; raise GateFailed('no')"),
    ),
    "early_failure": (
        "error",
        "GateFailed",
        (show("early_failure", "FAIL"), RAISE, "print('never')"),
    ),
    "broken_code": ("error", "SyntaxError", (show("broken_code"), "def (")),
    "odd_document": (
        "error",
        "prodml.verdict/1",
        (f"display({{{MEDIA_TYPE!r}: {{'verdict': 'pass'}}}}, raw=True)",),
    ),
    "empty": (
        "inconclusive",
        "",
        ("from prodml.verdict import *\nGateResult('empty', (), run_id)",),
    ),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(folder of the run, runs by name, what was told) of all the cases, run two at a time."""
    folder = tmp_path_factory.mktemp("cases")
    paths = [template(folder, name, *cells) for name, (_, _, cells) in CASES.items()]
    told = []
    runs = run_reports(
        paths,
        folder / "reports",
        {},
        "r1",
        jobs=2,
        timeout=300,
        cell_timeout=15,
        progress=lambda *said: told.append(said),
        note="synthetic data",
    )
    assert [run.name for run in runs] == list(CASES)
    return folder / "reports" / "r1", {run.name: run for run in runs}, told


@pytest.mark.parametrize("name", CASES)
def test_status(ran, name):
    status, word, _ = CASES[name]
    run = ran[1][name]
    assert run.status == status, run.error
    assert word in run.error and bool(word) == bool(run.error)
    assert run.passed == (status in ("pass", "warn"))


@pytest.mark.parametrize("name", CASES)
def test_every_report_leaves_a_notebook_a_page_and_a_record(ran, name):
    folder, runs, _ = ran
    notebook = nbformat.read(folder / f"{name}.ipynb", 4)
    record = json.loads((folder / f"{name}.json").read_text())
    shown = (folder / f"{name}.html").read_text()
    assert record["status"] == runs[name].status and record["run_id"] == "r1"
    assert record["versions"]["python"] and record["seconds"] > 0
    assert f'class="banner {record["status"]}"' in shown and "synthetic data" in shown
    states = [c.metadata.papermill.status for c in notebook.cells if c.cell_type == "code"]
    errors = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    if record["status"] == "error":
        assert errors, "an error must be seen in the notebook itself"
        assert set(states) != {"completed"}, "and it must not look green"
    assert read_run(folder / f"{name}.json", "r1") == runs[name]


def test_progress_names_each_report_and_ends_at_one(ran):
    told = ran[2]
    assert {text for text, _ in told} >= {"pass: running", "pass: pass", "killed: error"}
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_junit_says_the_same(ran):
    root = ElementTree.parse(ran[0] / "junit.xml").getroot()
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == set(CASES)
    for name, (status, _, _) in CASES.items():
        suite = suites[name]
        bad = len(list(suite.iter("failure"))), len(list(suite.iter("error")))
        if status in ("pass", "warn"):
            assert bad == (0, 0)
        elif status == "fail":
            assert bad == (1, 0)
        else:
            assert bad[1] >= (name != "empty")
    assert "warning: because" in suites["warn"].find(".//system-out").text


def gone(pid):
    """Whether the process has come to its end."""

    def ended():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    return until(ended)


HOLD = "import ctypes; ctypes.PyDLL(None).sleep(600)"  # keeps the interpreter's lock: deaf


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "plain"])
@pytest.mark.parametrize("cell", ["import time\nwhile True: time.sleep(0.1)", HOLD])
def test_the_whole_report_has_a_time_and_its_kernel_ends_with_it(tmp_path, cell, warm):
    pids = "import os; open('{}', 'w').write(str(os.getpid()))".format(tmp_path / "pid")
    path = template(tmp_path, "slow", show("slow"), pids, "1", cell, "2")
    for seconds in (6, 30, 120):  # a busy machine may need more to come as far as the cell
        start = time.monotonic()
        run = run_report(path, tmp_path / "out", {}, f"r{seconds}", timeout=seconds, warm=warm)
        assert run.status == "error" and f"{seconds} seconds" in run.error
        assert time.monotonic() - start < seconds + 100
        states = [c.metadata.papermill.status for c in nbformat.read(run.notebook, 4).cells[-3:]]
        if states[0] == "completed":
            break
    assert gone(int((tmp_path / "pid").read_text()))
    assert states == ["completed", "failed", "pending"]


def test_killed_workshop_is_an_error_of_all_its_reports(tmp_path):
    kill = """import os, pathlib, time
runner = os.getppid()
workshop = int(pathlib.Path(f"/proc/{runner}/stat").read_text().rsplit(")")[-1].split()[1])
os.kill(workshop, 9)
time.sleep(60)"""
    paths = [template(tmp_path, "one", show("one"), kill), template(tmp_path, "two", show("two"))]
    runs = run_reports(paths, tmp_path / "out", {}, "r1", jobs=1)
    assert [run.status for run in runs] == ["error", "error"]
    assert all("ended" in run.error for run in runs)


def test_plain_kernels_give_the_same(tmp_path):
    paths = [template(tmp_path, name, *CASES[name][2]) for name in ("pass", "fail", "killed")]
    runs = run_reports(paths, tmp_path / "out", {}, "r1", warm=False)
    assert [run.status for run in runs] == ["pass", "fail", "error"]
    assert runs[0].result == GateResult(
        "pass",
        (Finding("measure", "all", 0.5, 0.4, 0.6, 0.3, "min", Verdict.PASS, "because", 100),),
        "r1",
    )


def test_plots_appear_though_matplotlib_was_loaded_before(tmp_path):
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    own = f"from prodml.report.render import figure\n{plot}\nfigure(plt.gcf(), 'a line', 'cap')"
    gates = "import sys; 'prodml.gates'; 'matplotlib' in sys.modules"
    path = template(tmp_path, "plots", gates, plot, own, show("plots"))
    run = run_report(path, tmp_path / "out", {}, "r1")
    shown = run.html.read_text()
    assert run.passed
    assert "data:image/png;base64" in shown and "data:image/svg+xml;base64" in shown
    assert 'alt="a line"' in shown and "cap</figcaption>" in shown


def test_the_signing_key_stays_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODML_KEY", "/somewhere/private.pem")
    cell = "import os; assert 'PRODML_KEY' not in os.environ"
    run = run_report(template(tmp_path, "keys", cell, show("keys")), tmp_path / "out", {}, "r1")
    assert run.passed, run.error


@pytest.mark.parametrize(
    ("parameters", "given_ones", "word"),
    [
        ('run_id = ""', {"relase": "x"}, "no parameter 'relase'"),
        ('run_id = ""\nrelease = ""', {"relase": "x"}, "Did you mean 'release'"),
        ('run_id = ""\nn = 1', {"n": "2"}, "is str"),
        ('run_id = ""\nn = 1', {"n": True}, "is bool"),
        ('run_id = ""\nn = ""', {"n": Path("x")}, "no plain value"),
        ('run_id = ""\nn = []', {"n": (1, 2)}, "no plain value"),
        ('run_id = ""\nn = 1.0', {"n": float("nan")}, "no plain value"),
        ('run_id = ""\nx = ""', {"x = 1\n__import__('os')._exit(0)\ny": ""}, "no parameter"),
        ('run_id = ""\ndata = ""', {"data": "postgresql://me:word@host/db"}, "secret"),
        ('run_id = ""\npassword = ""', {"password": "x"}, "secret"),
        ('run_id = ""\nn = len("x")', {}, "more than one `name = literal`"),
        ('run_id: str = ""\nimport os', {}, "more than one `name = literal`"),
        ('release = ""', {}, "no parameter 'run_id'"),
        ("run_id = 1", {}, "is str, its default is int"),
    ],
)
def test_parameters_that_are_refused(tmp_path, parameters, given_ones, word):
    path = template(tmp_path, "gate", show("gate"), parameters=parameters)
    run = run_report(path, tmp_path / "out", given_ones, "r1")
    assert run.status == "error" and word in run.error
    assert not run.notebook.exists(), "it never ran"


@pytest.mark.parametrize("tags", [[], ["parameters", "parameters"]], ids=["none", "two"])
def test_a_template_needs_one_parameters_cell(tmp_path, tags):
    cells = [v4.new_code_cell('run_id = ""', metadata={"tags": [tag]}) for tag in tags or ["x"]]
    path = tmp_path / "gate.ipynb"
    nbformat.write(v4.new_notebook(cells=[*cells, v4.new_code_cell(show("gate"))]), path)
    run = run_report(path, tmp_path / "out", {}, "r1")
    assert run.status == "error" and "'parameters'" in run.error


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "not json", '{"cells": 3}'])
def test_a_template_that_is_no_notebook(tmp_path, text):
    path = tmp_path / "gate.ipynb"
    if text is not None:
        path.write_text(text)
    run = run_report(path, tmp_path / "out", {}, "r1")
    assert run.status == "error" and run.error


@pytest.mark.parametrize("run_id", ["", "..", "../x", "a/b", "a b", "x" * 200, "{n}"])
def test_a_run_id_that_is_no_name(tmp_path, run_id):
    with pytest.raises(Mistake, match="name of a run"):
        run_reports([], tmp_path, {}, run_id)


def test_a_run_is_never_written_twice(tmp_path):
    path = template(tmp_path, "gate", show("gate"), parameters="x = 1")
    run_report(path, tmp_path / "out", {}, "r1")
    with pytest.raises(Mistake, match="another run_id"):
        run_report(path, tmp_path / "out", {}, "r1")


def test_awkward_folders_and_relative_paths(tmp_path, monkeypatch):
    odd = tmp_path / 'a {0} "b" ü\''
    odd.mkdir()
    monkeypatch.chdir(odd)
    (odd / "rows.csv").write_text("x\n1\n")
    path = template(odd, "gate", "open('rows.csv').read()", show("gate"))
    run = run_report(path.name, "reports", {}, "r1")
    assert run.passed, run.error
    assert run.notebook == odd / "reports" / "r1" / "gate.ipynb"


def test_old_outputs_of_a_template_are_not_evidence(tmp_path):
    old = GateResult("gate", (finding("0"),), "r1").to_dict()
    cell = v4.new_code_cell("pass", outputs=[v4.new_output("display_data", {MEDIA_TYPE: old})])
    first = v4.new_code_cell('run_id = ""', metadata={"tags": ["parameters"]})
    path = tmp_path / "gate.ipynb"
    nbformat.write(v4.new_notebook(cells=[first, v4.new_code_cell("1 / 0"), cell]), path)
    run = run_report(path, tmp_path / "out", {}, "r1")
    assert run.status == "error" and run.result is None


# -- pages ------------------------------------------------------------------------------------


def finding(name, word="PASS", slice="all"):
    return Finding(name, slice, 0.5, 0.4, 0.6, 0.3, "min", Verdict[word], f"why {name}", 100)


class Tags(HTMLParser):
    """Every start tag and attribute of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def inert(text):
    """Whether a page has nothing that runs, loads or leads away; raises where it has."""
    tags = Tags(text).found
    scripts = [a for tag, a in tags if tag == "script"]
    assert all(a.get("type") == "application/json" for a in scripts) and len(scripts) <= 1
    for tag, attributes in tags:
        assert tag not in {"iframe", "object", "embed", "link", "form", "base"}, tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert attributes.get("http-equiv", "").lower() != "refresh"
        assert attributes.get("src", "data:").startswith("data:")
        assert not attributes.get("href", "#").strip().lower().startswith(("javascript", "data"))
        assert "url(" not in attributes.get("style", "")
    styles = re.findall(r"<style[^>]*>(.*?)</style>", text, re.S)
    assert not any(re.search(r"url\(|@import", style) for style in styles) and len(styles) <= 1
    return True


def notebook_with(text):
    """A notebook that shows `text` in every way a notebook can."""
    display = [
        v4.new_output("display_data", {kind: text})
        for kind in ("text/html", "text/plain", "image/svg+xml", "text/markdown", "text/latex")
    ]
    display += [v4.new_output("display_data", {"application/javascript": "alert(1)"})]
    display += [
        v4.new_output("stream", text=text),
        v4.new_output("stream", name="stderr", text=text),
    ]
    display += [v4.new_output("error", ename=text, evalue=text, traceback=[text])]
    cells = [v4.new_markdown_cell(f"# {text}\n[a](javascript:alert(1))\n\n{text}")]
    return v4.new_notebook(cells=[*cells, v4.new_code_cell("1", outputs=display)])


def record(text, status="pass", findings=()):
    result = GateResult(text, tuple(findings), text).to_dict()
    facts = {"gate": text, "run_id": text, "status": status, "error": text, "note": text}
    more = {"parameters": {text: text}, "versions": {text: text}, "created": text, "seconds": 1.0}
    return {**facts, **more, "result": result}


@pytest.mark.parametrize(
    "text",
    [
        EVIL,
        "<svg onload=alert(1)><script>alert(1)</script></svg>",
        '<meta http-equiv="refresh" content="0;url=https://far.example">',
        '"><iframe src="https://far.example"></iframe>',
        "<style>@import url(https://far.example/x.css);.banner{display:none}</style>",
        '<a href="JaVaScRiPt:alert(1)">x</a><form action="https://far.example"><button>',
        "<img src='https://far.example/x.png'><b style='background:url(https://far.example)'>",
        "<!--><script>alert(1)</script>-->",
        "{{ 7*7 }}{% raw %}<script>alert(1)</script>",
    ],
)
def test_names_that_come_from_data_are_inert_on_a_report(text):
    found = (finding(text, "FAIL", slice=text), finding(text, "WARN"))
    shown = page(notebook_with(text), record(text, "fail", found))
    assert inert(shown)
    embedded = re.search(r'id="prodml-verdict"[^>]*>(.*?)</script>', shown, re.S)[1]
    assert json.loads(embedded)["findings"][0]["measure"] == text


def test_a_data_frame_with_an_evil_column_is_still_a_table():
    import pandas as pd

    markup = pd.DataFrame({EVIL: [1]}).to_html()
    kept = harmless(markup)
    assert "<table" in kept and "&lt;script&gt;" in kept and inert(kept)


@given(st.text(alphabet="<>/=\"' abonimgscrtpt:;-!&\n", max_size=80))
def test_whatever_markup_is_made_harmless(text):
    inert(harmless(text))


def test_a_figure_needs_words_and_large_ones_become_png():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def cloud(points):
        plot, axes = plt.subplots()
        axes.plot(range(points), [i * 37 % 101 for i in range(points)], "o")
        return plot

    small, same = figure(cloud(20), 'a "b" <c>'), figure(cloud(20), 'a "b" <c>')
    assert small == same and "image/svg+xml" in small.markup and "&lt;c&gt;" in small.markup
    assert "image/png" in figure(cloud(4000), "cloud").markup
    assert not plt.get_fignums(), "figures are closed"


@pytest.mark.parametrize("word", list(Verdict))
def test_a_banner_says_its_verdict_in_words(word):
    shown = page(v4.new_notebook(), {**record("gate", word.value), "error": ""})
    banner = re.search(r'<div class="banner.*?</div></div>', shown.replace("\n", ""))[0]
    assert {"pass": "Passed", "warn": "warnings", "fail": "Failed"}.get(
        word, "Not enough"
    ) in banner


# -- the index --------------------------------------------------------------------------------


def written(folder, run_id, gate, word="PASS", created="2026-01-01T00:00:00Z", change=()):
    place = folder / run_id
    place.mkdir(parents=True, exist_ok=True)
    result = GateResult(gate, (finding("m", word),), run_id)
    facts = {**record("", result.verdict.value), "schema": "prodml.run/1", "created": created}
    facts |= {"gate": gate, "run_id": run_id, "result": result.to_dict(), **dict(change)}
    (place / f"{gate}.json").write_text(json.dumps(facts))
    (place / f"{gate}.html").write_text("page")


def cards(folder):
    text = write_index(folder, "Loans").read_text()
    assert inert(text)
    return re.findall(r'<li class="card (\w+)"><h3>(.*?)</h3>', text)


def test_what_was_not_examined_never_looks_green(tmp_path):
    written(tmp_path, "r1", "correctness")
    seen = {name: status for status, name in cards(tmp_path)}
    assert list(seen) == [trouble.name for trouble in TROUBLES]
    assert seen.pop("Correctness") == "pass" and set(seen.values()) == {"none"}


def test_no_runs_at_all(tmp_path):
    assert {status for status, _ in cards(tmp_path)} == {"none"}
    assert "Nothing was examined yet" in (tmp_path / "index.html").read_text()


def test_the_latest_run_counts_and_older_ones_are_listed(tmp_path):
    written(tmp_path, "b", "drift", "FAIL", created="2026-01-01T00:00:00Z")
    written(tmp_path, "a", "drift", "PASS", created="2026-02-01T00:00:00Z")
    assert ("pass", "Data drift") in cards(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert 'href="b/drift.html"' in text and 'href="a/drift.html"' in text


@pytest.mark.parametrize(
    "spoilt",
    ["", "{}", "[]", "null", '{"schema": "prodml.run/1"}', '{"schema": "prodml.run/1", "gate": 1}'],
)
def test_a_spoilt_record_is_an_error(tmp_path, spoilt):
    written(tmp_path, "r1", "drift")
    (tmp_path / "r1" / "drift.json").write_text(spoilt)
    assert ("error", "Data drift") in cards(tmp_path)


@pytest.mark.parametrize(
    "change", [{"status": "pass"}, {"gate": "fairness"}, {"run_id": "r0"}, {"result": None}]
)
def test_a_record_that_says_more_than_its_findings_is_an_error(tmp_path, change):
    written(tmp_path, "r1", "drift", "FAIL", change=change)
    assert ("error", "Data drift") in cards(tmp_path)


def test_a_report_that_never_ended_is_an_error(tmp_path):
    written(tmp_path, "r1", "drift")
    (tmp_path / "r1" / "fairness.ipynb").write_text("{")
    (reports,) = read_reports(tmp_path)
    assert {run.name: run.status for run in reports.runs} == {"drift": "pass", "fairness": "error"}


def test_a_gate_of_ones_own_gets_a_card(tmp_path):
    written(tmp_path, "r1", "latency", "FAIL")
    assert cards(tmp_path)[-1] == ("fail", "latency")


def test_names_on_the_index_are_inert(tmp_path):
    spoilt = {"note": EVIL, "error": EVIL, "created": EVIL}
    written(tmp_path, "r1", "drift", "FAIL", change=spoilt)
    text = write_index(tmp_path, EVIL + "[[CARDS]]").read_text()
    assert inert(text) and text.count("<ol") == 1


@given(st.text())
def test_junit_holds_any_text(text):
    result = GateResult("g", (finding(text, "FAIL"), finding(text, "WARN")), "r")
    root = ElementTree.fromstring(
        junit([Run("g", "r", "error", text, result, 1.0, Path(), Path())])
    )
    assert len(list(root.iter("testcase"))) == 3


# -- pure rules -------------------------------------------------------------------------------

STATES = st.lists(st.sampled_from(["completed", "pending", "failed", "running"]), min_size=1)


@given(STATES, st.sampled_from(["", "X: y", "GateFailed: z"]), st.sampled_from(list(Verdict)))
def test_only_a_whole_run_can_pass(states, error, word):
    result = GateResult("g", (finding("m", word.name),), "r")
    cells = [v4.new_code_cell("", metadata={"papermill": {"status": status}}) for status in states]
    cells[0].outputs = [v4.new_output("display_data", {MEDIA_TYPE: result.to_dict()})]
    found = outcome(v4.new_notebook(cells=cells), "g", "r", error)
    whole = not error and set(states) == {"completed"}
    assert found.status == (word.value if whole else "error")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(JSON)
def test_plain_values_pass_unchanged(value):
    cell = v4.new_code_cell("x = None", metadata={"tags": ["parameters"]})
    try:
        assert check_parameters(v4.new_notebook(cells=[cell]), {"x": value}, "n") == {"x": value}
    except Mistake as mistake:
        assert "secret" in str(mistake)


def test_the_package_ships_its_templates():
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert mapping["package-dir"]["prodml._templates"] == "templates"


def test_environment_is_left_alone(ran):
    assert "IPYTHONDIR" not in os.environ
