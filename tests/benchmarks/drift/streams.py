"""The tables of the benchmark: seeded, and the same in every environment (NumPy and pandas only).

A job is a dict: kind, rows (of a look), columns, looks, seed, and for a change its name.
"""

from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
FIVE = np.array([0.40, 0.30, 0.15, 0.10, 0.05])
THIRTY = 1 / np.arange(1, 31)
WINDOWS = 30  # of the reference, each as large as a look, where that is affordable
CHANGES = {
    "location +0.10 sd": {"location": 0.10},
    "location +0.25 sd": {"location": 0.25},
    "location +0.50 sd": {"location": 0.50},
    "variance x1.25": {"spread": 1.25**0.5},
    "share +5 pp": {"share": 0.05},
    "share +10 pp": {"share": 0.10},
    "missing 5 → 10 %": {"missing": 0.10},
    "missing 5 → 20 %": {"missing": 0.20},
    "correlation 0 → 0.4": {"correlation": 0.4},
}
REAL = {  # file: target, time, dropped, share of the time that is the reference
    "acs_employment_ma": ("employed", "year", [], 0.2),
    "bank_marketing": ("y", "contact_date", ["duration", "month", "day"], 0.33),
    "elec2": ("price_up", "timestamp", ["date", "nswprice"], 0.33),
    "ne_weather": ("rain", "day_index", [], 0.33),
}


def windows(rows: int) -> int:
    """How many windows of so many rows the reference has."""
    return WINDOWS if rows <= 5000 else 10


def column(generator, kind, rows, day=0.0, change=None):
    """Values of one column; `day` is the daily variation in standard deviations."""
    change = change or {}
    if kind < 3:
        base = (
            generator.standard_t(5, rows) / (5 / 3) ** 0.5
            if kind == 2
            else generator.normal(size=rows)
        )
        values = base * change.get("spread", 1.0) + change.get("location", 0.0)
        values = values + generator.normal() * day
        values = np.exp(values) if kind == 1 else values
        if kind == 0:
            values[generator.random(rows) < change.get("missing", 0.05)] = np.nan
        return values
    share = FIVE if kind == 3 else THIRTY / THIRTY.sum()
    share = share * np.exp(generator.normal(size=len(share)) * day)
    share = share / share.sum()
    share[0] -= change.get("share", 0.0)
    share[2] += change.get("share", 0.0)
    names = np.array([f"level{i:02d}" for i in range(len(share))], object)
    return names[generator.choice(len(share), rows, p=share)]


def table(generator, columns, rows, day=0.0, change=None):
    """One window of `columns` columns of five kinds in turn; the first that fits has the change."""
    change = change or {}
    made = {}
    hit = 3 if "share" in change else 0
    for i in range(columns):
        own = change if i == hit else {}
        made[f"c{i:03d}"] = column(generator, i % 5, rows, day, own)
    if "correlation" in change:
        r = change["correlation"]
        known = np.nan_to_num(made["c000"])
        made["c005"] = r * known + (1 - r * r) ** 0.5 * generator.normal(size=rows)
        made["c005"][generator.random(rows) < 0.05] = np.nan
    return pd.DataFrame(made)


def changed(job):
    """The columns in which the change of a job shows."""
    change = CHANGES.get(job.get("change", ""), {})
    return (
        ["c003"] if "share" in change else ["c000", "c005"] if "correlation" in change else ["c000"]
    )


def tables(job):
    """The reference of a job, and its looks one after another: all at once may not fit."""
    if job["kind"] == "real":
        return real(job)
    generator = np.random.default_rng([job["seed"], job["rows"], job["columns"]])
    day, change = job.get("day", 0.0), CHANGES.get(job.get("change", ""), {})
    many = windows(job["rows"])
    reference = [table(generator, job["columns"], job["rows"], day) for _ in range(many)]
    looks = (
        table(generator, job["columns"], job["rows"], day, change) for _ in range(job["looks"])
    )
    return pd.concat(reference, ignore_index=True), looks


def first_of(looks):
    """The first look, and all of them."""
    looks = iter(looks)
    first = next(looks)
    return first, chain([first], looks)


def real(job):
    """A real table: its early rows, and equal looks at the later ones; ties of time in no order."""
    target, time, drop, share = REAL[job["name"]]
    frame = pd.read_csv(DATA / f"{job['name']}.csv.gz", low_memory=False)
    frame = frame.sample(frac=1, random_state=0).sort_values(time, kind="stable")
    frame = frame.reset_index(drop=True)
    edge = frame[time].iloc[int(len(frame) * share) - 1]
    late = frame[time] > edge
    frame = frame.drop(columns=[target, time, *drop])
    later = frame[late].reset_index(drop=True)
    place = np.arange(len(later)) * job["looks"] // len(later)
    return frame[~late].reset_index(drop=True), (later[place == i] for i in range(job["looks"]))
