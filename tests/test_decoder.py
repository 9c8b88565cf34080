"""The decoder: quick or exact, the same answer for the same bytes, and an answer for any bytes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prodml.contract import Column, Contract, check_rows
from prodml.serve import decoder as module
from prodml.serve.decoder import Decoder, Unreadable, read_json, read_rows, with_ids

COLUMNS = (
    Column("amount", "number", "feature", True, 0, 100, fill=50.0),
    Column("a: b", "integer", "feature", False, 1, 9, on_range="reject", fill=5.0),
    Column("filled", "number", "feature", False, on_missing="impute", fill=0.5),
    Column("flag", "boolean", "feature", True, 0, 1, fill=0.0),
    Column("town", "category", "feature", True, levels=("Oslo", "Zürich", "a:b"), fill="Oslo"),
    Column("job", "category", "feature", False, levels=("cook",), on_unseen="reject", fill="cook"),
    Column("sent_at", "datetime", "time"),
    Column("number", "text", "id"),
)
CONTRACT = Contract("toy", "binary", "late", ("no", "yes"), COLUMNS)
NUMERIC = Contract("toy", "regression", "y", (), COLUMNS[:2])
DECODER = Decoder(CONTRACT)


def exactly(body, contract=CONTRACT, most=50):
    """The answer by the standard library and the notebook's own functions: (code) or what came."""
    try:
        found = read_json(body)
    except Unreadable as refused:
        return refused.code
    if isinstance(found, dict) and found.keys() == {"rows"}:
        found = found["rows"]
    rows = found if isinstance(found, list) else [found]
    if len(rows) > most:
        return "too_many_rows"
    key = contract.id_column
    ids = [row.get(key) if isinstance(row, dict) and key else None for row in rows]
    return rows, with_ids(contract, check_rows(contract, rows), ids).checked


def same(body, contract=CONTRACT, decoder=DECODER, most=50):
    """Holds that the decoder gives what `exactly` gives; returns it."""
    wanted = exactly(body, contract, most)
    try:
        found = decoder.decode(body, most)
    except Unreadable as refused:
        assert refused.code == wanted and refused.status in (400, 413)
        return wanted
    rows, checked = wanted
    got = found.checked
    assert (got.problems, got.rejected, got.counts) == (
        checked.problems,
        checked.rejected,
        checked.counts,
    )
    assert got.columns.keys() == checked.columns.keys()
    for name, values in checked.columns.items():
        assert got.columns[name].dtype == values.dtype and got.columns[name].shape == values.shape
        np.testing.assert_array_equal(got.columns[name], values)
    assert len(found.ids) in (0, len(rows))
    return checked


ODD = st.sampled_from([True, "", "12", 7, 2.5, 1e39, 2**53 + 1, 10**30, [], {}, {"a:": ":"}, [1]])
NUMBER = st.none() | st.integers(-2, 110) | st.floats(-10, 200) | ODD
TEXT = st.none() | st.sampled_from(["Oslo", "Zürich", "a:b", "cook", "Atlantis", "x\\y:"]) | ODD
GOOD = {
    "amount": st.integers(0, 100) | st.floats(0, 100) | st.none(),
    "a: b": st.integers(1, 9) | st.sampled_from([3.0]),
    "filled": st.floats(-1, 1),
    "flag": st.sampled_from([True, False, 0, 1, 1.0, None]),
    "town": st.sampled_from(["Oslo", "Zürich", "a:b", "", None]),
    "job": st.just("cook"),
}
ROW = st.fixed_dictionaries(GOOD, optional={"number": st.text(max_size=5) | st.integers()})
WILD = st.fixed_dictionaries(
    {},
    optional={
        **{c.name: NUMBER if c.numeric else TEXT for c in COLUMNS},
        "sent_at": st.just("2024-01-01T10:00:00"),
        "other:": st.just(1),
    },
)


def clash(text, row):
    """`text`, the JSON of `row`, with its first key said again."""
    return text[:1] + json.dumps(next(iter(row))) + ": 1, " + text[1:] if row else text


@settings(max_examples=600, deadline=20_000)
@given(
    rows=st.lists(ROW, max_size=4) | st.lists(ROW | WILD | NUMBER, max_size=5),
    times=st.sampled_from([1, 1, 8]),
    form=st.sampled_from(["list", "rows", "one"]),
    ascii_only=st.booleans(),
    space=st.sampled_from(["", " ", "\n"]),
    twice=st.booleans(),
)
def test_quick_and_exact_agree_on_rows(rows, times, form, ascii_only, space, twice):
    rows = rows * times
    texts = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    if twice and rows and isinstance(rows[-1], dict):
        texts[-1] = clash(texts[-1], rows[-1])
    body = "[" + ", ".join(texts) + "]"
    if form == "rows":
        body = '{"rows": ' + body + "}"
    if form == "one" and texts:
        body = texts[-1]
    found = same((space + body + space).encode())
    if twice and rows and isinstance(rows[-1], dict) and rows[-1]:
        assert found == "duplicate_key"


