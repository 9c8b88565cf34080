"""The command line as a person meets it: sentences, exit codes, and nothing lost on a mistake."""

import json
import shlex

import numpy as np
import pandas as pd
import pytest
from processes import prodml
from typer.testing import CliRunner

from prodml.cli import app


def table(folder, **changes):
    r = np.random.default_rng(0)
    frame = pd.DataFrame({"x": r.normal(size=400), "late": np.arange(400) % 2}).assign(**changes)
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def told(process):
    assert "Traceback" not in process.stderr, process.stderr
    return process.stderr


def test_help_names_every_command():
    shown = prodml("--help").stdout
    for command in ("new", "run", "train", "report", "release", "build", "point", "serve"):
        assert command in shown


@pytest.mark.parametrize("command", ["run", "train", "report", "build", "serve"])
def test_without_a_project_every_command_says_how_to_make_one(tmp_path, command):
    process = prodml(command, cwd=tmp_path)
    assert process.returncode == 2 and "prodml new" in told(process)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_json_too(tmp_path):
    process = prodml("run", "--json", cwd=tmp_path)
    assert process.returncode == 2 and "settings.ini" in json.loads(process.stdout)["error"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"<!DOCTYPE html><html><body>Please log in</body></html>", "CSV"),
        (b"", "empty"),
        (b"x,x,late\n1,2,0\n", "'x'"),
        (b"x;late\n1;0\n", "column"),
    ],
    ids=["a web page", "empty", "a name twice", "semicolons"],
)
def test_a_file_that_is_no_table_makes_no_project(tmp_path, content, word):
    (tmp_path / "table.csv").write_bytes(content)
    process = prodml("new", "p", "--data", "table.csv", "--target", "late", cwd=tmp_path)
    assert process.returncode == 2 and word in told(process)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"late": 1}, "one value only"),
        ({"late": np.nan}, "missing in every row"),
        ({"late": [f"c{i}" for i in range(400)]}, ""),
    ],
)
def test_a_target_that_teaches_nothing_is_told(tmp_path, changes, word):
    table(tmp_path, **changes)
    made = prodml("new", "p", "--data", "table.csv", "--target", "late", cwd=tmp_path)
    process = made if made.returncode else prodml("run", "-p", "p", cwd=tmp_path)
    assert process.returncode == 2 and word in told(process)


def test_twenty_rows_are_too_few(tmp_path):
    pd.read_csv(table(tmp_path)).head(20).to_csv(tmp_path / "table.csv", index=False)
    assert (
        prodml("new", "p", "--data", "table.csv", "--target", "late", cwd=tmp_path).returncode == 0
    )
    process = prodml("run", "-p", "p", cwd=tmp_path)
    assert process.returncode == 2 and "150" in told(process)


def test_a_project_is_never_overwritten(tmp_path):
    table(tmp_path)
    asked = ("new", "p", "--data", "table.csv", "--target", "late")
    assert prodml(*asked, cwd=tmp_path).returncode == 0
    before = (tmp_path / "p/settings.ini").read_text()
    process = prodml(*asked, cwd=tmp_path)
    assert process.returncode == 2 and "exists already" in told(process)
    assert (tmp_path / "p/settings.ini").read_text() == before


def test_the_next_line_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    table(tmp_path)
    asked = ("new", "Kredit für $5", "--data", "table.csv", "--target", "late")
    *_, line = prodml(*asked, cwd=tmp_path).stdout.splitlines()
    words = shlex.split(line.removeprefix("Next: "))
    assert words == ["cd", "Kredit für $5", "&&", "prodml", "run"]


def test_what_comes_after_train_can_be_pasted_as_well(tmp_path, monkeypatch):
    """The training itself is left out: a folder with a space in it is all that it leaves here."""
    project, candidate = tmp_path / "für $5", tmp_path / "für $5" / "run 1"
    asked = ("new", str(project), "--data", str(table(tmp_path)), "--target", "late")
    assert prodml(*asked, cwd=tmp_path).returncode == 0
    candidate.mkdir()
    model = {"metric": "auc", "score": 0.9, "low": 0.8, "high": 1.0, "candidate": "logistic"}
    (candidate / "model.json").write_text(json.dumps(model))
    monkeypatch.setattr("prodml.pipeline.train", lambda settings, progress: candidate)
    *_, line = CliRunner().invoke(app, ["train", "-p", str(project)]).stdout.splitlines()
    words = shlex.split(line.removeprefix("Next: "))
    assert words == ["prodml", "report", "--on", str(candidate), "-p", str(project)]


def test_odd_names_a_leak_and_an_id_go_through_to_an_honest_verdict(tmp_path):
    """Quotes and markup in a name are inert; the leaking column is named; the id is left out."""
    late = np.arange(1200) % 2
    r = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            'a "b" <script>alert(1)</script>': r.normal(size=1200) + late,
            "row number": np.arange(1200),
            "paid back": 1 - late,
            "late": late,
        }
    )
    frame.to_csv(tmp_path / "table.csv", index=False)
    made = prodml("new", "p", "--data", "table.csv", "--target", "late", cwd=tmp_path)
    assert made.returncode == 0, told(made)
    process = prodml("run", "-p", "p", "--json", cwd=tmp_path)
    answer = json.loads(process.stdout)
    assert process.returncode == 1 and any("paid back" in why for why in answer["reasons"]), answer
    assert answer["left_out"] == ["Left out row number: an identifier: a running number"]
    for page in (tmp_path / "p/reports").rglob("*.html"):
        assert "<script>alert" not in page.read_text()


def test_a_card_alone_cannot_be_asked_for_and_where_it_is_is_told(tmp_path):
    table(tmp_path)
    made = prodml("new", "p", "--data", "table.csv", "--target", "late", cwd=tmp_path)
    assert "Fill in [card]" in made.stdout, told(made)
    process = prodml("report", "card", "-p", "p", cwd=tmp_path)
    assert process.returncode == 2 and "card.html" in told(process)
