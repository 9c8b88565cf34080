"""Releases on a shelf: half of one is never taken for it, whatever breaks off on the road."""

import contextlib
import os
import signal
import subprocess
import urllib.request
from dataclasses import replace

import fsspec.implementations.local
import pytest
from processes import beside, free_port
from services import running
from test_registry import ME, around, fork, registered
from test_release import GOOD, candidate

from prodml.release.attestation import FILE, Refused
from prodml.release.registry import open_registry
from prodml.release.shelf import Shelf, content_digest, fetch
from prodml.release.store import check_release, find_release, seal
from prodml.settings import Mistake


def shelved(asked, url):
    return replace(asked, registry=replace(asked.registry, store=url))


def elsewhere(asked, folder, url):
    """The same project on another machine: its keys and its registry, and none of its releases."""
    same = f"sqlite:///{asked.folder.resolve()}/registry.db"
    there = replace(asked, root=folder, registry=replace(asked.registry, url=same, store=url))
    there.folder.mkdir(parents=True)
    os.link(asked.folder / "key.pem", there.folder / "key.pem")
    return there


@pytest.fixture
def memory():
    """An empty shelf in memory."""
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/releases"


def test_a_promoted_release_is_found_by_its_alias_on_another_machine(tmp_path, memory):
    asked, (a, b, _) = registered(tmp_path / "here")
    here = shelved(asked, memory)
    open_registry(here).promote(b, **ME)
    there = elsewhere(here, tmp_path / "there", memory)
    folder = find_release(there, "champion")
    assert folder.name == b and folder.parent == there.folder / "releases"
    assert check_release(there, folder) and content_digest(folder)[:12] == b
    assert all(p.stat().st_mode & 0o222 == 0 for p in folder.iterdir() if p.is_file())
    with pytest.raises(Mistake, match=f"no release called '{a}'.*There: {b}"):
        find_release(there, a)  # it was not registered, so it was not sent
    assert find_release(there, b[:5]) == folder


def test_a_shared_folder_is_used_as_it_is(tmp_path):
    asked, _ = registered(tmp_path / "here", count=0)
    asked = shelved(asked, "../shared")
    made = seal(candidate(tmp_path), [], [GOOD], asked)
    assert made.parent.resolve() == tmp_path / "shared"
    assert open_registry(asked).promote(made.name, **ME).after == made.name
    assert find_release(asked, "champion").resolve() == made.resolve()


@pytest.mark.parametrize("harm", ["cut", "changed", "added", "gone", "another"])
def test_what_was_harmed_on_the_shelf_is_refused(tmp_path, memory, harm):
    asked, (a, b, _) = registered(tmp_path / "here")
    here, disk = shelved(asked, memory), fsspec.filesystem("memory")
    registry = open_registry(here)
    registry.add(find_release(here, a)), registry.add(find_release(here, b))
    model = f"/bucket/releases/{a}/model.onnx"
    if harm == "gone":
        disk.rm(model)
    elif harm == "added":
        disk.pipe_file(f"/bucket/releases/{a}/more.bin", b"more")
    elif harm == "another":  # whole and signed, but not the one asked for
        for path in disk.find(f"/bucket/releases/{b}"):
            disk.cp_file(path, path.replace(b, a))
    else:
        disk.pipe_file(model, b"mod" if harm == "cut" else b"nodel")
    with pytest.raises(Refused, match="is something else"):
        fetch(Shelf(memory), a, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))
    if harm in ("cut", "gone"):  # sent again, it is whole
        assert Shelf(memory).put(find_release(asked, a))
        assert fetch(Shelf(memory), a, tmp_path / "cache").is_dir()


@pytest.mark.parametrize("step", range(1, 4))
def test_an_upload_that_broke_off_is_no_release_and_is_mended(tmp_path, memory, monkeypatch, step):
    asked, (a, *_) = registered(tmp_path / "here")
    here, disk, count = shelved(asked, memory), fsspec.filesystem("memory"), 0
    whole = type(disk).put_file

    def breaks(self, *arguments, **named):
        nonlocal count
        count += 1
        if count == step:
            raise ConnectionResetError("gone")
        return whole(self, *arguments, **named)

    monkeypatch.setattr(type(disk), "put_file", breaks)
    with pytest.raises(Mistake, match=r"cannot be reached.*ConnectionResetError: gone"):
        open_registry(here).promote(a, **ME)
    registry = open_registry(here)
    assert Shelf(memory).names() == [] and registry.current() == "" and registry.releases() == []
    with pytest.raises(Mistake, match="no release"):
        fetch(Shelf(memory), a, tmp_path / "cache")
    assert registry.promote(a, **ME).after == a and Shelf(memory).names() == [a]