@settings(max_examples=300, deadline=20_000)
@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_bytes_get_rows_or_a_code(body):
    try:
        DECODER.decode(body, 50)
    except Unreadable as refused:
        assert refused.code in {"not_json", "too_deep", "duplicate_key", "too_many_rows"}


GOOD_ROW = {"amount": 3, "a: b": 2, "filled": 0.5, "flag": True, "town": "Oslo", "job": "cook"}


@pytest.mark.parametrize("text", ['"a\\u003ab"', '"a:b"', '"\\u0061:b"', "null", '""'])
@pytest.mark.parametrize("again", ["", '"flag": true, ', '"fl\\u0061g": true, '])
def test_a_key_said_twice_is_found_whatever_hides_it(text, again):
    body = "{" + again + json.dumps(GOOD_ROW)[1:].replace('"Oslo"', text)
    assert (same(body.encode()) == "duplicate_key") is bool(again)
    assert (same(f'{{"rows": [{body}]}}'.encode()) == "duplicate_key") is bool(again)
    assert same(f'{{"rows": [], "rows": [{body}]}}'.encode()) == "duplicate_key"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"<html>", "not_json"),
        (b'{"amount": NaN}', "not_json"),
        (b'{"amount": Infinity}', "not_json"),
        (b'{"amount": 01}', "not_json"),
        (b"\xff\xfe[\x00]\x00", "not_json"),
        (b'{"town": "\xff"}', "not_json"),
        (b"[" * 100_000, "too_deep"),
        (b'{"amount":' * 5000 + b"1" + b"}" * 5000, "too_deep"),
        (b"[" + b"{}," * 50 + b"{}]", "too_many_rows"),
    ],
)
def test_each_body_without_rows_has_its_code(body, code):
    with pytest.raises(Unreadable) as refused:
        DECODER.decode(body, 50)
    assert refused.value.code == code


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 400, "1" * 10_000, "1e39"])
def test_a_number_no_computer_holds_is_told_with_its_place(number):
    body = json.dumps([GOOD_ROW, GOOD_ROW | {"amount": 0}]).replace(
        '"amount": 0', f'"amount": {number}'
    )
    checked = same(body.encode())
    assert [(p.row, p.column, p.code) for p in checked.problems] == [(1, "amount", "not_finite")]


def test_good_rows_take_the_quick_way(monkeypatch):
    def never(*arguments, **more):
        raise AssertionError("the exact way was taken")

    plain = Contract("toy", "binary", "late", ("no", "yes"), (COLUMNS[0], *COLUMNS[2:]))
    row = {name: value for name, value in GOOD_ROW.items() if name != "a: b"}
    bodies = [json.dumps(form).encode() for form in (row, [row] * 40, {"rows": [row]})]
    decode = Decoder(plain).decode
    monkeypatch.setattr(module, "read_rows", never)
    assert [len(decode(body, 50).checked.columns["job"]) for body in bodies] == [1, 40, 1]
    monkeypatch.setattr(module, "check_values", never)
    assert decode(bodies[1], 50).checked.counts == {}


def test_ids_come_back_when_they_are_short_and_printable():
    given = ["A-7", 12, None, "x" * 129, "a\nb", 1.5, ["a"], True]
    rows = [GOOD_ROW | {"number": one} for one in given]
    wanted = ["A-7", "12", "", "", "", "", "", ""]
    assert DECODER.decode(json.dumps(rows).encode(), 50).ids == wanted
    other = Decoder(NUMERIC)
    named = json.dumps({"amount": 1, "a: b": 2, "id": "B-8"}).encode()
    assert other.decode(named, 50).ids == ["B-8"] and other.decode(named, 50).checked.counts == {}


def test_rows_alone_are_rows_even_where_a_column_is_called_so():
    odd = Contract("toy", "regression", "y", (), (Column("rows", "number", "feature", fill=1.0),))
    for body in (b'{"rows": 3}', b'{"rows": [{"rows": 3}]}', b'[{"rows": 3}]', b'{"rows": []}'):
        same(body, odd, Decoder(odd))


def test_names_that_json_must_escape_are_read_exactly():
    names = ['odd "name" <script>', "back\\slash", "tab\t"]
    odd = Contract(
        "toy", "regression", "y", (), tuple(Column(n, "number", "feature") for n in names)
    )
    checked = same(
        json.dumps([dict.fromkeys(names, 1), {names[0]: "x"}]).encode(), odd, Decoder(odd)
    )
    assert checked.counts == {"wrong_type": 1}


def test_read_rows_takes_three_forms_and_the_empty_list():
    assert read_rows(b"[]", 3) == read_rows(b'{"rows": []}', 3) == []
    assert read_rows(b"7", 3) == [7]
