"""The model card: blanks are refused, its numbers are the findings', and markup is only text."""

import datetime as dt
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import mistune
import numpy as np
import pytest
import yaml
from cards import SAID, filled
from conftest import ROOT

from prodml.contract import Column, Contract
from prodml.explain.blanks import ASKED, asking, card_result
from prodml.explain.card import Subject, read_subject
from prodml.gates.candidate import make_candidate
from prodml.gates.evidence import load_evidence
from prodml.gates.examine import examine
from prodml.ini import parse_settings
from prodml.release.attestation import Refused, public_pem, signing_key, verify
from prodml.release.store import seal
from prodml.report.card import card_texts, write_card
from prodml.settings import Card, Waiver
from prodml.verdict import GateResult, Measured, Verdict, judge, number

INI = "[project]\nname = {name}\n[data]\ntarget = left\n[card]\n{card}\n"
WHOLE = "\n".join(f"{key} = {text}" for key, text in SAID.items())
EVIL = "<script>alert(1)</script> <img src=x onerror=alert(1)> | [a](javascript:alert(1)) \"'&"
ABSENT = "not examined in this run"
GAP = judge("selection_rate_difference", 0.1, 0.04, 0.15, 0.2, "max", 900, "sex")
POOR = judge("roc_auc", 0.61234, 0.55, 0.65, 0.7, "min", 900)


def settings_of(card=WHOLE, name="churn"):
    return parse_settings(INI.format(name=name, card=card))


def subject(card=WHOLE, gates=(), name="churn", columns=(), **changes):
    """A `Subject` of little papers, with `gates`."""
    sensitive = tuple(Column(name, "category", "sensitive") for name in columns)
    contract = Contract(name, "binary", "left", ("no", "yes"), sensitive)
    parts = {part: {"rows": 900, "problems": {}} for part in ("train", "validation", "test")}
    data = {"digest": "0b6d", "how": "at random", "parts": parts}
    whole = Subject(settings_of(card, name), contract, {}, data, {}, tuple(gates), "r1", "today")
    return replace(whole, **changes)


@pytest.mark.parametrize("key", ASKED)
@pytest.mark.parametrize("text", ["", "TODO", "n/a", "To be done (TBD)", "<fill this in>", "-- --"])
def test_a_blank_is_a_failure_that_names_its_line(key, text):
    lines = [f"{k} = {text if k == key else said}" for k, said in SAID.items()]
    result = card_result(settings_of("\n".join(lines)))
    (failed,) = result.of("fail")
    at = INI.format(name="churn", card="\n".join(lines)).splitlines().index(f"{key} = {text}")
    assert failed.measure == key and f"settings.ini, line {at + 1}: [card] {key} " in failed.why
    assert ASKED[key].question in failed.why and result.verdict is Verdict.FAIL


def test_a_missing_line_is_told_with_the_section_and_a_missing_section_with_the_file():
    lines = [f"{k} = {said}" for k, said in SAID.items() if k != "ethics"]
    (failed,) = card_result(settings_of("\n".join(lines))).of("fail")
    assert failed.why.startswith("settings.ini, line 5: [card] ethics is empty")
    none = card_result(parse_settings("[data]\ntarget = left\n"))
    assert len(none.of("fail")) == len(ASKED) == len(none.findings)
    assert all(f.why.startswith("settings.ini: [card]") for f in none.findings)


def test_the_questions_copied_back_and_one_answer_for_all_are_blank():
    copied = "\n".join(f"{key} = {asked.question}" for key, asked in ASKED.items())
    assert len(card_result(settings_of(copied)).of("fail")) == len(ASKED)
    same = "\n".join(f"{key} = We thought about it a great deal." for key in ASKED)
    found = card_result(settings_of(same))
    assert sum("repeats another" in f.why for f in found.findings) == 7
    assert card_result(settings_of(asking())).verdict is Verdict.FAIL
    assert card_result(settings_of(filled(asking()))).verdict is Verdict.PASS


def test_honest_answers_in_any_script_are_taken():
    answers = {"owner": "李", "licence": "MIT", "contact": "#ml-risk"}
    lines = SAID | {"ethics": "対象者に不利益が生じる恐れがあり、毎月見直します。"}
    lines |= {"owner": "李雷", "licence": answers["licence"], "contact": "+49 30 1234"}
    lines |= {"more": ""}
    text = "\n".join(f"{key} = {said}" for key, said in lines.items())
    assert card_result(settings_of(text)).verdict is Verdict.PASS
    assert card_result(parse_settings((ROOT / "settings.ini").read_text())).verdict is Verdict.PASS


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self.inside = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.inside.append(tag)

    def handle_endtag(self, tag):
        self.inside.pop() if self.inside[-1] == tag else None

    def handle_data(self, data):
        if "style" not in self.inside:
            self.text += data.split()


def words_of(markup):
    """The words that a reader sees, without the marks between a name and its fact."""
    return [bare for word in Tags(markup).text if (bare := word.strip(":."))]


