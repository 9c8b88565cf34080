"""From promotion to the answers of a running server, and back, in a terminal and with accidents."""

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

import pytest
from onnx import parser, save
from processes import BIN, free_port, post, prodml, server, until
from test_registry import ME, fork, killed_at, whole

from prodml.contract import Column, Contract
from prodml.ini import read_settings
from prodml.release.attestation import Refused
from prodml.release.registry import Outrun, open_registry
from prodml.release.store import find_release, seal
from prodml.serve import champion
from prodml.serve.champion import (
    FOLLOWED,
    follow_champion,
    heal,
    noticed,
    point_by_hand,
    promote,
    rollback,
)
from prodml.serve.pointer import CURRENT, read_pointer
from prodml.settings import Mistake
from prodml.verdict import GateResult, judge

GRAPH = """<ir_version: 9, opset_import: ["" : 21]>
credit (float[N, 1] income) => (float[N, 2] probabilities)
<float[1] slope = {SLOPE}, float[1] one = {1.0}>
{
    score = Mul(income, slope)
    risk = Sigmoid(score)
    safe = Sub(one, risk)
    probabilities = Concat<axis = 1> (safe, risk)
}"""
INI = "[project]\nname = toy\n[data]\ntarget = bad\nsource = none.csv\n[limits]\n"
INI += "required = correctness\n[correctness]\nmin_roc_auc = 0.7\n"


def toy(asked, slope, auc=0.8, **column):
    """The name of a release that answers sigmoid(slope * income), its `column` changed."""
    made = asked.root / f"candidate{slope}{auc}"
    made.mkdir()
    save(parser.parse_model(GRAPH.replace("SLOPE", str(slope))), made / "model.onnx")
    income = Column("income", "number", "feature", minimum=0, maximum=90, fill=30.0)
    income = replace(income, **column)
    contract = Contract("toy", "binary", "bad", ("no", "yes"), (income,))
    (made / "contract.json").write_text(contract.to_json())
    (made / "model.json").write_text('{"format": "onnx", "threshold": 0.5}')
    (made / "data.json").write_text('{"digest": "00"}')
    gate = GateResult(
        "correctness", (judge("roc_auc", auc, auc - 0.02, auc + 0.02, 0.7, "min", 400),)
    )
    return seal(made, [], [gate], asked).name


@pytest.fixture
def asked(tmp_path):
    (tmp_path / "settings.ini").write_text(INI)
    return read_settings(tmp_path / "settings.ini")


def test_who_promotes_is_told_what_clients_will_notice(asked):
    old, strict = toy(asked, 0.1), toy(asked, 0.2, nullable=False, on_missing="reject")
    assert promote(asked, old, **ME).noticed == (), "there was none before"
    told = prodml("promote", strict, "--reason", "better", "-p", asked.root, "--json")
    (sentence,) = json.loads(told.stdout)["noticed"]
    assert told.returncode == 0 and sentence == "refused when missing, and was not before: income"
    told = prodml("rollback", "--reason", "they do not send it", "-p", asked.root)
    assert told.returncode == 0 and "Clients will notice" not in told.stdout


@pytest.mark.parametrize("text", [b"{", b"\xff"], ids=["cut", "bytes"])
def test_a_rollback_from_a_damaged_champion_reaches_the_servers(asked, text):
    good, bad = toy(asked, 0.1), toy(asked, 0.2)
    promote(asked, good, **ME)
    promote(asked, bad, **ME)
    file = find_release(asked, bad) / "contract.json"
    file.chmod(0o644)
    file.write_bytes(text)
    change = rollback(asked, **ME)
    assert change.entry.after == pointed(asked) == good and not change.noticed


def test_what_clients_notice_is_told_for_each_stricter_column_and_another_answer():
    def of(task="binary", classes=("no", "yes"), **column):
        names = {"levels": ("a", "b")} if column.get("type") == "category" else {"maximum": 9}
        known = {"name": "x", "type": "number", "role": "feature", **names, **column}
        return Contract("toy", task, "late", classes, (Column(**known),))

    town = {"type": "category"}
    changed = "refused for a value that was answered before: x"
    for before, after, told in (
        (of(), of(on_range="reject"), (changed,)),
        (of(on_range="reject"), of(on_range="reject"), ()),
        (of(on_range="reject"), of(on_range="reject", maximum=8), (changed,)),
        (of(), of(type="boolean"), (changed,)),
        (of(**town), of(**town, on_unseen="reject"), (changed,)),
        (of(**town, on_unseen="reject"), of(**town), ()),
        (of(**town), of(), ("a number, and was a text: x",)),
        (of(), of("regression", ()), ("the answer is a number",)),
    ):
        assert noticed(before, after) == told


def pointed(asked):
    return read_pointer((asked.folder / CURRENT).read_text()).champion


