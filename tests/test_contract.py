"""The contract: the same answer for a row and for a table, whatever they hold."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prodml.contract import Column, Contract, check_rows, read_contract
from prodml.data import read
from prodml.frame import as_typed, check_frame, learn_contract, make_table
from prodml.settings import Data, Mistake, Settings

COLUMNS = (
    Column("amount", "number", "feature", True, 0, 100, fill=50.0),
    Column('odd "name" <script>', "integer", "feature", False, 1, 9, on_range="reject", fill=5.0),
    Column("filled", "number", "feature", False, 0, 1, on_missing="impute", fill=0.5),
    Column("flag", "boolean", "feature", True, 0, 1, fill=0.0),
    Column("town", "category", "feature", True, levels=("Oslo", "Rome"), fill="Oslo"),
    Column("job", "category", "feature", False, levels=("cook",), on_unseen="reject", fill="cook"),
)
CONTRACT = Contract("toy", "binary", "late", ("no", "yes"), COLUMNS)

odd = st.sampled_from(
    [True, False, "", "12", "Oslo", 7, 2.5, 10**400, 1e39, np.inf, -np.inf, np.nan]
)
numbers = st.none() | st.integers(-2, 12) | st.floats(-10, 200) | st.sampled_from([0, 1, 3.0]) | odd
texts = st.none() | st.sampled_from(["Oslo", "Rome", "cook", "Atlantis", "", "<b>"]) | odd
rows = st.lists(
    st.fixed_dictionaries({c.name: numbers if c.numeric else texts for c in COLUMNS}),
    min_size=1,
    max_size=8,
)


@settings(max_examples=500)
@given(rows, st.sampled_from([None, object]))
def test_a_row_and_a_table_get_the_same_answer(sent, dtype):
    by_row = check_rows(CONTRACT, sent)
    names = [c.name for c in COLUMNS]
    by_table = check_frame(CONTRACT, pd.DataFrame(sent, columns=names, dtype=dtype))
    assert by_row.rejected == set(np.flatnonzero(by_table.rejected))
    assert by_row.counts == by_table.counts
    kept = [i for i in range(len(sent)) if i not in by_row.rejected]
    for column in COLUMNS:
        one, other = (
            by_row.columns[column.name][kept],
            by_table.features[column.name].to_numpy()[kept],
        )
        if column.numeric:
            np.testing.assert_array_equal(one, other)
        else:
            assert list(one) == list(other)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("12", "wrong_type"),
        ([1], "wrong_type"),
        ({}, "wrong_type"),
        (True, "wrong_type"),
        (float("inf"), "not_finite"),
        (10**400, "not_finite"),
        (101, "out_of_range"),
    ],
)
def test_each_bad_number_has_its_code(value, code):
    row = CONTRACT.example() | {"amount": value}
    checked = check_rows(CONTRACT, [row])
    assert checked.counts == {code: 1}
    assert (checked.rejected == {0}) is (code != "out_of_range")


@pytest.mark.parametrize(
    ("column", "value", "code", "action"),
    [
        ('odd "name" <script>', 3.0, "", ""),
        ('odd "name" <script>', 3.5, "not_integer", "rejected"),
        ('odd "name" <script>', 99.5, "not_integer", "rejected"),
        ('odd "name" <script>', 99, "out_of_range", "rejected"),
        ("amount", True, "wrong_type", "rejected"),
        ("amount", None, "", ""),
        ("filled", None, "missing", "imputed"),
        ("flag", 2, "wrong_type", "rejected"),
        ("flag", 1.0, "", ""),
        ("town", 7, "wrong_type", "rejected"),
        ("town", "Atlantis", "unseen_level", "flagged"),
        ("job", "", "missing", "flagged"),
        ("job", "pilot", "unseen_level", "rejected"),
    ],
)
def test_each_bad_value_has_one_answer_at_both_doors(column, value, code, action):
    row = CONTRACT.example() | {column: value}
    checked = check_rows(CONTRACT, [row])
    assert [(p.column, p.code, p.action) for p in checked.problems] == (
        [(column, code, action)] if code else []
    )
    table = check_frame(CONTRACT, pd.DataFrame([row]))
    assert table.counts == checked.counts and table.rejected[0] == (action == "rejected")


def test_names_that_are_not_the_contracts_are_counted_and_never_repeated():
    rows = [CONTRACT.example() | {"secret-1": 1, "secret-2": 2, "id": "A-7"}, CONTRACT.example(), 3]
    checked = check_rows(CONTRACT, rows)
    assert checked.counts == {"unknown_column": 1, "not_an_object": 1}
    assert "secret" not in str(checked.problems) and checked.problems[0].column == ""


def test_a_text_file_gets_the_types_of_the_contract_as_far_as_it_goes():
    frame = pd.DataFrame([CONTRACT.example()] * 3)
    frame["amount"] = ["12", "forty", None]
    assert check_frame(CONTRACT, frame).counts == {"wrong_type": 2}
    typed = as_typed(CONTRACT, frame)
    assert check_frame(CONTRACT, typed).counts == {"wrong_type": 1}
    assert check_frame(CONTRACT, typed).features["amount"][0] == 12
    coded = Contract(
        "toy",
        "binary",
        "late",
        ("no", "yes"),
        (Column("zip", "category", "feature", levels=("7", "8")),),
    )
    zips = pd.DataFrame({"zip": [7.0, 8.0, None]})
    assert check_frame(coded, zips).counts == {"wrong_type": 2}
    assert check_frame(coded, as_typed(coded, zips)).counts == {}


def test_the_example_row_is_valid_and_survives_json():
    checked = check_rows(CONTRACT, [json.loads(json.dumps(CONTRACT.example()))])
    assert not checked.counts


def test_messages_never_repeat_a_value():
    row = CONTRACT.example() | {"amount": "secret-1", "town": "secret-2"}
    told = " ".join(p.message for p in check_rows(CONTRACT, [row, "secret-3"]).problems)
    assert "secret" not in told and "amount" in told


def test_messages_say_what_would_be_right():
    wrong = {"amount": 101, "flag": 2, "town": "Atlantis", 'odd "name" <script>': 3.5}
    told = [p.message for p in check_rows(CONTRACT, [CONTRACT.example() | wrong]).problems]
    right = ["a number from 0 to 100", "a whole number from 1 to 9", "true or false"]
    actions = ["flagged", "rejected", "rejected", "flagged"]
    pairs = zip([*right, "one of Oslo, Rome"], actions, strict=True)
    assert [one.partition("; ")[2] for one in told] == [f"right is {r} ({a})" for r, a in pairs]
    levels = tuple(f"z{number}" for number in range(40))
    assert Column("area", "category", "feature", levels=levels).right == "one of 40 levels"


def test_problems_told_are_bounded_and_counts_are_not():
    checked = check_rows(CONTRACT, [{}] * 500, most=10)
    assert len(checked.problems) == 10 and checked.counts["missing"] == 1500


def test_json_is_one_form_and_comes_back_whole():
    again = read_contract(CONTRACT.to_json())
    assert again == CONTRACT and again.to_json() == CONTRACT.to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"columns": 3}', "not json"])
def test_what_is_no_contract_is_told(text):
    with pytest.raises(Mistake, match="not a contract"):
        read_contract(text)


def test_a_policy_that_does_not_exist_is_told():
    text = CONTRACT.to_json().replace('"on_range": "reject"', '"on_range": "explode"')
    with pytest.raises(Mistake, match="explode"):
        read_contract(text)


def asked(**data):
    return Settings(data=Data(source="toy.csv", **{"target": "y", **data}))


def table(rows=200, **columns):
    r = np.random.default_rng(0)
    return pd.DataFrame({"x": r.normal(size=rows), "y": np.arange(rows) % 2, **columns})


@pytest.mark.parametrize(
    ("column", "note"),
    [
        ({"z": np.full(200, np.nan)}, "missing in every row"),
        ({"z": np.full(200, 3)}, "the same in every row"),
        ({"z": [f"id-{i}" for i in range(200)]}, "identifier"),
        ({"z": np.arange(200)}, "identifier"),
        ({"z": pd.date_range("2024-01-01", periods=200)}, "date"),
    ],
)
def test_useless_columns_are_ignored_with_a_note(column, note):
    found = learn_contract(table(**column), asked()).column("z")
    assert found.role == "ignored" and note in found.note


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (table(y=1), "one value only"),
        (table(y=np.nan), "missing in every row"),
        (table()[["y"]], "no column is left"),
    ],
)
def test_a_target_that_teaches_nothing_is_told(frame, word):
    with pytest.raises(Mistake, match=word):
        learn_contract(frame, asked())


def test_a_positive_label_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(Mistake, match="0, 1"):
        learn_contract(table(), asked(positive="yes"))


def test_infinite_values_and_missing_targets_are_left_out_and_counted():
    frame = table()
    contract = learn_contract(frame, asked())
    frame.loc[3, "x"] = np.inf
    frame["y"] = frame["y"].astype(float).where(frame.index != 5)
    made = make_table(contract, frame)
    assert made.counts == {"not_finite": 1, "no_target": 1} and len(made.target) == 198


def test_a_flag_with_holes_goes_through():
    flags = pd.Series([True, False, None, True] * 50, dtype=object)
    contract = learn_contract(table(z=flags), asked())
    assert contract.column("z").type == "boolean"
    assert check_frame(contract, table(z=flags)).features["z"].isna().sum() == 50


@pytest.mark.parametrize(
    ("name", "options", "task"),
    [
        ("bank_marketing", {"target": "y", "positive": "yes"}, "binary"),
        ("adult_census", {"target": "class", "missing": ("?",)}, "binary"),
        ("bike_sharing_hourly", {"target": "cnt"}, "regression"),
        ("german_credit", {"target": "class-label"}, "binary"),
    ],
)
def test_real_tables_keep_their_own_contract(data, name, options, task):
    source = Data(source=str(data / f"{name}.csv.gz"), **options)
    frame = read(source)
    contract = learn_contract(frame, Settings(data=source))
    assert contract.task == task and len(contract.features) > 8
    checkup = check_frame(contract, frame)
    assert not checkup.rejected.any() and "out_of_range" not in checkup.counts
