"""Models are chosen repeatably and in silence, and every slip of a user's own model is told."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from prodml.candidates import load_factory, preparation, recipes_for, tail_rows
from prodml.contract import Column, Contract
from prodml.data import read
from prodml.frame import Table, learn_contract, make_table
from prodml.model import predict, refit, threshold_for
from prodml.settings import Data, Mistake, Model, Settings
from prodml.snapshot import split
from prodml.training import train_candidates

SETS = {
    "adult_census": {"target": "class", "positive": ">50K", "missing": ("?",)},
    "bike_sharing_hourly": {
        "target": "cnt",
        "time": "dteday",
        "drop": ("casual", "registered", "instant"),
    },
    "bank_marketing": {"target": "education", "time": "contact_date", "drop": ("duration", "y")},
}
TASKS = dict(zip(SETS, ("binary", "regression", "multiclass"), strict=True))
QUICK = Model(trials=1, candidates=("linear",))


@cache
def real(name, rows=6000):
    """Contract, training, validation and test tables of a real data set, evenly thinned."""
    data = Data(source=str(DATA / f"{name}.csv.gz"), **SETS[name])
    frame = read(data, Path("."))
    parts = split(frame[:: max(1, len(frame) // rows)].reset_index(drop=True), data, 7)
    contract = learn_contract(parts.train, Settings(data=data))
    return contract, *(make_table(contract, part) for part in parts[:3])


def table(features, target):
    return Table(features, np.asarray(target), np.ones(len(target), bool), {})


def toy(task="binary", rows=300, seed=0):
    """A contract and a table with odd names, gaps and unseen levels."""
    draw = np.random.default_rng(seed)
    number = draw.normal(size=rows).astype(np.float32)
    level = draw.choice(["x", "y", ""], rows).astype(object)
    columns = (
        Column("a b", "number", "feature", minimum=-4, maximum=4),
        Column("<b>'\"", "category", "feature", levels=("x", "y")),
    )
    classes = {"binary": ("no", "yes"), "multiclass": ("p", "q", "r"), "regression": ()}[task]
    signal = 2 * number + (level == "x") + draw.normal(size=rows)
    target = signal if not classes else np.digitize(signal, [0.5, 2.5][: len(classes) - 1])
    features = pd.DataFrame({"a b": np.where(draw.random(rows) < 0.1, np.nan, number)})
    features = features.astype(np.float32).assign(**{"<b>'\"": level})
    return Contract("toy", task, "t", classes, columns), table(features, target)


@pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real data sets beside the repository")
@pytest.mark.parametrize("name", SETS)
def test_real_sets_are_learned_in_silence(name, capfd, recwarn):
    contract, train, validation, test = real(name)
    assert contract.task == TASKS[name]
    training = train_candidates(train, validation, contract, Model(trials=2), 7)
    assert {one.name for one in training.table} == {"linear", "forest", "xgboost"}
    assert not training.cut and training.best is training.table[0]
    for one in training.table:
        assert one.low < one.score < one.high and one.trials == 2
        assert training.best.score <= one.score  # log loss or rmse
    said = predict(training.best.estimator, test.features, contract.task)
    if contract.task == "regression":
        assert np.mean((said - test.target) ** 2) < 0.8 * np.var(test.target)
    else:
        chosen = said[np.arange(len(said)), test.target]
        share = np.bincount(test.target) / len(test.target)
        assert -np.log(chosen).mean() < -np.sum(share * np.log(share))
    assert capfd.readouterr() == ("", "") and not recwarn.list


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_same_seed_gives_the_same_models(task):
    contract, rows = toy(task)
    first, second = (
        train_candidates(rows, rows, contract, Model(trials=3), 7).table for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert (one.name, one.params, one.score) == (other.name, other.params, other.score)
        answers = [predict(x.estimator, rows.features, task) for x in (one, other)]
        np.testing.assert_array_equal(*answers)


def test_the_chosen_model_can_be_fitted_again_without_a_stopping_rule():
    contract, rows = toy()
    for one in train_candidates(rows, rows, contract, Model(trials=1), 7).table:
        again = refit(one.estimator, rows.features, rows.target, 7)
        answers = [predict(x, rows.features, "binary") for x in (one.estimator, again)]
        np.testing.assert_array_equal(*answers)
        clone(one.estimator).fit(rows.features, rows.target)


def test_progress_is_told_and_never_goes_back():
    contract, rows = toy()
    told = []
    train_candidates(rows, rows, contract, Model(trials=2), 7, lambda *said: told.append(said))
    shares = [share for _, share in told]
    assert len(told) == 6 and shares == sorted(shares) and shares[0] >= 0 and shares[-1] < 1


def test_a_ceiling_of_no_time_still_gives_a_model_and_says_so():
    contract, rows = toy()
    hasty = train_candidates(rows, rows, contract, Model(seconds=1e-9), 7)
    assert hasty.cut and hasty.best.trials == 1 and hasty.untried == ("forest", "xgboost")
    assert "cut short" in repr(hasty) and hasty.to_dict()["cut"] is True
    assert not train_candidates(rows, rows, contract, QUICK, 7).cut


def test_columns_of_one_kind_only():
    contract, rows = toy()
    for column in contract.features:
        part = Contract("toy", "binary", "t", contract.classes, (column,))
        some = rows._replace(features=rows.features[[column.name]])
        assert len(train_candidates(some, some, part, Model(trials=1), 7).table) == 3


def test_rows_sorted_by_class_are_learned():
    contract, rows = toy("multiclass")
    order = np.argsort(rows.target, kind="stable")
    by_class = table(rows.features.iloc[order].reset_index(drop=True), rows.target[order])
    assert len(train_candidates(by_class, rows, contract, Model(trials=1), 7).table) == 3


def test_trees_are_never_scaled():
    contract, rows = toy()
    for recipe in recipes_for(contract, Model(), 7):
        given = recipe.prepare.fit_transform(rows.features)[:, 0]
        same = np.array_equal(given, rows.features["a b"], equal_nan=True)
        assert same == (recipe.name != "linear")
    assert "StandardScaler" not in repr(preparation(contract, linear=False))


def test_classes_of_nine_rows_each_are_learned():
    contract, rows = toy("multiclass")
    few = np.sort(np.concatenate([np.flatnonzero(rows.target == c)[:9] for c in range(3)]))
    small = table(rows.features.iloc[few].reset_index(drop=True), rows.target[few])
    assert len(train_candidates(small, rows, contract, Model(trials=1), 7).table) == 3


# What cannot be learned or asked.


def test_a_class_without_rows_is_named():
    contract, rows = toy("multiclass")
    few = table(rows.features, np.minimum(rows.target, 1))
    with pytest.raises(Mistake, match="training part has no row whose 't' is 'r'"):
        train_candidates(few, rows, contract, QUICK, 7)
    assert train_candidates(rows, few, contract, QUICK, 7).best.score > 0


def test_a_validation_part_of_one_class_cannot_tell():
    contract, rows = toy()
    with pytest.raises(Mistake, match="validation part has no row whose 't' is 'yes'"):
        train_candidates(rows, table(rows.features, rows.target * 0), contract, QUICK, 7)


def test_no_rows():
    contract, rows = toy()
    with pytest.raises(Mistake, match="validation part has 0 rows"):
        train_candidates(rows, table(rows.features[:0], rows.target[:0]), contract, QUICK, 7)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Model(metric="rmse"), ["metric = rmse", "log_loss"]),
        (Model(candidates=("linear", "svm")), ["'svm'", "xgboost"]),
        (Model(candidates=()), ["nothing to try"]),
    ],
)
def test_what_is_not_known_is_told(asked, words):
    contract, rows = toy()
    with pytest.raises(Mistake) as told:
        train_candidates(rows, rows, contract, asked, 7)
    assert all(word in str(told.value) for word in words), told.value


def test_any_measure_of_the_task_can_choose():
    contract, rows = toy()
    for metric, better in {"roc_auc": max, "brier_score": min}.items():
        asked = Model(trials=1, metric=metric, candidates=("linear", "xgboost"))
        table = train_candidates(rows, rows, contract, asked, 7).table
        assert table[0].score == better(one.score for one in table)


def test_too_few_rows():
    contract, rows = toy()
    with pytest.raises(Mistake, match="training part has 19 rows"):
        train_candidates(table(rows.features[:19], rows.target[:19]), rows, contract, QUICK, 7)


# A user's own model.

MODULE = """
import warnings
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from sklearn.svm import SVC

