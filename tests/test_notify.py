"""Messages arrive once, by real servers on loopback; what fails waits, and nothing leaks."""

import datetime as dt
import json
import socket
import threading
import time
from dataclasses import replace
from email import message_from_string
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from listeners import hook, mailbox
from processes import free_port, prodml

from prodml.deployment import Notify
from prodml.settings import Mistake, Project, Settings
from prodml.watch import channels
from prodml.watch.channels import Message, mail, send
from prodml.watch.looks import Look, Seen, looks_folder
from prodml.watch.notify import Alarm, Known, heard, is_quiet, notify_file, sent, tell

TOLD = Message("demo: 1 alarm", "fail", ("FAIL drift fail: (prediction)",), {"project": "demo"})
UP = Alarm("drift: shift (age)", "warn", "drift alert: shift (age): up 0.3", "drift")
BAD = Alarm("performance: error", "fail", "performance fail: error: 0.4", "performance")


def at(hour, day=1):
    return dt.datetime(2026, 7, day, hour, 0, tzinfo=dt.UTC)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Time-outs of which only those of a server that is silent are ever waited for."""
    monkeypatch.setattr(channels, "TIMEOUT", 60.0)
    monkeypatch.setattr(channels.time, "sleep", lambda seconds: None)


def test_a_webhook_gets_facts_a_chat_text_and_people_mail(monkeypatch):
    with hook() as web, hook() as chat, mailbox() as box:
        monkeypatch.setenv("HOOK", f"http://127.0.0.1:{web.port}/secret")
        asked = Notify(
            webhook="$HOOK",
            slack=f"http://127.0.0.1:{chat.port}/",
            smtp=f"smtp://127.0.0.1:{box.port}",
            mail_from="prodml@example.org",
            mail_to=("a@example.org", "b@example.org"),
        )
        done = [send(asked, name, TOLD) for name in channels.channels(asked)]
    assert [one.error for one in done] == ["", "", ""] and len(done) == 3
    assert web == [{"project": "demo", "title": TOLD.title, "text": TOLD.text}]
    assert chat == [{"text": f"*{TOLD.title}*\n{TOLD.text}"}]
    (letter,) = map(message_from_string, box)
    assert letter["Subject"] == "[fail] demo: 1 alarm" and letter["To"].count("@") == 2
    assert letter.get_payload().strip() == TOLD.text


@pytest.mark.parametrize(
    ("answers", "arrives", "word"),
    [
        ([500, 429], True, ""),
        ([500, 503, 500], False, "answered 500, after 3 tries"),
        ([403], False, "answered 403"),
        ([302], False, "answered 302"),
    ],
)
def test_what_may_pass_is_tried_again_and_what_will_not_is_told_at_once(answers, arrives, word):
    with hook() as web:
        web.answers = list(answers)
        done = send(Notify(webhook=f"http://127.0.0.1:{web.port}/secret"), "webhook", TOLD)
        assert bool(web) == arrives and not web.answers
    assert word in done.error and bool(done.error) != arrives and "secret" not in done.error


def test_a_server_that_never_answers_costs_three_time_outs_and_no_more(monkeypatch):
    monkeypatch.setattr(channels, "TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port, start = silent.getsockname()[1], time.monotonic()
        web = send(Notify(webhook=f"http://127.0.0.1:{port}/"), "webhook", TOLD)
        asked = Notify(smtp=f"smtp://127.0.0.1:{port}", mail_from="a@b.c", mail_to=("d@e.f",))
        box = send(asked, "smtp", TOLD)
    assert "did not answer" in web.error and "did not answer" in box.error
    assert time.monotonic() - start < 60


def test_a_password_is_never_sent_in_the_clear_and_never_told(monkeypatch):
    monkeypatch.setenv("PASSWORD", "hunter2")
    with mailbox() as box:
        url = f"smtp://me:$PASSWORD@127.0.0.1:{box.port}"
        done = send(Notify(smtp=url, mail_from="a@b.c", mail_to=("d@e.f",)), "smtp", TOLD)
    assert "no encryption" in done.error and "hunter2" not in done.error and not box


@pytest.mark.parametrize(
    ("channel", "url"),
    [
        ("webhook", "http://127.0.0.1:9/s3cret and more"),
        ("webhook", "http://127.0.0.1:s3cret/"),
        ("slack", "http://[::1/s3cret"),
        ("slack", "s3cret"),
        ("smtp", "smtp://ann:s3cret/x@127.0.0.1:25"),
        ("smtp", "smtp://ann:s3cret@127.0.0.1:70000"),
    ],
)
def test_an_address_that_cannot_be_read_is_told_without_it(channel, url):
    asked = replace(Notify(mail_from="a@example.org", mail_to=("b@example.org",)), **{channel: url})
    error = send(asked, channel, TOLD).error
    assert error and "s3cret" not in error and " not like " in error


def test_mail_that_is_refused_is_told(monkeypatch):
    with mailbox() as box:
        box.answers = [550]
        asked = Notify(smtp=f"smtp://127.0.0.1:{box.port}", mail_from="a@b.c", mail_to=("d@e.f",))
        done = send(asked, "smtp", TOLD)
        assert "refused" in done.error and not box
        box.answers = [451, 451]  # for now, as many servers greet whom they do not know
        assert send(asked, "smtp", TOLD).error == "" and len(box) == 1


@given(st.text(), st.text())
@given_settings(max_examples=50)
def test_no_title_can_write_a_header_of_its_own(title, line):
    asked = Notify(mail_from="a@b.c", mail_to=("d@e.f",))
    clean = title.encode("utf-8", "replace").decode(), line.encode("utf-8", "replace").decode()
    letter = mail(asked, Message(f"{clean[0]}\r\nBcc: x@y.z", "warn", (clean[1],), {}))
    assert "Bcc" not in letter and letter["To"] == "d@e.f"


def project(folder, web, **more):
    notify = Notify(webhook=f"http://127.0.0.1:{web.port}/", **more)
    return Settings(project=Project(name="demo"), root=Path(folder), notify=notify)


def test_one_look_is_one_message_a_repeat_waits_and_an_end_is_told_once(tmp_path):
    both = {"drift", "performance"}
    with hook() as web:
        settings = project(tmp_path, web)
        tell(settings, [UP, BAD], both, "look 1", now=at(8))
        tell(settings, [UP, BAD], both, "look 2", now=at(9))
        assert len(web) == 1 and [a["severity"] for a in web[0]["alarms"]] == ["fail", "warn"]
        tell(settings, [UP, BAD], both, "look 3", now=at(8, 2))
        assert len(web) == 2  # a day has gone by
        tell(settings, [UP], both, "look 4", now=at(9, 2))
        tell(settings, [UP], both, "look 5", now=at(10, 2))
        assert len(web) == 3 and web[2]["over"] == [BAD.key] and "OVER" in web[2]["text"]
        tell(settings, [BAD, replace(UP, severity="fail")], both, "look 6", now=at(11, 2))
        assert len(web) == 4 and len(web[3]["alarms"]) == 2  # graver than it was, and back again


def test_what_a_report_did_not_say_is_not_over(tmp_path):
    with hook() as web:
        settings = project(tmp_path, web)
        tell(settings, [BAD], {"performance"}, now=at(8))
        tell(settings, [], {"drift"}, now=at(9))
        assert len(web) == 1
        tell(settings, [], {"performance"}, now=at(10))
        assert len(web) == 2 and web[1]["over"] == [BAD.key]


def test_the_quiet_hours_keep_what_is_no_failure(tmp_path):
    with hook() as web:
        settings = project(tmp_path, web, quiet="22:00-07:00", zone="Asia/Tokyo")
        night, morning = at(15), at(22)  # midnight and seven in Tokyo
        tell(settings, [UP], {"drift"}, now=night)
        assert not web
        tell(settings, [UP, BAD], {"drift", "performance"}, now=night)
        assert len(web) == 1 and len(web[0]["alarms"]) == 2  # the failure takes it along
        other = replace(UP, key="drift: shift (income)")
        tell(settings, [UP, BAD, other], {"drift"}, now=night)
        tell(settings, now=morning)
        assert len(web) == 2 and [a["key"] for a in web[1]["alarms"]] == [other.key]


def test_what_comes_and_goes_in_the_night_is_told_in_the_morning_and_nothing_waits_for_ever(
    tmp_path,
):
    with hook() as web:
        settings = project(tmp_path, web, quiet="22:00-07:00")
        tell(settings, [UP], {"drift"}, now=at(1))
        tell(settings, [], {"drift"}, now=at(3))
        tell(settings, now=at(7))
        assert len(web) == 1 and "CAME AND WENT" in web[0]["text"] and not web[0]["alarms"]
        tell(settings, [BAD, UP], set(), now=at(23))
        tell(settings, [replace(UP, key="another")], set(), now=at(6, 2))
        tell(settings, [replace(UP, key="another")], set(), now=at(6, 3))  # always at six
        assert len(web) == 3


def test_a_channel_that_fails_keeps_its_message_and_the_other_is_not_told_twice(tmp_path):
    with hook() as web, hook() as chat:
        settings = project(tmp_path, web, slack=f"http://127.0.0.1:{chat.port}/")
        web.answers = [500] * 3
        first = tell(settings, [BAD], {"performance"}, now=at(8))
        assert [bool(one.error) for one in first] == [True, False] and not web and len(chat) == 1
        second = tell(settings, [BAD], {"performance"}, now=at(9))
        assert [one.channel for one in second] == ["webhook"] and len(web) == len(chat) == 1


def test_a_memory_that_was_spoilt_tells_once_more(tmp_path):
    with hook() as web:
        settings = project(tmp_path, web)
        tell(settings, [BAD], {"performance"}, now=at(8))
        for many, text in enumerate(
            ("{", '{"webhook": {"over": {"drift: shift": "it moved"}}}'), 2
        ):
            notify_file(settings).write_text(text)
            tell(settings, [BAD], {"performance"}, now=at(9))
            assert len(web) == many


def test_severity_says_what_is_told_at_least():
    asked = Notify(severity="fail")
    known = heard(Known(), [UP, BAD], set(), asked, 0.0)
    assert list(known.waiting) == [BAD.key] and list(sent(known, 0.0).told) == [BAD.key]


def test_a_failure_that_is_only_a_warning_now_is_over_for_who_asked_for_failures(tmp_path):
    with hook() as web:
        settings = project(tmp_path, web, severity="fail")
        tell(settings, [replace(UP, severity="fail")], {"drift"}, now=at(8))
        tell(settings, [UP], {"drift"}, now=at(9))
        assert len(web) == 2 and web[1]["over"] == [UP.key]


def test_an_end_is_told_after_a_day_also_to_who_is_only_awake_in_the_quiet_hours(tmp_path):
    with hook() as web:
        settings = project(tmp_path, web, quiet="22:00-07:00")
        tell(settings, [BAD], {"performance"}, now=at(3))
        tell(settings, [], {"performance"}, now=at(3, 2))
        assert len(web) == 1
        tell(settings, [], {"performance"}, now=at(3, 3))
        assert len(web) == 2 and web[1]["over"] == [BAD.key]


def test_of_two_that_fail_at_the_same_moment_both_are_told(tmp_path):
    """The second waits for the first, which a slow channel holds up."""
    both, begun, free = [], threading.Event(), threading.Event()

    def slow(asked, channel, message):
        both.append(message.facts["alarms"][0]["key"])
        begun.set()
        assert free.wait(300)
        return channels.Sent(channel)

    settings = project(tmp_path, SimpleNamespace(port=1))
    first = threading.Thread(
        target=tell, args=(settings, [BAD], {"performance"}, "", "", at(8), slow)
    )
    first.start()
    assert begun.wait(300)
    other = threading.Thread(target=tell, args=(settings, [UP], {"drift"}, "", "", at(8), slow))
    other.start()
    other.join(0.3)
    assert other.is_alive() and both == [BAD.key]
    free.set()
    first.join(300), other.join(300)
    assert both == [BAD.key, UP.key]


@pytest.mark.parametrize("quiet", ["22-7", "25:00-07:00", "always"])
def test_hours_that_are_none_are_told(quiet):
    with pytest.raises(Mistake, match="22:00-07:00"):
        is_quiet(Notify(quiet=quiet), at(1))


def test_a_whole_day_and_the_change_of_the_clocks():
    asked = Notify(quiet="02:30-03:30", zone="Europe/Berlin")
    spring = dt.datetime(2026, 3, 29, 1, 15, tzinfo=dt.UTC)  # 03:15, there is no 02:30 that night
    autumn = dt.datetime(2026, 10, 25, 0, 45, tzinfo=dt.UTC)  # 02:45 for the first time
    assert is_quiet(asked, spring) and is_quiet(asked, autumn)
    assert is_quiet(asked, autumn + dt.timedelta(hours=1))


def looked_at(root, port, alarms=()):
    """A project with one look on record, whose webhook is in the environment."""
    (root / "settings.ini").write_text("[data]\nsource = demo\n[notify]\nwebhook = $HOOK\n")
    settings = Settings(root=root)
    span = ("2026-06-01", "2026-07-01", "2026-07-01", "fail", 1, 900, 1, 0)
    look = Look(1, "a1", *span, (Seen("performance", "fail", "", ""),), tuple(alarms))
    place = looks_folder(settings) / "00001"
    place.mkdir(parents=True)
    (place / "look.json").write_text(look.to_json())
    return {"HOOK": f"http://127.0.0.1:{port}/secret"}


def test_commands_tell_what_kept_a_look_from_being_made_and_test_channels(tmp_path):
    with hook() as web:
        env = looked_at(tmp_path, web.port)
        process = prodml("monitor", "-p", tmp_path, env=env)
        assert process.returncode == 2 and "no release" in process.stderr
        assert [a["severity"] for a in web[0]["alarms"]] == ["error"] and len(web) == 1
        tried = prodml("notify", "-p", tmp_path, "--test", env=env)
        assert tried.returncode == 0 and "a test" in web[1]["title"]
        none = prodml("notify", "-p", tmp_path, env=env)
        assert none.returncode == 0 and "Nothing waits" in none.stdout
    gone = {"HOOK": f"http://127.0.0.1:{free_port()}/secret"}
    failed = prodml("notify", "-p", tmp_path, "--test", "--json", env=gone)
    assert failed.returncode == 1 and "secret" not in failed.stdout + failed.stderr
    assert "did not answer" in json.loads(failed.stdout)["messages"]["webhook"]
    unset = prodml("notify", "-p", tmp_path, "--test")
    assert unset.returncode == 1 and "no $HOOK in the environment" in unset.stdout
