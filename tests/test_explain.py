"""Explanations computed by numpy alone equal those of shap and xgboost, on real rows and others."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd
import pytest
from explained import ADULT, BIKES, boosted, fitted, table_of
from released import PASSED
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder
from xgboost import DMatrix, XGBClassifier, XGBRegressor

from prodml.candidates import preparation
from prodml.contract import Column, Contract, check_rows
from prodml.explain import making
from prodml.explain.encoding import NotExplicit, encoding_of
from prodml.explain.making import by_asking, columns_of, make_explanation, save_explanation
from prodml.explain.paths import Paths
from prodml.explain.sampled import Walks, sample_effects
from prodml.explain.shap import FILE, answer_of, explanation_of, pack, unpack
from prodml.explain.trees import trees_of
from prodml.ini import parse_settings
from prodml.model import predict
from prodml.pipeline import train
from prodml.release.attestation import Refused, trusted_keys, verify
from prodml.release.store import seal
from prodml.serve.scorer import load_scorer
from prodml.settings import Mistake
from prodml.translation import edge_rows


@pytest.fixture(scope="module")
def adult(data):
    return table_of(ADULT.format(data), 3000)


@pytest.fixture(scope="module")
def bikes(data):
    return table_of(BIKES.format(data), 3000)


@pytest.fixture(scope="module")
def three(adult):
    """Adults by three kinds of relationship, which is then no feature."""
    contract, table = adult
    known = table.features["relationship"].map({"Husband": 1, "Wife": 1, "Not-in-family": 2})
    columns = [c for c in contract.columns if c.name != "relationship"]
    changed = replace(contract, task="multiclass", classes=("a", "b", "c"), columns=(*columns,))
    return changed, table._replace(target=known.fillna(0).to_numpy(int))


def hot(contract):
    """Levels as indicators and numbers as they are, which trees allow."""
    texts = [c for c in contract.features if not c.numeric]
    levels = [np.array(c.levels, dtype=object) for c in texts]
    encoder = OneHotEncoder(handle_unknown="ignore", categories=levels, sparse_output=False)
    numbers = [c.name for c in contract.features if c.numeric]
    steps = [("n", "passthrough", numbers), ("l", encoder, [c.name for c in texts])]
    return ColumnTransformer(steps)


def explained(pipeline, contract, table, rows=120):
    """The explanation, the rows asked about (the last at the edges), and their contributions."""
    made = make_explanation(pipeline, contract, table.features, table.features)
    edges = edge_rows(contract, table.features).iloc[:40]
    asked = pd.concat([table.features.iloc[:rows], edges], ignore_index=True)
    return made, asked, made.attribute(columns_of(asked, contract))


def native(pipeline, contract, asked, told):
    """Contributions of xgboost itself, summed back, and its base: (rows, columns + 1, outputs)."""
    matrix = pipeline[0].transform(asked)
    found = (
        pipeline[-1].get_booster().predict(DMatrix(matrix), pred_contribs=True, strict_shape=True)
    )
    found = found.transpose(0, 2, 1).astype(float)
    summed = encoding_of(pipeline[0], contract).sum_back(found[:, :-1])
    return np.concatenate([summed, found[:, -1:]], axis=1)


@pytest.mark.parametrize("prepare", [None, hot], ids=["levels", "one-hot"])
@pytest.mark.parametrize("rows", ["adult", "bikes", "three"])
def test_boosted_trees_are_explained_as_xgboost_explains_them(rows, prepare, request):
    contract, table = request.getfixturevalue(rows)
    kind = XGBRegressor if contract.task == "regression" else XGBClassifier
    target = table.target / 100 if contract.task == "regression" else table.target
    table = table._replace(target=target)
    pipeline = fitted(contract, table, boosted(kind), prepare and prepare(contract))
    made, asked, told = explained(pipeline, contract, table)
    assert made.exact, made.why
    theirs = native(pipeline, contract, asked, told)
    assert np.abs(told.values - theirs[:, :-1]).max() < 1e-4
    assert np.abs(told.base - theirs[:, -1]).max() < 1e-4
    assert told.gap < 1e-4
    found = answer_of(told.margin, told.link, len(contract.classes))
    assert np.abs(found - predict(pipeline, asked, contract.task)).max() < 1e-4


def kinds_of(contract):
    """What xgboost is told of the inputs that `preparation` makes: numbers first, then levels."""
    numbers = sum(c.numeric for c in contract.features)
    return ["q"] * numbers + ["c"] * (len(contract.features) - numbers)


@pytest.mark.parametrize("rows", ["adult", "three"])
def test_splits_by_sets_are_explained_as_xgboost_explains_them(rows, request):
    """Levels given to xgboost as levels, with gaps, unseen ones and 41 countries among them."""
    contract, table = request.getfixturevalue(rows)
    kinds = {"feature_types": kinds_of(contract), "enable_categorical": True}
    pipeline = fitted(contract, table, boosted(XGBClassifier, **kinds))
    made, asked, told = explained(pipeline, contract, table)
    assert made.exact and made.kernel.trees.levels.any(), made.why
    matrix = DMatrix(pipeline[0].transform(asked), **kinds)
    theirs = pipeline[-1].get_booster().predict(matrix, pred_contribs=True, strict_shape=True)
    theirs = theirs.transpose(0, 2, 1).astype(float)
    summed = encoding_of(pipeline[0], contract).sum_back(theirs[:, :-1])
    assert np.abs(told.values - summed).max() < 1e-4
    assert np.abs(told.base - theirs[:, -1]).max() < 1e-4 and told.gap < 1e-4
    again = unpack(pack(made), contract).attribute(columns_of(asked, contract))
    assert np.array_equal(again.values, told.values)


def expected(trees, node, row, known):
    """The mean of a tree below `node` where only the inputs in `known` are known, node by node."""
    if trees.feature[node] < 0:
        return trees.value[node]
    sides = trees.left[node], trees.right[node]
    if trees.feature[node] not in known:
        share = [trees.cover[side] / trees.cover[node] for side in sides]
        return sum(
            s * expected(trees, side, row, known) for s, side in zip(share, sides, strict=True)
        )
    seen = row[trees.feature[node]]
    if np.isnan(seen):
        left = trees.missing_left[node]
    elif trees.levels[node]:
        left = int(trees.levels[node]) >> int(seen) & 1
    else:
        left = seen < trees.below[node]
    return expected(trees, sides[0 if left else 1], row, known)


def shapley(trees, row, inputs):
    """Shapley values of the first output by their definition, over all sets of inputs."""
    child = set(trees.left.tolist()) | set(trees.right.tolist())
    roots = [n for n in range(len(trees.feature)) if n not in child]
    worth = {
        known: sum(expected(trees, root, row, known) for root in roots)
        for size in range(inputs + 1)
        for known in combinations(range(inputs), size)
    }
    found = np.zeros(inputs)
    for known, value in worth.items():
        for one in set(range(inputs)) - set(known):
            weight = factorial(len(known)) * factorial(inputs - len(known) - 1) / factorial(inputs)
            found[one] += weight * (worth[tuple(sorted({*known, one}))] - value)
    return found


@pytest.mark.parametrize("kind", ["histogram", "xgboost"])
def test_splits_by_sets_have_the_shapley_values_of_the_definition(kind):
    """Two columns of levels, the second in the middle, a level that was never seen, and gaps."""
    r = np.random.default_rng(0)
    inputs = np.column_stack(
        [
            r.normal(size=1500),
            r.integers(0, 9, 1500) * 2,
            r.normal(size=1500),
            r.integers(0, 5, 1500),
        ]
    ).astype(np.float32)
    inputs[r.random(inputs.shape) < 0.05] = np.nan
    paid = np.isin(inputs[:, 1], [2, 8, 10]) + np.isin(inputs[:, 3], [0, 3]) * (inputs[:, 0] > 0)
    target = (paid + 0.5 * r.normal(size=1500) > 0.6).astype(int)
    if kind == "histogram":
        model = HistGradientBoostingClassifier(
            max_iter=8, max_leaf_nodes=12, categorical_features=[1, 3], random_state=0
        )
    else:
        types = {"feature_types": ["q", "c", "q", "c"], "enable_categorical": True}
        model = XGBClassifier(n_estimators=8, max_depth=4, max_cat_to_onehot=1, n_jobs=1, **types)
    model.fit(inputs, target)
    trees, link = trees_of(model, 2)
    rows = np.concatenate([inputs[:40], np.float32([[0, 4, 0, 1], [0.5, np.nan, -1, np.nan]])])
    if kind == "histogram":
        rows[-2, [1, 3]] = 7, 30  # never seen: it goes where the missing go
        raw = model.decision_function(rows)
    else:
        raw = model.predict(rows, output_margin=True)
    effects, margins = Paths(trees, 4).explain(rows)
    assert trees.levels.any() and link == "logit" and np.abs(margins[:, 0] - raw).max() < 1e-5
    if kind == "histogram":
        rows[-2, [1, 3]] = np.nan
    for row, effect in zip(rows, effects[:, :, 0], strict=True):
        assert np.abs(shapley(trees, row, 4) - effect).max() < 1e-5


def test_a_set_of_too_many_levels_is_asked():
    r = np.random.default_rng(0)
    levels = r.integers(0, 200, 4000).astype(np.float32)[:, None]
    types = {"feature_types": ["c"], "enable_categorical": True}
    model = XGBClassifier(n_estimators=2, n_jobs=1, **types).fit(levels, levels[:, 0] % 7 > 2)
    with pytest.raises(NotExplicit, match="sets with levels from 63 on"):
        trees_of(model, 2)


MODELS = {
    "histogram": HistGradientBoostingClassifier(max_iter=40, random_state=0),
    "forest": RandomForestClassifier(20, max_depth=8, random_state=0),
    "extra": ExtraTreesClassifier(20, max_depth=8, random_state=0),
    "xgboost": boosted(XGBClassifier),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", ["adult", "three"])
def test_classifiers_of_trees_are_explained_as_shap_explains_them(name, rows, request):
    import shap

    contract, table = request.getfixturevalue(rows)
    pipeline = fitted(contract, table, MODELS[name])
    made, asked, told = explained(pipeline, contract, table, 60)
    assert made.exact, made.why
    explainer = shap.TreeExplainer(pipeline[-1], feature_perturbation="tree_path_dependent")
    matrix = pipeline[0].transform(asked)
    found = np.asarray(explainer.shap_values(matrix, check_additivity=False), float)
    base = np.atleast_1d(explainer.expected_value)
    if found.ndim == 3 and len(contract.classes) == 2:
        found, base = found[:, :, 1], base[1:]
    found = found.reshape(*matrix.shape, len(told.outputs))
    summed = encoding_of(pipeline[0], contract).sum_back(found)
    assert np.abs(told.values - summed).max() < 1e-4
    assert np.abs(told.base - base).max() < 1e-4


@pytest.mark.parametrize(
    "model", [HistGradientBoostingRegressor(max_iter=40), RandomForestRegressor(20, max_depth=8)]
)
def test_regressions_of_trees_are_explained_as_shap_explains_them(model, bikes):
    import shap

    contract, table = bikes
    table = table._replace(target=table.target / 100)
    pipeline = fitted(contract, table, model)
    made, asked, told = explained(pipeline, contract, table, 60)
    assert made.exact, made.why
    explainer = shap.TreeExplainer(pipeline[-1], feature_perturbation="tree_path_dependent")
    found = explainer.shap_values(pipeline[0].transform(asked), check_additivity=False)
    summed = encoding_of(pipeline[0], contract).sum_back(found[:, :, None])
    assert np.abs(told.values - summed).max() < 1e-4


@pytest.mark.parametrize("rows", ["adult", "bikes", "three"])
def test_linear_models_are_explained_as_shap_explains_them(rows, request):
    import shap

    contract, table = request.getfixturevalue(rows)
    table = table._replace(target=table.target / (1 if contract.classes else 100))
    model = LogisticRegression(max_iter=300) if contract.classes else Ridge()
    pipeline = fitted(contract, table, model, preparation(contract, linear=True))
    made, asked, told = explained(pipeline, contract, table)
    assert made.exact, made.why
    matrix, train = pipeline[0].transform(asked), pipeline[0].transform(table.features)
    background = shap.maskers.Independent(train.astype(float), max_samples=len(train))
    found = shap.LinearExplainer(pipeline[-1], background).shap_values(matrix.astype(float))
    found = np.asarray(found).reshape(*matrix.shape, len(told.outputs))
    summed = encoding_of(pipeline[0], contract).sum_back(found)
    assert np.abs(told.values - summed).max() < 1e-4 and told.gap < 1e-9


@pytest.mark.parametrize("seed", range(12))
def test_random_forests_of_any_shape_agree_with_xgboost(seed):
    generator = np.random.default_rng(seed)
    many, rows = int(generator.integers(1, 12)), 400
    inputs = generator.choice(
        [generator.normal(size=(rows, many)), np.round(generator.normal(size=(rows, many)))]
    )
    inputs = inputs.astype(np.float32)
    inputs[generator.random(inputs.shape) < generator.choice([0, 0.3])] = np.nan
    classes = int(generator.choice([0, 2, 4]))
    target = generator.normal(size=rows) if not classes else generator.integers(0, classes, rows)
    kind = XGBClassifier if classes else XGBRegressor
    shape = {"max_depth": int(generator.integers(1, 12)), "reg_lambda": 0, "min_child_weight": 0}
    if seed % 3 == 0:
        shape |= {"grow_policy": "lossguide", "max_leaves": 40, "max_depth": 0}
    columns = tuple(Column(f"c{i}", "number", "feature", fill=0.0) for i in range(many))
    names = tuple("abcd"[:classes])
    task = {0: "regression", 2: "binary"}.get(classes, "multiclass")
    contract = Contract("x", task, "t", names, (*columns, Column("t", "number", "target")))
    frame = pd.DataFrame(inputs, columns=[c.name for c in columns])
    prepare = preparation(contract, linear=False)
    model = kind(n_estimators=15, n_jobs=1, random_state=seed, **shape)
    pipeline = Pipeline([("prepare", prepare), ("model", model)]).fit(frame, target)
    made = make_explanation(pipeline, contract, frame, frame)
    told = made.attribute(columns_of(frame, contract))
    theirs = native(pipeline, contract, frame, told)
    assert made.exact, made.why
    assert np.abs(told.values - theirs[:, :-1]).max() < 1e-4 * max(1, np.abs(told.margin).max())


def test_a_model_that_stopped_early_is_explained_with_the_trees_it_uses(adult):
    contract, table = adult
    prepare = preparation(contract, linear=False)
    matrix = prepare.fit_transform(table.features)
    model = boosted(XGBClassifier, early_stopping_rounds=3).set_params(n_estimators=300)
    model.fit(
        matrix[:2000],
        table.target[:2000],
        eval_set=[(matrix[2000:], table.target[2000:])],
        verbose=False,
    )
    pipeline = Pipeline([("prepare", prepare), ("model", model)])
    assert model.best_iteration < model.get_booster().num_boosted_rounds() - 1
    made, asked, told = explained(pipeline, contract, table)
    assert made.exact, made.why
    found = answer_of(told.margin, told.link, 2)
    assert np.abs(found - predict(pipeline, asked, "binary")).max() < 1e-5


def test_a_level_never_seen_counts_as_missing(adult):
    contract, table = adult
    pipeline = fitted(contract, table, boosted(XGBClassifier))
    made = make_explanation(pipeline, contract, table.features, table.features)
    one = table.features.iloc[[0]]
    unseen = made.attribute(columns_of(one.assign(workclass="\N{SNOWMAN}"), contract))
    missing = made.attribute(columns_of(one.assign(workclass=""), contract))
    assert np.array_equal(unseen.values, missing.values)


OTHERS = {
    "calibrated": lambda c: Pipeline(
        [
            ("prepare", preparation(c, linear=True)),
            ("model", CalibratedClassifierCV(LogisticRegression(max_iter=300), cv=2)),
        ]
    ),
    "dart": lambda c: Pipeline(
        [
            ("prepare", preparation(c, False)),
            ("model", XGBClassifier(booster="dart", n_estimators=9)),
        ]
    ),
    "three steps": lambda c: Pipeline(
        [
            ("prepare", preparation(c, linear=True)),
            ("again", "passthrough"),
            ("model", LogisticRegression(max_iter=300)),
        ]
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_model_is_asked_and_still_adds_up(name, adult):
    contract, table = adult
    pipeline = OTHERS[name](contract).fit(table.features, table.target)
    made = make_explanation(pipeline, contract, table.features, table.features)
    assert not made.exact and made.why and made.outputs == contract.classes[1:]
    asked = table.features.iloc[:3]
    told = made.attribute(columns_of(asked, contract), seconds=0.5)
    assert told.gap < 1e-6 and told.unit == "probability"
    assert np.abs(told.margin[:, 0] - predict(pipeline, asked, "binary")[:, 1]).max() < 1e-6
    assert told.error.shape == told.values.shape and (told.error >= 0).all()


def test_the_standard_error_of_sampling_is_honest(adult):
    """The linear model's exact contributions lie within four errors of the estimate, mostly."""
    contract, table = adult
    table = table._replace(target=table.features["age"].fillna(40).to_numpy(float))
    contract = replace(contract, task="regression", classes=(), target="class")
    prepare = preparation(contract, linear=True)
    pipeline = fitted(contract, table, Ridge(), prepare)
    exact = make_explanation(pipeline, contract, table.features, table.features)

    def ask(columns):
        return predict(pipeline, pd.DataFrame(dict(columns)), "regression")

    asked = by_asking(ask, contract, table.features, "a test")
    rows = columns_of(table.features.iloc[:5], contract)
    true, drawn = exact.attribute(rows), asked.attribute(rows, seconds=2)
    away = drawn.values - true.values - (drawn.base - true.base) / len(true.columns)
    assert np.abs(away).max() < 4 * drawn.error.max() + 0.5
    assert np.corrcoef(drawn.values.ravel(), true.values.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("rounds", [1, 2, 6])
def test_the_standard_error_of_sampling_is_what_other_orders_change(rounds):
    """Over many seeds, with one reference: the scatter of the effects is the error that is told."""
    names, generator = "abcde", np.random.default_rng(5)
    reference = {n: generator.normal(size=32).astype(np.float32) for n in names}

    def bent(columns):
        a, b, c, d, e = (columns[n].astype(float) for n in names)
        return np.tanh(a * b * c + d - e * a)[:, None]

    row = {n: np.float32([1 + place]) for place, n in enumerate(names)}
    walks = Walks(bent, reference)
    runs = [sample_effects(walks, row, 99, rounds, seed) for seed in range(150)]
    scatter = np.std([effect for effect, _ in runs], axis=0, ddof=1)
    told = np.sqrt(np.mean([error**2 for _, error in runs], axis=0))
    slack = 0.5 if rounds == 1 else 0.25
    assert (np.abs(told / scatter - 1) < slack).all(), (told, scatter)
    added = Walks(lambda rows: sum(rows[n] for n in names)[:, None].astype(float), reference)
    effect, error = sample_effects(added, row, 99, rounds)
    exact = [row[n][0] - reference[n].mean() for n in names]
    assert error.max() < 1e-6 and effect.ravel() == pytest.approx(exact, abs=1e-5)


def test_the_same_model_makes_the_same_file_and_it_is_read_again(adult, tmp_path):
    contract, table = adult
    pipeline = fitted(contract, table, boosted(XGBClassifier))
    (tmp_path / "contract.json").write_text(contract.to_json())
    made = save_explanation(tmp_path, pipeline, contract, table.features, table.features)
    content = (tmp_path / FILE).read_bytes()
    assert content == pack(make_explanation(pipeline, contract, table.features, table.features))
    rows = columns_of(table.features.iloc[:5], contract)
    opened = explanation_of(tmp_path)
    assert np.array_equal(opened.attribute(rows).values, made.attribute(rows).values)
    empty = opened.attribute({name: values[:0] for name, values in rows.items()})
    assert empty.values.shape == (0, len(contract.features), 1) and empty.gap == 0


@pytest.fixture(scope="module")
def kept(adult, tmp_path_factory):
    contract, table = adult
    folder = tmp_path_factory.mktemp("kept")
    pipeline = fitted(contract, table, boosted(XGBClassifier).set_params(n_estimators=5))
    (folder / "contract.json").write_text(contract.to_json())
    save_explanation(folder, pipeline, contract, table.features, table.features)
    return folder, contract


def test_a_release_without_the_file_says_so(kept, tmp_path):
    (tmp_path / "contract.json").write_text(kept[1].to_json())
    with pytest.raises(Mistake, match=r"holds no explanation\.npz\. It is no release, or older"):
        explanation_of(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 100, 1000, -1, -100])
