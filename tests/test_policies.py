"""What the owner of a model says of unusual values reaches the door of the server."""

import re

import pandas as pd
import pytest

from prodml.contract import check_rows
from prodml.frame import learn_contract
from prodml.ini import parse_settings
from prodml.settings import Mistake

FRAME = pd.DataFrame(
    {
        "age": [20.5, 30.0, 41.0, 55.5] * 25,
        "job": ["cook", "clerk"] * 50,
        "left": ["yes", "no"] * 50,
    }
)
TEXT = "[project]\nname = a\n[data]\nsource = a.csv\ntarget = left\n"
ROW = {"age": 30.0, "job": "cook"}


def checked(lines, **row):
    contract = learn_contract(FRAME, parse_settings(TEXT + lines))
    return check_rows(contract, [{**ROW, **row}])


@pytest.mark.parametrize(
    ("lines", "row", "action"),
    [
        ("", {"age": None}, "flagged"),
        ("reject = *", {"age": None}, "rejected"),
        ("reject = age", {"age": 99.0}, "rejected"),
        ("reject = age.missing", {"age": 99.0}, "flagged"),
        ("reject = *\nimpute = job", {"job": "pilot"}, "imputed"),
        ("reject = *.unseen\nimpute = *", {"job": "pilot"}, "rejected"),
    ],
)
def test_what_the_settings_say_is_done(lines, row, action):
    found = checked(lines, **row)
    assert [problem.action for problem in found.problems] == [action]
    assert bool(found.rejected) is (action == "rejected")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            "reject = agee",
            "line 6: [data] reject: 'agee' is no column that the model sees. Name one",
        ),
        ("reject = age\nimpute =\n  job\n  age.gone", "line 7: [data] impute: 'age.gone' is no"),
        (
            "reject = age, job\nimpute = job",
            "line 7: [data] impute: 'job' stands in reject as well",
        ),
        ("positive = maybe", "line 6: [data] positive = 'maybe' is not among the labels: no, yes."),
        ("[model]\ntask = regression", "line 7: [model] task = regression, but the target is not"),
    ],
)
def test_a_slip_that_only_the_rows_show_is_told_with_its_line(lines, told):
    with pytest.raises(Mistake, match=re.escape(f"settings.ini, {told}")):
        checked(lines)
