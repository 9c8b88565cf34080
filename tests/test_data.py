"""What tables come as: every format, every place, and every way of not being what they seem."""

import gzip
import io
import sqlite3
import traceback
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from prodml.columns import plain, tidy
from prodml.data import parse, read, shown
from prodml.settings import Data, Mistake

ROWS = "when,age,town,late\n2024-01-01,31,Rome,yes\n2024-01-02,,Oslo,no\n2024-02-01,50,,no\n"
ASKED = Data(source="table.csv", target="late")


def told(asked, root):
    """What the `Mistake` says that reading `asked` raises; never a traceback's worth."""
    with pytest.raises(Mistake) as caught:
        read(asked, root)
    message = str(caught.value)
    assert caught.value.__suppress_context__ and len(message) < 600
    return message


def write(root, content, name="table.csv"):
    content = content.encode() if isinstance(content, str) else content
    (root / name).write_bytes(content)
    return Data(source=name, target="late")


def parquet(frame, **options):
    buffer = io.BytesIO()
    frame.to_parquet(buffer, **options)
    return buffer.getvalue()


# --- every place and format gives the same table


def places(root):
    """The same table, kept in every way."""
    frame = parse(ROWS.encode())
    (root / "table.csv").write_text(ROWS)
    (root / "table.csv.gz").write_bytes(gzip.compress(ROWS.encode()))
    (root / "bom.csv").write_bytes(b"\xef\xbb\xbf" + ROWS.replace("\n", "\r\n").encode())
    (root / "table.parquet").write_bytes(parquet(frame))
    typed = frame.astype({"when": "datetime64[ns]", "town": "category", "age": "Int64"})
    (root / "typed.parquet").write_bytes(parquet(typed))
    (root / "indexed.pq").write_bytes(parquet(frame.set_index("when")))
    (root / "filtered.parquet").write_bytes(parquet(pd.concat([frame, frame])[3:]))
    with sqlite3.connect(root / "table.db") as connection:
        frame.to_sql("loans", connection, index=False)
    with fsspec.open("memory://places/table.csv.gz", "wb") as file:
        file.write(gzip.compress(ROWS.encode()))
    files = [p.name for p in sorted(root.iterdir()) if p.suffix != ".db"]
    yield from (Data(source=name) for name in files)
    yield Data(source="memory://places/table.csv.gz")
    yield Data(source="file://" + str(root / "table.parquet"))
    yield Data(source="sqlite:///table.db", query="select * from loans where town <> ':x%' or 1")


def test_every_place_and_format_gives_the_same_table(tmp_path):
    tables = {asked.source: read(asked, tmp_path) for asked in places(tmp_path)}
    assert len(tables) == 10
    first = tables["table.csv"]
    assert first["when"].dtype == "datetime64[us]" and first["age"].dtype == "float64"
    for source, table in tables.items():
        pd.testing.assert_frame_equal(table, first, obj=source)


def test_a_query_leaves_the_database_as_it_was(tmp_path):
    with sqlite3.connect(tmp_path / "table.db") as connection:
        connection.execute("create table loans (a, late)")
        connection.execute("insert into loans values (1, 2)")
    told(Data(source="sqlite:///table.db", query="delete from loans"), tmp_path)
    again = read(Data(source="sqlite:///table.db", query="select * from loans"), tmp_path)
    assert len(again) == 1


