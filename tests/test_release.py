"""Releases: what was signed is what is there, and no accident leaves half of one."""

import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from prodml.release import apart
from prodml.release.apart import verify_apart
from prodml.release.attestation import (
    FILE,
    Refused,
    judge_gates,
    public_pem,
    signing_key,
    trusted_keys,
    verify,
)
from prodml.release.store import check_release, find_release, list_releases, releases_folder, seal
from prodml.settings import Mistake, Settings, Waiver
from prodml.verdict import GateResult, Verdict, judge

GOOD = GateResult("correctness", (judge("roc_auc", 0.8, 0.78, 0.82, 0.7, "min", 4000),))
POOR = GateResult("drift", (judge("prediction_psi", 0.9, 0.8, 1.0, 0.2, "max", 4000),))
UNSURE = GateResult("fairness", (judge("mae_ratio", 1.1, 0.9, 1.4, 1.2, "max", 50),))


def project(folder, **changes):
    limits = replace(Settings().limits, required=("correctness",))
    return Settings(root=Path(folder), limits=limits, **changes)


def candidate(folder, content="a model"):
    made = Path(folder) / f"candidate-{len(content)}"
    made.mkdir(exist_ok=True)
    (made / "data.json").write_text(json.dumps({"digest": "0" * 64}))
    (made / "model.onnx").write_text(content)
    return made


@pytest.fixture
def sealed(tmp_path):
    asked = project(tmp_path)
    return asked, seal(candidate(tmp_path), [], [GOOD], asked, "run-1")


@pytest.mark.parametrize(
    "code, word",
    [
        ("raise SystemExit(3)", "it ended with 3"),
        ("raise ValueError('no room')", "no room"),
        ("pass", "could not be checked"),  # silence
        ("print('a word')", "could not be checked"),
        ("print('null')", "could not be checked"),
        ("print('5')", "could not be checked"),
        ("print('{}')", "was not checked"),
        ("print('{\"stands\": true}')", "was not checked"),
        (
            "import json, sys; sys.stdin.read(); print(json.dumps({'stands': {}}))",
            "was not checked",
        ),
        ("import os; os.kill(os.getpid(), 9)", "it ended with -9"),
        ("import time; time.sleep(60)", "timed out"),
    ],
)
def test_a_process_that_says_anything_else_refuses(sealed, monkeypatch, code, word):
    asked, release = sealed
    monkeypatch.setattr(apart, "ASK", code)
    monkeypatch.setattr(apart, "LONGEST", 1.0 if word == "timed out" else 60.0)
    with pytest.raises(Refused, match=word):
        verify_apart(release, trusted_keys(asked))


def test_evidence_that_stands_is_believed_apart_and_what_changed_is_not(sealed, monkeypatch):
    asked, release = sealed
    own = trusted_keys(asked)
    stranger = public_pem(Ed25519PrivateKey.generate())
    cases = [
        ((own,), ""),
        ((own, -2), "stale"),
        ((own, 90, ("card",)), "card"),
        (([stranger],), "not genuine"),
    ]
    for python in (sys.executable, "/usr/bin/uwsgi", ""):  # those without one ask themselves
        monkeypatch.setattr(sys, "executable", python)
        for question, word in cases:
            if not word:
                verify_apart(release, *question)
                continue
            with pytest.raises(Refused, match=word):
                verify_apart(release, *question)


