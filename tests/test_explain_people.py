"""Overview, pictures, LIME, surrogate and counterfactuals on real rows, through the scorer."""

import re
import time
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from explained import ADULT, BIKES, explained
from scipy.stats import binomtest

from prodml.contract import Column, Contract, check_rows
from prodml.explain.counterfactual import counterfactuals
from prodml.explain.goal import goal_for
from prodml.explain.lime import cut_pieces, lime, ridge
from prodml.explain.overview import dependence, overview
from prodml.explain.plots import bar, beeswarm, dependence_plot
from prodml.explain.shap import asking
from prodml.explain.surrogate import agreement, draw_surrogate, make_surrogate
from prodml.explain.waterfall import waterfall
from prodml.settings import Mistake

SENSITIVE = "sensitive = sex, race\n"


@pytest.fixture(autouse=True)
def closed():
    """No figure is left open for another test to find."""
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def adult(data, tmp_path_factory):
    return explained(tmp_path_factory.mktemp("adult"), ADULT.format(data) + SENSITIVE)


@pytest.fixture(scope="module")
def bikes(data, tmp_path_factory):
    return explained(tmp_path_factory.mktemp("bikes"), BIKES.format(data))


@pytest.fixture(scope="module")
def told(adult):
    return adult.explanation.attribute(adult.columns(slice(0, 600)))


def test_the_overview_is_the_mean_of_the_absolute_contributions(told):
    table = overview(told).set_index("column")
    by_hand = np.abs(told.values[:, :, 0]).mean(axis=0)
    assert np.allclose(table.loc[list(told.columns), "value"], by_hand)
    assert table["share"].sum() == pytest.approx(1) and (table["noise"] == 0).all()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()


def test_the_interval_of_the_overview_covers_the_mean_of_all_rows(adult):
    """The mean over 3000 rows lies in 95 % intervals of 200 drawn ones, nearly always."""
    whole = adult.explanation.attribute(adult.columns(slice(None)))
    true = np.abs(whole.values[:, :, 0]).mean(axis=0)
    generator, hits = np.random.default_rng(0), []
    for _ in range(60):
        rows = generator.integers(0, len(whole.values), 200)
        table = overview(replace(whole, values=whole.values[rows]), repeats=200)
        table = table.set_index("column").loc[list(whole.columns)]
        hits.append((table["low"].to_numpy() <= true) & (true <= table["high"].to_numpy()))
    assert 0.88 < np.mean(hits) < 0.99


def test_dependence_counts_every_row_once_and_names_what_is_missing(adult, told):
    columns = adult.columns(slice(0, 600))
    for name in told.columns:
        table = dependence(told, columns, adult.contract, name)
        assert table["rows"].sum() == 600
    assert "missing" in dependence(told, columns, adult.contract, "age")["value"].tolist()
    with pytest.raises(Mistake, match="'sex' is no feature"):
        dependence(told, columns, adult.contract, "sex")


def test_a_value_seen_once_has_no_interval_and_two_have_a_wide_one(adult, told):
    """Student's quantile of one degree of freedom is 12.7, six times the normal one."""
    name = "occupation"
    columns = {
        **adult.columns(slice(0, 600)),
        name: np.array(["a"] + ["b"] * 2 + ["c"] * 597, object),
    }
    table = dependence(told, columns, adult.contract, name).set_index("value")
    assert table.loc["a", ["low", "high"]].isna().all() and table.loc["a", "rows"] == 1
    two = told.of(0)[1:3, told.columns.index(name)]
    reach = 12.706 * two.std(ddof=1) / np.sqrt(2)
    assert table.loc["b", "high"] - table.loc["b", "mean"] == pytest.approx(reach, rel=1e-3)
    drawn = dependence_plot(told, columns, adult.contract, name)
    assert "(one row)" in drawn.alt and "nan" not in drawn.alt
    assert ET.fromstring(drawn.svg()).tag.endswith("svg")


def test_of_many_levels_the_commonest_are_drawn_and_it_is_said(adult, told):
    levels = np.array([f"l{i:02d}" for i in range(20)], object)
    columns = adult.columns(slice(0, 600)) | {"occupation": np.repeat(levels, 30)}
    drawn = dependence_plot(told, columns, adult.contract, "occupation")
    assert "the 15 commonest of 20" in drawn.figure.axes[0].get_xlabel()
    assert all(level in drawn.alt for level in levels)


