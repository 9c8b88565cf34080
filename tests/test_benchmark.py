"""The benchmark of drift monitors is whole, README quotes it, and what is claimed holds in it."""

import importlib.util
import json
import re
import sys

import pytest
from conftest import ROOT
from scipy.stats import binom

DRIFT = ROOT / "tests" / "benchmarks" / "drift"
sys.path.append(str(DRIFT))

import run  # noqa: E402
import tables  # noqa: E402

RESULTS = tables.read()
LEVELS = list(tables.OWN)


@pytest.mark.parametrize("peer", run.EVERYONE)
def test_every_job_has_one_result_in_one_environment(peer):
    own = [r for r in RESULTS if r["peer"].split()[0] == peer]
    monitors = {r["peer"] for r in own}
    assert monitors == ({peer, *LEVELS} if peer == "prodml" else {peer})
    keys = [(r["peer"], run.key(r)) for r in own]
    assert len(set(keys)) == len(keys)
    asked = {run.key({"peer": peer, **job}) for job in run.jobs(peer)}
    assert asked <= {key for _, key in keys}
    assert len({r["versions"] for r in own if "versions" in r}) == 1


@pytest.mark.parametrize("monitor", LEVELS)
def test_false_alarms_are_within_five_per_cent_at_every_size_and_over_a_year(monitor):
    assert len(tables.sizes(RESULTS)) == 12
    null = tables.of(RESULTS, "null", monitor)
    for rows, columns in tables.sizes(RESULTS):
        found = [r for r in null if (r["rows"], r["columns"]) == (rows, columns)]
        assert all(r["measured"] == 30 for r in found)
        _, _, hits, runs = tables.counts(found)
        assert hits <= binom.ppf(0.95, runs, 0.05), (rows, columns)
    assert tables.upper(*tables.counts(null)[2:]) < 0.05
    for rows, windows, day, _ in run.YEARS:
        years = tables.of(RESULTS, "year", monitor, rows=rows, windows=windows, day=day)
        assert {r["measured"] for r in years} == {365} and len(years) >= 60
        assert tables.upper(*tables.counts(years)[2:]) < 0.05
    assert tables.upper(*tables.counts(tables.of(RESULTS, "day", monitor))[2:]) < 0.15


def test_real_tables_alarm_where_they_should_and_only_there():
    alert = {r["name"]: r["alarms"] for r in tables.of(RESULTS, "real", "prodml alert")}
    harm = {r["name"]: set(r["verdicts"].values()) for r in tables.of(RESULTS, "harm", "prodml")}
    assert alert["acs_employment_ma"] == [] and harm["acs_employment_ma"] == {"pass"}
    for name in ("bank_marketing", "elec2"):
        assert alert[name][0] <= 10 and harm[name] & {"fail", "warn"}
    assert not harm["ne_weather"] & {"fail", "warn"}


@pytest.mark.parametrize("rows", [500, 5000])
def test_notices_are_no_slower_than_any_library_that_can_be_left_on(rows):
    assert tables.trusted(RESULTS, rows, "run")
    assert "the other" not in set(tables.contest(RESULTS, rows)["first"])
    assert "the other" in set(tables.contest(RESULTS, rows, by="report")["first"])  # it can lose


def test_a_report_of_a_million_rows_is_cheap():
    """Of what was measured then, not of this machine now."""
    (found,) = tables.of(RESULTS, "speed", "prodml", rows=1_000_000)
    assert found["seconds"] <= 5 and found["megabytes"] <= 500
    assert found["from saved profiles"] <= 0.1 and found["rows a second, both"] >= 200_000


def test_readme_quotes_the_results():
    assert tables.markdown(tables.short(RESULTS)) in (ROOT / "README.md").read_text()


def texts(html):
    """The texts of the cells of an HTML table."""
    return re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", html)


def test_the_notebook_shows_the_results():
    cells = json.loads((DRIFT / "benchmark.ipynb").read_text())["cells"]
    shown = 0
    for cell in cells:
        found = re.search(r"^(tables\.\w+\(results.*\))$", "".join(cell["source"]), re.M)
        if cell["cell_type"] == "code" and found and "pager" not in found[1]:
            table = eval(found[1], {"tables": tables, "results": RESULTS})
            html = "".join(cell["outputs"][0]["data"]["text/html"])
            assert texts(html) == texts(table._repr_html_()), found[1]
            shown += 1
    assert shown >= 15


def test_readme_quotes_the_endpoint_and_its_claims_hold():
    spec = importlib.util.spec_from_file_location("table", DRIFT.parent / "serving" / "table.py")
    told = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(told)
    servers, readme = told.results(), (ROOT / "README.md").read_text()
    assert told.markdown(servers) in readme
    rate = {name: one["16"]["rate"] for name, one in servers.items()}
    assert f"{rate['prodml'] / rate['fastapi']:.0f} times FastAPI" in readme
    assert f"{rate['prodml'] / rate['noop']:.0%}".replace("%", " %") + " of what" in readme
    assert f"cost {1 - rate['prodml'] / rate['prodml quiet']:.0%}".replace("%", " %") in readme
    assert rate["prodml"] >= 30 * rate["fastapi"] and servers["prodml"]["ready"] <= 2
    assert rate["prodml"] >= 0.5 * rate["noop"] and rate["prodml"] >= 0.9 * rate["prodml quiet"]
    assert servers["prodml"]["memory"] <= 150
    assert not any(one[many]["failed"] for one in servers.values() for many in ("1", "16", "64"))
