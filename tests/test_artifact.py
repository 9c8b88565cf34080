"""What is kept is loaded without a stranger's code, answers alike, or says why it cannot."""

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import onnxruntime
import pytest
import skops.io
from conftest import DATA
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from test_model import SETS, own, real, toy  # noqa: F401

import prodml.artifact
from prodml.artifact import load_model, save_model
from prodml.contract import Column, Contract
from prodml.model import Candidate, predict
from prodml.settings import Mistake, Model
from prodml.training import train_candidates
from prodml.translation import LIMIT, convert_onnx, edge_rows, run_onnx


def candidate(estimator, scale=1.0):
    return Candidate("mine", estimator, {}, "log_loss", 0.5, 0.4, 0.6, 0.1, 1, 7, 0.5, scale)


@pytest.fixture
def trained():
    contract, rows = toy()
    best = train_candidates(rows, rows, contract, Model(trials=1, candidates=("xgboost",)), 7).best
    return contract, rows, best


def check_both_files(folder, contract, one, features, scale):
    """skops answers as the notebook's model does; ONNX within the limit, inputs by position."""
    told = predict(one.estimator, features, contract.task)
    assert np.array_equal(load_model(folder).predict(features), told)
    session = onnxruntime.InferenceSession((folder / "model.onnx").read_bytes())
    feed = {
        place.name: features.iloc[:, [i]].to_numpy(np.float32 if column.numeric else object)
        for i, (place, column) in enumerate(
            zip(session.get_inputs(), contract.features, strict=True)
        )
    }
    copied = session.run(None, feed)[-1]
    assert copied.shape == (told.shape if contract.classes else (len(told), 1))
    assert np.abs(copied.reshape(told.shape) - told).max() <= LIMIT * scale


@pytest.mark.skipif(not DATA.is_dir(), reason="no folder of real data sets beside the repository")
@pytest.mark.parametrize("name", SETS)
def test_every_kind_on_real_rows_is_kept_twice_and_agrees(name, tmp_path, capfd, recwarn):
    contract, train, validation, test = real(name)
    for one in train_candidates(train, validation, contract, Model(trials=1), 7).table:
        folder = tmp_path / one.name
        folder.mkdir()
        card = save_model(folder, one, contract, test.features)
        assert card == json.loads((folder / "model.json").read_text())
        assert card["format"] == "onnx" and card["why_not_onnx"] == ""
        assert card["parity"]["rows"] > len(test.target) and card["parity"]["limit"] == LIMIT
        assert card["parity"]["largest_difference"] <= LIMIT
        assert card["task"] == contract.task and card["classes"] == list(contract.classes)
        check_both_files(folder, contract, one, test.features, one.scale)
    assert capfd.readouterr() == ("", "") and not recwarn.list


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_names_with_spaces_quotes_and_tags_and_every_edge(task, tmp_path):
    contract, rows = toy(task)
    edges = edge_rows(contract, rows.features)
    assert list(edges.columns) == ["a b", "<b>'\""] and edges["a b"].dtype == np.float32
    assert edges.iloc[0].to_list()[1] == "" and edges["a b"].isna().sum() >= 2
    assert edges["a b"].min() == -12 and edges["a b"].max() == 12
    for one in train_candidates(rows, rows, contract, Model(trials=1), 7).table:
        card = save_model(tmp_path, one, contract, rows.features)
        assert card["format"] == "onnx", card["why_not_onnx"]
        check_both_files(tmp_path, contract, one, edges, one.scale)


# What ONNX cannot say ships as skops alone, with the reason.


def encoded(contract, last):
    """A user's pipeline: the level as a number in the first place, then `last`."""
    levels = OrdinalEncoder(
        categories=[list(contract.features[1].levels)],
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,
    )
    columns = make_column_transformer((levels, ["<b>'\""]), remainder="passthrough")
    return make_pipeline(columns, last)


def test_a_silently_wrong_translation_is_caught(tmp_path):
    """categorical_features of histogram trees converts without a word to another model."""
    contract, rows = toy()
    draw = np.random.default_rng(1)
    levels = tuple(f"v{i}" for i in range(12))
    column = Column("<b>'\"", "category", "feature", levels=levels)
    contract = Contract("toy", "binary", "t", contract.classes, (contract.columns[0], column))
    features = rows.features.assign(**{"<b>'\"": draw.choice(levels, 300).astype(object)})
    odd = features["<b>'\""].isin(levels[::2]).to_numpy()
    trees = HistGradientBoostingClassifier(categorical_features=[0], random_state=0)
    fitted = encoded(contract, trees).fit(features, odd.astype(int))
    (tmp_path / "model.onnx").write_bytes(b"an older one")
    trusted = ("functools.partial", "sklearn.utils.validation.check_array")
    card = save_model(tmp_path, candidate(fitted), contract, features, trusted)
    assert card["format"] == "skops" and not (tmp_path / "model.onnx").exists()
    assert "ONNX answers otherwise" in card["why_not_onnx"]
    assert card["parity"]["largest_difference"] > 0.1
    again = load_model(tmp_path, trusted)
    assert np.array_equal(again.predict(features), fitted.predict_proba(features))