def test_every_picture_of_several_classes_says_which(adult, told):
    columns = adult.columns(slice(0, 600))
    several = replace(
        told,
        outputs=("a", "b", "c"),
        base=np.repeat(told.base, 3),
        values=np.repeat(told.values, 3, axis=2) * [1, 2, -1],
        margin=np.repeat(told.margin, 3, axis=1),
        link="softmax",
    )
    for draw in (
        lambda k: beeswarm(several, columns, adult.contract, k),
        lambda k: dependence_plot(several, columns, adult.contract, "age", k),
        lambda k: waterfall(several, columns, 0, k),
    ):
        for k, name in enumerate(several.outputs):
            drawn = draw(several.place(name))
            assert drawn.figure.axes[0].get_title() == f"for the class {name}"
            assert f" for {name}" in drawn.alt and k == several.place(name)
    assert "over 3 classes" in bar(several).alt and "(a probability of 0.333)" in drawn.alt
    with pytest.raises(Mistake, match=r"no output 'd'\. There are: a, b, c"):
        several.place("d")


def test_an_overview_of_no_rows_is_a_mistake(told):
    with pytest.raises(Mistake, match="there are none"):
        overview(replace(told, values=told.values[:0]))


def test_every_picture_is_svg_and_its_sentence_holds_its_numbers(adult, told):
    columns = adult.columns(slice(0, 600))
    pictures = [
        bar(told),
        beeswarm(told, columns, adult.contract),
        dependence_plot(told, columns, adult.contract, "age"),
        dependence_plot(told, columns, adult.contract, "occupation"),
        waterfall(told, columns, row=3),
    ]
    for picture in pictures:
        assert ET.fromstring(picture.svg()).tag.endswith("svg")
    heard = overview(told)["column"][0]
    assert heard in pictures[0].alt and heard in pictures[1].alt and "missing" in pictures[2].alt
    name, value = told.top(3, 1)[0]
    assert name in pictures[4].alt and f"{value:+.3g}" in pictures[4].alt
    with pytest.raises(Mistake, match="there is no row 600"):
        waterfall(told, columns, row=600)


def test_the_pictures_of_a_waterfall_add_up(adult, told):
    """The last arrow ends at the margin: its sentence says so."""
    alt = waterfall(told, adult.columns(slice(0, 600)), row=5).alt
    steps = [
        float(part.rsplit(": ", 1)[1].split("; in all")[0])
        for part in alt.split("; ")
        if ": " in part
    ]
    assert told.base[0] + sum(steps) == pytest.approx(told.margin[5, 0], abs=0.05)


def test_lime_agrees_with_the_package_of_that_name():
    """On numbers without gaps, which is all that the package takes."""
    package = pytest.importorskip("lime.lime_tabular")
    generator = np.random.default_rng(0)
    train = generator.normal(size=(3000, 6)).astype(np.float32)
    names = [f"c{i}" for i in range(6)]
    contract = Contract(
        "x", "regression", "t", (), tuple(Column(n, "number", "feature") for n in names)
    )

    def answer(columns):
        c = [columns[n].astype(float) for n in names]
        return (c[0] + np.tanh(2 * c[1]) + c[2] * c[3] - 0.2 * c[4])[:, None]

    explainer = package.LimeTabularExplainer(
        train, mode="regression", feature_names=names, random_state=0, discretize_continuous=True
    )
    pieces = cut_pieces(contract, dict(zip(names, train.T, strict=True)))
    for row in train[:4]:
        asked = dict(zip(names, row[:, None], strict=True))
        own = lime(contract, pieces, answer, asked, rows=20000)
        found = explainer.explain_instance(
            row,
            lambda x: answer(dict(zip(names, x.T, strict=True)))[:, 0],
            num_features=6,
            num_samples=20000,
        )
        theirs = np.array([dict(found.local_exp[1])[place] for place in range(6)])
        assert np.abs(own.weights - theirs).max() < 0.12
        assert np.corrcoef(own.weights, theirs)[0, 1] > 0.97


def test_the_ridge_of_lime_is_that_of_scikit_learn():
    from sklearn.linear_model import Ridge

    generator = np.random.default_rng(0)
    seen, weight = generator.integers(0, 2, (500, 5)).astype(float), generator.random(500)
    target = seen @ np.arange(5) + generator.normal(size=500)
    theirs = Ridge(alpha=1).fit(seen, target, sample_weight=weight)
    found, fit = ridge(seen, target, weight)
    assert np.allclose(found, theirs.coef_)
    assert fit == pytest.approx(theirs.score(seen, target, sample_weight=weight))


