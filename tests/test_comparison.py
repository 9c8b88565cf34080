"""A challenger as good as the champion is rarely called better; a better one is; rows are new."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from processes import prodml
from released import PASSED, demo_lines
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom

from prodml.demo import stream
from prodml.deployment import Compare
from prodml.frame import as_typed, check_frame
from prodml.gates.candidate import make_candidate
from prodml.gates.compare import compare, compare_rivals, judge_live
from prodml.gates.evidence import load_evidence
from prodml.gates.gain import gain, judge_gain, measure_of
from prodml.gates.rivals import Rivals, common_test, make_rivals
from prodml.ini import parse_settings
from prodml.release.store import seal
from prodml.serve.batches import Batch
from prodml.serve.predictions import PredictionLog
from prodml.settings import Mistake
from prodml.stats.paired import accuracy_gain, auc_gain, mean_gain

ONCE = Compare(comparisons=1)  # the whole of alpha for one comparison
REPEATS = 1000


def equals(generator, rows, apart):
    """Two models of equal worth that see the truth through noise, of which a share is their own."""
    signal = generator.normal(size=rows)
    truth = (generator.random(rows) < 1 / (1 + np.exp(1 - 1.5 * signal))).astype(int)
    shared = generator.normal(size=rows)

    def told():
        own = generator.normal(size=rows)
        seen = signal + 0.8 * (np.sqrt(1 - apart) * shared + np.sqrt(apart) * own)
        chance = 1 / (1 + np.exp(1 - seen))
        return np.column_stack([1 - chance, chance])

    none = pd.DataFrame(index=range(rows))
    return Rivals("binary", truth, told(), told(), (0.5, 0.5), none, none)


@pytest.mark.parametrize("rows", [50, 200, 500, 2000])
@pytest.mark.parametrize("apart", [0.02, 0.2, 1.0])
def test_an_equal_model_is_rarely_called_better(rows, apart):
    """At most 5 %, up to the binomial noise of the simulation; the point gate takes about half."""
    generator = np.random.default_rng([rows, int(100 * apart)])
    won = dict.fromkeys(("roc_auc", "accuracy", "log_loss"), 0)
    higher = dict.fromkeys(won, 0)
    for _ in range(REPEATS):
        pair = equals(generator, rows, apart)
        for name in won:
            seen = gain(pair, name, 0.05)
            won[name] += judge_gain(seen, name, ONCE).verdict == "pass"
            higher[name] += seen.value > 0
    most = binom.ppf(0.9999, REPEATS, 0.05)
    assert max(won.values()) <= most, won
    assert min(higher[name] for name in ("roc_auc", "log_loss")) > binom.ppf(0.0001, REPEATS, 0.42)


def test_an_equal_model_that_is_overconfident_is_rarely_called_better():
    """Skewed differences of log loss: equal on average over 400,000 rows by construction."""
    generator, won, plain = np.random.default_rng(8), 0, 0
    for _ in range(2000):
        z = generator.normal(-1, 1.2, 200)
        y = generator.random(200) < 1 / (1 + np.exp(-z))
        told = [0.9 * z + 1.08 * generator.normal(size=200), 2.2 * z]
        losses = [np.log1p(np.exp(np.where(y, -score, score))) for score in told]
        won += mean_gain(*losses).low > 0
        lost = losses[0] - losses[1]
        plain += lost.mean() > 1.6525 * lost.std(ddof=1) / np.sqrt(200)
    assert won < plain and won <= binom.ppf(0.9999, 2000, 0.06)


def losses_of(rate, loss, generator, rows):
    """(target, champion's, challenger's) of models of equal `loss`, one of which thinks too little.

    They are equal on average over 20,000 cases by construction. Each sample is drawn from these.
    """
    case = np.random.default_rng(1).normal(size=20_000)
    losses = {"brier_score": (lambda p: (1 - p) ** 2, lambda p: p**2)}
    losses["log_loss"] = (lambda p: -np.log(p), lambda p: -np.log1p(-p))
    ones, zeros = losses[loss]
    middle = brentq(lambda by: expit(by + 1.5 * case).mean() - rate, -15, 15)
    chance = expit(middle + 1.5 * case)

    def mean(by):
        told = expit(middle + by + 1.5 * case)
        return (chance * ones(told) + (1 - chance) * zeros(told)).mean()

    more = brentq(lambda by: mean(by) - mean(-0.7), 0.01, 6)
    drawn = generator.integers(0, 20_000, rows)
    target = (generator.random(rows) < chance[drawn]).astype(int)
    told = [expit(middle + by + 1.5 * case[drawn]) for by in (more, -0.7)]
    return target, *[np.column_stack([1 - one, one]) for one in told]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "rate", "rows"),
    [
        *(("brier_score", 0.02, rows) for rows in (200, 500, 2000)),
        *(("brier_score", 0.5, rows) for rows in (200, 2000)),
        *(("log_loss", 0.02, rows) for rows in (500, 2000)),
    ],
)
def test_a_model_that_thinks_too_little_of_a_rare_class_is_rarely_called_better(loss, rate, rows):
    """At 5 %, in 4,000 comparisons. Without a least number of each class it was up to 13 % here."""
    generator, won = np.random.default_rng([rows, int(100 * rate)]), 0
    none = pd.DataFrame(index=range(rows))
    for _ in range(8):
        target, *told = losses_of(rate, loss, generator, 500 * rows)
        for start in range(0, 500 * rows, rows):
            on = slice(start, start + rows)
            pair = Rivals("binary", target[on], told[0][on], told[1][on], (0.5, 0.5), none, none)
            won += gain(pair, loss, 0.05).low > 0
    assert won <= binom.ppf(0.9999, 4000, 0.05), won / 4000


def test_twelve_equal_challengers_a_year_are_rarely_promoted_at_all():
    generator, years = np.random.default_rng(9), 40
    promoted = point = 0
    for _ in range(years):
        seen = [gain(equals(generator, 500, 0.5), "roc_auc", 0.05 / 12) for _ in range(12)]
        promoted += any(judge_gain(one, "roc_auc", Compare()).verdict == "pass" for one in seen)
        point += any(one.value > 0 for one in seen)
    assert promoted <= binom.ppf(0.9999, years, 0.05) and point >= 38


def test_intervals_hold_the_truth_and_better_models_are_promoted():
    generator = np.random.default_rng(10)
    held, found = {"accuracy": 0, "mean": 0, "auc": 0}, 0
    for _ in range(300):
        right = generator.choice(4, 400, p=[0.06, 0.10, 0.14, 0.70])
        first, second = np.isin(right, (0, 3)), np.isin(right, (1, 3))
        one = accuracy_gain(first, second, 0.05)
        held["accuracy"] += one.low <= 0.04 <= one.high
        other = mean_gain(generator.gamma(2, 1, 400), generator.gamma(2, 0.9, 400), 0.05)
        held["mean"] += other.low <= 0.2 <= other.high
        y = (generator.random(400) < 0.3).astype(int)
        scores = [y * size + generator.normal(size=400) for size in (1.0, 1.4)]
        ranked = auc_gain(y, *scores, tail=0.05)
        held["auc"] += ranked.low <= 0.07870 <= ranked.high  # Phi(1.4/√2) - Phi(1/√2)
        found += ranked.low > 0
    assert min(held.values()) >= binom.ppf(0.0001, 300, 0.9), held
    assert held["accuracy"] >= 0.9 * 300 and found > 200


def test_daily_looks_at_an_equal_shadow_rarely_promote_it():
    generator, won = np.random.default_rng(11), 0
    days = tuple(np.split(np.arange(2000), 20))
    for _ in range(200):
        pair = replace(equals(generator, 2000, 0.5), days=days)
        won += judge_live(pair, ONCE).verdict == "pass"
    assert won <= binom.ppf(0.9999, 200, 0.05)


def test_classes_beyond_two_and_numbers_are_compared_too():
    generator = np.random.default_rng(12)
    said = generator.dirichlet([1, 1, 1], 900)
    drawn = (said.cumsum(axis=1) > generator.random((900, 1))).argmax(axis=1)
    dull = np.full_like(said, 1 / 3)
    side = pd.DataFrame({"side": generator.choice(["A", "B"], 900)})
    several = Rivals("multiclass", drawn, dull, said, (0.5, 0.5), side, side)
    for name in ("auto", "log_loss", "brier_score", "roc_auc", "macro_f1"):
        rules = Compare(measure=name, max_group_loss=0.1)
        assert compare_rivals(several, rules).result.verdict == "pass", name
    value = generator.normal(size=900)
    near, far = (value + size * generator.normal(size=900) for size in (0.5, 1.0))
    numbers = Rivals("regression", value, far, near, (0.5, 0.5), side, side)
    for name in ("auto", "rmse", "r2"):
        assert compare_rivals(numbers, Compare(measure=name)).result.verdict == "pass", name
    back = replace(numbers, champion=near, challenger=far)
    seen = compare_rivals(back, Compare(max_churn=0.2)).result
    assert {f.measure for f in seen.of("fail")} == {"gain_in_mae", "churn"}
    live = replace(numbers, days=tuple(np.split(np.arange(900), 9)))
    assert judge_live(live, Compare()).verdict == "pass"
    with pytest.raises(Mistake, match=r"for a regression task, one of auto, rmse"):
        measure_of("regression", "roc_auc")


def test_too_few_rows_and_one_class_are_inconclusive():
    pair = equals(np.random.default_rng(13), 80, 1.0)
    sure = replace(pair, challenger=np.eye(2)[pair.target])
    assert compare_rivals(sure, Compare(), least=100).result.verdict == "inconclusive"
    assert compare_rivals(sure, ONCE, least=50).result.verdict == "pass"
    one = replace(sure, target=np.zeros(80, int))
    assert compare_rivals(one, Compare(), least=50).result.verdict == "inconclusive"


INI = """[limits]
required = correctness
[compare]
max_group_loss = 0.05
[serve]
log = predictions
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(folder, stale release, fresh release) of one project."""
    folder = tmp_path_factory.mktemp("two")
    found = []
    for until, since in (("2024-07-01", {}), ("2026-01-01", {"since": "2025-09-01"})):
        text = demo_lines(until, **since) + INI
        settings = parse_settings(text, folder / "settings.ini")
        (folder / "settings.ini").write_text(text)
        candidate = make_candidate(settings.folder / "candidates" / until, settings)
        found.append(seal(candidate, [], [PASSED], settings, until))
    return folder, *found


def test_rows_that_one_has_learned_from_are_refused(two):
    _, stale, fresh = map(str, two)
    old, new = load_evidence(stale), load_evidence(fresh)
    with pytest.raises(Mistake, match=r"the challenger .* has learned from .* rows after 2025"):
        make_rivals(old, new, new.parts.train)
    with pytest.raises(Mistake, match=r"the champion .* has learned from"):
        compare(old, new, source="demo", since="2024-03-01")
    assert compare(old, new).result.verdict == "pass"
    assert compare(new, old).result.verdict == "fail"  # whichever is proposed
    later = compare(old, new, source="demo", since="2025-12-20")
    assert 0 < len(later.rivals.target) < len(common_test(old, new))


def test_without_id_and_time_twins_are_left_out_and_a_training_part_is_refused(two):
    _, stale, fresh = map(str, two)
    old, new = load_evidence(stale), load_evidence(fresh)
    gone = ["application_id", "applied_on"]
    rows = new.parts.test.drop(columns=gone)
    twins = pd.concat([rows, new.parts.train.drop(columns=gone)[:20]], ignore_index=True)
    assert len(make_rivals(old, new, twins).target) == len(make_rivals(old, new, rows).target)
    with pytest.raises(Mistake, match="Take rows after"):
        make_rivals(old, new, new.parts.train.drop(columns=gone))


def test_the_command_compares_two_releases(two):
    folder, stale, fresh = two
    won = prodml("compare", fresh.name, "--against", stale.name, "-p", folder, "--json")
    told = json.loads(won.stdout)
    assert won.returncode == 0 and told["verdict"] == "pass", won.stdout + won.stderr
    assert "sex = F" in " ".join(told["why"])
    page = (folder / "reports" / told["report"].split("reports/")[1]).read_text()
    assert "SYNTHETIC" in page and '<img alt="all: +' in page
    lost = prodml("compare", stale.name, "--against", fresh.name, "-p", folder)
    assert lost.returncode == 1 and "not better" in lost.stdout
    empty = prodml("compare", fresh.name, "--against", stale.name, "--shadow", "-p", folder)
    assert empty.returncode == 1 and "holds no answers" in empty.stdout


@pytest.mark.slow
def test_a_shadow_test_is_compared_from_its_log_and_plain_papermill_will_do(two, tmp_path):
    """Both answer 30 days in the shadow; the log is written as servers write it."""
    folder = shutil.copytree(two[0], tmp_path / "shadow", symlinks=True)
    stale, fresh = (folder / release.relative_to(two[0]) for release in two[1:])
    log, live = PredictionLog(folder / "predictions"), stream([24], rows=2000)
    live = live.assign(applied_on=live["applied_on"] + pd.Timedelta(days=1))
    at = live["applied_on"].astype("int64").to_numpy() / 1e6
    at += 86_400 * ((time.time() - at.max()) // 86_400 - 1)  # whole days: the looks stay the same
    ids = live["application_id"].tolist()
    for release, arm in ((stale, "champion"), (fresh, "challenger")):
        one = load_evidence(release)
        seen = check_frame(one.contract, as_typed(one.contract, live)).features
        columns = {name: seen[name].to_numpy() for name in seen}
        told = one.model.predict(seen)
        log.take(Batch(release.name, one.contract, arm, ids, at, columns, told, [], {}))
    assert log.outcomes.add(list(zip(ids, live["default"], at + 3600, strict=True)))
    log.tick(last=True)
    asked = ("compare", fresh.name, "--against", stale.name, "--shadow", "-p", folder, "--json")
    told = json.loads(prodml(*asked).stdout)
    assert told["verdict"] == "pass" and "shown on day" in told["why"][0], told
    plain = [sys.executable, "-m", "papermill", ROOT / "templates/reports/comparison.ipynb"]
    named = ["-p", "champion", stale, "-p", "challenger", fresh, "--no-progress-bar"]
    made = subprocess.run([*plain, folder / "out.ipynb", *named], capture_output=True, timeout=900)
    assert made.returncode == 0, made.stderr[-2000:]
    turned = ["-p", "champion", fresh, "-p", "challenger", stale, "--no-progress-bar"]
    failed = subprocess.run([*plain, folder / "no.ipynb", *turned], capture_output=True)
    assert failed.returncode == 1 and b"GateFailed" in failed.stderr