def hostile():
    """A subject in which every text that comes from outside is an attack."""
    card = "\n".join(f"{key} = {EVIL} {said}" for key, said in SAID.items())
    rate = Measured("selection_rate", f"sex = {EVIL}", 0.3, 0.2, 0.4, 440)
    gates = [
        GateResult("fairness", (GAP,), "r1", (Measured("groups", "sex", 1, None, None, 9), rate)),
        GateResult("drift", (replace(POOR, measure=EVIL, slice=EVIL, why=EVIL),)),
    ]
    model = {"candidate": EVIL, "params": {EVIL: EVIL}, "versions": {EVIL: EVIL}}
    return subject(card, gates, columns=("sex", EVIL), model=model, files={EVIL: EVIL})


def test_no_text_becomes_markup_in_either_form():
    texts = card_texts(hostile(), EVIL)
    page, tame = Tags(texts["card.html"]), Tags(card_texts(subject(), "note")["card.html"])
    assert "script" not in page.tags and "img" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert {value for name, value in page.attributes if name == "href"} >= {"#part-1"}
    assert not any(
        "javascript" in (value or "") for name, value in page.attributes if name == "href"
    )
    assert page.tags.count("h2") == tame.tags.count("h2") == 12
    assert "<script>alert(1)</script>" in " ".join(page.text), "it is shown, as text"
    body = texts["card.md"].split("\n---\n", 1)[1]
    shown = mistune.create_markdown(escape=False, plugins=["table"])(body)
    seen = Tags(shown)
    assert "script" not in seen.tags and "img" not in seen.tags and seen.tags.count("h2") == 12
    assert not any(value.startswith("javascript") for name, value in seen.attributes if value)
    assert "http" not in texts["card.html"].replace("http-equiv", ""), "nothing is loaded"


def test_the_head_of_the_markdown_is_yaml_whatever_is_said():
    card = WHOLE.replace(SAID["licence"], 'a: "b" \\ --- {c} [d]')
    head = yaml.safe_load(card_texts(subject(card, name="x: y"))["card.md"].split("---\n")[1])
    assert head["license"] == "other" and head["license_name"] == 'a: "b" \\ --- {c} [d]'
    known = card_texts(subject(WHOLE.replace(SAID["licence"], "Apache-2.0")))["card.md"]
    assert yaml.safe_load(known.split("---\n")[1])["license"] == "apache-2.0"


def test_numbers_are_the_findings_and_what_was_not_measured_is_said_to_be_absent():
    before = card_texts(subject())
    assert before["card.md"].count(ABSENT) == before["card.html"].count(ABSENT) >= 6
    assert not re.search(r"0\.\d{3}", before["card.md"]), "no number where nothing was measured"
    gates = [GateResult("correctness", (POOR,)), GateResult("fairness", (GAP,))]
    after = card_texts(subject(gates=gates, columns=("sex",)))
    for form in after.values():
        assert form.count(number(POOR.value)) >= 1 and "0.040 to 0.150" in form
    assert "0.612 [0.550, 0.650], limit ≥ 0.700" in after["card.html"], "a failure is a caveat"
    moved = replace(POOR, value=0.64)
    other = card_texts(subject(gates=[GateResult("correctness", (moved,))]))["card.md"]
    assert "0.640" in other and number(POOR.value) not in other.split("What the gates warn")[0]


def test_both_forms_hold_the_same_words():
    gates = [GateResult("correctness", (POOR,)), GateResult("fairness", (GAP,))]
    texts = card_texts(subject(gates=gates, columns=("sex",)))
    body = mistune.create_markdown(plugins=["table"])(texts["card.md"].split("\n---\n", 1)[1])
    page = texts["card.html"]
    page = page[page.index("<main>") : page.index("</main>")]
    marked = words_of(body)[len("Model card: churn".split()) :]
    assert sorted(marked) == sorted(words_of(page))


def test_groups_too_small_or_empty_or_left_out_are_said_to_be():
    told = [
        Measured("groups", "sex", 90.0, None, None, 1000),
        Measured("selection_rate", "sex = F", 0.3, 0.2, 0.4, 900),
        Measured("selection_rate", "sex = X", 0.5, 0.1, 0.9, 4),
        Measured("true_positive_rate", "sex = X", None, None, None, 0),
    ]
    fair = GateResult("fairness", (GAP,), "r1", tuple(told))
    text = card_texts(subject(gates=[fair], columns=("sex",)))["card.md"]
    assert "the 2 largest of 90 groups" in text and "4 (too few to be judged)" in text
    assert "no rows that it is of" in text and "No columns were crossed" in text
    nobody = card_texts(subject(gates=[GateResult("fairness", ())]))["card.md"]
    assert nobody.count("No sensitive column is declared") == 2