def test_an_unknown_estimator_ships_as_skops(own, tmp_path):  # noqa: F811
    contract, rows = toy()
    asked = Model(candidates=(), factory="own_models:odd")
    best = train_candidates(rows, rows, contract, asked, 7, root=own).best
    with pytest.raises(Mistake, match=r"type own_models\.Odd, which is not trusted"):
        save_model(tmp_path, best, contract, rows.features)
    assert not (tmp_path / "model.json").exists()
    trusted = ("own_models.Odd",)
    card = save_model(tmp_path, best, contract, rows.features, trusted)
    assert card["format"] == "skops" and "cannot be converted" in card["why_not_onnx"]
    with pytest.raises(Mistake, match=r"own_models\.Odd"):
        load_model(tmp_path)
    del sys.modules["own_models"]
    sys.path[:] = [place for place in sys.path if place != str(own.resolve())]
    with pytest.raises(Mistake, match="own_models"):
        load_model(tmp_path, trusted)
    again = load_model(tmp_path, trusted, root=own)
    assert np.array_equal(again.predict(rows.features), np.full((300, 2), 0.5))


def test_a_model_that_fails_on_a_gap_is_not_saved(tmp_path):
    contract, rows = toy()
    whole = rows.features[rows.features["a b"].notna() & (rows.features["<b>'\""] != "")]
    fitted = encoded(contract, LogisticRegression()).fit(whole, rows.target[whole.index])
    with pytest.raises(Mistake, match="fails on rows with missing or extreme values"):
        save_model(tmp_path, candidate(fitted), contract, whole)
    assert not list(tmp_path.iterdir())


def test_a_regression_is_compared_by_its_own_scale(tmp_path, trained):
    contract, rows = toy("regression")
    large = rows._replace(target=rows.target * 1e6)
    best = train_candidates(large, large, contract, Model(trials=1), 7).best
    card = save_model(tmp_path, best, contract, rows.features)
    assert card["format"] == "onnx" and card["scale"] > 1e6


# Files that are not what they should be.


def hostile(path):
    return skops.io.dumps(make_pipeline(partial(os.system, f"touch {path}")))


def test_a_forged_file_is_refused_by_type_and_runs_nothing(tmp_path, trained):
    contract, rows, best = trained
    save_model(tmp_path, best, contract, rows.features)
    (tmp_path / "model.skops").write_bytes(hostile(tmp_path / "gotcha"))
    with pytest.raises(Mistake, match=r"system.*not trusted"):
        load_model(tmp_path)
    assert not (tmp_path / "gotcha").exists()


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_file_cut_short(tmp_path, trained, share):
    contract, rows, best = trained
    save_model(tmp_path, best, contract, rows.features)
    whole = (tmp_path / "model.skops").read_bytes()
    (tmp_path / "model.skops").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(Mistake, match="is damaged"):
        load_model(tmp_path)


def test_absent_and_foreign_files(tmp_path, trained):
    contract, rows, best = trained
    with pytest.raises(Mistake, match="holds no whole model"):
        load_model(tmp_path)
    save_model(tmp_path, best, contract, rows.features)
    for text in ("[]", '{"schema": "other/1"}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(Mistake, match="not a prodml"):
            load_model(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(Mistake, match="holds no whole model"):
        load_model(tmp_path)


def test_another_version_is_named_when_loading_fails(tmp_path, trained, monkeypatch):
    contract, rows, best = trained
    save_model(tmp_path, best, contract, rows.features)
    card = json.loads((tmp_path / "model.json").read_text())
    card["versions"]["scikit-learn"] = "1.2.3"
    (tmp_path / "model.json").write_text(json.dumps(card))

    def fails(*args, **options):
        raise ModuleNotFoundError("No module named '_loss'")

    monkeypatch.setattr(skops.io, "loads", fails)
    with pytest.raises(Mistake, match=r"_loss.*written by scikit-learn 1\.2\.3"):
        load_model(tmp_path)


def test_a_full_disk_leaves_no_folder_that_looks_whole(tmp_path, trained, monkeypatch):
    contract, rows, best = trained
    write = prodml.artifact.write_atomic

    def full(path, content):
        if path.name == "model.json":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(prodml.artifact, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path, best, contract, rows.features)
    with pytest.raises(Mistake, match="holds no whole model"):
        load_model(tmp_path)


def test_an_onnx_file_of_another_model_is_not_compared_by_chance(trained):
    contract, rows, _ = trained
    other, others = toy("regression")
    best = train_candidates(others, others, other, Model(trials=1), 7).best
    fewer = Contract("f", "binary", "t", contract.classes, contract.columns[:1])
    with pytest.raises(ValueError, match="2 inputs for 1 features"):
        run_onnx(convert_onnx(best.estimator, other), fewer, rows.features)


# The same model is the same bytes, whatever the process.

SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from test_model import toy
from prodml.translation import convert_onnx
from prodml.files import digest_bytes
from prodml.model import dump_estimator, load_estimator
from prodml.settings import Model
from prodml.training import train_candidates
for task in ("binary", "multiclass", "regression"):
    contract, rows = toy(task)
    table = train_candidates(rows, rows, contract, Model(trials=1), 7).table
    for one in sorted(table, key=lambda one: one.name):
        graph = convert_onnx(one.estimator, contract)
        assert graph == convert_onnx(load_estimator(dump_estimator(one.estimator)), contract)
        print(one.name, task, digest_bytes(graph))
"""


def test_onnx_bytes_are_the_same_in_every_process():
    script = SCRIPT.format(tests=os.path.dirname(__file__))
    said = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2)
    ]
    assert said[0] == said[1] and len(said[0].splitlines()) == 9


def test_forests_of_scikit_learn_are_checked_too(tmp_path):
    """Whatever comes of it, the card tells the truth: agreed, or not kept and why."""
    contract, rows = toy()
    fitted = encoded(contract, RandomForestClassifier(20, random_state=0))
    fitted.fit(rows.features, rows.target)
    card = save_model(tmp_path, candidate(fitted), contract, rows.features)
    assert (tmp_path / "model.onnx").exists() == (card["why_not_onnx"] == "")
