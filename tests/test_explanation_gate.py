"""The explanation gate: what is wrong with an account of reasons, and how often it errs itself."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from released import demo_lines
from scipy.stats import binom, kendalltau

from prodml.explain import audit as auditing
from prodml.explain.audit import (
    ADDITIVITY,
    Audit,
    Opinions,
    additivity,
    agreements,
    effects,
    shifts,
)
from prodml.explain.audit import examine_explanation as examined
from prodml.explain.making import by_asking, save_explanation
from prodml.explain.ranks import permutation_effects, rank_agreement, top_overlap, weighted_tau
from prodml.explain.shap import FILE, Attributions, pack
from prodml.explain.shift import attribution_shift, dispersion, shift_findings
from prodml.files import template_path
from prodml.gates.candidate import make_candidate, silent
from prodml.gates.evidence import later_rows, load_evidence
from prodml.ini import parse_settings
from prodml.release.store import seal
from prodml.report.run import run_report
from prodml.verdict import Verdict
from prodml.watch.monitor import look


def demo(kind="linear", until="2025-01-01"):
    return demo_lines(until, kind, sensitive="sex, group")


LIMITS = """
[explanation]
max_additivity_gap = 0.001
min_seed_agreement = 0.5
min_permutation_agreement = 0.5
min_lime_agreement = 0.1
min_lime_stability = 0.3
min_surrogate_r2 = 0.3
min_surrogate_agreement = 0.7
max_attribution_shift = 0.15
"""


def made(place, text, root=None):
    """The opinions on a new candidate of the settings `text`, in the folder `place`."""
    settings = parse_settings(text, (root or place) / "settings.ini")
    settings = replace(settings, project=replace(settings.project, folder=place / ".prodml"))
    folder = make_candidate(place / "one", settings, silent, (), save_explanation)
    return Opinions(Audit(load_evidence(folder)))


def limited(o, text):
    """The same candidate under other limits of [explanation]."""
    settings = parse_settings("[data]\ntarget = x\n[explanation]\n" + text)
    limits = replace(o.audit.evidence.settings.limits, explanation=settings.limits.explanation)
    own = replace(o.audit.evidence.settings, limits=limits)
    return Opinions(Audit(replace(o.audit.evidence, settings=own)))


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    return made(tmp_path_factory.mktemp("linear"), demo() + LIMITS)


def sizes(many):
    whole = st.integers(0, 1000).map(float)
    return arrays(float, many, elements=whole)


@given(sizes(6), sizes(6))
def test_the_tau_is_symmetric_bounded_and_one_for_the_same(one, other):
    found = weighted_tau(one, other)
    if not (one.any() and other.any()):
        assert np.isnan(found)
        return
    assert -1 <= found <= 1 and found == pytest.approx(weighted_tau(other, one))
    assert found == pytest.approx(weighted_tau(3 * one, other / 7)), "sizes are shares"
    if len(np.unique(one)) == 6:
        assert weighted_tau(one, one) == pytest.approx(1)


def test_the_tau_is_kendalls_where_all_shares_are_nearly_alike():
    r = np.random.default_rng(0)
    for _ in range(20):
        one, other = 1000 + r.permutation(8.0 * np.arange(1, 9)), 1000 + r.permutation(np.arange(8))
        assert weighted_tau(one, other) == pytest.approx(kendalltau(one, other)[0], abs=0.03)


def test_idle_columns_do_not_count_and_the_first_two_do():
    r = np.random.default_rng(1)
    idle = np.concatenate([[5.0, 3.0, 2.0], r.random(50) * 1e-3])
    shuffled = np.concatenate([[5.0, 3.0, 2.0], r.random(50) * 1e-3])
    assert weighted_tau(idle, shuffled) > 0.95
    assert weighted_tau(idle, np.concatenate([[3.0, 5.0, 2.0], shuffled[3:]])) < 0.3
    assert weighted_tau(np.array([9.0, 0]), np.array([4.0, 0])) == 1, "one column has it all"
    assert weighted_tau(np.array([9.0, 0]), np.array([0, 4.0])) == -1


def test_overlap_and_shuffling_by_hand():
    one = np.array([[3.0, 2, 1, 0], [0, 0, 1, 9]])
    other = np.array([[3.0, 0, 2, -9], [0, 0, 2, -9]])
    assert top_overlap(one, other, 2).tolist() == [1 / 3, 1.0]
    table = pd.DataFrame({"a": np.arange(100.0), "b": ["x", ""] * 50})
    moved = permutation_effects(lambda rows: (rows["b"] == "x").to_numpy(float), table)
    assert moved[:, 0].max() == 0 and 0.3 < moved[:, 1].mean() < 0.7
    assert all(np.isnan(rank_agreement(moved[:0], moved[:0])))


def told_of(values):
    values = np.asarray(values, float)[:, :, None]
    names = tuple(f"c{place}" for place in range(values.shape[1]))
    margin = values.sum(axis=1)
    return Attributions(names, ("late",), np.zeros(1), values, margin, "logit", "log-odds", True)


@pytest.mark.parametrize("weeks", [0.0, 0.3], ids=["independent rows", "weeks that differ"])
def test_no_shift_is_seldom_taken_for_one(weeks):
    """Over all columns and looks together, at most five in a hundred; rows of a week alike."""
    wrong, repeats = 0, 200
    for seed in range(repeats):
        r = np.random.default_rng(seed)
        rows = [
            r.normal(size=(2000, 4)) + np.repeat(r.normal(size=(10, 4)), 200, axis=0) * weeks
            for _ in range(2)
        ]
        looks = np.repeat(np.arange(5), 400)
        table = attribution_shift(told_of(rows[0]), told_of(rows[1]), looks, 5, 0.05)
        whole = table[table["look"] < 0]
        wrong += bool(((whole["low"] > 0) | (whole["high"] < 0)).any())
    assert wrong <= binom.ppf(0.999, repeats, 0.05), wrong


def test_parts_drawn_at_random_from_weeks_that_differ_are_not_widened_and_seldom_differ():
    wrong, repeats = 0, 200
    for seed in range(repeats):
        r = np.random.default_rng(seed)
        rows = r.normal(size=(3000, 4)) + np.repeat(r.normal(size=(10, 4)), 300, axis=0)
        mixed = r.permutation(3000)
        parts = (told_of(rows[np.sort(part)]) for part in (mixed[:1500], mixed[1500:]))
        table = attribution_shift(*parts, ordered=False)
        assert (table["high"] - table["low"] < 0.2).all()
        wrong += bool(((table["low"] > 0) | (table["high"] < 0)).any())
    assert wrong <= binom.ppf(0.999, repeats, 0.05), wrong


def test_all_intervals_of_all_looks_hold_together():
    wrong, repeats = 0, 200
    for seed in range(repeats):
        r = np.random.default_rng(seed)
        before, after = r.normal(size=(2000, 4)), r.normal([0.2, 0, 0, 0], size=(2000, 4))
        looks = np.repeat(np.arange(5), 400)
        table = attribution_shift(told_of(before), told_of(after), looks, 5, 0.05)
        true = np.where(table["column"] == "c0", 0.2, 0.0) / 2.0  # four columns of unit spread
        wrong += bool(((table["low"] > true) | (table["high"] < true)).any())
    assert wrong <= binom.ppf(0.999, repeats, 0.05), wrong


def test_a_shift_is_found_and_small_windows_do_not_hide_it():
    r = np.random.default_rng(3)
    before = told_of(r.normal(size=(2000, 4)))
    after = told_of(r.normal([0.8, -0.8, 0, 0], size=(1500, 4)))
    found = shift_findings(attribution_shift(before, after, np.arange(1500) // 50, 365), 0.15)
    assert [str(f.verdict) for f in found] == ["fail", "fail", "pass", "pass"]
    assert "up" in found[0].why and "down" in found[1].why
    few = shift_findings(attribution_shift(before, told_of(r.normal(size=(15, 4)))), 0.15)
    assert {f.verdict for f in few} == {Verdict.INCONCLUSIVE} and "not enough" in few[0].why


def test_what_cannot_be_measured_is_undecided_never_a_pass():
    r = np.random.default_rng(4)
    flat, some = told_of(np.zeros((100, 2))), told_of(r.normal(size=(100, 2)))
    for known, now in ((flat, some), (some, told_of(np.zeros((1, 2))))):
        found = shift_findings(attribution_shift(known, now), 0.15)
        assert {f.verdict for f in found} == {Verdict.INCONCLUSIVE}
    assert dispersion(np.zeros((1000, 2))).tolist() == [1.0, 1.0]


def test_a_good_account_passes_and_tells_what_is_heard(linear):
    result, moved = examined(linear, None, "r1")
    assert result.verdict is Verdict.PASS and result.run_id == "r1", result
    asked = linear.audit.evidence.settings.limits.explanation
    assert {f"{f.bound}_{f.measure}" for f in result.findings} == set(asked)
    heard = {one.slice: one.value for one in result.measured}
    assert heard["debt_ratio"] == max(heard.values()) and set(heard) == set(moved["column"])
    own = effects(linear.audit.told).mean(axis=0)
    assert heard["debt_ratio"] == pytest.approx(own.max())


def test_the_account_of_another_model_is_found_out(linear, tmp_path):
    """It adds up, and not to this model's answers: the file of another candidate put in place."""
    other = made(tmp_path, demo("xgboost", "2024-05-01"))
    lent = Audit(linear.audit.evidence)
    lent.__dict__["explanation"] = replace(
        other.audit.explanation, contract=linear.audit.evidence.contract
    )
    margin, answer = additivity(lent)
    assert margin.verdict is Verdict.PASS and answer.verdict is Verdict.FAIL
    bent = Audit(linear.audit.evidence)
    told = linear.audit.told
    bent.__dict__["told"] = replace(told, values=told.values * 1.01)
    margin, answer = additivity(bent)
    assert margin.verdict is Verdict.FAIL and margin.value > ADDITIVITY


