"""The package as it is installed: light to import, whole as a wheel, and quiet on the network."""

import subprocess
import sys
import zipfile

from conftest import ROOT

HEAVY = "pandas sklearn xgboost shap whylogs papermill matplotlib scipy pyarrow".split()


def loaded(statement, names=HEAVY):
    """Which libraries of `names` are in memory after `statement` in a fresh interpreter."""
    code = f"import sys; {statement}; print(*(m for m in {names} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_the_top_of_the_package_imports_nothing_heavy():
    assert loaded("import prodml") == []


def test_the_server_imports_nothing_heavy():
    assert loaded("import prodml.serve.app", [*HEAVY, "cryptography", "securesystemslib"]) == []


def test_the_command_line_imports_nothing_heavy():
    assert loaded("import prodml.cli") == []


def test_telemetry_of_the_libraries_is_off():
    code = "import os, prodml; print(*(os.environ[n] for n in names))"
    names = "WHYLOGS_NO_ANALYTICS", "BENTOML_DO_NOT_TRACK", "ORT_DISABLE_TELEMETRY"
    run = subprocess.run(
        [sys.executable, "-c", f"names={names}; {code}"], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["True", "True", "1"]


def test_the_wheel_holds_every_module_and_template(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    copy = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", ROOT, copy], check=True)
    subprocess.run([*command, copy], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=copy, capture_output=True, text=True).stdout
    for name in tracked.split():
        if name.startswith("prodml/"):
            assert name in names
        if name.startswith("templates/"):
            assert name.replace("templates/", "prodml/_templates/", 1) in names
