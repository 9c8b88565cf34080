"""Years of looks in which nothing changes, drawn as counts: what profiles hold, without rows."""

import numpy as np
from scipy.stats import norm

from prodml.gates.drift import Drift, look
from prodml.profile import Bins, Profile

LOOKS = 365
KINDS = ["number"] * 12 + [5] * 4 + [30] * 4


def counts(generator, kind, rows, windows, daily):
    """Counts of a column by window: forty equal bins and `missing`, or levels, that vary daily."""
    if kind == "number":
        edges = norm.ppf(np.arange(1, 40) / 40)
        days = generator.normal(size=(windows, 1)) * daily
        inner = norm.cdf(edges - days)
        share = np.diff(np.hstack([np.zeros((windows, 1)), inner, np.ones((windows, 1))]), axis=1)
        lost = generator.binomial(rows, 0.05, windows)
        kept = [generator.multinomial(rows - m, p) for m, p in zip(lost, share, strict=True)]
        return np.column_stack([kept, lost])
    base = 1 / np.arange(1, kind + 1)
    share = base * np.exp(generator.normal(size=(windows, kind)) * daily)
    share /= share.sum(axis=1, keepdims=True)
    found = [generator.multinomial(rows, p) for p in share]
    return np.column_stack([found, np.zeros((windows, 2), int)])


def year(seed: int, rows: int, windows: int, daily: float) -> Drift:
    """The drift of a year of twenty columns of three kinds in which nothing changes."""
    generator = np.random.default_rng([seed, rows, windows])
    bins, before, after = {}, {}, {}
    for i, kind in enumerate(KINDS):
        numbers = kind == "number"
        bins[f"c{i}"] = (
            Bins(edges=tuple(range(39))) if numbers else Bins(levels=tuple(map(str, range(kind))))
        )
        before[f"c{i}"] = counts(generator, kind, rows, windows, daily)
        after[f"c{i}"] = counts(generator, kind, rows, LOOKS, daily)
    old = Profile(bins, before, np.zeros((windows, 3, 0)))
    return look(old, Profile(bins, after, np.zeros((LOOKS, 3, 0))))