def test_a_cut_file_is_a_mistake(kept, cut):
    folder, contract = kept
    with pytest.raises(Mistake, match=r"explanation\.npz is damaged") as refused:
        unpack((folder / FILE).read_bytes()[:cut], contract)
    assert "pickle" not in str(refused.value), "nobody is advised to load it unsafely"


def test_a_rare_level_put_with_others_is_not_read_off(adult):
    """The encoder gives rare levels one number, which is not their place: the model is asked."""
    contract, table = adult
    texts = [c.name for c in contract.features if not c.numeric]
    unknown = {"handle_unknown": "use_encoded_value", "unknown_value": np.nan}
    encoder = OrdinalEncoder(min_frequency=200, **unknown)
    prepare = ColumnTransformer([("levels", encoder, texts)])
    pipeline = fitted(contract, table, RandomForestClassifier(3, max_depth=3), prepare)
    made = make_explanation(pipeline, contract, table.features, table.features)
    assert not made.exact and "OrdinalEncoder is used in a way not read here" in made.why


def changed(content, **arrays):
    """The file with other arrays or another header."""
    import io

    file = dict(np.load(io.BytesIO(content)))
    header = json.loads(file.pop("header").tobytes()) | arrays.pop("header", {})
    file |= arrays
    written = io.BytesIO()
    np.savez(written, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **file)
    return written.getvalue()