def test_the_process_sees_the_same_package(tmp_path, sealed):
    """A service carries its own copy of prodml, which goes before one that is installed."""
    _, release = sealed
    told = apart.asked_apart({"folder": str(release), "trusted": []})
    assert "not genuine" in told["refused"]
    copy = tmp_path / "copy" / "prodml"
    shutil.copytree(
        Path(apart.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    with open(copy / "release" / "attestation.py", "a") as file:
        file.write("\n\ndef verify(**question):\n    raise Refused('the copy speaks')\n")
    code = "from prodml.release.apart import asked_apart; print(asked_apart({'trusted': []}))"
    path = os.environ | {"PYTHONPATH": str(copy.parent)}
    line = [sys.executable, "-c", code]
    ended = subprocess.run(line, env=path, cwd=tmp_path, capture_output=True, text=True)
    assert "the copy speaks" in ended.stdout, ended.stderr


def test_a_sealed_release_stands_and_cannot_be_written(sealed):
    asked, release = sealed
    assert check_release(asked, release).verdict is Verdict.PASS
    assert all(p.stat().st_mode & 0o222 == 0 for p in release.iterdir() if p.is_file())


@pytest.fixture(scope="module")
def open_release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    asked = project(folder)
    release = seal(candidate(folder), [], [GOOD], asked, "run-1")
    for path in release.iterdir():
        path.chmod(0o644)
    return asked, release


@settings(max_examples=150)
@given(st.data())
def test_any_flipped_bit_is_refused(open_release, data):
    asked, release = open_release
    path = data.draw(st.sampled_from(sorted(p for p in release.iterdir() if p.is_file())))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
    try:
        if path.name == FILE:  # a flip may fall on white space, and then changes nothing
            same = _statement(path.read_bytes()) == _statement(whole)
            if same:
                return
        with pytest.raises(Refused):
            check_release(asked, release)
    finally:
        path.write_bytes(whole)


def _statement(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_link_is_refused(open_release):
    asked, release = open_release
    (release / "link").symlink_to("/etc/hostname")
    try:
        with pytest.raises(Refused, match="link"):
            check_release(asked, release)
    finally:
        (release / "link").unlink()


def test_old_evidence_is_stale_and_the_future_is_not_believed(sealed):
    asked, release = sealed
    keys, now = trusted_keys(asked), dt.datetime.now(dt.UTC)
    with pytest.raises(Refused, match="stale: 100 days old, 90 allowed"):
        verify(release, keys, 90, now=now + dt.timedelta(days=100.01))
    with pytest.raises(Refused, match="future"):
        verify(release, keys, 90, now=now - dt.timedelta(days=3))


@pytest.mark.parametrize(
    ("gates", "required", "word"),
    [
        ([GOOD, POOR], (), "prediction_psi"),
        ([GOOD, UNSURE], (), "mae_ratio"),
        ([GOOD], ("correctness", "stability"), "stability was required and not examined"),
        ([], (), "was required and not examined"),
        ([GateResult("correctness", ())], (), "not"),
    ],
)
def test_what_did_not_pass_is_kept_and_refused(tmp_path, gates, required, word):
    asked = project(tmp_path)
    if required:
        asked = replace(asked, limits=replace(asked.limits, required=required))
    release = seal(candidate(tmp_path), [], gates, asked)
    assert release.is_dir() and list_releases(asked)[0].verdict == "refused"
    with pytest.raises(Refused, match=word):
        check_release(asked, release)


def test_a_waiver_excuses_its_own_gate_until_its_day():
    day = dt.date(2026, 6, 1)
    waiver = Waiver("drift", "known campaign", "A. Person", day)
    assert judge_gates([GOOD, POOR], ["correctness"], [waiver], day) is Verdict.WARN
    later = day + dt.timedelta(days=1)
    assert judge_gates([GOOD, POOR], ["correctness"], [waiver], later) is Verdict.FAIL
    other = replace(waiver, gate="fairness")
    assert judge_gates([GOOD, POOR], ["correctness"], [other], day) is Verdict.FAIL


def test_a_stored_verdict_is_not_believed(tmp_path):
    """The findings decide, also when the one who signs wrote `pass` above them."""
    asked = project(tmp_path)

    class Liar(GateResult):
        def to_dict(self):
            return super().to_dict() | {"verdict": "pass"}

    release = seal(candidate(tmp_path), [], [GOOD, Liar("drift", POOR.findings)], asked)
    with pytest.raises(Refused, match="prediction_psi"):
        check_release(asked, release)


def test_the_key_is_private_and_made_once(tmp_path, monkeypatch):
    asked = project(tmp_path)
    key = signing_key(asked)
    path = tmp_path / ".prodml/key.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(Mistake, match="chmod 600"):
        signing_key(asked)
    path.chmod(0o600)
    monkeypatch.setenv("PRODML_KEY", path.read_text())
    assert public_pem(signing_key(project(tmp_path / "other"))) == public_pem(key)
    monkeypatch.setenv("PRODML_KEY", "-----BEGIN PRIVATE KEY-----\nno\n-----END PRIVATE KEY-----")
    with pytest.raises(Mistake, match="not an Ed25519"):
        signing_key(asked)


def test_another_s_key_is_believed_only_where_it_is_named(tmp_path, sealed):
    asked, release = sealed
    (tmp_path / "stranger").mkdir()
    stranger = project(tmp_path / "stranger")
    with pytest.raises(Refused, match="not trusted"):
        check_release(stranger, release)
    (tmp_path / "theirs.pub").write_text(trusted_keys(asked)[0])
    named = replace(stranger, release=replace(stranger.release, trusted=("../theirs.pub",)))
    assert check_release(named, release).verdict is Verdict.PASS
    with pytest.raises(Refused):
        verify(release, [public_pem(Ed25519PrivateKey.generate())])


def test_the_same_content_is_sealed_twice_under_one_name(tmp_path, sealed):
    asked, release = sealed
    assert seal(candidate(tmp_path), [], [GOOD], asked, "run-2") == release
    assert len(list_releases(asked)) == 1


def test_names_are_found_by_their_beginning(tmp_path, sealed):
    asked, release = sealed
    other = seal(candidate(tmp_path, "another model"), [], [GOOD], asked)
    assert find_release(asked) == other and find_release(asked, release.name[:6]) == release
    with pytest.raises(Mistake, match=release.name):
        find_release(asked, "zzz")


SEAL = """
    import json, os, resource, signal, sys
    sys.path.insert(0, {tests!r})
    from test_release import GOOD, candidate, project, seal
    asked = project({folder!r})
    made = candidate({folder!r}, "x" * 2_000_000)
    {accident}
    seal(made, [], [GOOD], asked, "run-2")
"""
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); " + (
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
)
KILL = "import prodml.release.store as store; store.{step} = lambda *a: os.kill(os.getpid(), 9)"


@pytest.mark.parametrize("accident", ["full", "content_digest", "publish", "write_atomic"])
def test_a_full_disk_or_a_kill_leaves_the_old_state_whole(tmp_path, sealed, accident):
    asked, release = sealed
    line = FULL if accident == "full" else KILL.format(step=accident)
    tests = str(Path(__file__).parent)
    code = textwrap.dedent(SEAL).format(tests=tests, folder=str(tmp_path), accident=line)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (1 if accident == "full" else -9), done.stderr
    if accident == "full":
        assert "the disk is full" in done.stderr and "unchanged" in done.stderr
    assert find_release(asked) == release
    assert check_release(asked, release).verdict is Verdict.PASS
    assert all(r.verdict == "pass" for r in list_releases(asked))
    again = seal(candidate(tmp_path, "a third"), [], [GOOD], asked, "run-3")
    assert find_release(asked) == again
    assert not [p for p in releases_folder(asked).iterdir() if p.name.startswith(".new-")]


def test_two_runs_at_once_both_end_well(tmp_path):
    tests = str(Path(__file__).parent)
    code = textwrap.dedent(SEAL).format(tests=tests, folder=str(tmp_path), accident="pass")
    both = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in both:
        assert process.wait(300) == 0, process.stderr.read().decode()
        process.stderr.close()
    asked = project(tmp_path)
    assert [r.verdict for r in list_releases(asked)] == ["pass"]
    assert os.listdir(releases_folder(asked)).count("latest") == 1