def client(url, stop, answers):
    """Nothing; asks until told to `stop`, and `answers` get (status, release) each time."""
    while not stop.wait(0.01):
        status, answer = post(f"{url}/predict", [{"income": 30.0}])
        answers.append((status, answer.get("release")))


def test_promotion_and_rollback_reach_a_running_server(asked, tmp_path):
    """Nobody who asks meanwhile is failed, and the console says what is served now."""
    weak, strong, poor = toy(asked, -0.1), toy(asked, 0.1), toy(asked, 0.2, auc=0.6)
    told = prodml("promote", weak, "--reason", "the first", "-p", tmp_path)
    assert told.returncode == 0 and f"champion is {weak}, and was none" in told.stdout, told.stderr
    port = free_port()
    command = [BIN / "prodml", "serve", "-p", tmp_path, "--port", port]
    stop, answers, home = threading.Event(), [], {"BENTOML_HOME": str(tmp_path)}

    def heard(release):
        return until(lambda: answers[-1:] == [(200, release)])

    with ThreadPoolExecutor(1) as pool, server(command, port, tmp_path / "log", home) as url:
        busy = pool.submit(client, url, stop, answers)
        assert heard(weak)
        words = ["--author", "Zoë", "--reason", "ranks better", "--expected", weak[:6], "--json"]
        told = prodml("promote", strong[:8], *words, "-p", tmp_path)
        assert heard(strong)
        said = json.loads(told.stdout)
        assert said["pointed"] == strong and said["entry"]["author"] == "Zoë"
        again = prodml("promote", strong, "--reason", "once more", "-p", tmp_path)
        assert again.returncode == 0 and f"champion is {strong} already" in again.stdout
        refused = prodml("promote", poor, "--reason", "hope", "-p", tmp_path, "--json")
        assert refused.returncode == 1 and "roc_auc" in json.loads(refused.stdout)["error"]
        late = prodml("promote", weak, "--reason", "late", "--expected", weak, "-p", tmp_path)
        assert late.returncode == 1 and late.stderr.startswith("Outrun: ") and "Zoë" in late.stderr
        back = prodml("rollback", "--reason", "slower", "-p", tmp_path)
        assert back.returncode == 0 and heard(weak)
        stop.set()
        busy.result(300)
    assert [one for one, _ in groupby(answers)] == [(200, weak), (200, strong), (200, weak)]
    lines = (tmp_path / "log").read_text().splitlines()
    said = [line.partition("now serving ")[2] for line in lines if "now serving " in line]
    assert said == [strong, weak]
    further = prodml("rollback", "--reason", "more", "-p", tmp_path)
    assert further.returncode == 2 and "nothing to go back to" in further.stderr
    file = tmp_path / "history.csv"
    told = prodml("history", "--export", file, "--json", "-p", tmp_path)
    entries = json.loads(told.stdout)["entries"]
    assert [one["after"] for one in entries] == [weak, strong, weak]
    assert entries[2]["undoes"] == 2 and len(file.read_text().splitlines()) == 4
    lines = prodml("history", "-p", tmp_path).stdout.splitlines()
    other = prodml("history", "--alias", "champoin", "-p", tmp_path).stdout
    assert other == "No alias is called 'champoin'. There: champion.\n"
    assert len(lines) == 3 and "Zoë promotes: ranks better" in lines[1]
    listed = json.loads(prodml("release", "list", "--json", "-p", tmp_path).stdout)["releases"]
    assert {one["name"]: one["aliases"] for one in listed if one["aliases"]} == {weak: ["champion"]}
    shown = prodml("release", "verify", "champion", "-p", tmp_path)
    assert shown.returncode == 0 and shown.stdout.startswith(weak)
    assert prodml("promote", weak, "-p", tmp_path).returncode == 2  # without a reason


def test_servers_that_could_not_be_told_are_told_by_the_next_command_or_start(asked, tmp_path):
    weak, strong = toy(asked, -0.1), toy(asked, 0.1)
    assert promote(asked, weak, **ME).pointer.champion == weak
    (asked.folder / CURRENT).unlink()
    (asked.folder / CURRENT).mkdir()
    told = prodml("promote", strong, "--reason", "better", "-p", tmp_path, "--json")
    said = json.loads(told.stdout)
    assert told.returncode == 1 and "cannot write" in said["untold"]
    assert open_registry(asked).current() == strong == said["entry"]["after"]
    told = prodml("promote", strong, "--reason", "better", "-p", tmp_path)
    assert told.returncode == 1 and "were NOT told" in told.stdout
    (asked.folder / CURRENT).rmdir()
    told = prodml("promote", strong, "--reason", "better", "-p", tmp_path)
    assert told.returncode == 0 and "already" in told.stdout and pointed(asked) == strong
    assert len(open_registry(asked).journal()) == 2