def test_a_file_from_before_there_were_sets_is_read(kept):
    import io

    folder, contract = kept
    file = dict(np.load(folder / FILE))
    assert not file.pop("levels").any()
    written = io.BytesIO()
    np.savez(written, **file)
    rows = check_rows(contract, [contract.example()]).columns
    told, now = unpack(written.getvalue(), contract), explanation_of(folder)
    assert np.array_equal(told.attribute(rows).values, now.attribute(rows).values)


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"header": {"schema": "other"}}, "not a prodml.explanation/1"),
        ({"header": {"link": "strange"}}, "not a prodml.explanation/1"),
        ({"header": {"encoding": {}}}, "not an encoding"),
        ({"header": {"encoding": {"columns": ["age"], "steps": []}}}, "not an encoding"),
        ({"header": {"kind": "linear"}}, "damaged"),
        ({"feature": np.full(5, 99, np.int32)}, "not trees"),
        ({"value": np.zeros((2, 2))}, "not trees"),
        ({"left": np.zeros(0, np.int32)}, "not trees"),
        ({"levels": np.zeros(3, np.uint64)}, "not trees"),
        ({"base": np.array([{}], dtype=object)}, "damaged"),
    ],
)
def test_a_changed_file_is_a_mistake(kept, arrays, what):
    folder, contract = kept
    with pytest.raises(Mistake, match=what):
        unpack(changed((folder / FILE).read_bytes(), **arrays), contract)