# --- files that are not what they seem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<!DOCTYPE html>\n<html><body>Log in</body></html>", "a web page"),
        ("\n  <HTML><p>404", "a web page"),
        ('{"error": "not found"}', "JSON"),
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        ("when,age,town,late\n", "no rows"),
        ("a,late,a\n1,2,3\n", "two columns are called 'a'"),
        ("a,late, a \n1,2,3\n", "two columns are called 'a'"),
        ("age;late\n31;no\n", "';' separates its fields"),
        ("age\tlate\n31\tno\n", "'\\t' separates its fields"),
        ("late\nno\nyes\n", "one column only, ['late']"),
        ("a,late\n1,2,3\n4,5,6\n", "more fields than the header"),
        ("a,late\n1,2\n4,5,6\n", "line 3"),
        ('a,late\n"1,2\n3,4\n', "inside string"),
        ("a,late\nM\xfcnchen,2\n".encode("latin-1"), "not UTF-8"),
        ("a,late\n1,2\n".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04" + b"\0" * 50, "zip or Excel"),
        (b"SQLite format 3\0", "sqlite:///"),
        (gzip.compress(ROWS.encode() * 500, mtime=0)[:-30], "gzip file is cut short"),
        (
            gzip.compress(ROWS.encode(), mtime=0)[:-8] + b"damaged!",
            "gzip file is cut short or damaged",
        ),
        (parquet(pd.DataFrame({"a": range(100), "late": 1}))[:400], "Parquet file is cut short"),
        (parquet(pd.DataFrame({"a": [[1], [2]], "late": 1})), "'a' holds lists"),
    ],
)
def test_a_file_that_is_no_table_is_told_by_name(tmp_path, content, words):
    message = told(write(tmp_path, content), tmp_path)
    assert words in message and message.startswith("table.csv: ")


def test_duplicate_names_in_parquet_and_sql(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table([[1], [2], [3]], names=["late", "a", "a"]), tmp_path / "twice.parquet"
    )
    assert "'a'" in told(Data(source="twice.parquet"), tmp_path)
    assert "'a'" in told(Data(source="sqlite://", query="select 1 as a, 2 as a"), tmp_path)


def test_a_column_to_be_dropped_may_hold_anything(tmp_path):
    asked = write(tmp_path, parquet(pd.DataFrame({"a": [[1], [2]], "b": 2, "late": 1})))
    assert list(read(replace(asked, drop=("a",)), tmp_path)) == ["b", "late"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gone.csv", "no such file"),
        (".", "directory"),
        ("sqlite:///gone.db", "no such file"),
        ("memory://gone.csv", "no such file"),
        ("nosuch://bucket/table.csv", "nosuch"),
        ("s3+nosuch://bucket/table.csv", "nosuch"),
    ],
)
def test_a_place_where_nothing_is(tmp_path, source, words):
    query = "select 1" if source.startswith("sqlite") else ""
    assert words in told(Data(source=source, query=query), tmp_path).lower()
    assert not list(tmp_path.iterdir()), "nothing was made"


@pytest.mark.parametrize(
    "source",
    [
        "postgresql+nodriver://zoe:hunter2@db.example/credit",
        "postgresql://zoe:hunter2@nohost.invalid:not_a_port/credit",
        "nosuchdialect://zoe:hunter2@db.example/credit",
        "mysql://zoe:p@ss/hunter2@db.example/credit",
        "sqlite:///gone.db?key=hunter2",
        "nosuch://zoe:hunter2@host/table.csv",
        "https://hunter2@nohost.invalid:-1/table.csv?signature=hunter2",
        "ftp://zoe:hunter%32@nohost.invalid:-1/table.csv",
    ],
)
def test_a_password_is_never_told(tmp_path, source):
    message = told(Data(source=source, query="select 1" if "csv" not in source else ""), tmp_path)
    assert "hunter2" not in message and "hunter%32" not in message and "zoe" not in message
    try:
        read(Data(source=source, query="select 1" if "csv" not in source else ""), tmp_path)
    except Mistake:
        assert "hunter2" not in traceback.format_exc().replace(source, "")
    assert shown("../folder/table.csv") == "../folder/table.csv"


@pytest.mark.parametrize("query", ["", "select 1"])
def test_a_driver_that_tells_the_password_is_not_quoted(monkeypatch, query):
    """Some put the whole URL, or the password as it was meant, into their errors."""

    def open_it(url, *arguments):
        raise RuntimeError(f"cannot log in to {url} with 'hunter 2'")

    monkeypatch.setattr("fsspec.open", open_it)
    monkeypatch.setattr("sqlalchemy.create_engine", open_it)
    url = "mysql://zoe:hunter%202@host/table?token=opensesame"
    source = url if query else url.replace("mysql", "s3")
    message = told(Data(source=source, query=query), Path())
    assert "cannot log in to" in message
    assert not any(secret in message for secret in ("hunter", "opensesame"))


@pytest.mark.parametrize(
    ("query", "words"),
    [("", "query"), ("selekt 1", "selekt"), ("select 1 as a, 2 as b where 0", "rows")],
)
def test_a_query_that_is_none(query, words):
    assert words in told(Data(source="sqlite://", query=query), Path())