number = 3
def forest(): return RandomForestClassifier(n_estimators=10)
def values(): return RandomForestRegressor(n_estimators=10)
def plain(): return LogisticRegression()
def no_probabilities(): return SVC()
def a_class(): return RandomForestClassifier
def a_dict(): return {}
def needs(depth): return RandomForestClassifier(max_depth=depth)
def broken(): raise RuntimeError("no licence")
def piped():
    return make_pipeline(
        make_column_transformer((OneHotEncoder(handle_unknown="ignore"), [1])), LogisticRegression()
    )

class Odd(ClassifierMixin, BaseEstimator):
    def __init__(self, how=""): self.how = how
    def fit(self, X, y):
        if self.how == "fit": raise ValueError("cannot do it")
        warnings.warn("it was hard")
        self.classes_ = np.unique(y)
        return self
    def predict(self, X): return np.zeros(len(X))
    def predict_proba(self, X):
        p = np.full((len(X), 2), 0.5)
        return {"shape": p[:, 1], "nan": p * np.nan, "sum": p * 3}.get(self.how, p)
def odd_fit(): return Odd("fit")
def odd_shape(): return Odd("shape")
def odd_nan(): return Odd("nan")
def odd_sum(): return Odd("sum")
def odd(): return Odd()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the module `own_models`; a module that fails; the import path restored."""
    (tmp_path / "own_models.py").write_text(MODULE)
    (tmp_path / "bad_models.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "worse_models.py").write_text("def (:\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("own_models", "bad_models", "worse_models"):
        sys.modules.pop(name, None)


SLIPS = {
    "own_models": "package.module:factory",
    "own_models:": "package.module:factory",
    ":forest": "package.module:factory",
    "../own_models:forest": "package.module:factory",
    "my_models:forest": "there is no module 'my_models'",
    "own_models.deep:forest": "there is no module 'own_models.deep'",
    "bad_models:forest": "there is no module 'nowhere_to_be_found'",
    "worse_models:forest": "importing it raised SyntaxError",
    "own_models:florest": "Did you mean 'forest'",
    "own_models:number": "no function but of type int",
    "own_models:a_class": "returned RandomForestClassifier, not a scikit-learn estimator",
    "own_models:a_dict": "returned dict, not a scikit-learn estimator",
    "own_models:needs": "calling it raised TypeError",
    "own_models:broken": "calling it raised RuntimeError: no licence",
    "own_models:no_probabilities": "gives no probabilities",
    "own_models:odd_fit": "fitting your model raised ValueError: cannot do it",
    "own_models:odd_shape": "predicts the shape",
    "own_models:odd_nan": "not finite",
    "own_models:odd_sum": "must sum to 1",
}


@pytest.mark.parametrize("name", SLIPS)
def test_every_slip_of_a_factory_is_told(own, name):
    contract, rows = toy()
    with pytest.raises(Mistake) as told:
        train_candidates(rows, rows, contract, Model(candidates=(), factory=name), 7, root=own)
    assert SLIPS[name] in str(told.value), told.value


def test_a_classifier_cannot_do_a_regression_and_the_reverse(own):
    contract, rows = toy("regression")
    asked = Model(candidates=(), factory="own_models:forest")
    with pytest.raises(Mistake, match="is a classifier"):
        train_candidates(rows, rows, contract, asked, 7, root=own)
    contract, rows = toy("binary")
    asked = Model(candidates=(), factory="own_models:values")
    with pytest.raises(Mistake, match="gives no probabilities"):
        train_candidates(rows, rows, contract, asked, 7, root=own)


def test_own_models_are_seeded_prepared_and_judged_with_the_rest(own):
    contract, rows = toy()
    for name in ("forest", "plain", "piped", "odd"):
        asked = Model(candidates=("linear",), trials=3, factory=f"own_models:{name}")
        training = train_candidates(rows, rows, contract, asked, 7, root=own)
        mine = next(one for one in training.table if one.name == "factory")
        assert mine.trials == 1 and len(training.table) == 2
        assert ("it was hard" in mine.notes) == (name == "odd")
        last = mine.estimator[-1]
        assert getattr(last, "random_state", 7) == 7 and getattr(last, "n_jobs", None) in (1, None)
        assert (mine.estimator.steps[0][0] == "prepare") == (name != "piped")


def test_a_class_itself_is_a_factory():
    assert load_factory("sklearn.ensemble:RandomForestClassifier").n_estimators == 100


# Properties.


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=30),
)
def test_auto_threshold_selects_as_nearly_as_can_be_as_many_as_there_are(rows):
    score = np.array([row[0] for row in rows], dtype=float)
    target = np.array([row[1] for row in rows], dtype=int)
    threshold = threshold_for("auto", target, score)
    reachable = {int((score >= cut).sum()) for cut in score} | {0}
    missed = abs(int((score >= threshold).sum()) - target.sum())
    allowed = min(abs(count - target.sum()) for count in reachable)
    at_one = int((score == 1).sum()) and not target.any()
    assert 0 <= threshold <= 1 and (missed == allowed or at_one)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=20, max_size=200), st.booleans())
def test_the_tail_leaves_every_class_to_be_learned(target, ordered):
    target = np.array(sorted(target) if ordered else target)
    tail = tail_rows(target, "multiclass")
    assert set(target[~tail]) == set(target)
    counts = np.bincount(target)
    assert {c for c in set(target) if counts[c] >= 10} <= set(target[tail])