def test_rows_without_a_feature_are_a_mistake(kept):
    made = explanation_of(kept[0])
    with pytest.raises(Mistake, match="no column 'age'"):
        made.attribute({})


def test_explaining_a_release_loads_nothing_heavy(kept):
    """In a fresh interpreter, as a server has it: numpy and the contract."""
    code = (
        "import sys; from prodml.explain.shap import explanation_of; "
        "from prodml.contract import check_rows; "
        f"e = explanation_of({str(kept[0])!r}); "
        "c = check_rows(e.contract, [e.contract.example()]).columns; "
        "assert e.attribute(c).gap < 1e-4; "
        "print([m for m in ('pandas', 'sklearn', 'xgboost', 'shap', 'scipy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_forest_too_large_for_an_exact_answer_is_asked(adult, monkeypatch):
    contract, table = adult
    pipeline = fitted(contract, table, RandomForestClassifier(5, max_depth=6, random_state=0))
    assert make_explanation(pipeline, contract, table.features, table.features).exact
    monkeypatch.setattr(making, "MOST_FACTORS", 1000)
    made = make_explanation(pipeline, contract, table.features, table.features)
    assert not made.exact and "numbers a row" in made.why


def test_what_is_read_off_wrongly_is_not_kept(adult, monkeypatch):
    """Thresholds a little off: the answers differ, so the model is asked instead."""
    contract, table = adult
    pipeline = fitted(contract, table, boosted(XGBClassifier))
    read = making.trees_of

    def shifted(model, classes):
        trees, link = read(model, classes)
        return replace(trees, below=trees.below + np.float32(0.6)), link

    monkeypatch.setattr(making, "trees_of", shifted)
    made = make_explanation(pipeline, contract, table.features, table.features)
    assert not made.exact and made.why.startswith("read off, the model answers otherwise")


def test_training_writes_the_explanation_and_the_signature_covers_it(tmp_path):
    text = (
        "[data]\nsource = demo\ntarget = default\ntime = applied_on\nid = application_id\n"
        "until = 2024-04-01\nsensitive = sex\ndrop = true_probability\n"
        "[model]\ncandidates = xgboost\ntrials = 1\n[limits]\nrequired = correctness\n"
    )
    settings = parse_settings(text, tmp_path / "settings.ini")
    candidate = train(settings, "run-1")
    folder = seal(candidate, [], [PASSED], settings, "run-1")
    keys = trusted_keys(settings)
    assert verify(folder, keys).name == "model"
    scorer = load_scorer(folder)
    rows = check_rows(scorer.contract, [scorer.contract.example()]).columns
    told = explanation_of(folder, scorer.predict).attribute(rows)
    assert told.exact and "sex" not in told.columns
    assert answer_of(told.margin, told.link, 2) == pytest.approx(scorer.predict(rows), abs=1e-5)
    (folder / FILE).chmod(0o644)
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1] + b"x")
    with pytest.raises(Refused, match=r"explanation\.npz was edited"):
        verify(folder, keys)


@pytest.mark.parametrize("error", [KeyError("trees"), AttributeError("nodes"), ValueError("3")])
def test_a_library_that_keeps_its_trees_another_way_stops_no_training(adult, monkeypatch, error):
    contract, table = adult
    pipeline = fitted(contract, table, boosted(XGBClassifier).set_params(n_estimators=5))

    def other(model, classes):
        raise error

    monkeypatch.setattr(making, "trees_of", other)
    made = make_explanation(pipeline, contract, table.features, table.features)
    assert not made.exact and made.why.startswith("it could not be read off")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"age": np.array(["old"] * 2)}, "'age' must be an array of numbers"),
        ({"age": np.zeros((2, 2))}, "'age' must be an array of numbers"),
        ({"age": np.zeros(3, np.float32)}, "for 3 rows|for 2 rows"),
        ({"workclass": np.zeros(2, np.float32)}, "'workclass' must be an array of levels"),
    ],
)
def test_columns_that_were_not_checked_are_a_mistake(kept, adult, change, what):
    rows = columns_of(adult[1].features.iloc[:2], adult[0]) | change
    with pytest.raises(Mistake, match=what):
        explanation_of(kept[0]).attribute(rows)