def test_lime_takes_gaps_and_levels_and_says_how_stable_it_is(adult):
    answer = asking(adult.scorer.predict, adult.contract)
    pieces = cut_pieces(adult.contract, adult.columns(slice(None)))
    gaps = np.flatnonzero(adult.table.features["age"].isna())[:2]
    for row in [0, 1, *gaps]:
        made = lime(adult.contract, pieces, answer, adult.columns([row]))
        again = lime(adult.contract, pieces, answer, adult.columns([row]))
        assert np.array_equal(made.weights, again.weights) and 0 <= made.jaccard <= 1
        assert made.fit < 1 and (made.deviation > 0).any() and "Jaccard" in str(made)
        few = lime(adult.contract, pieces, answer, adult.columns([row]), rows=150)
        assert few.deviation.mean() > made.deviation.mean()  # fewer rows: less stable
    assert "age missing" in made.conditions
    with pytest.raises(Mistake, match="one row at a time, not 2"):
        lime(adult.contract, pieces, answer, adult.columns([0, 1]))
    with pytest.raises(Mistake, match="2 seeds that differ"):
        lime(adult.contract, pieces, answer, adult.columns([0]), seeds=(0,))


@pytest.mark.parametrize("name", ["adult", "bikes"])
def test_the_fidelity_of_a_surrogate_is_what_one_counts(name, request):
    one = request.getfixturevalue(name)
    train, unseen = one.table.features.iloc[:2000], one.table.features.iloc[2000:]
    made = make_surrogate(one.predict_frame, one.contract, train, unseen, one.threshold)
    said, copied = one.predict_frame(unseen), made.answer(unseen)
    said = said[:, 1] if one.contract.classes else said
    spread = ((said - said.mean()) ** 2).sum()
    value, low, high = made.fidelity["R²"]
    assert value == pytest.approx(1 - ((said - copied) ** 2).sum() / spread)
    assert low < value < high and made.rows == 1000
    if one.contract.classes:
        same = ((said >= 0.5) == (copied >= 0.5)).mean()
        assert made.fidelity["agreement"][0] == same > made.constant
    assert sum(share for _, _, share in made.rules()) == pytest.approx(1)
    picture = draw_surrogate(made)
    assert ET.fromstring(picture.svg()).tag.endswith("svg") and made.rules()[0][0] in picture.alt


def test_the_rules_of_a_surrogate_decide_as_its_tree_does(adult):
    """Each row satisfies the conditions of one rule only, and gets that rule's answer."""
    train = adult.table.features.iloc[:2000]
    made = make_surrogate(adult.predict_frame, adult.contract, train, train, 0.5, depth=3)
    rows = train.iloc[:300]
    hits = np.zeros(len(rows), int)
    for text, said, _ in made.rules():
        held = np.array([holds(text, row) for row in rows.to_dict("records")])
        assert np.allclose(made.answer(rows)[held], float(said), atol=1e-3)
        hits += held
    assert (hits == 1).all()


def holds(text, row):
    """Whether a row keeps a rule, read as a person reads it."""
    for part in text.replace("(", "").replace(")", "").split(" and "):
        gap = part.endswith(" or missing")
        bare = part.removesuffix(" or missing")
        if between := re.fullmatch(r"(\S+) <= (\S+) < (\S+)", bare):
            (low, name, high), sign = between.groups(), "between"
        else:
            name, sign, value = bare.split(" ", 2)
        seen = row[name]
        if sign == "is":
            wanted = value.removeprefix("not ")
            fine = (seen == wanted) != value.startswith("not ")
        elif isinstance(seen, float) and np.isnan(seen):
            fine = gap
        elif sign == "between":
            fine = float(low) <= seen < float(high)
        else:
            fine = seen < float(value) if sign == "<" else seen >= float(value)
        if not fine:
            return False
    return True


def test_the_agreement_of_a_surrogate_has_the_interval_of_a_share():
    for same, rows in ((50, 50), (0, 60), (45, 50)):
        decided = np.arange(rows) < same
        value, low, high = agreement(np.ones(rows, bool), decided)
        exact = binomtest(same, rows).proportion_ci(0.95, method="exact")
        assert (value, low, high) == pytest.approx((same / rows, exact.low, exact.high))


def test_of_a_level_that_is_said_no_other_is_denied(adult):
    train = adult.table.features.iloc[:2000]
    made = make_surrogate(adult.predict_frame, adult.contract, train, train, 0.5, depth=6)
    denied = [text for text, _, _ in made.rules() if " is not " in text]
    assert denied, "the tree asks for levels"
    for text, _, _ in made.rules():
        said = re.findall(r"(\S+) is (?!not )", text)
        assert not set(said) & set(re.findall(r"(\S+) is not ", text)), text


