"""The registry: one of two promotions wins, a kill leaves it whole, and a rollback goes back."""

import contextlib
import csv
import datetime as dt
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import free_port
from services import postgres_server
from test_release import GOOD, POOR, candidate, project

from prodml.release import attestation, ledger
from prodml.release.attestation import Refused
from prodml.release.journal import faults
from prodml.release.ledger import open_ledger
from prodml.release.registry import Outrun, move, open_registry
from prodml.release.store import find_release, seal
from prodml.settings import Mistake

ME = {"author": "A. Person", "reason": "a test"}
fork = multiprocessing.get_context("fork")


def registered(folder, count=3, url="", **changes):
    """A project in `folder` and the names of its releases, all of which stand."""
    folder.mkdir(exist_ok=True)
    asked = project(folder, **changes)
    asked = replace(asked, registry=replace(asked.registry, url=url))
    made = [
        seal(candidate(folder, "model" * (n + 1)), [], [GOOD], asked, f"run-{n}")
        for n in range(count)
    ]
    return asked, [path.name for path in made]


@pytest.fixture(scope="session")
def postgres():
    """The URL of a running PostgreSQL."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, postgres_server(port, Path(folder)):
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


@pytest.fixture(params=["sqlite", "postgresql"])
def base(request, tmp_path):
    """A project with three releases, its registry in each of the two databases."""
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres")
    asked, names = registered(tmp_path / "project", url=url)
    if url:
        ledger.TABLES.drop_all(open_ledger(asked))
    return asked, names


def whole(asked):
    registry = open_registry(asked)
    return faults(registry.engine, registry.project) == []


def test_promotion_writes_who_why_and_on_what(base):
    asked, (a, b, _) = base
    registry = open_registry(asked)
    assert registry.current() == "" and registry.journal() == []
    first = registry.promote(a, **ME)
    second = registry.promote(b[:6], evidence={"comparison": {"gain": 0.02}}, **ME)
    assert [first.before, first.after, second.before, second.after] == ["", a, a, b]
    assert second.author == "A. Person" and second.evidence["comparison"] == {"gain": 0.02}
    rests = second.evidence["release"]
    assert rests["digest"][:12] == b and rests["gates"] == {"correctness": "pass"}
    assert abs(second.at - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=60)
    assert registry.journal("champion") == [first, second] and whole(asked)
    assert registry.promote(a, alias="stable", **ME).before == ""
    assert [len(registry.journal(alias)) for alias in ("stable", "champion", "")] == [1, 2, 3]


def test_expected_is_a_condition(base):
    asked, (a, b, c) = base
    registry = open_registry(asked)
    with pytest.raises(Outrun, match="holds no release"):
        registry.promote(a, expected=b, **ME)
    registry.promote(a, expected="", author="Someone Else", reason="the first")
    for expected in ("", b):
        with pytest.raises(Outrun, match="Someone Else made it " + a):
            registry.promote(c, expected=expected, **ME)
    assert registry.promote(c, expected=a[:8], **ME).before == a
    assert len(registry.journal()) == 2 and whole(asked)


def test_a_champion_that_went_and_came_back_is_not_the_one_that_was_seen(base):
    asked, (a, b, c) = base
    registry = open_registry(asked)
    registry.promote(a, **ME)
    seen = ledger.held(registry.engine, registry.project, "champion")
    registry.promote(b, **ME)
    registry.rollback(**ME)
    registry.add(find_release(asked, c))
    assert registry.current() == seen.release
    with pytest.raises(Outrun):
        move(registry.engine, registry.project, seen, {"alias": "champion", "after": c} | ME)
    assert registry.current() == a and len(registry.journal()) == 3


def test_promoting_the_champion_again_changes_nothing(base):
    asked, (a, _, _) = base
    registry = open_registry(asked)
    first = registry.promote(a, **ME)
    assert registry.promote(a, author="B. Person", reason="once more") == first
    assert registry.promote(a, expected="", author="B. Person", reason="a retry") == first
    with pytest.raises(Mistake, match="nothing to go back to: it holds " + a):
        registry.rollback(**ME)
    with pytest.raises(Mistake, match="never set"):
        registry.rollback(alias="stable", **ME)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0, 1, 2, "back"]), max_size=12))
def test_rollback_goes_back_as_a_person_counts(tmp_path_factory, steps):
    """As a stack: each promotion is put on top, each rollback takes the top one off."""
    asked, names = shared_project(tmp_path_factory)
    asked = replace(asked, registry=replace(asked.registry, url=f"sqlite:///{time.time_ns()}.db"))
    registry, stack = open_registry(asked), []
    for step in steps:
        if step != "back":
            if not stack or stack[-1] != names[step]:
                stack.append(names[step])
            registry.promote(names[step], **ME)
        elif len(stack) < 2:
            with pytest.raises(Mistake, match="nothing to go back to"):
                registry.rollback(**ME)
        else:
            stack.pop()
            assert registry.rollback(**ME).after == stack[-1]
        assert registry.current() == (stack[-1] if stack else "")
    assert faults(registry.engine, registry.project) == []


_shared = {}


def shared_project(tmp_path_factory):
    if not _shared:
        _shared["it"] = registered(tmp_path_factory.mktemp("shared") / "project")
    return _shared["it"]


# Two at once


def contest(asked, name, expected, start, told):
    """What one of several promoters at the same moment is told."""
    registry = open_registry(asked)
    start.wait()
    try:
        registry.promote(name, expected=expected, author=name, reason="a race")
        told.put((name, "won"))
    except Outrun as error:
        told.put((name, str(error)))


@pytest.mark.forks
def test_of_promotions_at_once_one_wins_and_the_others_are_told_who(base):
    asked, names = base
    current = ""
    for _ in range(6):
        start, told = fork.Barrier(3), fork.Queue()
        rivals = [name for name in names if name != current] or names
        rivals = [rivals[0], rivals[1], rivals[0] if len(rivals) < 3 else rivals[2]]
        each = [
            fork.Process(target=contest, args=(asked, one, current, start, told)) for one in rivals
        ]
        for process in each:
            process.start()
        said = [told.get(timeout=300) for _ in each]
        for process in each:
            process.join(300)
        winners = {name for name, word in said if word == "won"}
        assert len(winners) == 1, said
        (winner,) = winners
        assert all(word == "won" or f"{winner} made it {winner}" in word for _, word in said)
        assert open_registry(asked).current() == winner
        current = winner
    assert len(open_registry(asked).journal()) == 6 and whole(asked)


def taken_back(asked, start, told):
    registry = open_registry(asked)
    start.wait()
    try:
        told.put(registry.rollback(**ME).undoes)
    except Mistake as error:
        told.put(type(error).__name__)


@pytest.mark.forks
def test_a_promotion_is_taken_back_once_however_many_try(base):
    asked, (a, b, _) = base
    registry = open_registry(asked)
    registry.promote(a, **ME)
    registry.promote(b, **ME)
    registry.engine.dispose()
    start, told = fork.Barrier(3), fork.Queue()
    each = [fork.Process(target=taken_back, args=(asked, start, told)) for _ in range(3)]
    for process in each:
        process.start()
    said = [told.get(timeout=300) for _ in each]
    for process in each:
        process.join(300)
    assert sum(isinstance(one, int) for one in said) == 1 and set(said) <= {2, "Outrun", "Mistake"}
    assert registry.current() == a and whole(asked)


@pytest.mark.forks
def test_many_come_first_at_the_same_moment(base):
    """The tables are made by one of them, and found by the rest."""
    asked, names = base
    ledger.TABLES.drop_all(open_ledger(asked))
    start, told = fork.Barrier(4), fork.Queue()

    def first(asked):
        start.wait()
        told.put(open_registry(asked).add(find_release(asked, names[0])).name)

    each = [fork.Process(target=first, args=(asked,)) for _ in range(4)]
    for process in each:
        process.start()
    assert [told.get(timeout=300) for _ in each] == [names[0]] * 4
    for process in each:
        process.join(300)
    assert len(open_registry(asked).releases()) == 1


# Killed


def killed_at(number, work, files=False):
    """Whether `work`, in a process of its own, was killed at its write of that number.

    A write is a statement, before and after, and a commit; with `files`, also what makes a file.
    """

    def run():
        count = 0

        def step(*_, **__):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        for event in ("before_cursor_execute", "after_cursor_execute", "commit"):
            sa.event.listen(sa.Engine, event, step)
        commit = sa.engine.default.DefaultDialect.do_commit

        def committed(dialect, connection):
            commit(dialect, connection)
            step()

        sa.engine.default.DefaultDialect.do_commit = committed
        for name in ("fsync", "replace", "rename", "chmod", "mkdir") if files else ():
            setattr(os, name, around(getattr(os, name), step))
        work()

    process = fork.Process(target=run)
    process.start()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def around(call, step):
    """`call` with a step before and a step after."""

    def stepped(*arguments, **named):
        step()
        answer = call(*arguments, **named)
        step()
        return answer

    return stepped


@pytest.mark.forks
def test_killed_at_every_statement_it_is_whole(base):
    asked, (a, b, c) = base
    registry = open_registry(asked)
    registry.promote(a, **ME)
    registry.promote(b, **ME)
    registry.engine.dispose()
    number, seen = 0, set()
    while True:
        number += 1
        before = open_registry(asked).current()
        if not killed_at(number, lambda: open_registry(asked).promote(c, **ME)):
            break
        registry = open_registry(asked)
        after = registry.current()
        seen.add((before, after))
        assert (before, after) in {(b, b), (b, c), (c, c)} and whole(asked), number
        assert len(registry.journal()) == 2 + (after == c)
        if before == b and after == c:  # the kill came after the commit: again from before
            registry.rollback(**ME)
            registry.rollback(**ME)
            break
        registry.engine.dispose()
    assert number > 12 and (b, b) in seen


@pytest.mark.forks
def test_killed_at_every_statement_of_a_rollback_it_is_whole(base):
    asked, (a, b, _) = base
    registry = open_registry(asked)
    registry.promote(a, **ME)
    registry.promote(b, **ME)
    registry.engine.dispose()
    number = 0
    while open_registry(asked).current() == b:
        number += 1
        killed_at(number, lambda: open_registry(asked).rollback(**ME))
        assert whole(asked), number
    registry = open_registry(asked)
    assert registry.current() == a and len(registry.journal()) == 3 and number > 8


@pytest.mark.forks
def test_killed_while_the_tables_are_made(tmp_path):
    asked, (a, *_) = registered(tmp_path / "project")
    number = 0
    while True:
        number += 1
        if not killed_at(number, lambda: open_ledger(asked)):
            break
        assert open_registry(asked).current() == "" and whole(asked)
        for file in (tmp_path / "project/.prodml").glob("registry.db*"):
            file.unlink()
    assert number > 8 and open_registry(asked).promote(a, **ME).after == a


@pytest.mark.forks
def test_killed_at_any_moment_what_was_reported_is_kept(tmp_path):
    asked, names = registered(tmp_path / "project")
    registry = open_registry(asked)
    registry.promote(names[0], **ME)
    chance, reported = random.Random(7), 1

    def busy(out):
        registry = open_registry(asked)
        while True:
            name = names[names.index(registry.current()) - 1]
            os.write(out, f"{registry.promote(name, **ME).number}\n".encode())

    for _ in range(15):
        into, out = os.pipe()
        process = fork.Process(target=busy, args=(out,))
        process.start()
        os.close(out)
        with os.fdopen(into, "rb") as lines:
            first = lines.readline()
            time.sleep(chance.random() * 0.05)
            os.kill(process.pid, signal.SIGKILL)
            process.join(300)
            told = [int(line) for line in (first + lines.read()).decode().splitlines()]
        reported = max([reported, *told])
        numbers = [entry.number for entry in registry.journal()]
        assert whole(asked) and max(numbers) >= reported
        assert numbers == list(range(1, max(numbers) + 1))
    assert reported > 15
    with contextlib.closing(sqlite3.connect(tmp_path / "project/.prodml/registry.db")) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert base.execute("PRAGMA foreign_key_check").fetchall() == []


# What is refused


def test_what_does_not_stand_is_refused_and_nothing_is_written(tmp_path):
    asked, (a, b, _) = registered(tmp_path / "project")
    registry = open_registry(asked)
    registry.promote(a, **ME)
    failed = seal(candidate(tmp_path, "poor"), [], [GOOD, POOR], asked).name
    assert registry.add(find_release(asked, failed)).verdict == "refused"
    with pytest.raises(Refused, match="prediction_psi"):
        registry.promote(failed, **ME)
    model = find_release(asked, b) / "model.onnx"
    model.chmod(0o644)
    model.write_text("another")
    with pytest.raises(Refused, match="was edited"):
        registry.promote(b, **ME)
    with pytest.raises(Refused):
        registry.add(find_release(asked, b))
    for bad in ({"reason": " "}, {"author": ""}, {"reason": "a\nb"}, {"alias": "0a1b"}):
        with pytest.raises(Mistake):
            registry.promote(a, **(ME | bad))
    with pytest.raises(Mistake, match="JSON"):
        registry.promote(a, alias="stable", evidence={"gain": float("nan")}, **ME)
    assert len(registry.journal()) == 1 and registry.current() == a


def test_a_release_under_another_name_is_refused(tmp_path):
    """Its files and its signature are in order, but it is not the one that was asked for."""
    asked, (a, b, _) = registered(tmp_path / "project")
    store = find_release(asked, a).parent
    (store / a).rename(store / "aside")
    (store / b).rename(store / a)
    with pytest.raises(Refused, match="not hold what its name says"):
        open_registry(asked).promote(a, **ME)


def test_what_is_registered_are_the_bytes_that_were_held_against_the_signed_list(
    tmp_path, monkeypatch
):
    """Each file is read once in a promotion, so none can be exchanged between two readings."""
    asked, (a, b) = registered(tmp_path, 2)
    registry = open_registry(asked)
    registry.promote(a, **ME), registry.promote(b, **ME)
    read, real = [], attestation.digest_file
    monkeypatch.setattr(attestation, "digest_file", lambda path: read.append(path) or real(path))
    entry = registry.promote(a, **ME)
    files = [path for path in find_release(asked, a).rglob("*") if path.is_file()]
    assert len(read) == len({*read}) == len(files) - 1  # the attestation is no part of itself
    assert entry.evidence["release"]["digest"][:12] == a


def test_rollback_to_what_does_not_stand_any_more_is_refused(tmp_path):
    asked, (a, b, _) = registered(tmp_path / "project")
    registry = open_registry(asked)
    registry.promote(a, **ME)
    registry.promote(b, **ME)
    (find_release(asked, a) / "extra").write_text("more")
    with pytest.raises(Refused, match=f"champion stays at {b}.*was added"):
        registry.rollback(**ME)
    assert registry.current() == b and len(registry.journal()) == 2


def test_an_alias_is_found_and_reading_makes_no_registry(tmp_path, monkeypatch):
    asked, (a, *_) = registered(tmp_path / "project")
    with pytest.raises(Mistake, match="no release called 'champion'"):
        find_release(asked, "champion")
    assert not (tmp_path / "project/.prodml/registry.db").exists()
    open_registry(asked).promote(a, **ME)
    assert find_release(asked, "champion").name == a
    (tmp_path / "champion").mkdir()
    (tmp_path / "champion/attestation.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_release(asked, "champion").name == a
    assert open_registry(asked).promote("champion", alias="stable", **ME).after == a


def test_two_projects_in_one_database_do_not_meet(tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    one, (a, *_) = registered(tmp_path / "one", url=url)
    two, (b, *_) = registered(tmp_path / "two", url=url)
    two = replace(two, project=replace(two.project, name="another"))
    open_registry(one).promote(a, **ME)
    assert open_registry(two).current() == "" and open_registry(two).releases() == []
    with pytest.raises(Mistake, match="nothing to go back"):
        open_registry(two).rollback(**ME)
    open_registry(two).promote(b, **ME)
    assert [len(open_registry(p).journal()) for p in (one, two)] == [1, 1]


@pytest.mark.parametrize("name", ["history.jsonl", "history.csv"])
def test_history_is_exported_whole(tmp_path, name):
    asked, names = registered(tmp_path / "project")
    registry = open_registry(asked)
    for n, one in enumerate(names):
        registry.promote(one, author="Zoë", reason=f'the "{n}", as said')
    path = registry.export(tmp_path / name)
    if name.endswith("csv"):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        rests = json.loads(rows[2]["evidence"])
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rests = rows[2]["evidence"]
    assert [row["after"] for row in rows] == names and rests["release"]["digest"][:12] == names[2]
    assert rows[1]["reason"] == 'the "1", as said' and rows[0]["author"] == "Zoë"
    for wrong in ("history.xml", "nowhere/history.csv"):
        with pytest.raises(Mistake, match=r"history\.|nowhere"):
            registry.export(tmp_path / wrong)


@pytest.mark.forks
@pytest.mark.parametrize("name", ["history.jsonl", "history.csv"])
@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_killed_while_it_is_exported_the_old_file_stays(tmp_path, name, step):
    asked, names = registered(tmp_path / "project")
    registry = open_registry(asked)
    registry.promote(names[0], **ME)
    old = registry.export(tmp_path / name).read_text()
    registry.promote(names[1], **ME)

    def dies():
        setattr(os, step, lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL))
        open_registry(asked).export(tmp_path / name)

    process = fork.Process(target=dies)
    process.start()
    process.join(300)
    assert process.exitcode == -9 and (tmp_path / name).read_text() == old
    assert (
        len(registry.export(tmp_path / name).read_text().splitlines()) == len(old.splitlines()) + 1
    )


# What cannot be used


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("mysql://host/name", "give sqlite"),
        ("sqlite://", "give sqlite:///FILE"),
        ("no url", "is no URL"),
        ("postgresql://me:$NO_SUCH_WORD@h/d", r"\$NO_SUCH_WORD"),
        ("postgresql://me:secret@127.0.0.1:1/d", "cannot be used"),
        ("sqlite:////proc/nowhere/registry.db", "cannot"),
    ],
)
def test_a_registry_that_cannot_be_used_says_why_and_no_password(tmp_path, url, word):
    asked, (a, *_) = registered(tmp_path / "project", url=url)
    with pytest.raises(Mistake, match=word) as caught:
        open_registry(asked).promote(a, **ME)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_and_a_newer_one_are_told(tmp_path):
    asked, (a, *_) = registered(tmp_path / "project")
    path = tmp_path / "project/.prodml/registry.db"
    path.write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(Mistake, match="not a database"):
        open_registry(asked)
    path.unlink()
    with ledger.writing(open_ledger(asked)) as connection:
        connection.execute(ledger.form.update().values(version=2))
    with pytest.raises(Mistake, match="version 2"):
        open_registry(asked).promote(a, **ME)


def test_the_password_is_read_from_the_environment(tmp_path, monkeypatch, postgres):
    monkeypatch.setenv("REGISTRY_HOST", postgres.partition("@")[2])
    asked, (a, *_) = registered(tmp_path / "project", url="postgresql://postgres@$REGISTRY_HOST")
    ledger.TABLES.drop_all(open_ledger(asked))
    assert open_registry(asked).promote(a, **ME).number == 1
