"""The tables of the benchmark, computed from results.jsonl and from nothing else."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import beta

RESULTS = Path(__file__).resolve().parent / "results.jsonl"
OWN = {"prodml notice": "prodml notice", "prodml alert": "prodml alert"}
PEERS = {
    "evidently": "Evidently",
    "nannyml": "NannyML",
    "whylogs": "whylogs",
    "alibi": "alibi-detect",
    "deepchecks": "Deepchecks",
}
MONITORS = OWN | PEERS
NEVER = "–"


def read(file=RESULTS):
    """Every result, a dict each."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def of(results, kind, monitor, **wanted):
    """The results of one kind and monitor that ran, with these values."""
    found = [r for r in results if r["kind"] == kind and r["peer"] == monitor and "error" not in r]
    return [r for r in found if all(r.get(k) == v for k, v in wanted.items())]


def upper(hits, tries):
    """The exact upper bound (Clopper-Pearson, 95 %) of a rate of which so many hits were seen."""
    return float(beta.ppf(0.95, hits + 1, tries - hits)) if hits < tries else 1.0


def counts(found):
    """Reports with an alarm, reports; runs of looks with any alarm, such runs."""
    reports = sum(r["measured"] for r in found)
    return sum(len(r["alarms"]) for r in found), reports, sum(map(any_alarm, found)), len(found)


def any_alarm(result):
    """Whether a run of looks had an alarm."""
    return bool(result["alarms"])


def sizes(results):
    """The sizes of the tables without a change: (rows, columns), smallest first."""
    return sorted({(r["rows"], r["columns"]) for r in results if r["kind"] == "null"})


def per_report(results):
    """The share of reports with a false alarm, by size and monitor."""
    return by_size(results, lambda a, n, f, m: f"{a / n:.0%}")


def per_run(results):
    """Runs of 30 scheduled reports with any false alarm, of those measured, by size and monitor.

    Where a library was too slow for 30 looks, the number of looks is given.
    """
    return by_size(results, lambda a, n, f, m: f"{f}/{m}" + (f" ({n // m} looks)" * (n < 30 * m)))


def by_size(results, cell):
    """A table of `cell(reports with an alarm, reports, runs with an alarm, runs)`."""
    rows = {}
    for many, columns in sizes(results):
        found = {m: of(results, "null", m, rows=many, columns=columns) for m in MONITORS}
        rows[f"{many:,}", columns] = {
            title: cell(*counts(found[m])) if found[m] else "failed"
            for m, title in MONITORS.items()
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["rows", "columns"])


def bounds(results):
    """prodml's runs of 30 looks without a change: how many, with how many alarms, and the bound."""
    rows = {}
    for monitor in OWN:
        total = [0, 0]
        for many, columns in sizes(results):
            _, _, hits, runs = counts(of(results, "null", monitor, rows=many, columns=columns))
            total = [total[0] + hits, total[1] + runs]
            rows.setdefault(f"{many:,} x {columns}", {"runs": runs})[monitor] = hits
        rows.setdefault("all", {"runs": total[1]})[monitor] = total[0]
    return with_bounds(rows, "runs").rename_axis("rows x columns")


def with_bounds(rows, unit):
    """A table of rows of `unit` and alarms of both levels, with the bound of each level."""
    table = pd.DataFrame.from_dict(rows, orient="index")
    for level in OWN:
        pairs = zip(table[level], table[unit], strict=True)
        table[f"{level} ≤"] = [f"{upper(hits, many):.1%}" for hits, many in pairs]
    return table


def years(results):
    """prodml's simulated years of daily looks without a change, by rows, windows and day effect."""
    rows = {}
    for monitor in OWN:
        kinds = {(r["rows"], r["windows"], r["day"]) for r in of(results, "year", monitor)}
        for kind in sorted(kinds):
            wanted = dict(zip(("rows", "windows", "day"), kind, strict=True))
            _, _, hits, many = counts(of(results, "year", monitor, **wanted))
            name = f"{kind[0]:,} rows, {kind[1]} windows, days vary {kind[2]:g} sd"
            rows.setdefault(name, {"years": many})[monitor] = hits
    return with_bounds(rows, "years")


def days(results):
    """Reports and runs with an alarm where days vary by 0.05 sd, which is no drift."""
    rows = {}
    for monitor, title in MONITORS.items():
        if found := of(results, "day", monitor):
            alarms, reports, hits, runs = counts(found)
            rows[title] = {"reports": f"{alarms / reports:.0%}", "runs": f"{hits}/{runs}"}
    return pd.DataFrame.from_dict(rows, orient="index")


def delay(results, monitor, change, rows):
    """The median of the first look whose alarm names the changed column; infinite if not found."""
    found = of(results, "change", monitor, change=change, rows=rows)
    first = [min(r["hits"], default=np.inf) for r in found]
    return float(np.median(first)) if first else np.nan


def trusted(results, rows, by):
    """The other libraries whose false alarms at 20 columns are under 10 %, by report or by run."""
    found = {}
    for peer in PEERS:
        alarms, reports, hits, runs = counts(of(results, "null", peer, rows=rows, columns=20))
        if runs:
            found[peer] = alarms / reports if by == "report" else hits / runs
    return [peer for peer, rate in found.items() if rate < 0.1]


def delays(results, rows):
    """The delay of every monitor for every change, in looks of so many rows."""
    table = pd.DataFrame(
        {
            title: {c: shown(delay(results, monitor, c, rows)) for c in changes(results)}
            for monitor, title in MONITORS.items()
        }
    )
    return table.rename_axis("change")