def test_a_surrogate_of_too_few_rows_is_a_mistake(adult):
    few = adult.table.features.iloc[:20]
    with pytest.raises(Mistake, match="50 rows and 50 others: 20 and 20"):
        make_surrogate(adult.predict_frame, adult.contract, few, few)


def changed(one, row, answer):
    """The row with the changes of a counterfactual, as a client sends it."""
    told = {n: v[0] for n, v in one.columns([row]).items()} | {
        n: b for n, (_, b) in answer.changes.items()
    }
    whole = {c.name for c in one.contract.features if c.type == "integer"}
    plain = {}
    for name, value in told.items():
        gap = not isinstance(value, str) and np.isnan(value)
        plain[name] = None if gap else value if isinstance(value, str) else float(value)
        if name in whole and not gap:
            assert float(value).is_integer()
            plain[name] = int(value)
    return plain


def test_counterfactuals_flip_the_scorer_within_the_contract(adult):
    predict, contract = adult.scorer.predict, adult.contract
    found = 0
    for row in range(25):
        own = adult.columns([row])
        goal = goal_for(contract, predict(own), adult.threshold)
        made = counterfactuals(predict, own, goal, immutable=["age", "marital-status"], seconds=60)
        sets = [frozenset(answer.changes) for answer in made.found]
        assert len(set(sets)) == len(sets) and len(sets) <= 3
        assert not any(a < b or b < a for a in sets for b in sets)
        for answer in made.found:
            assert not {"age", "marital-status", "sex", "race"} & answer.changes.keys()
            plain = changed(adult, row, answer)
            checked = check_rows(contract, [plain])
            touched = [p for p in checked.problems if p.column in answer.changes]
            assert not touched
            share = predict(checked.columns)[0, 1]
            assert (share >= 0.5) == bool(goal.wanted)
            assert share == pytest.approx(answer.said if goal.wanted else 1 - answer.said, abs=1e-6)
        found += bool(made.found)
    assert found >= 20


def test_a_counterfactual_is_just_enough(adult):
    """A tenth less of a change of one number does not do, for most of them."""
    predict, contract = adult.scorer.predict, adult.contract
    tight = []
    for row in range(25):
        own = adult.columns([row])
        goal = goal_for(contract, predict(own), adult.threshold)
        for answer in counterfactuals(predict, own, goal, seconds=60).found:
            if len(answer.changes) == 1:
                ((name, (before, after)),) = answer.changes.items()
                if isinstance(after, float) and not np.isnan(before):
                    less = np.float32(before + 0.85 * (after - before))
                    asked = {**own, name: np.array([less], np.float32)}
                    tight.append(not goal.look(predict(asked))[0][0])
    assert len(tight) >= 5 and np.mean(tight) > 0.7


def test_counterfactuals_of_a_regression_reach_the_bound(bikes):
    predict, own = bikes.scorer.predict, bikes.columns([0])
    now = float(predict(own)[0])
    goal = goal_for(bikes.contract, predict(own), at_least=now + 80)
    made = counterfactuals(predict, own, goal, immutable=["yr"], seconds=60)
    assert made.found and all(answer.said >= now + 80 for answer in made.found)
    assert all("yr" not in answer.changes for answer in made.found)
    with pytest.raises(Mistake, match="already"):
        goal_for(bikes.contract, predict(own), at_most=now + 1)
    with pytest.raises(Mistake, match="say at_least or at_most"):
        goal_for(bikes.contract, predict(own))
    with pytest.raises(Mistake, match="no value is at least 9 and at most 3"):
        goal_for(bikes.contract, predict(own), at_least=9, at_most=3)


def test_the_time_of_counterfactuals_is_bounded_and_nothing_found_is_said(adult):
    def slow(columns):
        time.sleep(0.05)
        return adult.scorer.predict(columns)

    own = adult.columns([0])
    goal = goal_for(adult.contract, slow(own), adult.threshold)
    started = time.monotonic()
    made = counterfactuals(slow, own, goal, seconds=0.1)
    assert time.monotonic() - started < 20
    every = [c.name for c in adult.contract.features]
    fixed = counterfactuals(slow, own, goal, immutable=every)
    assert not fixed.found and fixed.why == "none was found: no column may change"
    assert made.found or "the time was up" in made.why
    with pytest.raises(Mistake, match=r"no column 'aeg'\. Did you mean"):
        counterfactuals(slow, own, goal, immutable=["aeg"])
