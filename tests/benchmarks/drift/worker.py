"""Runs jobs with one library, in the environment of that library.

    python worker.py PEER < jobs.jsonl > results.jsonl

Every library at its defaults: what its report over all columns would flag. A result holds, beside
the job, the looks that were measured, those with an alarm, and those whose alarm names a column
that changed; a job that takes too long is cut, and its result says after how many looks.
"""

import json
import logging
import os
import sys
import time
import warnings
from cProfile import Profile
from importlib.metadata import version
from pathlib import Path
from pstats import Stats

os.environ.update(NML_DISABLE_USAGE_LOGGING="1", WHYLOGS_NO_ANALYTICS="True", OMP_NUM_THREADS="1")
os.environ.update(DO_NOT_TRACK="1", TF_CPP_MIN_LOG_LEVEL="3")
warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from streams import changed, first_of, table, tables, windows  # noqa: E402

SECONDS = float(os.environ.get("JOB_SECONDS", "240"))


def numeric(values):
    return pd.api.types.is_numeric_dtype(values)


def evidently(reference, looks):
    """The test that Evidently chooses for each column, as its drift preset with tests does."""
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType

    for look in looks:
        flagged = []
        for name in reference:
            r, c = reference[name].dropna(), look[name].dropna()
            kind = ColumnType.Numerical if numeric(r) else ColumnType.Categorical
            test = get_stattest(r, c, kind, None)
            if len(c) and test(r, c, kind, None).drifted:
                flagged.append(name)
        yield flagged


def nannyml(reference, looks):
    """Univariate drift at its default: Jensen-Shannon, three deviations over chunks."""
    import nannyml as nml

    text = [name for name in reference if not numeric(reference[name])]
    first, looks = first_of(looks)
    calculator = nml.UnivariateDriftCalculator(
        column_names=list(reference), treat_as_categorical=text, chunk_size=len(first)
    ).fit(reference)
    for look in looks:
        found = calculator.calculate(look).filter(period="analysis").to_df()
        yield [n for n in reference if bool(found[(n, "jensen_shannon", "alert")].iloc[0])]


def whylogs(reference, looks):
    """The drift scores of whylogs' own visualiser, category DRIFT."""
    import whylogs as why
    from whylogs.viz.drift.column_drift_algorithms import calculate_drift_scores

    known = why.log(pandas=reference).profile().view()
    for look in looks:
        seen = why.log(pandas=look).profile().view()
        scores = calculate_drift_scores(seen, known, with_thresholds=True)
        yield [n for n, s in scores.items() if s and s["drift_category"] == "DRIFT"]


def alibi(reference, looks):
    """TabularDrift's tests with its Bonferroni correction; it takes no missing values."""
    from alibi_detect.cd import TabularDrift

    tests, codes = {}, {}
    for name in reference:
        values = reference[name].dropna()
        if numeric(values):
            tests[name] = TabularDrift(values.to_numpy(float).reshape(-1, 1), p_val=0.05)
        else:
            codes[name] = {level: i for i, level in enumerate(sorted(values.astype(str).unique()))}
            coded = values.astype(str).map(codes[name]).to_numpy(float).reshape(-1, 1)
            tests[name] = TabularDrift(coded, p_val=0.05, categories_per_feature={0: None})
    for look in looks:
        flagged = []
        for name, test in tests.items():
            values = look[name].dropna()
            if name in codes:
                values = values.astype(str).map(codes[name]).dropna()
            coded = values.to_numpy(float).reshape(-1, 1)
            if len(coded) and test.feature_score(test.x_ref, coded)[0][0] < 0.05 / len(tests):
                flagged.append(name)
        yield flagged


def deepchecks(reference, looks):
    """FeatureDrift's scores and its default condition: 0.2 for each kind of column."""
    from deepchecks.utils.distribution.drift import cramers_v, kolmogorov_smirnov

    for look in looks:
        flagged = []
        for name in reference:
            r, c = reference[name].dropna(), look[name].dropna()
            if numeric(r):
                score = kolmogorov_smirnov(r.to_numpy(), c.to_numpy())
            else:
                score = cramers_v(r.astype(str), c.astype(str), min_category_size_ratio=0.01)
            if score >= 0.2:
                flagged.append(name)
        yield flagged


def counted(reference, looks, windows, sketch=False):
    """prodml's profiles of both, a window for each look."""
    from prodml.contract import Column, Contract
    from prodml.profile import profile

    def described(name):
        if numeric(reference[name]):
            return Column(name, "number", "feature")
        levels = tuple(sorted(reference[name].dropna().astype(str).unique()))
        return Column(name, "category", "feature", levels=levels)

    contract = Contract("b", "binary", "y", ("no", "yes"), tuple(map(described, reference)))
    place = np.arange(len(reference)) * windows // len(reference)
    known = profile(reference, contract, windows=place, sketch=sketch)
    whole = None
    for look in looks:
        seen = profile(look, like=known, sketch=sketch)
        whole = seen if whole is None else whole.merge(seen)
    return known, whole


LEVELS = ("notice", "alert")


def judged(seen, level):
    """The flagged columns of each look: at most 5 % a year for any false one, over all columns."""
    evidence, raised = seen.evidence(level), seen.alarms(level)
    for i in range(len(raised)):
        own = evidence.columns[evidence.iloc[i] >= 1].tolist()
        yield own or (["(all together)"] if raised[i] else [])


def prodml(job, reference, looks):
    """What prodml says of each look, by level."""
    from prodml.gates.drift import look

    many = 30 if job["kind"] == "real" else windows(job["rows"])
    seen = look(*counted(reference, looks, many))
    return {level: list(judged(seen, level)) for level in LEVELS}