@pytest.mark.forks
@pytest.mark.parametrize("way", ["up", "down"])
def test_killed_at_every_file_no_half_release_is_left(tmp_path, way):
    """On a disk this time, since memory does not outlive a process."""
    asked, (a, *_) = registered(tmp_path / "here")
    shelf, cache = Shelf(f"file://{tmp_path}/shelf"), tmp_path / "cache"
    if way == "down":
        shelf.put(find_release(asked, a))
    deaths = 0

    def work(number):
        count = 0

        def step():
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        local = fsspec.implementations.local.LocalFileSystem
        for name in ("put_file", "get_file"):
            setattr(local, name, around(getattr(local, name), step))
        for name in ("rename", "fsync"):
            setattr(os, name, around(getattr(os, name), step))
        shelf.put(find_release(asked, a)) if way == "up" else fetch(shelf, a, cache)

    for number in range(1, 40):
        process = fork.Process(target=work, args=(number,))
        process.start()
        process.join(300)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        deaths += 1
        if way == "up" and shelf.names():
            assert fetch(shelf, a, tmp_path / f"cache{number}").is_dir()
        found = [p for p in cache.glob("[!.]*")]
        assert all(content_digest(p)[:12] == p.name and (p / FILE).exists() for p in found)
    assert deaths >= (4 if way == "up" else 6)
    assert check_release(asked, fetch(shelf, a, cache))


@pytest.mark.parametrize(
    ("url", "word"),
    [("nosuch://bucket/x", "nosuch"), ("s3://bucket/x", "s3fs|boto|redential|connect|resolve")],
)
def test_a_shelf_that_cannot_be_reached_says_why(tmp_path, monkeypatch, url, word):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Mistake, match=f"(?i)cannot be reached.*({word})"):
        Shelf(url).names()


def test_a_path_that_climbs_out_is_refused(tmp_path, memory, monkeypatch):
    asked, (a, *_) = registered(tmp_path / "here")
    Shelf(memory).put(find_release(asked, a))
    disk = fsspec.filesystem("memory")
    listed = disk.find(f"/bucket/releases/{a}", detail=True)
    climbs = listed | {f"/bucket/releases/{a}/../../evil": {"size": 1}}
    monkeypatch.setattr(type(disk), "find", lambda self, path, **_: climbs)
    with pytest.raises(Refused, match="outside"):
        fetch(Shelf(memory), a, tmp_path / "cache")
    with pytest.raises(Mistake, match="no release"):
        fetch(Shelf(memory), "../../etc", tmp_path / "cache")


# Real clients, in environments of their own, against stand-ins for S3 and Google Cloud Storage.

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import fsspec.implementations.local
from test_registry import ME, registered
from test_shelf import elsewhere, shelved
from prodml.release.attestation import Refused
from prodml.release.registry import open_registry
from prodml.release.shelf import Shelf, fetch
from prodml.release.store import check_release, find_release
url, place = sys.argv[1], Path(sys.argv[2])
asked, (a, b, _) = registered(place / "here")
here = shelved(asked, url)
registry = open_registry(here)
registry.promote(a, **ME)
registry.promote(b, **ME)
shelf = Shelf(url)
assert shelf.names() == sorted([a, b]) and not shelf.put(find_release(asked, a))
there = elsewhere(here, place / "there", url)
assert check_release(there, find_release(there, "champion")) and find_release(there, a).name == a
disk, root = fsspec.core.url_to_fs(url)
disk.pipe_file(f"{{root}}/{{a}}/model.onnx", b"nodel")
try:
    fetch(shelf, a, place / "cache")
    raise SystemExit("taken for a release")
except Refused as refused:
    assert "something else" in str(refused)
disk.rm_file(f"{{root}}/{{b}}/attestation.json")
disk.invalidate_cache()
assert shelf.names() == [a]
print("done")
"""


def told(python, url, place, env):
    code = SCRIPT.format(tests=os.path.dirname(__file__))
    return subprocess.run(
        [python, "-c", code, url, place],
        **{"env": {**os.environ, **env}, "capture_output": True, "text": True, "timeout": 300},
    )


@pytest.mark.slow
def test_on_s3(tmp_path):
    python, port = beside(tmp_path / "client", ["s3fs>=2026.1"]), free_port()
    server = beside(tmp_path / "moto", ["moto[s3]>=5.1", "flask", "flask-cors"])
    env = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    env |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [server.parent / "moto_server", "-H", "127.0.0.1", "-p", port]
    with running(command, port, tmp_path / "log", env=env):
        make = "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"
        subprocess.run([python, "-c", make], check=True, env={**os.environ, **env})
        done = told(python, "s3://bucket/some/releases", tmp_path, env)
    assert done.stdout.strip() == "done", done.stderr[-3000:]


@pytest.mark.slow
def test_on_google_cloud_storage(tmp_path):
    python, port = (
        beside(tmp_path / "client", ["gcsfs>=2026.1", "gcp-storage-emulator"]),
        free_port(),
    )
    env = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
    env |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "GOOGLE_CLOUD_PROJECT": "test"}
    command = [python.parent / "gcp-storage-emulator", "start", "--host", "127.0.0.1"]
    command += ["--port", port, "--in-memory", "--default-bucket", "bucket"]

    def ready(port):
        with contextlib.suppress(OSError):
            address = f"http://127.0.0.1:{port}/storage/v1/b/bucket"
            return urllib.request.urlopen(address, timeout=10).status == 200

    with running(command, port, tmp_path / "log", env=env, ready=ready):
        done = told(python, "gs://bucket/some/releases", tmp_path, env)
    assert done.stdout.strip() == "done", done.stderr[-3000:]
