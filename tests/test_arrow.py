"""Arrow streams: the answer of the same rows in JSON, and no stream that breaks the server."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prodml.contract import Column, Contract, check_rows
from prodml.serve.arrow import decode_arrow, encode_arrow
from prodml.serve.decoder import Unreadable, with_ids
from prodml.serve.scorer import Scorer, answer_facts, score
from prodml.serve.stream import MOST_COLUMNS

COLUMNS = (
    Column("amount", "number", "feature", True, 0, 100, fill=50.0),
    Column("odd name", "integer", "feature", False, 1, 9, on_range="reject", fill=5.0),
    Column("filled", "number", "feature", False, on_missing="impute", fill=0.5),
    Column("flag", "boolean", "feature", True, 0, 1, fill=0.0),
    Column("town", "category", "feature", True, levels=("Oslo", "Zürich"), fill="Oslo"),
    Column("job", "category", "feature", False, levels=("cook",), on_unseen="reject", fill="cook"),
    Column("number", "text", "id"),
)
CONTRACT = Contract("toy", "binary", "late", ("no", "yes"), COLUMNS)
ROW = {"amount": 3.5, "odd name": 2, "filled": 0.5, "flag": True, "town": "Oslo", "job": "cook"}


def stream(table, chunk=1000, **options):
    """The Arrow stream of `table`."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table, max_chunksize=chunk)
    return sink.getvalue().to_pybytes()


def same(table, chunk=1000):
    """Holds that a stream of `table` is read as its rows would be in JSON; gives what was read."""
    rows = table.to_pylist()
    found, ids = decode_arrow(CONTRACT, stream(table, chunk), 1000), [r.get("number") for r in rows]
    got, exact = found.checked, with_ids(CONTRACT, check_rows(CONTRACT, rows), ids).checked
    assert (got.problems, got.rejected, got.counts) == (
        exact.problems,
        exact.rejected,
        exact.counts,
    )
    for name, values in exact.columns.items():
        assert got.columns[name].dtype == values.dtype
        np.testing.assert_array_equal(got.columns[name], values)
    return found


INTS = st.none() | st.integers(-3, 110) | st.sampled_from([2**53 + 1, -(2**62)])
FLOATS = st.none() | st.floats(-5, 120) | st.sampled_from([np.nan, np.inf, 1e39, 3.0])
TEXTS = st.none() | st.sampled_from(["Oslo", "Zürich", "cook", "", "x", "12"])
TRUTHS = st.none() | st.booleans()
DECIMAL = st.none() | st.decimals(0, 9, places=2)
DATES = st.none() | st.dates()
KINDS = {
    pa.int64(): INTS,
    pa.int8(): st.none() | st.integers(-128, 127),
    pa.uint16(): st.none() | st.integers(0, 200),
    pa.uint64(): st.none() | st.integers(0, 2**64 - 1),
    pa.float64(): FLOATS,
    pa.float32(): st.none() | st.floats(-5, 120, width=32),
    pa.float16(): st.none() | st.floats(-5, 120, width=16).map(np.float16),
    pa.bool_(): TRUTHS,
    pa.string(): TEXTS,
    pa.large_string(): TEXTS,
    pa.dictionary(pa.int8(), pa.string()): TEXTS,
    pa.dictionary(pa.uint32(), pa.large_string()): TEXTS,
    pa.dictionary(pa.int64(), pa.int64()): st.none() | st.integers(-3, 110),
    pa.null(): st.none(),
    pa.decimal128(5, 2): DECIMAL,
    pa.date32(): DATES,
    pa.binary(): st.none() | st.binary(max_size=3),
}


@st.composite
def tables(draw):
    rows, columns = draw(st.integers(0, 30)), {}
    for column in [*COLUMNS, Column("extra", "text", "ignored")]:
        usual = pa.float64() if column.numeric else pa.string()
        kind = draw(st.sampled_from([None, usual, usual, *KINDS]))
        if kind is not None:
            values = draw(st.lists(KINDS[kind], min_size=rows, max_size=rows))
            columns[column.name] = pa.array(values, kind)
    return pa.table(columns) if columns else pa.table({"amount": pa.nulls(rows)})


@settings(max_examples=400)
@given(tables(), st.integers(1, 12))
def test_a_stream_is_read_as_its_rows_would_be(table, chunk):
    same(table, chunk)


def test_good_columns_take_the_quick_way_and_ids_come_back(monkeypatch):
    from prodml.serve import arrow, decoder

    def never(*arguments):
        raise AssertionError("value by value")

    monkeypatch.setattr(arrow, "check_values", never)
    monkeypatch.setattr(decoder, "check_values", never)
    table = pa.Table.from_pylist([ROW | {"number": f"n-{i}"} for i in range(50)])
    coded = table.set_column(5, "job", table["job"].dictionary_encode())
    for one in (table, coded, table.slice(5, 20)):
        found = same(one)
        assert found.ids == [f"n-{i}" for i in range(50)][: len(found.ids)] or found.ids[0] == "n-5"
    numbered = table.set_column(6, "number", pa.array(range(50)))
    assert same(numbered).ids == [str(i) for i in range(50)]


