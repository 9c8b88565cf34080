"""Splits, digests and snapshots on tables that no lesson would show."""

import io
import json
import multiprocessing
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prodml.columns import tidy
from prodml.data import parse, read
from prodml.settings import Data, Mistake
from prodml.snapshot import PARTS, digest, load_snapshot, snapshot, split

ROWS = 300
TOY = pd.DataFrame(
    {
        "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(ROWS) // 3, unit="D"),
        "who": [f"p{i % 60}" for i in range(ROWS)],
        "x": np.linspace(0, 1, ROWS),
        "open": [True, None, False] * (ROWS // 3),
        "late": np.where(np.arange(ROWS) % 10 == 0, "yes", "no"),
    }
)


def rows_of(parts):
    """All rows of the parts, as they were numbered in `x`."""
    return np.sort(np.concatenate([getattr(parts, name)["x"] for name in PARTS]))


@pytest.mark.parametrize(
    "asked",
    [
        Data(target="late", time="when"),
        Data(target="late", id="who"),
        Data(target="late"),
        Data(target="x"),
        Data(),
        Data(target="late", validation=0.1, test=0.3),
    ],
)
def test_each_row_is_in_one_part_and_the_shares_are_kept(asked):
    shuffled = TOY.sample(frac=1, random_state=0)
    parts = split(shuffled, asked, seed=3)
    assert (rows_of(parts) == TOY["x"]).all()
    assert len(parts.test) == pytest.approx(asked.test * ROWS, abs=6)
    assert len(parts.validation) == pytest.approx(asked.validation * ROWS, abs=6)
    again = split(shuffled, asked, seed=3)
    assert all(getattr(parts, name).equals(getattr(again, name)) for name in PARTS)
    if not asked.time:
        assert not split(shuffled, asked, seed=4).test.equals(parts.test)


def test_time_is_never_torn_and_runs_forward():
    parts = split(TOY.sample(frac=1, random_state=0), Data(target="late", time="when"))
    assert parts.train["when"].is_monotonic_increasing
    assert parts.train["when"].max() < parts.validation["when"].min()
    assert parts.validation["when"].max() < parts.test["when"].min()


def test_numbers_and_few_moments_are_times_too():
    years = pd.DataFrame({"year": np.repeat([2015, 2016, 2017, 2018], 100), "late": 0})
    parts = split(years, Data(target="late", time="year"))
    assert [set(getattr(parts, name)["year"]) for name in PARTS] == [{2015, 2016}, {2017}, {2018}]


def test_groups_stay_together_and_rows_without_an_id_stand_alone():
    frame = TOY.assign(who=TOY["who"].mask(TOY.index % 2 == 0))
    parts = split(frame, Data(target="late", id="who"))
    names = [set(getattr(parts, name)["who"].dropna()) for name in PARTS]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    assert all(getattr(parts, name)["who"].isna().any() for name in PARTS)


def test_an_id_that_never_repeats_is_no_group():
    frame = TOY.assign(who=range(ROWS))
    assert "class" in split(frame, Data(target="late", id="who")).how


@pytest.mark.parametrize("rare", [5, 10, 25])
def test_a_rare_class_is_in_every_part(rare):
    frame = TOY.assign(late=np.where(TOY.index < rare, "yes", "no")).sample(frac=1, random_state=1)
    parts = split(frame, Data(target="late"))
    assert all((getattr(parts, name)["late"] == "yes").any() for name in PARTS)


@pytest.mark.parametrize(
    ("frame", "asked", "words"),
    [
        (TOY.head(20), Data(target="late", time="when"), "20 rows are too few"),
        (TOY.head(20), Data(target="late"), "about 150 are needed"),
        (TOY.assign(when=7), Data(target="late", time="when"), "too many share one value"),
        (TOY.assign(who="me"), Data(target="late", id="who"), "by group (who)"),
    ],
)
def test_too_few_rows_are_told(frame, asked, words):
    with pytest.raises(Mistake) as caught:
        split(frame, asked)
    assert words in str(caught.value)


# Texts that a CSV file can hold and that mean neither a number, a date nor nothing.
letters = st.text("abcxyz ,;\"'<>äß\n😀", min_size=1).map(lambda text: "t" + text)
COLUMNS = {
    "f": st.floats(allow_infinity=False) | st.none(),
    "i": st.integers(-(2**53), 2**53),
    "b": st.booleans(),
    "s": letters | st.none(),
    "d": st.datetimes(pd.Timestamp("1700-01-01"), pd.Timestamp("2200-01-01")) | st.none(),
}


@settings(max_examples=60)
@given(st.lists(st.fixed_dictionaries(COLUMNS), min_size=1, max_size=8))
def test_the_digest_is_the_same_for_any_format_chunking_and_type(rows):
    frame = pd.DataFrame(rows)
    frame["d"] = pd.to_datetime(frame["d"]).astype("datetime64[us]")
    known = digest(frame)
    text = frame.assign(d=frame["d"].dt.strftime("%Y-%m-%dT%H:%M:%S.%f")).to_csv(index=False)
    table = parse(text.encode())
    assert digest(pd.DataFrame({name: tidy(table[name]) for name in table})) == known
    buffer = io.BytesIO()
    frame.astype({"s": "category", "f": "Float64"}).to_parquet(buffer)
    assert digest(pd.read_parquet(buffer)) == known
    chunks = [frame.iloc[i : i + 2].astype({"i": float}) for i in range(0, len(frame), 2)]
    assert digest(pd.concat(chunks)) == known
    if len(frame.drop_duplicates()) == len(frame) > 1:
        assert digest(frame.iloc[::-1]) != known


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([1, 2], [2, 1]),
        ([1, 2], ["1", "2"]),
        (["a", "bc"], ["ab", "c"]),
        (["a", None], ["a", "None"]),
        ([0.0, None], [0.0, 0.0]),
        ([2**60, 0], [2**60 + 1, 0]),
        ([1e-300, 0], [0, 0]),
        ([True, "x"], [False, "x"]),
    ],
)
def test_the_digest_sees_what_differs(left, right):
    assert digest(pd.DataFrame({"a": left})) != digest(pd.DataFrame({"a": right}))