def changes(results):
    """The names of the changes, in the order they were run."""
    return list(dict.fromkeys(r["change"] for r in results if r["kind"] == "change"))


def shown(looks):
    """A delay as it is written."""
    return f"{looks:g}" if np.isfinite(looks) else NEVER


def contest(results, rows, by="run", own="prodml notice"):
    """For each change: prodml's delay, that of the best library to be trusted, and who is first."""
    table = {}
    for change in changes(results):
        mine = delay(results, own, change, rows)
        theirs = {p: delay(results, p, change, rows) for p in trusted(results, rows, by)}
        best = min(theirs.values(), default=np.inf)
        names = ", ".join(PEERS[p] for p, d in theirs.items() if d == best and np.isfinite(d))
        words = "neither finds it" if mine == best == np.inf else "the same"
        won = words if mine == best else "prodml" if mine < best else "the other"
        table[change] = {own: shown(mine), "best other": shown(best), "who": names, "first": won}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("change")


def real(results):
    """Of 30 looks at each real table, those with an alarm, and the first of them."""
    names = list(dict.fromkeys(r["name"] for r in results if r["kind"] == "real"))
    table = {}
    for monitor, title in MONITORS.items():
        table[title] = {}
        for name in names:
            found = of(results, "real", monitor, name=name)
            table[title][name] = looked(found[0]) if found else "failed"
    return pd.DataFrame.from_dict(table, orient="index")


def looked(result):
    """The looks of a run with an alarm, and the first of them."""
    alarms = result["alarms"]
    return f"{len(alarms)} of {result['measured']}, from {alarms[0]}" if alarms else "none"


def harm(results):
    """prodml's verdicts on a model of the early rows of each real table, once labels have come."""
    found = {r["name"]: r["verdicts"] for r in of(results, "harm", "prodml")}
    table = pd.DataFrame.from_dict(found, orient="index")
    return table.rename(columns=lambda name: name.replace("_", " "))


def costs(results):
    """CPU seconds and the peak of memory beside the tables, of one report on two tables."""
    table = {}
    for monitor, title in ({"prodml": "prodml"} | PEERS).items():
        for r in of(results, "speed", monitor):
            table.setdefault(title, {})[f"{r['rows']:,} s"] = f"{r['seconds']:.2f}"
            table[title][f"{r['rows']:,} MB"] = r["megabytes"]
            if own := r.get("with sketches"):
                both = table.setdefault("prodml with whylogs' sketches", {})
                both[f"{r['rows']:,} s"] = f"{own['seconds']:.2f}"
                both[f"{r['rows']:,} MB"] = own["megabytes"]
    return pd.DataFrame.from_dict(table, orient="index")


def profiling(results):
    """Thousands of rows of 20 columns a second, by what is made of them, and saved profiles."""
    table = {}
    for r in of(results, "speed", "prodml"):
        rates = {k.removeprefix("rows a second, "): v for k, v in r.items() if "a second" in k}
        row = {name: f"{rate / 1000:,.0f}" for name, rate in rates.items()}
        table[f"{r['rows']:,}"] = row | {"two saved profiles, s": f"{r['from saved profiles']:.3f}"}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("rows")


def shares(results):
    """Where the time of a sketch goes, by rows."""
    found = {f"{r['rows']:,}": r["shares of the sketch"] for r in of(results, "speed", "prodml")}
    return pd.DataFrame(found).T.map("{:.0%}".format).rename_axis("rows")


def versions(results):
    """What every library ran on."""
    found = {r["peer"].split()[0]: r["versions"] for r in results if "versions" in r}
    return pd.DataFrame({"versions": found})


def pager(results, rows=500, columns=20):
    """A figure of every false alarm: a row for each run of 30 looks, a dot for each alarm."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
    heights = []
    for i, monitor in enumerate(MONITORS):
        found = of(results, "null", monitor, rows=rows, columns=columns)[:4]
        for j, one in enumerate(found):
            height = i + 0.18 * j
            axes.plot([1, 30], [height, height], color="0.9", linewidth=0.8, zorder=1)
            axes.scatter(one["alarms"], [height] * len(one["alarms"]), s=9, color="firebrick")
        heights.append(i + 0.27)
    axes.set_yticks(heights, MONITORS.values())
    axes.invert_yaxis()
    axes.set_xlabel(f"look of {rows} rows, {columns} columns, nothing has changed")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    plt.close(figure)
    return figure


def markdown(table, corner=""):
    """A table as Markdown."""
    lines = [[corner, *map(str, table.columns)], ["---"] * (len(table.columns) + 1)]
    lines += [[str(name), *map(str, row)] for name, row in zip(table.index, table.values)]  # noqa: B905
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def short(results):
    """The table that README quotes: false alarms, delays and costs of every monitor."""
    table = {}
    for monitor, title in MONITORS.items():
        row = {}
        for rows in (500, 5000):
            _, _, hits, runs = counts(of(results, "null", monitor, rows=rows, columns=20))
            row[f"false, {rows:,}"] = f"{hits} of {runs}"
        for change in (
            "location +0.25 sd",
            "share +5 pp",
            "missing 5 → 10 %",
            "correlation 0 → 0.4",
        ):
            row[change] = " / ".join(shown(delay(results, monitor, change, n)) for n in (500, 5000))
        (cost,) = of(results, "speed", monitor.split()[0], rows=1_000_000)
        row["1M x 20"] = f"{cost['seconds']:.1f} s, {cost['megabytes']} MB"
        table[title] = row
    return pd.DataFrame.from_dict(table, orient="index")