def test_accounts_that_contradict_each_other_fail(linear):
    own = effects(linear.audit.told)
    order = np.argsort(own.mean(axis=0))
    backwards = np.empty_like(own)
    backwards[:, order] = own[:, order[::-1]]
    stub = SimpleNamespace(
        audit=linear.audit, again=[own, own, backwards], permuted=backwards, few=linear.few
    )
    asked = {"min_seed_agreement": 0.5, "min_permutation_agreement": 0.5}
    found = agreements(stub, asked, 0.95)
    assert {f.verdict for f in found} == {Verdict.FAIL}, "of the seeds the worst counts"


def test_limits_out_of_reach_fail_and_settings_without_any_warn(linear):
    strict = limited(linear, "min_surrogate_r2 = 0.99\nmin_lime_stability = 0.999")
    found, moved = examined(strict)
    assert {f.measure for f in found.of("fail")} == {"surrogate_r2", "lime_stability"}
    assert moved is None
    silent_one, _ = examined(limited(linear, ""))
    assert silent_one.verdict is Verdict.WARN and "[explanation] sets no limit" in str(silent_one)
    assert {f.measure for f in silent_one.of("pass")} == {"additivity_gap"}, "asked always"


def test_later_rows_are_asked_for_their_reasons_alone(linear):
    later = later_rows(linear.audit.evidence, since="2025-01-01")
    result, moved = examined(linear, later)
    assert {f.measure for f in result.findings} == {"additivity_gap", "attribution_shift"}
    assert [f.slice for f in result.of("fail")] == ["debt_ratio"], result
    assert len(moved["look"].unique()) == 31
    unlimited, _ = examined(limited(linear, "min_surrogate_r2 = 0.1"), later)
    assert unlimited.verdict is Verdict.WARN and "max_attribution_shift" in str(unlimited)