def test_a_regression_has_its_errors_by_group_on_the_card(tmp_path):
    """From a table to the card, with the rates that the fairness gate measured on the way."""
    text = "[data]\nsource = demo\ntarget = income\ntime = applied_on\nid = application_id\n"
    text += "until = 2024-04-01\nsensitive = sex, group\ndrop = true_probability, default\n"
    text += "[model]\ncandidates = linear\ntrials = 1\n[fairness]\nmax_mae_ratio = 1.5\n"
    folder = make_candidate(tmp_path / "one", parse_settings(text, tmp_path / "settings.ini"))
    evidence = load_evidence(folder)
    result = examine(evidence, "fairness", "r1")
    one = read_subject(folder, [result], "r1", "today")
    shown = card_texts(one)["card.md"].split("## Quantitative analyses")[1].split("\n## ")[0]
    women = (evidence.sensitive["sex"] == "F").to_numpy()
    error = np.abs(evidence.test.target - evidence.decision)[women]
    assert f"| F | {women.sum():,} | {number(error.mean())} (" in shown
    assert all(f"| {sex} \\& {group} |" in shown for sex in "FM" for group in "AB")
    assert "Positive from**: no threshold" in card_texts(one)["card.md"]


def test_what_the_model_listens_to_is_told_in_its_unit():
    heard = Measured("mean_absolute_contribution in log-odds", "debt", 0.706, 0.677, 0.733, 1000)
    gap = judge("lime_agreement", 0.7, 0.6, 0.8, 0.2, "min", 12)
    text = card_texts(subject(gates=[GateResult("explanation", (gap,), "r1", (heard,))]))["card.md"]
    part = text.split("## Explanations")[1].split("\n## ")[0]
    assert "Mean absolute contribution in log-odds" in part and "| debt | 0.706 | 0.677" in part
    assert "LIME agreement" in part and ABSENT not in part


def test_what_nobody_said_is_printed_as_not_said_and_listed():
    shown = card_texts(subject(""))
    for form in shown.values():
        assert form.count("NOT SAID.") == len(ASKED)
        assert form.count("is empty") == len(ASKED), "and each is a caveat, with its line"


def test_a_password_in_the_source_and_paths_of_the_machine_stay_out(tmp_path):
    text = INI.format(name="x", card=WHOLE)
    text = text.replace(
        "target =", "source = postgresql://me:hush@db/x\nquery = select 1\ntarget ="
    )
    made = subject(data=subject().data | {"snapshot": "/home/me/snapshots/1"})
    shown = card_texts(replace(made, settings=parse_settings(text)))
    assert "hush" not in str(shown) and "/home/me" not in str(shown)
    assert "postgresql://db/x" in shown["card.html"]


@pytest.fixture
def candidate(tmp_path):
    """The folder of a candidate of little papers, and settings that ask for a card alone."""
    text = INI.format(name="churn", card=WHOLE) + "[limits]\nrequired = card\n"
    asked = parse_settings(text, tmp_path / "settings.ini")
    folder = tmp_path / "candidate"
    folder.mkdir()
    one = subject()
    (folder / "settings.ini").write_text(text)
    (folder / "contract.json").write_text(one.contract.to_json())
    (folder / "model.json").write_text("{}")
    (folder / "data.json").write_text(json.dumps(dict(one.data)))
    return folder, asked


@pytest.mark.parametrize("name", ["card.md", "card.html", "reports/card.html", "reports/card.json"])
@pytest.mark.parametrize("what", ["edited", "gone"])
def test_a_card_that_was_edited_or_taken_away_is_refused(candidate, tmp_path, name, what):
    folder, asked = candidate
    one = read_subject(folder, [], "r1", "today")
    run = write_card(one, tmp_path / "r1", [])
    files = [run.html, run.html.with_suffix(".json")]
    made = seal(folder, files, [run.result], asked, "r1", card_texts(one, "", "reports/"))
    keys = [public_pem(signing_key(asked))]
    assert verify(made, keys).verdict is Verdict.PASS
    path = made / name
    path.chmod(0o644)
    path.write_text("<p>Safe for every use.</p>") if what == "edited" else path.unlink()
    with pytest.raises(Refused, match=path.name):
        verify(made, keys)


def test_a_release_without_a_whole_card_does_not_ship_unless_a_person_says_so(candidate):
    folder, asked = candidate
    keys = [public_pem(signing_key(asked))]
    blank = card_result(replace(asked, card=replace(asked.card, ethics="TBD")), "r1")
    with pytest.raises(Refused, match=r"\[card\] ethics holds a placeholder"):
        verify(seal(folder, [], [blank], asked, "r1"), keys)
    passed = GateResult("correctness", (judge("roc_auc", 0.8, 0.78, 0.82, 0.7, "min", 900),))
    (folder / "more").write_text("another release")
    with pytest.raises(Refused, match="card was required and not examined"):
        verify(seal(folder, [], [passed], asked, "r2"), keys)
    waived = Waiver("card", "the owner is on leave", "A. Person", dt.date.max)
    (folder / "more").write_text("a third")
    excused = replace(asked, waivers=(waived,))
    assert verify(seal(folder, [], [blank], excused, "r3"), keys).verdict is Verdict.WARN


def test_every_key_of_the_section_is_asked_for_or_may_be_empty():
    assert set(vars(Card())) == {*ASKED, "more"}
    assert "more" not in str(card_result(settings_of()))
    with_more = card_texts(subject(WHOLE + "\nmore = A paper, 2026.\n"))["card.md"]
    assert "**More**: A paper, 2026." in with_more
