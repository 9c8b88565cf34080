"""Runs jobs with one library, in the environment of that library.

    python worker.py PEER < jobs.jsonl > results.jsonl

Every library at its defaults: what its report over all columns would flag. A result holds, for
each look, the flagged columns; a job that takes too long is cut, and says after how many looks.
"""

import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.update(NML_DISABLE_USAGE_LOGGING="1", WHYLOGS_NO_ANALYTICS="True", OMP_NUM_THREADS="1")
os.environ.update(DO_NOT_TRACK="1", TF_CPP_MIN_LOG_LEVEL="3")
warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from streams import changed, table, tables, windows  # noqa: E402

SECONDS = float(os.environ.get("JOB_SECONDS", "150"))


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
    calculator = nml.UnivariateDriftCalculator(
        column_names=list(reference), treat_as_categorical=text, chunk_size=len(looks[0])
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


def counted(reference, looks, windows):
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
    known = profile(reference, contract, windows=place, sketch=False)
    whole = None
    for look in looks:
        seen = profile(look, like=known, sketch=False)
        whole = seen if whole is None else whole.merge(seen)
    return known, whole


def prodml(reference, looks, level="notice", windows=30):
    """The alarms of prodml: at most 5 % a year for any false one, over all columns."""
    from prodml.gates.drift import look

    seen = look(*counted(reference, looks, windows))
    evidence = seen.evidence(level)
    raised = seen.alarms(level)
    for i in range(len(looks)):
        own = evidence.columns[evidence.iloc[i] >= 1].tolist()
        yield own or (["(all together)"] if raised[i] else [])


PEERS = {
    "prodml notice": prodml,
    "prodml alert": lambda r, w, **more: prodml(r, w, "alert", **more),
    "evidently": evidently,
    "nannyml": nannyml,
    "whylogs": whylogs,
    "alibi": alibi,
    "deepchecks": deepchecks,
}


def run(peer, job):
    """The result of a job: the flagged columns of each look."""
    reference, looks = tables(job)
    more = (
        {"windows": 30 if job["kind"] == "real" else windows(job["rows"])}
        if "prodml" in peer
        else {}
    )
    start, flagged = time.process_time(), []
    for columns in PEERS[peer](reference, looks, **more):
        flagged.append(columns)
        if time.process_time() - start > SECONDS:
            break
    seconds = time.process_time() - start
    hit = [bool(set(one) & {*changed(job), "(pairs)"}) for one in flagged]
    return {"alarm": [bool(one) for one in flagged], "hit": hit, "seconds": round(seconds, 3)}


def memory(name):
    """A number of megabytes from the kernel's account of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def speed(peer, job):
    """CPU seconds of one report on two tables, and the peak of memory beside the tables."""
    generator = np.random.default_rng(job["seed"])
    reference, look = (table(generator, job["columns"], job["rows"]) for _ in range(2))
    more = {"windows": 30} if "prodml" in peer else {}
    list(PEERS[peer](reference[:1000], [look[:1000]], **more))  # imports and first calls
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # begin the peak anew
    before, start = memory("VmRSS"), time.process_time()
    list(PEERS[peer](reference, [look], **more))
    seconds, peak = time.process_time() - start, memory("VmHWM") - before
    return {"seconds": round(seconds, 3), "megabytes": round(peak)} | saved(peer, reference, look)


def saved(peer, reference, look):
    """CPU seconds of a report from two saved profiles, where there is such a thing."""
    if peer != "prodml notice":
        return {}
    from prodml.gates.drift import drift
    from prodml.profile import read_profile

    files = [one.to_bytes() for one in counted(reference, [look], 30)]
    start = time.process_time()
    drift(*(read_profile(file) for file in files), {"max_shift": 0.1}, looks=365)
    found = {"from saved profiles": round(time.process_time() - start, 4)}
    start = time.process_time()
    from prodml.profile import profile

    begun = time.process_time() - start
    profile(look, like=read_profile(files[0]))
    spent = time.process_time() - start - begun
    return found | {"profiled rows a second": round(len(look) / spent)}


def main():
    peer = sys.argv[1]
    for line in sys.stdin:
        job = json.loads(line)
        try:
            result = speed(peer, job) if job["kind"] == "speed" else run(peer, job)
        except Exception as error:  # a library that breaks down on a table is a result
            result = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps({"peer": peer, **job, **result}), flush=True)


if __name__ == "__main__":
    main()