# --- columns


@pytest.mark.parametrize("key", ["target", "time", "id", "sensitive", "drop"])
def test_an_unknown_column_is_told_with_the_one_like_it(tmp_path, key):
    asked = write(tmp_path, ROWS)
    value = ("twon",) if key in ("sensitive", "drop") else "twon"
    message = told(replace(asked, **{key: value}), tmp_path)
    assert "'twon'" in message and f"[data] {key}" in message and "'town'?" in message


@pytest.mark.parametrize(
    "name", ["net income", 'the "best"', "it's", "<script>alert(1)</script>", "ü,b", "a\nb"]
)
def test_names_may_hold_anything(tmp_path, name):
    frame = pd.DataFrame({name: [1.5, 2], "late": ["yes", "no"]})
    for content in (frame.to_csv(index=False), parquet(frame)):
        asked = replace(write(tmp_path, content), sensitive=(name,))
        assert list(read(asked, tmp_path).columns) == [name, "late"]
    assert repr(name) in told(
        replace(asked, sensitive=(), target=name[:-1], drop=(name,)), tmp_path
    )


def test_spaces_around_names_do_not_count(tmp_path):
    assert list(read(write(tmp_path, "age , late\n1,2\n"), tmp_path)) == ["age", "late"]


def test_markers_of_the_missing_are_the_same_in_every_format(tmp_path):
    frame = pd.DataFrame(
        {"n": ["1", " ?", "3"], "t": ["?", "x", " "], "i": [-9, 1, 2], "late": "no"}
    )
    text = replace(write(tmp_path, frame.to_csv(index=False)), missing=("?", "-9"))
    table = read(text, tmp_path)
    assert table["n"].isna().tolist() == [False, True, False] and table["n"].dtype == float
    assert table["t"].isna().tolist() == [True, False, True]
    assert table["i"].isna().tolist() == [True, False, False]
    typed = frame.assign(n=[1, None, 3])
    again = read(replace(write(tmp_path, parquet(typed)), missing=("?", "-9")), tmp_path)
    pd.testing.assert_frame_equal(table, again)


@pytest.mark.parametrize(
    ("cells", "missing"),
    [
        (["1", "NA", "2"], [False, True, False]),
        (["1", "nan", "None"], [False, True, True]),
        (["DE", "NA", "None"], [False, False, False]),
        (["1", "x", "NA"], [False, False, False]),
        (["NA", "", "NA"], [False, True, False]),
    ],
)
def test_na_is_missing_among_numbers_and_a_level_among_texts(cells, missing):
    table = parse(("a,b\n" + "".join(f"{cell},1\n" for cell in cells)).encode())
    assert table["a"].isna().tolist() == missing


def test_infinite_values_stay_for_the_contract_to_refuse():
    table = parse(b"a,b\n1,inf\n2,-inf\n")
    assert np.isinf(table["b"]).all()


@pytest.mark.parametrize(
    ("values", "dtype", "kept"),
    [
        ([1, None], "Int64", [1.0, None]),
        ([True, None], "boolean", [True, None]),
        ([True, False], object, [True, False]),
        (["a", None], "category", ["a", None]),
        ([2, None, 1], "category", [2.0, None, 1.0]),
        ([None, None], object, [None, None]),
        ([Decimal("1.5"), None], object, [1.5, None]),
        ([date(9999, 12, 31), None], object, [pd.Timestamp("9999-12-31"), None]),
        ([1, "a", None], object, ["1", "a", None]),
        ([b"a", None], object, ["a", None]),
        ([10**30, 1], object, [1e30, 1.0]),
        ([1 + 2j], complex, ["(1+2j)"]),
        (["2024-06-01 02:00"], "datetime64[ns, Europe/Rome]", [pd.Timestamp("2024-06-01")]),
        ([pd.Period("2024-01")], "period[M]", ["2024-01"]),
    ],
)
def test_columns_become_plain(values, dtype, kept):
    column = plain(pd.Series(values, dtype=dtype, index=range(5, 5 + len(values)), name="c"))
    assert [None if pd.isna(value) else value for value in column] == kept
    assert column.name == "c" and list(column.index) == list(range(5, 5 + len(values)))
    pd.testing.assert_series_equal(plain(column), column)


