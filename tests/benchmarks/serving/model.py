"""The model that every server serves: 200 trees of xgboost behind an ordinal encoder.

    python tests/benchmarks/serving/model.py FOLDER

It is trained once, by prodml, as a user's own pipeline, and its release is sealed on the say-so of
this script (the gates are not what is measured here). The peers get the same fitted pipeline as
`pipeline.joblib`, and the same rows.
"""

import json
import sys
from pathlib import Path

import joblib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from released import PASSED, plain

from prodml.artifact import load_model
from prodml.explain.making import save_explanation
from prodml.frame import make_table
from prodml.gates.candidate import make_candidate
from prodml.gates.evidence import load_evidence
from prodml.ini import parse_settings
from prodml.release.store import seal
from prodml.serve.build import build

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "adult_census.csv.gz"
ROWS = 2000
SETTINGS = """
[project]
name = bench
[data]
source = {source}
target = {target}
{more}
[model]
candidates =
factory = trees:pipeline
trusted = numpy.number, sklearn.compose._column_transformer.make_column_selector
[limits]
required = correctness
[serve]
max_rows = 2000
"""
FACTORY = '''
"""The pipeline of the benchmark."""

import numpy as np
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder
from xgboost import XGBClassifier


def pipeline():
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
    parts = [
        ("numbers", "passthrough", make_column_selector(dtype_include=np.number)),
        ("levels", encoder, make_column_selector(dtype_exclude=np.number)),
    ]
    model = XGBClassifier(n_estimators=200, max_depth=6, learning_rate=0.1, n_jobs=1)
    return Pipeline([("prepare", ColumnTransformer(parts)), ("model", model)])
'''


def make(folder: Path) -> None:
    """Nothing; fills `folder` with a project, its service, the pipeline and the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trees.py").write_text(FACTORY.lstrip())
    source, target, more = str(DATA), "class", ""
    if not DATA.exists():
        source, target = "demo", "default"
        more = "time = applied_on\nid = application_id\ndrop = true_probability"
    ini = folder / "settings.ini"
    ini.write_text(SETTINGS.format(source=source, target=target, more=more))
    settings = parse_settings(ini.read_text(), ini)
    place = settings.folder / "candidates" / "one"
    candidate = make_candidate(place, settings, explain=save_explanation)
    evidence = load_evidence(candidate)
    assert evidence.model.info["format"] == "onnx", evidence.model.info["why_not_onnx"]
    release = seal(candidate, [], [PASSED], settings, "run-1")
    service, tag = build(settings, release)
    model = load_model(candidate, settings.model.trusted)
    joblib.dump(model.estimator, folder / "pipeline.joblib")
    table = make_table(evidence.contract, evidence.parts.test)
    names = [column.name for column in evidence.contract.features]
    frame = evidence.parts.test[table.kept][names].reset_index(drop=True)
    frame = frame[frame.notna().all(axis=1)].head(ROWS)  # vetiver takes no missing value
    rows = [{n: plain(v) for n, v in zip(names, row, strict=True)}
            for row in frame.itertuples(index=False)]  # fmt: skip
    (folder / "rows.json").write_text(json.dumps(rows))
    np.save(folder / "answers.npy", evidence.prediction[frame.index])
    told = {"service": str(service), "tag": tag, "features": names, "trees": 200}
    told["numeric"] = [column.numeric for column in evidence.contract.features]
    (folder / "made.json").write_text(json.dumps(told))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