def test_the_digest_sees_names_order_and_rows():
    frame = pd.DataFrame({"a": [1, 2], "b": [None, None]})
    others = [frame[["b", "a"]], frame.rename(columns={"a": "c"}), frame[["a"]], frame.iloc[:1]]
    assert len({digest(other) for other in [frame, *others]}) == 5
    assert digest(frame) == digest(frame.astype({"b": "str"})) == digest(frame.astype({"a": float}))


def test_small_floats_count_as_the_decimal_that_names_them():
    single = pd.DataFrame({"a": np.array([0.1, 1e-8, np.nan], dtype="float32")})
    assert digest(pd.read_csv(io.StringIO(single.to_csv(index=False)))) == digest(single)
    assert digest(pd.DataFrame({"a": [-0.0]})) == digest(pd.DataFrame({"a": [0]}))


# --- snapshots


@pytest.fixture
def kept(tmp_path):
    """(parts, folder) of a snapshot."""
    parts = split(TOY, Data(target="late", time="when"))
    return parts, snapshot(parts, tmp_path)


def test_a_snapshot_comes_back_as_it_was(kept):
    parts, folder = kept
    back = load_snapshot(folder)
    assert back.how == parts.how
    for name in PARTS:
        assert digest(getattr(back, name)) == digest(getattr(parts, name))
        assert list(getattr(back, name)) == list(TOY)


def test_another_split_has_another_name(kept):
    parts, folder = kept
    assert snapshot(split(TOY, Data(target="late")), folder.parent) != folder
    assert snapshot(parts, folder.parent) == folder


def rewrite(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "train.parquet").unlink(), "no whole data snapshot"),
        (lambda f: os.truncate(f / "test.parquet", 900), "no whole data snapshot"),
        (lambda f: (f / "manifest.json").write_text("{}"), "no whole data snapshot"),
        (lambda f: (f / "manifest.json").write_text("[1"), "no whole data snapshot"),
        (lambda f: TOY.to_parquet(f / "test.parquet"), "test is not what was kept"),
        (lambda f: os.replace(f / "train.parquet", f / "test.parquet"), "no whole data snapshot"),
        (
            lambda f: rewrite(f / "manifest.json", lambda m: m | {"how": "x"}),
            "manifest.json is not",
        ),
    ],
)
def test_a_snapshot_that_was_changed_is_refused(kept, spoil, words):
    parts, folder = kept
    spoil(folder)
    for attempt in (lambda: load_snapshot(folder), lambda: snapshot(parts, folder.parent)):
        with pytest.raises(Mistake) as caught:
            attempt()
        assert words in str(caught.value) and "Delete the folder" in str(caught.value)


def test_a_forged_manifest_does_not_help(kept):
    """Rows and manifest changed to agree: the name of the folder no longer does."""
    _, folder = kept
    forged = load_snapshot(folder).test.assign(late="no")
    forged.to_parquet(folder / "test.parquet")
    digests = json.loads((folder / "manifest.json").read_text())["digests"]
    rewrite(folder / "manifest.json", lambda m: m | {"digests": digests | {"test": digest(forged)}})
    with pytest.raises(Mistake, match="manifest"):
        load_snapshot(folder)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    parts = split(TOY, Data(target="late"))

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="No space"):
        snapshot(parts, tmp_path / "snapshots")
    assert not list((tmp_path / "snapshots").iterdir())


def _keep(folder):
    return str(snapshot(split(TOY, Data(target="late")), folder))


def test_two_runs_at_once_keep_one_snapshot(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        names = pool.map(_keep, [tmp_path] * 6)
    assert len(set(names)) == 1 and [str(p) for p in tmp_path.iterdir()] == names[:1]
    load_snapshot(names[0])


# --- real tables


def test_real_tables_split_and_keep(data, tmp_path):
    bank = Data(source="bank_marketing.csv.gz", target="y", time="contact_date")
    bike = Data(source="bike_sharing_hourly.csv.gz", target="cnt", time="dteday")
    adult = Data(source="adult_census.csv.gz", target="class", missing=("?",))
    for asked in (bank, bike, adult):
        table = read(asked, data)
        parts = split(table, asked, seed=1)
        back = load_snapshot(snapshot(parts, tmp_path))
        sizes = [len(getattr(back, name)) / len(table) for name in PARTS]
        assert sizes == pytest.approx([0.6, 0.2, 0.2], abs=0.02)
        if asked.time:
            assert back.train[asked.time].max() < back.validation[asked.time].min()
            assert back.validation[asked.time].max() < back.test[asked.time].min()
        else:
            shares = [getattr(back, name)[asked.target].eq(">50K").mean() for name in PARTS]
            assert np.ptp(shares) < 0.001
