"""The mirror in a real MLflow, which lives in an environment of its own."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from processes import beside
from test_registry import registered

from prodml.release.mirror import mirror
from prodml.settings import Mistake

SCRIPT = """
import socket, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
calls = []
def quiet(self, address):
    calls.append(address)
    raise OSError("no network in this test")
socket.socket.connect = quiet
from mlflow import MlflowClient
from test_registry import ME, registered
from test_release import GOOD, POOR, candidate
from prodml.release.mirror import mirror
from prodml.release.registry import open_registry
from prodml.release.store import find_release, seal
place = Path(sys.argv[1])
address = f"sqlite:///{{place}}/mlflow.db"
asked, _ = registered(place / "here", count=0)
asked = replace(asked, registry=replace(asked.registry, mlflow=address))
page = place / "correctness.html"
page.write_text("<p>a report")
made = []
for n in range(2):
    made.append(seal(candidate(place, "m" * (n + 1)), [page], [GOOD], asked, f"run-{{n}}").name)
made.append(seal(candidate(place, "poor"), [page], [GOOD, POOR], asked).name)
registry = open_registry(asked)
for name in made:
    registry.add(find_release(asked, name))
registry.promote(made[0], **ME)
assert len(mirror(asked)) == 4 and mirror(asked) == []
client = MlflowClient(address, address)
found = client.get_model_version_by_alias("model", "champion")
assert found.tags["prodml.release"] == made[0] and found.tags["prodml.champion.reason"] == "a test"
run = client.get_run(found.run_id)
assert run.data.metrics["correctness/roc_auc"] == 0.8, run.data.metrics
assert run.data.metrics["correctness/roc_auc.low"] == 0.78
pages = [f.path for f in client.list_artifacts(found.run_id, "reports")]
assert pages == ["reports/correctness.html"], pages
shown = client.download_artifacts(found.run_id, "reports/correctness.html", str(place))
assert Path(shown).read_text() == page.read_text()
tags = [one.tags for one in client.search_model_versions("name='model'")]
tags = {{one["prodml.release"]: one["prodml.verdict"] for one in tags}}
assert tags == {{made[0]: "pass", made[1]: "pass", made[2]: "refused"}}
registry.promote(made[1], **ME)
assert len(mirror(asked)) == 1
registry.rollback(**ME)
mirror(asked)
assert client.get_model_version_by_alias("model", "champion").tags["prodml.release"] == made[0]
broken = type(client).create_model_version
def dies(*a, **k):
    raise ConnectionError("gone")
type(client).create_model_version = dies
extra = seal(candidate(place, "a fourth"), [], [GOOD], asked).name
registry.promote(extra, **ME)
try:
    mirror(asked)
    raise SystemExit("not told")
except Exception as error:
    assert "is behind. ConnectionError: gone" in str(error), error
type(client).create_model_version = broken
assert len(mirror(asked)) == 2 and registry.current() == extra
assert client.get_model_version_by_alias("model", "champion").tags["prodml.release"] == extra
assert not calls, calls
print("done")
"""


@pytest.mark.slow
def test_versions_aliases_metrics_and_reports_are_in_mlflow(tmp_path):
    packages = ["mlflow-skinny>=3.17,!=3.18.0", "sqlalchemy~=2.0", "alembic"]
    python = beside(tmp_path / "mlflow", packages)
    code = SCRIPT.format(tests=os.path.dirname(__file__))
    done = subprocess.run([python, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout.strip().endswith("done"), done.stdout[-1500:] + done.stderr[-3000:]
    assert not (tmp_path / "mlruns").exists()


def test_without_mlflow_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    asked, _ = registered(tmp_path / "here", count=1)
    assert mirror(asked) == []
    named = replace(asked, registry=replace(asked.registry, mlflow="http://me:secret@127.0.0.1:1"))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(Mistake, match=r"pip install 'prodml\[mlflow\]'"):
        mirror(named)
