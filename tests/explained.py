"""Fitted models of real rows, and what explains them, for the tests of the explanations."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from xgboost import XGBClassifier, XGBRegressor

from prodml.artifact import save_model
from prodml.candidates import preparation
from prodml.contract import Contract
from prodml.data import read
from prodml.explain.making import save_explanation
from prodml.explain.shap import Explanation
from prodml.frame import Table, learn_contract, make_table
from prodml.ini import parse_settings
from prodml.model import Candidate
from prodml.serve.scorer import Scorer, load_scorer

ADULT = "[data]\nsource = {}/adult_census.csv.gz\ntarget = class\nmissing = ?\n"
BIKES = (
    "[data]\nsource = {}/bike_sharing_hourly.csv.gz\ntarget = cnt\n"
    "drop = instant, dteday, casual, registered\n"
)


def table_of(text, rows):
    """The contract and the table of the first rows that the settings name, a tenth with gaps."""
    settings = parse_settings(text)
    frame = read(settings.data, settings.root).sample(rows, random_state=0).reset_index(drop=True)
    generator = np.random.default_rng(0)
    for name in frame.columns.drop(settings.data.target)[:6]:
        frame[name] = frame[name].mask(generator.random(rows) < 0.05)
    contract = learn_contract(frame, settings)
    return contract, make_table(contract, frame)


def boosted(kind, **more):
    """A small boosted model of `kind`, always the same."""
    return kind(n_estimators=60, max_depth=6, learning_rate=0.2, n_jobs=1, random_state=0, **more)


def fitted(contract, table, model, prepare=None):
    """A pipeline of `model`, fitted; the preparation for trees unless another is given."""
    prepare = prepare or preparation(contract, linear=False)
    pipeline = Pipeline([("prepare", prepare), ("model", clone(model))])
    return pipeline.fit(table.features, table.target)


@dataclass
class Explained:
    """A model in a folder, its scorer, its explanation, and the rows it was fitted on."""

    folder: Any
    contract: Contract
    table: Table
    scorer: Scorer = field(repr=False)
    explanation: Explanation = field(repr=False)
    threshold: float | None = None

    def columns(self, rows):
        """Rows, by number, as columns."""
        from prodml.explain.making import columns_of

        return columns_of(self.table.features.iloc[rows], self.contract)

    def predict_frame(self, features: pd.DataFrame):
        """The answers of the scorer to a frame."""
        from prodml.explain.making import columns_of

        return self.scorer.predict(columns_of(features, self.contract))


def explained(folder, text, rows=3000):
    """A boosted model of the table that the settings name, kept in `folder` as a candidate is."""
    contract, table = table_of(text, rows)
    kind = XGBRegressor if contract.task == "regression" else XGBClassifier
    pipeline = fitted(contract, table, boosted(kind))
    cut = 0.5 if contract.task == "binary" else None
    best = Candidate("xgboost", pipeline, {}, "m", 0, 0, 0, 0, 1, 7, cut, float(table.target.std()))
    save_model(folder, best, contract, table.features.iloc[:500])
    (folder / "contract.json").write_text(contract.to_json())
    made = save_explanation(folder, pipeline, contract, table.features, table.features)
    return Explained(folder, contract, table, load_scorer(folder), made, cut)