def year(job):
    """What prodml says of each day of a year without a change."""
    from years import year

    seen = year(job["seed"], job["rows"], job["windows"], job["day"])
    return {level: list(judged(seen, level)) for level in LEVELS}


def harm(job):
    """The verdicts on the later answers of a model of the early rows of a real table."""
    from harm import watched
    from streams import DATA, REAL

    target, date, drop, share = REAL[job["name"]]
    positive = "yes" if job["name"] == "bank_marketing" else ""
    found = watched(DATA, job["name"], target, date, drop, share, job["looks"], positive)[2]
    worst = ("pass", "inconclusive", "warn", "fail")  # a warning: it was an alarm, and has eased
    verdicts: dict[str, str] = {}
    for one in found.findings:
        before = verdicts.get(one.measure, "pass")
        verdicts[one.measure] = max(before, str(one.verdict), key=worst.index)
    return {"verdicts": verdicts, "measured": job["looks"]}


PEERS = {
    "evidently": evidently,
    "nannyml": nannyml,
    "whylogs": whylogs,
    "alibi": alibi,
    "deepchecks": deepchecks,
}
PACKAGE = {"alibi": "alibi-detect"}


def versions(peer):
    """The library and what it stands on."""
    names = (PACKAGE.get(peer, peer), "numpy", "pandas")
    return ", ".join(f"{name} {version(name)}" for name in names)


def told(job, flagged):
    """The looks, from 1, with an alarm, and those whose alarm names a column that changed."""
    right = {*changed(job), "(pairs)"} if job["kind"] == "change" else set()
    alarms = [i for i, one in enumerate(flagged, 1) if one]
    return {"measured": len(flagged), "alarms": alarms} | (
        {"hits": [i for i in alarms if right & set(flagged[i - 1])]} if right else {}
    )


def run(peer, job):
    """The results of a job, by the name under which they are kept."""
    start = time.process_time()
    if job["kind"] == "harm":
        return {peer: harm(job)}
    if peer == "prodml":
        found = year(job) if job["kind"] == "year" else prodml(job, *tables(job))
        return {f"prodml {level}": told(job, flagged) for level, flagged in found.items()}
    reference, looks = tables(job)
    flagged = []
    for columns in PEERS[peer](reference, looks):
        flagged.append(columns)
        if time.process_time() - start > SECONDS:
            break
    return {peer: told(job, flagged)}


def memory(name):
    """A number of megabytes from the kernel's account of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def report(peer, reference, look, sketch=False):
    """One report on two tables, all of it."""
    if peer != "prodml":
        return list(PEERS[peer](reference, [look]))
    from prodml.gates.drift import drift

    return drift(*counted(reference, [look], 30, sketch), {"max_shift": 0.1}, looks=365)


def costs(work, *arguments):
    """CPU seconds of a call, and the peak of memory beside what was there before."""
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
    before, start = memory("VmRSS"), time.process_time()
    work(*arguments)
    seconds, peak = time.process_time() - start, memory("VmHWM") - before
    return {"seconds": round(seconds, 4), "megabytes": round(peak)}


def speed(peer, job):
    """What one report on two tables costs, and for prodml its parts."""
    generator = np.random.default_rng(job["seed"])
    reference, look = (table(generator, job["columns"], job["rows"]) for _ in range(2))
    report(peer, reference[:1000], look[:1000], *[True] * (peer == "prodml"))  # imports
    found = costs(report, peer, reference, look)
    return {peer: found | (parts(reference, look) if peer == "prodml" else {})}


def parts(reference, look):
    """What whylogs' sketches add, a report from saved profiles, and rows profiled a second."""
    from prodml.gates.drift import drift
    from prodml.profile import profile, read_profile
    from prodml.sketch import _whylogs, make_sketch

    def saved():
        drift(*map(read_profile, files), {"max_shift": 0.1}, looks=365)

    known, seen = counted(reference, [look], 30, sketch=True)
    files = [one.to_bytes() for one in (known, seen)]
    found = {"with sketches": costs(report, "prodml", reference, look, True)}
    found |= {"from saved profiles": costs(saved)["seconds"]}
    works = {
        "counts": lambda: profile(look, like=known, sketch=False),
        "sketch": lambda: make_sketch(look),
        "both": lambda: profile(look, like=known),
        "whylogs alone": lambda: _whylogs().DatasetProfile().track(pandas=look),
    }
    for name, work in works.items():
        found[f"rows a second, {name}"] = round(len(look) / costs(work)["seconds"])
    return found | {"shares of the sketch": shares(works["sketch"])}


def shares(work):
    """The part of the time of a call by where it is spent: whylogs' C++, its Python, the rest."""
    profiler = Profile(time.process_time)
    profiler.runcall(work)
    found = {"its C++": 0.0, "its Python": 0.0, "preparing columns": 0.0}
    for (file, _, name), (_, _, own, _, _) in Stats(profiler).stats.items():
        python = "its Python" if "/whylogs/" in file else "preparing columns"
        found["its C++" if "whylogs_sketching" in name else python] += own
    return {name: round(own / sum(found.values()), 3) for name, own in found.items()}


def main():
    peer = sys.argv[1]
    for line in sys.stdin:
        job = json.loads(line)
        try:
            results = speed(peer, job) if job["kind"] == "speed" else run(peer, job)
        except Exception as error:  # a library that breaks down on a table is a result
            results = {peer: {"error": f"{type(error).__name__}: {error}"[:200]}}
        own = versions(peer)
        lines = [{"peer": n, **job, **found, "versions": own} for n, found in results.items()]
        print(json.dumps(lines, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
