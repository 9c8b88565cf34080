"""Offers of mitigation keep their word on rows they have not seen; the data says who is in it."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest
from processes import required
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier

from prodml.demo import stream
from prodml.gates.demography import census, mix_finding, over_time, representation
from prodml.gates.fairness import fairness
from prodml.gates.groups import counted, crossed, crossings, difference_interval, ratio_interval
from prodml.gates.mitigation import decide_by_group, group_thresholds, offers, price_curve, reduced
from prodml.ini import parse_settings
from prodml.settings import Mistake


def world(rows, seed):
    r = np.random.default_rng(seed)
    group = r.choice(["A", "B"], rows, p=[0.7, 0.3])
    x = r.normal(np.where(group == "A", 0.3, -0.4), 1)
    good = (x + r.normal(size=rows) > 0).astype(int)
    features = pd.DataFrame({"x": x, "zone": (group == "B") + 0.5 * r.normal(size=rows)})
    return features, good, group


def test_thresholds_close_the_gap_by_their_strength():
    features, good, group = world(8000, 0)
    score = 1 / (1 + np.exp(-features["x"].to_numpy()))
    gaps = []
    for strength in (0.0, 0.5, 1.0):
        edges = group_thresholds(score[:4000], group[:4000], 0.5, strength)
        told = decide_by_group(score[4000:], group[4000:], edges, 0.5)
        counts = counted(good[4000:], told, group[4000:])[1]
        gaps.append(difference_interval(counts, "selection_rate_difference", 0.95)[0])
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.05
    assert decide_by_group(np.array([0.6]), np.array(["?"]), edges, 0.5).tolist() == [1]


@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(),
        make_pipeline(StandardScaler(), LogisticRegression()),
        XGBClassifier(n_estimators=20, max_depth=3, n_jobs=1),
    ],
    ids=["plain", "pipeline", "xgboost"],
)
def test_reductions_take_any_estimator_and_close_the_gap(model):
    (features, good, group), (new, truth, who) = world(3000, 1), world(3000, 2)
    plain = model.fit(features, good).predict(new)
    told = reduced(model, (features, good, group), new, 0.02)
    gap = lambda d: abs(d[who == "A"].mean() - d[who == "B"].mean())  # noqa: E731
    assert gap(told) < gap(plain) / 2 and (told == truth).mean() > 0.6


def test_an_offer_that_is_beaten_in_both_is_not_on_the_frontier():
    _, good, group = world(3000, 3)
    worse = np.where(np.random.default_rng(0).random(3000) < 0.3, 1 - good, good)
    worse = np.where(group == "A", 1, worse)
    table = price_curve(good, group, [("a", 0.0, worse), ("b", 0.0, np.ones(3000, int))])
    assert table["frontier"].tolist() == [bool(table["accuracy"][0] > table["accuracy"][1]), True]
    made = offers(0.5, (good.astype(float), group), (good.astype(float), group))
    assert [way for way, *_ in made] == ["thresholds"] * 5


def test_a_fair_model_is_failed_over_all_columns_and_limits_as_rarely_as_said():
    limits = {"max_selection_rate_difference": 0.02, "max_true_positive_rate_difference": 0.02}
    limits |= {"min_selection_rate_ratio": 0.9}
    failed = 0
    for seed in range(100):
        r = np.random.default_rng(seed)
        people = pd.DataFrame({"a": r.choice(list("xyz"), 2000), "b": r.choice(list("uv"), 2000)})
        told, good = (r.random(2000) < 0.3).astype(int), r.integers(0, 2, 2000)
        found = fairness("binary", good, told, people, limits)
        assert len(found.findings) == 9
        failed += found.verdict == "fail"
    assert failed <= binom.ppf(0.999, 100, 0.05)


def test_what_is_hidden_in_each_column_shows_where_they_cross():
    r = np.random.default_rng(4)
    people = pd.DataFrame(
        {"sex": r.choice(["F", "M"], 8000), "age": r.choice(["old", "young"], 8000)}
    )
    odd = (people["sex"] == "F") == (people["age"] == "old")
    told = (r.random(8000) < np.where(odd, 0.2, 0.5)).astype(int)
    good = r.integers(0, 2, 8000)
    limits = {"max_selection_rate_difference": 0.15}
    found = {f.slice: f.verdict for f in fairness("binary", good, told, people, limits).findings}
    assert found == {"sex": "pass", "age": "pass", "sex & age": "fail"}
    alone = fairness("binary", good, told, people, limits, intersections=1)
    assert alone.verdict == "pass" and len(alone.findings) == 2
    assert len(crossings(list("abc"), 3)) == 7 and set(crossed(people, ["sex", "age"])) == {
        *("F & old", "F & young", "M & old", "M & young")
    }


def test_a_crossing_with_few_rows_is_named():
    r = np.random.default_rng(5)
    people = pd.DataFrame(
        {"sex": r.choice(["F", "M"], 3000), "age": r.choice(["old", "young"], 3000)}
    )
    people = people[~((people["sex"] == "F") & (people["age"] == "old") & (people.index > 200))]
    told, good = (r.random((2, len(people))) < 0.4).astype(int)
    found = fairness("binary", good, told, people, {"max_selection_rate_difference": 0.3})
    (one,) = [f for f in found.findings if f.slice == "sex & age"]
    assert one.verdict == "inconclusive" and "F & old has" in one.why and "100 needed" in one.why


def test_the_interval_of_a_ratio_holds_the_truth():
    held = 0
    for seed in range(200):
        r = np.random.default_rng(seed)
        group = np.repeat(["a", "b"], 600)
        told = (r.random(1200) < np.where(group == "a", 0.4, 0.3)).astype(int)
        _, low, high = ratio_interval(counted(told, told, group)[1], "selection_rate_ratio", 0.95)
        held += low <= 0.75 <= high
    assert held >= binom.ppf(0.001, 200, 0.95)


def test_biased_labels_show_in_the_base_rates():
    tables = {}
    for bias in (0.0, 0.3):
        rows = stream(range(4), rows=1000, label_bias=bias, onsets={})
        late = (rows["default"] == "yes").astype(int).to_numpy()
        tables[bias] = census(rows["group"].to_numpy(), late, rows[["income"]]).set_index("group")
    gap = {bias: t.loc["B", "base_rate"] - t.loc["A", "base_rate"] for bias, t in tables.items()}
    assert gap[0.3] > gap[0.0] + 0.15 and tables[0.3].loc["B", "base_low"] > 0.35
    assert (tables[0.0]["missing"] > 0).all() and abs(tables[0.0]["share"].sum() - 1) < 1e-9


def test_a_mix_that_does_not_change_warns_as_rarely_as_said():
    r, warned = np.random.default_rng(6), 0
    for _ in range(300):
        found = mix_finding("sex", r.choice(list("abc"), 1200), np.arange(1200) // 200, 2)
        warned += found.verdict == "warn"
    assert warned <= binom.ppf(0.999, 300, 0.025)
    moving = np.where(r.random(1200) < np.arange(1200) / 4000, "b", "a")
    assert mix_finding("sex", moving, np.arange(1200) // 200).verdict == "warn"
    assert mix_finding("sex", np.full(10, "a"), np.arange(10)).verdict == "pass"
    shares, rates = over_time(moving, (moving == "b") * 1.0, np.arange(1200) // 200)
    assert (shares.sum(axis=1).round(9) == 1).all() and (rates["b"] == 1).all()


def test_who_is_missing_is_told_against_the_population():
    groups = np.array(["F"] * 300 + ["M"] * 700)
    found = {f.slice: f for f in representation("sex", groups, {"F": 0.51, "M": 0.48, "X": 0.01})}
    assert found["sex = F"].verdict == "warn" and "30.0% of the rows, 51.0%" in found["sex = F"].why
    assert found["sex = M"].verdict == found["sex = X"].verdict == "pass"


SETTINGS = "[data]\nsource = a.csv\ntarget = y\nsensitive = sex\n"


def test_a_population_is_read_and_must_be_shares():
    told = parse_settings(SETTINGS + "[population.sex]\nF = 0.51\nM = 0.49\n")
    assert told.population == {"sex": {"F": 0.51, "M": 0.49}}
    for text, why in (("F = half", "not a share"), ("F = 0.9\nM = 0.9", "must sum to 1")):
        with pytest.raises(Mistake, match=why):
            parse_settings(f"{SETTINGS}[population.sex]\n{text}\n")


AIF360 = """
import json, sys
import pandas as pd
from aif360.datasets import BinaryLabelDataset
from aif360.metrics import ClassificationMetric
rows = pd.read_csv(sys.argv[1])
make = lambda label: BinaryLabelDataset(df=rows[["group", label]].rename(columns={label: "y"}),
    label_names=["y"], protected_attribute_names=["group"], favorable_label=1, unfavorable_label=0)