def test_what_a_server_could_not_load_is_refused_before_anything_moves(asked):
    weak = toy(asked, -0.1)
    promote(asked, weak, **ME)
    made = asked.root / "candidate-0.10.8"
    (made / "model.onnx").write_text("no model")
    gate = GateResult("correctness", (judge("roc_auc", 0.8, 0.78, 0.82, 0.7, "min", 400),))
    broken = seal(made, [], [gate], asked).name
    with pytest.raises(Mistake, match="is no ONNX model"):
        promote(asked, broken, **ME)
    assert open_registry(asked).current() == weak == pointed(asked)
    assert promote(asked, broken, alias="archive", **ME).entry.after == broken  # serves nobody


@pytest.mark.forks
def test_killed_at_any_step_a_restart_puts_the_pointer_right(asked):
    """At every statement, and around every file that is written."""
    weak, strong = toy(asked, -0.1), toy(asked, 0.1)
    promote(asked, weak, **ME)
    number, names = 0, set()
    while number < 80:
        number += 1
        died = killed_at(number, lambda: promote(asked, strong, **ME), files=True)
        assert whole(asked), number
        champion = open_registry(asked).current()
        assert champion in (weak, strong) and pointed(asked) in (weak, strong)
        names.add((champion, pointed(asked)))
        if died:
            assert heal(asked) == "" and pointed(asked) == champion, number
        if champion == strong:
            rollback(asked, **ME)
        if not died:
            break
    assert names == {(weak, weak), (strong, weak), (strong, strong)} and number > 20


@pytest.mark.forks
def test_two_at_once_leave_the_pointer_where_the_registry_is(asked):
    names = [toy(asked, slope) for slope in (-0.1, 0.1, 0.2)]
    promote(asked, names[0], **ME)

    def busy(name):
        for _ in range(6):
            try:
                promote(asked, name, **ME)
            except Outrun:
                continue

    each = [fork.Process(target=busy, args=(name,)) for name in names]
    for process in each:
        process.start()
    for process in each:
        process.join(300)
    assert whole(asked) and pointed(asked) == open_registry(asked).current()
    assert follow_champion(asked) is None


@pytest.mark.forks
def test_one_who_writes_the_pointer_slowly_does_not_write_an_old_one_last(asked):
    weak, strong = toy(asked, -0.1), toy(asked, 0.1)
    open_registry(asked).promote(weak, **ME)
    begun = fork.Event()

    def slowly():
        whole = champion.point_project

        def late(*arguments):
            begun.set()
            time.sleep(1)
            return whole(*arguments)

        champion.point_project = late
        follow_champion(asked)

    process = fork.Process(target=slowly)
    process.start()
    assert begun.wait(300)
    promote(asked, strong, **ME)
    process.join(300)
    assert process.exitcode == 0 and pointed(asked) == strong


def test_who_points_by_hand_is_not_undone_by_a_restart(asked):
    weak, strong = toy(asked, -0.1), toy(asked, 0.1)
    promote(asked, weak, **ME)
    assert follow_champion(asked) is None
    point_by_hand(asked, strong)
    assert heal(asked) == "" and pointed(asked) == strong
    (asked.folder / FOLLOWED).write_text("")  # as if the promotion had not been heard of
    point_by_hand(asked, strong)
    assert follow_champion(asked) is None and pointed(asked) == strong
    point_by_hand(asked, weak)
    assert promote(asked, strong, **ME).pointer.champion == pointed(asked) == strong


def test_without_a_pointer_there_is_nothing_to_fall_back_on(asked):
    weak, strong = toy(asked, -0.1), toy(asked, 0.1)
    assert heal(asked) == ""  # no registry either
    promote(asked, weak, **ME)
    gone = replace(asked, registry=replace(asked.registry, url="postgresql://x@127.0.0.1:1/x"))
    assert "cannot be used" in heal(gone) and pointed(asked) == weak
    open_registry(asked).promote(strong, **ME)
    (find_release(asked, strong) / "extra").write_text("more")
    assert "was added" in heal(asked) and pointed(asked) == weak
    (asked.folder / CURRENT).unlink()
    with pytest.raises(Refused, match="was added"):
        heal(asked)
    with pytest.raises(Mistake, match="cannot be used"):
        heal(gone)


@pytest.mark.forks
def test_a_machine_that_only_serves_needs_no_library_for_databases(asked):
    weak = toy(asked, -0.1)
    code = f"""
import sys
sys.modules["sqlalchemy"] = None
from prodml.ini import read_settings
from prodml.serve.champion import heal, point_by_hand
from prodml.release.store import find_release
from prodml.settings import Mistake
asked = read_settings({str(asked.root)!r})
assert heal(asked) == ""
assert point_by_hand(asked, {weak!r}).champion == {weak!r} == find_release(asked).name
try:
    find_release(asked, "champion")
except Mistake as mistake:
    assert "pip install 'prodml[lab]'" in str(mistake)
"""
    process = fork.Process(target=os.execv, args=(sys.executable, [sys.executable, "-c", code]))
    process.start()
    process.join(300)
    assert process.exitcode == 0