TABLES = {
    "multiclass": ("bank_marketing", "education", "xgboost", "drop = contact_date, duration"),
    "regression": (
        "bike_sharing_hourly",
        "cnt",
        "forest",
        "drop = casual, registered, instant, yr",
    ),
}


@pytest.mark.parametrize("task", TABLES)
def test_other_tasks_on_real_tables(task, data, tmp_path):
    file, target, kind, drop = TABLES[task]
    table = pd.read_csv(data / f"{file}.csv.gz").sample(4000, random_state=0)
    table.to_csv(tmp_path / "table.csv", index=False)
    text = f"[data]\nsource = table.csv\ntarget = {target}\n{drop}\n"
    text += f"[model]\ncandidates = {kind}\ntrials = 1\n" + LIMITS
    o = made(tmp_path, text)
    assert o.audit.evidence.contract.task == task
    result, moved = examined(o)
    by = {f.measure: f for f in result.findings}
    lacks = "surrogate_r2" if task == "multiclass" else "surrogate_agreement"
    assert by[lacks].verdict is Verdict.INCONCLUSIVE and "no such measure" in by[lacks].why
    assert all(f.value is not None for f in result.findings if f.measure != lacks)
    assert {f.verdict for f in result.findings if f.measure == "additivity_gap"} == {Verdict.PASS}
    outputs = len(o.audit.evidence.contract.classes) if task == "multiclass" else 1
    assert moved["output"].nunique() == outputs == len(o.audit.told.outputs)
    assert sum(f.measure == "attribution_shift" for f in result.findings) == len(
        o.audit.told.columns
    )
    if task == "multiclass":
        every_class_is_drawn(o, tmp_path)


