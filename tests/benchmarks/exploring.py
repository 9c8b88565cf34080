"""How fast the explorers answer: `python tests/benchmarks/exploring.py` in a quiet machine.

Each callback is called as a moved slider calls it, with other values each time; the median and the
95th percentile of the wall time in milliseconds, on a small project of the synthetic demo.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from explored import explored

from prodml.gates.evidence import load_evidence
from prodml.lab import explore
from prodml.lab.challenge import Challenge


def timed(calls):
    """(median, 95th percentile) of the milliseconds that each of `calls` takes."""
    took = []
    for call in calls:
        begun = time.perf_counter()
        call()
        took.append(1000 * (time.perf_counter() - begun))
    return np.quantile(took, [0.5, 0.95])


def setting(trait, name, values):
    """Calls that set `name` of a widget to each of `values`."""
    return [lambda value=value: setattr(trait, name, value) for value in values]


def main(root):
    """Nothing; prints a line for each explorer."""
    settings, *folders = explored(root)
    rows = []
    for kind, folder in zip(("linear", "xgboost"), folders, strict=True):
        one = explore.what_if(load_evidence(folder), settings)
        moved = one.form.inputs["debt_ratio"].control
        steps = np.linspace(moved.min, moved.max, 200)
        rows.append((f"what if, a slider ({kind})", *timed(setting(moved, "value", steps))))
        rows.append((f"what if, a row ({kind})", *timed(setting(one.row, "value", range(1, 100)))))
        found = [one.suggestions.button.click for _ in range(10)]
        rows.append((f"what if, suggestions ({kind})", *timed(found)))
    evidence = load_evidence(folders[0])
    cut = explore.threshold(evidence, settings)
    judged, cut._judge_soon = cut.judged, lambda: None
    steps = np.arange(0.02, 0.98, 0.01)
    rows.append(("threshold, the figures", *timed(setting(cut.slider, "value", steps))))

    def verdict(value):
        cut.slider.value = value
        return judged

    later = [(verdict(value), cut.judge.known.clear())[0] for value in (0.2,)] * 40
    fresh = [lambda call=call: (cut.judge.known.clear(), call()) for call in later]
    rows.append(("threshold, the gate when it rests", *timed(fresh)))
    drift = explore.over_time(evidence, settings)
    columns = drift.moved.columns * 5
    rows.append(("drift, a column", *timed(setting(drift.column, "value", columns))))
    contest = Challenge(settings)
    rows.append(("challenger, the page again", *timed([contest.roster.refresh] * 20)))
    for name, middle, most in rows:
        print(f"{name:36} {middle:7.1f} ms  {most:7.1f} ms")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as room:
        main(room)