m = ClassificationMetric(make("truth"), make("told"), [{"group": 0}], [{"group": 1}])
print(json.dumps({"difference": m.statistical_parity_difference(), "ratio": m.disparate_impact(),
    "tpr": m.equal_opportunity_difference(), "fpr": m.false_positive_rate_difference()}))
"""


@pytest.mark.slow
def test_our_measures_are_those_of_aif360_in_its_own_environment(tmp_path):
    wanted = ["aif360", "pandas<2.3", "numpy<2", "scikit-learn<1.6"]
    python, file = required(tmp_path / "aif", wanted), tmp_path / "rows.csv"
    _, truth, group = world(3000, 7)
    told = (np.random.default_rng(8).random(3000) < np.where(group == "A", 0.5, 0.35)).astype(int)
    rows = pd.DataFrame({"group": (group == "A") * 1, "truth": truth, "told": told})
    rows.to_csv(file, index=False)
    run = [python, "-W", "ignore", "-c", AIF360, file]
    theirs = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    counts = counted(truth, told, group)[1]
    for key, measure in (("difference", "selection_rate"), ("tpr", "true_positive_rate"),
                         ("fpr", "false_positive_rate")):  # fmt: skip
        ours = difference_interval(counts, f"{measure}_difference", 0.95)[0]
        assert ours == pytest.approx(abs(theirs[key]), abs=1e-9)
    ours = ratio_interval(counts, "selection_rate_ratio", 0.95)[0]
    assert ours == pytest.approx(min(theirs["ratio"], 1 / theirs["ratio"]), abs=1e-9)
