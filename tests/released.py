"""Small signed releases of the synthetic demo, for the tests of the server."""

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prodml.artifact import save_model
from prodml.contract import Contract
from prodml.data import read
from prodml.explain.making import save_explanation
from prodml.frame import check_frame, learn_contract, make_table
from prodml.gates.reference import reference_profile
from prodml.model import predict
from prodml.release.store import seal
from prodml.settings import Data, Limits, Model, Project, Settings
from prodml.snapshot import split
from prodml.training import train_candidates
from prodml.verdict import GateResult, judge

PASSED = GateResult("correctness", (judge("roc_auc", 0.8, 0.78, 0.82, 0.7, "min", 4000),))
FAILED = GateResult("correctness", (judge("roc_auc", 0.6, 0.58, 0.62, 0.7, "min", 4000),))

# The project of a release as the command line reads it.
INI = """[project]
name = credit demo
[data]
source = demo
target = default
[limits]
required = correctness
"""


def demo_lines(until, candidates="linear", **data):
    """Settings of a project of the demo's rows before `until`; `data` changes lines of `[data]`."""
    lines = {"source": "demo", "target": "default", "positive": "yes", "time": "applied_on"}
    lines |= {"id": "application_id", "until": until, "sensitive": "sex"}
    lines |= {"drop": "true_probability"} | data
    text = "\n".join(f"{key} = {value}" for key, value in lines.items())
    head = "[project]\nname = credit demo\njobs = 1\n[data]\n"
    return f"{head}{text}\n[model]\ncandidates = {candidates}\ntrials = 1\n"


@dataclass
class Released:
    """A release, the test part as a client sends it, and the notebook's answers to it."""

    settings: Settings
    folder: Path
    contract: Contract
    rows: list[dict[str, Any]]
    answers: np.ndarray
    threshold: float | None
    ids: list[str]  # of the rows


def project(root, target="default", id="", **more):
    """Settings of a project in `root` that learns from two months of the demo."""
    dropped = {"true_probability", "application_id", "default"} - {target, id}
    return Settings(
        project=Project(name="credit demo"),
        data=Data(
            target=target,
            id=id,
            time="applied_on",
            until="2024-03-01",
            drop=tuple(sorted(dropped)),
        ),
        limits=replace(Limits(), required=("correctness",)),
        root=Path(root),
        **more,
    )


def released(root, target="default", kind="xgboost", profiled=False, **more):
    """A `Released` in `root`, its model made by the candidate `kind`; with a profile if asked."""
    settings = project(root, target, **more)
    parts = split(read(settings.data, settings.root), settings.data, 7)
    contract = learn_contract(parts.train, settings)
    train, validation = make_table(contract, parts.train), make_table(contract, parts.validation)
    asked = Model(candidates=(kind,), trials=1, seconds=20)
    best = train_candidates(train, validation, contract, asked, 7).best
    candidate = settings.folder / "candidates" / "one"
    candidate.mkdir(parents=True)
    card = save_model(candidate, best, contract, make_table(contract, parts.test).features)
    assert card["format"] == "onnx", card["why_not_onnx"]
    features = train.features, validation.features
    save_explanation(candidate, best.estimator, contract, *features)
    (candidate / "contract.json").write_text(contract.to_json())
    (candidate / "data.json").write_text('{"digest": "00"}')
    (candidate / "requirements.lock").write_text("numpy==2.4.0\n")  # as every run leaves one
    if profiled:
        told = predict(best.estimator, validation.features, contract.task)
        known = reference_profile(contract, parts.train, parts.validation, told)
        (candidate / "profile.bin").write_bytes(known.to_bytes())
    folder = seal(candidate, [], [PASSED], settings, "run-1")
    features = check_frame(contract, parts.test).features
    answers = predict(best.estimator, features, contract.task)
    names = [column.name for column in contract.features]
    rows = [dict(zip(names, row, strict=True)) for row in parts.test[names].itertuples(index=False)]
    rows = [{name: plain(value) for name, value in row.items()} for row in rows]
    names = parts.test[settings.data.id] if settings.data.id else range(len(rows))
    ids = [str(name) for name in names]
    return Released(settings, folder, contract, rows, answers, best.threshold, ids)


def sealed(one, root, gate, native=False):
    """The model of `one` released again in `root`, by another key, with the result of `gate`.

    `native` leaves the ONNX form out, as if there were none.
    """
    settings = replace(one.settings, root=Path(root))
    candidate = Path(root) / "candidate"
    shutil.copytree(one.settings.folder / "candidates" / "one", candidate)
    if native:
        (candidate / "model.onnx").unlink()
        card = json.loads((candidate / "model.json").read_text())
        (candidate / "model.json").write_text(json.dumps(card | {"format": "skops"}))
    folder = seal(candidate, [], [gate], settings, "run-2")
    return replace(one, settings=settings, folder=folder)


def plain(value):
    """A value as JSON has it."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def told(released, predictions):
    """The predictions of the service as the array that the notebook gives."""
    if not released.contract.classes:
        return np.array([one["value"] for one in predictions])
    classes = released.contract.classes
    return np.array([[one["probabilities"][name] for name in classes] for one in predictions])