def test_dates_are_found_and_zones_are_brought_to_utc():
    assert tidy(pd.Series(["2024-01-01T01:00:00+02:00"]))[0] == pd.Timestamp("2023-12-31 23:00")
    assert tidy(pd.Series(["2024-01-01", "2024-02-31"])).dtype == "str"
    assert tidy(pd.Series(["2024-01-01", "next week"])).dtype == "str"
    assert tidy(pd.Series(["20240101", "2024"])).dtype == "str"


# --- time


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("31/12/2024", "1 of 3 values are no dates"),
        ("2024-02-31", "row 2 is '2024-02-31'"),
        ("0000-00-00", "row 2 is '0000-00-00'"),
        ("9999-12-31", "row 2 is '9999-12-31"),
        ("0001-01-01", "between 1678 and 2261"),
        ("", "row 2 is empty"),
        ("soon", "Write dates as 2027-01-31"),
    ],
)
def test_a_time_that_is_none_is_counted_and_shown(tmp_path, cell, words):
    asked = replace(write(tmp_path, ROWS.replace("2024-01-02", cell)), time="when")
    message = told(asked, tmp_path)
    assert words in message and "'when'" in message


@pytest.mark.parametrize(
    ("cells", "wrong"),
    [(("true", "false"), 2), (("1", "inf"), 1), (("1", ""), 1), (("1", "NA"), 1)],
)
def test_numbers_are_times_and_truths_are_not(tmp_path, cells, wrong):
    content = "t,late\n" + "".join(f"{cell},1\n" for cell in cells)
    assert f"{wrong} of 2" in told(replace(write(tmp_path, content), time="t"), tmp_path)


def test_rows_of_a_time(tmp_path):
    asked = replace(write(tmp_path, ROWS), time="when")
    assert len(read(replace(asked, since="2024-01-02"), tmp_path)) == 2
    assert len(read(replace(asked, until="2024-02-01T00:00:00Z"), tmp_path)) == 2
    numbered = replace(write(tmp_path, "t,late\n1,1\n2,1\n3,1\n"), time="t", since="2", until="3")
    assert read(numbered, tmp_path)["t"].tolist() == [2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"since": "2030-01-01"}, "runs from 2024-01-01"),
        ({"since": "2024-01-03", "until": "2024-01-02"}, "no rows"),
        ({"until": "soon"}, "[data] until = 'soon'"),
        ({"until": "2024-13-01"}, "a date such as"),
        ({"time": "", "since": "2024-01-01"}, "[data] time"),
    ],
)
def test_a_time_asked_for_that_cannot_be(tmp_path, change, words):
    asked = replace(write(tmp_path, ROWS), time="when")
    assert words in told(replace(asked, **change), tmp_path)


# --- real tables


@pytest.mark.parametrize(
    ("name", "asked", "rows", "kinds"),
    [
        (
            "bank_marketing",
            Data(target="y", time="contact_date", sensitive=("age", "marital"), drop=("duration",)),
            40_004,
            {"contact_date": "datetime64[us]", "age": "int64", "job": "str"},
        ),
        (
            "bike_sharing_hourly",
            Data(target="cnt", time="dteday", drop=("casual", "registered"), since="2012-01-01"),
            8_734,
            {"dteday": "datetime64[us]", "temp": "float64"},
        ),
        (
            "compas_two_years",
            Data(target="two_year_recid", time="compas_screening_date", until="2014-04-01"),
            None,
            {"screening_date": "datetime64[us]", "decile_score.1": "int64"},
        ),
        (
            "adult_census",
            Data(target="class", missing=("?",), sensitive=("sex", "race")),
            48_842,
            {"workclass": "str", "age": "int64"},
        ),
    ],
)
def test_real_tables_are_read(data, name, asked, rows, kinds):
    table = read(replace(asked, source=f"{name}.csv.gz"), data)
    assert rows is None or len(table) == rows
    assert {column: str(table[column].dtype) for column in kinds} == kinds
    assert not set(asked.drop) & set(table.columns)
    if asked.missing:
        assert not (table == "?").any(axis=None) and table["workclass"].isna().sum() > 1000