def test_what_other_writers_leave_out_is_read():
    """No end of the stream, empty batches, a slice of a larger table, dictionaries that change."""
    table = pa.Table.from_pylist([ROW] * 4)
    body = stream(table)
    assert decode_arrow(CONTRACT, body[:-8], 10).checked.columns["job"].shape == (4,)
    assert same(table.slice(0, 0)).checked.counts == {}
    job = [pa.array(words).dictionary_encode() for words in (["cook"], ["x", "cook"], ["y"])]
    batches = [
        pa.record_batch({**{k: pa.array([v] * len(one)) for k, v in ROW.items()}, "job": one})
        for one in job
    ]
    for deltas in (False, True):
        options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batches[0].schema, options=options) as out:
            for batch in batches:
                out.write_batch(batch)
        checked = decode_arrow(CONTRACT, sink.getvalue().to_pybytes(), 10).checked
        assert checked.columns["job"].tolist() == ["cook", "", "cook", ""]
        assert checked.rejected == {1, 3}


def refused(body, most=1000):
    with pytest.raises(Unreadable) as told:
        decode_arrow(CONTRACT, body, most)
    return told.value.status, told.value.code


def test_each_stream_that_cannot_be_read_has_its_code():
    table = pa.Table.from_pylist([ROW] * 20)
    body = stream(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    nested = table.append_column("more", pa.array([[1]] * 20))
    views = table.append_column("more", pa.array(["x"] * 20, pa.string_view()))
    twice = pa.table([table["amount"], table["amount"]], names=["amount", "amount"])
    many = pa.table({f"c{i}": pa.array([], pa.int8()) for i in range(MOST_COLUMNS + 1)})
    assert refused(b"") == refused(b"[1]") == refused(body[:-100]) == (400, "not_arrow")
    assert refused(sink.getvalue().to_pybytes()) == refused(stream(many)) == (400, "not_arrow")
    for codec in ("lz4", "zstd"):
        assert refused(stream(table, compression=codec)) == (415, "arrow_compressed")
    assert refused(stream(nested)) == refused(stream(views)) == (415, "arrow_type")
    assert refused(stream(twice)) == (400, "duplicate_key")
    assert refused(body, most=19) == refused(stream(table, 7), most=19) == (413, "too_many_rows")
    bad = body.replace(b"Oslo", b"\xff\xfe\xff\xfe")
    assert refused(bad) == (400, "not_arrow")


def test_a_bent_stream_is_read_or_refused_and_nothing_else():
    r = random.Random(7)
    table = pa.Table.from_pylist([ROW | {"number": f"n-{i}"} for i in range(40)])
    coded = table.set_column(5, "job", table["job"].dictionary_encode())
    bodies, counts = [stream(table, 15), stream(coded, 15)], {"read": 0}
    for _ in range(6000):
        body = bytearray(r.choice(bodies))
        for _ in range(r.choice([1, 1, 2, 5])):
            body[r.randrange(len(body))] = r.choice([0, 1, 127, 128, 255, r.randrange(256)])
        try:
            checked = decode_arrow(CONTRACT, bytes(body), 100).checked
            assert {len(values) for values in checked.columns.values()} <= set(range(101))
            counts["read"] += 1
        except Unreadable as told:
            counts[told.code] = counts.get(told.code, 0) + 1
    assert counts["read"] > 500 and counts["not_arrow"] > 500


@pytest.mark.parametrize(
    ("task", "classes"),
    [("binary", ("no", "ja ü")), ("multiclass", ("a", "b", "c")), ("regression", ())],
)
def test_predictions_as_a_stream_are_those_of_the_json(task, classes):
    contract = Contract("toy", task, "late", classes, COLUMNS)
    shares = np.random.default_rng(0).dirichlet(np.ones(len(classes) or 1), 30)
    answer = shares if classes else shares[:, 0]
    scorer = Scorer(
        "r", contract, {"threshold": 0.4}, lambda columns: answer[: len(columns["job"])]
    )
    rows = [ROW | {"number": f"n-ü-{i}", "town": "Atlantis"} for i in range(30)]
    for some in (rows, rows[:1], []):
        answered = score(scorer, check_rows(contract, some), [row["number"] for row in some])
        told = pa.ipc.open_stream(encode_arrow(answered)).read_all()
        told.validate(full=True)
        facts = answer_facts(answered)
        assert told.to_pylist() == facts.pop("predictions")
        assert json.loads(told.schema.metadata[b"prodml"]) == facts
