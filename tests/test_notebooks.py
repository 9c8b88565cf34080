"""The notebooks keep the house rules, and everything made from them agrees with them."""

import ast
import filecmp
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from readme import ROOT, markdown

LIBRARY = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if p.name[0].isdigit())
REPORTS = sorted((ROOT / "templates" / "reports").glob("*.ipynb"))
ids = {"ids": lambda p: str(p.relative_to(ROOT))}


def cells(path, kind=None):
    """The cells of a notebook as (source, cell), of one kind if given."""
    found = json.loads(path.read_text())["cells"]
    return [("".join(c["source"]), c) for c in found if kind in (None, c["cell_type"])]


def exported(path):
    """The sources of the cells that make the module, without directives."""
    marked = [s for s, _ in cells(path, "code") if re.search(r"^#\|\s*export", s, re.M)]
    return ["\n".join(line for line in s.splitlines() if not line.startswith("#|")) for s in marked]


def lines(source):
    return [line for line in source.splitlines() if line.strip()]


def module(path):
    """The module a notebook exports to, such as `gates.drift`."""
    (name,) = (m[1] for s, _ in cells(path, "code") if (m := re.match(r"#\| default_exp (\S+)", s)))
    return name


NUMBER = {module(path): int(path.name.split("_")[0]) for path in LIBRARY}


def test_there_are_notebooks():
    assert len(LIBRARY) > 10 and len(REPORTS) >= 4


@pytest.mark.parametrize("path", LIBRARY, **ids)
def test_opens_with_title_and_question(path):
    first, _ = cells(path)[0]
    assert re.fullmatch(r"# [^\n]+\n\n> [^\n]+\?", first.strip()), first


@pytest.mark.parametrize("path", LIBRARY, **ids)
def test_size_and_prose(path):
    code = [len(lines(s)) for s in exported(path)]
    words = sum(len(s.split()) for s, _ in cells(path, "markdown"))
    assert sum(code) <= 250, f"{sum(code)} exported lines: split it"
    assert max(code) <= 40, f"an exported cell of {max(code)} lines"
    assert words >= sum(code), f"{words} words of prose for {sum(code)} lines"
    assert sum("#| hide" in s for s, _ in cells(path)) <= 2


@pytest.mark.parametrize("path", LIBRARY, **ids)
def test_public_functions_are_used_nearby(path):
    """A lesson that asserts follows, and every public name appears outside its definition."""
    code = [s for s, _ in cells(path, "code")]
    lessons = "\n".join(s for s in code if not re.search(r"^#\|", s, re.M))
    assert "assert" in lessons, "no lesson asserts anything"
    text = "\n".join(code)
    for tree in map(ast.parse, exported(path)):
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                if any("command(" in ast.unparse(d) for d in node.decorator_list):
                    continue  # used by its name on the command line
                used = len(re.findall(rf"\b{node.name}\b", text))
                assert used > 1, f"{node.name} is defined and never used"
                assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", LIBRARY, **ids)
def test_imports_only_lower_numbers(path):
    own = int(path.name.split("_")[0])
    for source in exported(path):
        source = re.sub(
            r"import \(([^)]*)\)", lambda m: "import " + ", ".join(re.findall(r"\w+", m[1])), source
        )
        for line in source.splitlines():
            assert not re.search(r"import \*|^from \.|@patch", line), line
            if found := re.match(r"\s*(?:from|import) prodml\.([\w.]+)(?: import (.+))?", line):
                inside = [f"{found[1]}.{name}" for name in (found[2] or "").split(", ")]
                for name in [found[1]] if found[1] in NUMBER else inside:
                    assert NUMBER[name] < own, f"{path.name} imports {name}"


def test_numbers_and_modules_are_unique():
    numbers = [path.name.split("_")[0] for path in LIBRARY]
    assert len(set(numbers)) == len(numbers) and len(NUMBER) == len(LIBRARY)


@pytest.mark.parametrize("path", REPORTS, **ids)
def test_report_templates_decide_and_do_not_teach(path):
    code = cells(path, "code")
    tags = [tag for _, c in code for tag in c["metadata"].get("tags", [])]
    assert tags.count("parameters") == 1 and tags[-1] == "verdict" and len(code) <= 15
    assert "verdict" in code[-1][1]["metadata"]["tags"]
    assert not any(re.search(r"^(def|class) ", source, re.M) for source, _ in code)
    assert not any(c["outputs"] or c["execution_count"] for _, c in code)


def copied(folder):
    """A copy of what nbdev reads and writes."""
    for name in ("nbs", "prodml", "templates"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def differences(left, right):
    found = filecmp.dircmp(left, right, ignore=["__pycache__", ".ipynb_checkpoints"])
    yield from (str(Path(left) / n) for n in found.left_only + found.right_only)
    _, changed, odd = filecmp.cmpfiles(left, right, found.common_files, shallow=False)
    yield from (str(Path(left) / n) for n in changed + odd)
    for name in found.common_dirs:
        yield from differences(Path(left) / name, Path(right) / name)


def test_a_fresh_export_equals_the_package_and_notebooks_are_clean(tmp_path):
    copy = copied(tmp_path)
    for path in (copy / "prodml").rglob("*.py"):
        if "AUTOGENERATED! DO NOT EDIT!" in path.read_text():
            path.unlink()
    bin = Path(sys.executable).parent
    for command in (["nbdev-export"], ["nbdev-clean"], ["nbdev-clean", "--fname", "templates"]):
        subprocess.run([bin / command[0], *command[1:]], cwd=copy, check=True, capture_output=True)
    found = [
        d for name in ("nbs", "prodml", "templates") for d in differences(ROOT / name, copy / name)
    ]
    assert not found, "run `pre-commit run -a`: " + ", ".join(found)


def test_readme_is_the_index_notebook():
    assert (ROOT / "README.md").read_text() == markdown(), "run `python tests/readme.py`"


def test_nothing_of_this_machine_is_written_down():
    """No home folders, temporary folders or addresses of package indexes in what is committed."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    bad = re.compile(r"/(?:root|home/\w+|tmp)/|/work/|pypi\.|files\.pythonhosted|--index-url")
    for name in names.split():
        path = ROOT / name
        if path.suffix in {".ipynb", ".md", ".ini", ".toml"} and path.exists():
            hits = [line for line in path.read_text().splitlines() if bad.search(line)]
            assert not hits, f"{name}: {hits[:2]}"
