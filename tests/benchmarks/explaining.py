"""What an exact explanation costs, beside the answer itself, xgboost's own and the shap package.

    OMP_NUM_THREADS=1 python tests/benchmarks/explaining.py [ROWS]

Milliseconds a row, one thread, all in this process: one row at a time (median, 99th percentile),
and all rows in one call. A model of 20 numbers and 200 trees of depth 6, and others. `answer` is
ONNX, `ours` is numpy. xgboost and shap are given the encoded matrix; ours begins at the columns.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import shap
from explained import fitted
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from xgboost import DMatrix, XGBClassifier

from prodml.contract import Column, Contract
from prodml.explain.making import columns_of, make_explanation
from prodml.explain.shap import pack, unpack
from prodml.frame import Table
from prodml.translation import convert_onnx, open_onnx

SIZES = {
    "xgboost, 200 trees, depth 6": XGBClassifier(n_estimators=200, max_depth=6, n_jobs=1),
    "xgboost, 400 trees, depth 4": XGBClassifier(n_estimators=400, max_depth=4, n_jobs=1),
    "histogram, 400 trees, 31 leaves": HistGradientBoostingClassifier(
        max_iter=400, early_stopping=False
    ),
    "forest, 100 trees, depth 10": RandomForestClassifier(100, max_depth=10, n_jobs=1),
}


def made(rows=20_000, columns=20):
    """A contract of numbers, and rows of them with a target that trees have work with."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, columns)).astype(np.float32)
    score = x[:, 0] * x[:, 1] + x[:, 2] - x[:, 3] ** 2 + np.sin(3 * x[:, 4])
    target = (score + generator.normal(size=rows) * 1.5 > -0.8).astype(int)
    known = [Column(f"c{i}", "number", "feature", fill=0.0) for i in range(columns)]
    known.append(Column("t", "category", "target"))
    frame = pd.DataFrame(x, columns=[column.name for column in known[:-1]])
    return Contract("x", "binary", "t", ("no", "yes"), tuple(known)), frame, target


def timed(one, whole, rows):
    """(median, 99th percentile) of `one(i)` and the mean of `whole()`, in milliseconds a row."""
    for i in range(5):
        one(i)
    taken = []
    for i in range(rows):
        start = time.perf_counter()
        one(i)
        taken.append(1e3 * (time.perf_counter() - start))
    start = time.perf_counter()
    whole()
    every = 1e3 * (time.perf_counter() - start) / rows
    return statistics.median(taken), sorted(taken)[int(0.99 * rows)], every


def main(rows):
    """Nothing; prints a line for each model and way."""
    contract, frame, target = made()
    for name, model in SIZES.items():
        pipeline = fitted(contract, Table(frame, target, np.ones(len(target), bool), {}), model)
        explanation = make_explanation(pipeline, contract, frame, frame)
        assert explanation.exact, explanation.why
        start = time.perf_counter()
        opened = unpack(pack(explanation), contract)
        loading = time.perf_counter() - start
        leaves = sum(len(group.value) for group in opened.kernel.groups)
        print(f"{name}: {leaves} leaves, {len(pack(opened)) // 1000} KB, ready in {loading:.3f} s")
        asked = frame.iloc[:rows]
        single = [columns_of(asked.iloc[[i]], contract) for i in range(rows)]
        ways = {"ours": (opened.attribute, single, columns_of(asked, contract))}
        answer = open_onnx(convert_onnx(pipeline, contract), contract)
        ways = {"answer": (answer, [asked.iloc[[i]] for i in range(rows)], asked), **ways}
        matrix = pipeline[0].transform(asked)
        if isinstance(model, XGBClassifier):
            booster = model.get_booster()
            ways["xgboost"] = (
                lambda x, booster=booster: booster.predict(DMatrix(x), pred_contribs=True),
                *([matrix[i : i + 1] for i in range(rows)], matrix),
            )
        explainer = shap.TreeExplainer(model)
        ways["shap"] = (
            lambda x, by=explainer: by.shap_values(x, check_additivity=False),
            *([matrix[i : i + 1] for i in range(rows)], matrix),
        )
        for way, (call, each, whole) in ways.items():
            times = timed(lambda i, f=call, e=each: f(e[i]), lambda f=call, w=whole: f(w), rows)
            print(f"  {way:8} one {times[0]:.3f} ({times[1]:.3f}), in one call {times[2]:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