def every_class_is_drawn(o, folder):
    """Three pictures of each class, or of the one asked for; LIME is of the decided one."""
    classes, release = o.audit.told.outputs, str(o.audit.evidence.folder)
    page = run_report(TEMPLATE, folder / "out", {"release": release}, "all").html.read_text()
    assert all(page.count(f" for {name}") >= 3 for name in classes), classes
    one = {"release": release, "outcome": classes[2]}
    page = run_report(TEMPLATE, folder / "out", one, "one").html.read_text()
    assert f"rows for {classes[2]}. " in page and f"rows for {classes[1]}. " not in page
    run = run_report(TEMPLATE, folder / "out", {**one, "outcome": "of life"}, "none")
    assert run.status == "error" and "no output 'of life'" in run.error
    answers = o.audit.evidence.model.predict(o.audit.rows.iloc[o.few])
    assert [one.output for one in o.local] == [classes[k] for k in answers.argmax(axis=1)]


def test_a_model_that_can_only_be_asked_is_examined_on_fewer_rows(linear, monkeypatch, tmp_path):
    monkeypatch.setattr(auditing, "SECONDS", 0.3)
    monkeypatch.setattr(auditing, "ASKED_ROWS", 25)
    e = linear.audit.evidence
    asked = Audit(e)
    made_by_asking = by_asking(asked.answer, e.contract, e.train.features, "a test")
    for path in e.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / FILE).write_bytes(pack(made_by_asking))
    asked = Audit(replace(e, folder=tmp_path))
    assert not asked.explanation.exact and len(asked.rows) == 25
    assert {f.verdict for f in additivity(asked)} == {Verdict.PASS}
    assert asked.told.unit == "probability" and len(shifts(asked)) == len(asked.told.columns)


TEMPLATE = template_path("reports/explanation.ipynb")


def test_the_report_passes_fails_and_breaks_down_honestly(linear, tmp_path):
    folder = linear.audit.evidence.folder
    run = run_report(TEMPLATE, tmp_path / "out", {"release": str(folder)}, "r1")
    assert run.status == "pass", run
    page, notebook = run.html.read_text(), run.notebook.read_text()
    assert page.count("<img alt=") >= 6 and "debt_ratio" in page and "SYNTHETIC" in page
    cells = json.loads(notebook)["cells"]
    kinds = {output["output_type"] for cell in cells for output in cell.get("outputs", [])}
    assert "error" not in kinds
    later = {"release": str(folder), "source": "demo", "since": "2025-01-01"}
    run = run_report(TEMPLATE, tmp_path / "out", later, "r2")
    assert run.status == "fail" and run.result.of("fail")[0].slice == "debt_ratio", run
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in folder.iterdir():
        if path.name != FILE:
            (bare / path.name).write_bytes(path.read_bytes())
    run = run_report(TEMPLATE, tmp_path / "out", {"release": str(bare)}, "r3")
    assert run.status == "error" and FILE in run.error and not run.passed


def test_a_monitor_that_is_asked_to_watches_the_reasons(tmp_path):
    """The demo's shifted debts of 2025 are seen by the look that covers them."""
    text = demo() + "[explanation]\nmax_attribution_shift = 0.15\n"
    text += "[limits]\nrequired = explanation\n"
    text += "[monitor]\npredictions = demo\nperiod = 1MS\nlooks = 12\nreports = explanation\n"
    (tmp_path / "settings.ini").write_text(text)
    settings = parse_settings(text, tmp_path / "settings.ini")
    folder = make_candidate(tmp_path / "one", settings, silent, (), save_explanation)
    result, _ = examined(Opinions(Audit(load_evidence(folder))))
    assert result.verdict is Verdict.PASS
    seal(folder, [], [result], settings)
    seen = look(settings, as_of="2025-06-01", since="2025-01-01")
    assert seen is not None and [one.report for one in seen.runs] == ["explanation"]
    assert [one.status for one in seen.runs] == ["fail"], seen
    assert any("attribution_shift (debt_ratio)" in alarm for alarm in seen.alarms)
