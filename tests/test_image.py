"""The image: what goes into it, what is refused, and one made, run without rights, and asked."""

import datetime as dt
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import containers
import numpy as np
import pytest
from processes import prodml
from released import FAILED, INI, released, sealed, told

from prodml.serve import image
from prodml.serve.build import render_service
from prodml.serve.image import (
    Lock,
    bill_of_materials,
    default_base,
    find_backend,
    image_lines,
    image_time,
    lock_packages,
    needed,
    server_packages,
)
from prodml.settings import Mistake, Serve


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A release in a project that the command line can open."""
    one = released(tmp_path_factory.mktemp("small"))
    (one.settings.root / "settings.ini").write_text(INI)
    return one


@pytest.fixture(scope="module")
def service(small):
    return render_service(small.settings, small.folder)


# What the folder says, without any tool.


def test_the_bill_of_materials_is_the_lock(service):
    bill = json.loads((service / "sbom.cdx.json").read_text())
    locked = Lock((service / "requirements.lock").read_text()).versions
    parts = {part["name"]: part["version"] for part in bill["components"]}
    assert parts.pop("prodml") == metadata.version("prodml")
    assert parts == locked and "onnxruntime" in parts and "pandas" not in parts
    refs = {part["bom-ref"] for part in bill["components"]}
    graph = {one["ref"]: set(one["dependsOn"]) for one in bill["dependencies"]}
    assert len(refs) == len(bill["components"]) and set().union(*graph.values()) <= refs
    root = bill["metadata"]["component"]["bom-ref"]
    reached, waiting = set(), [root]
    while waiting:
        ref = waiting.pop()
        waiting += graph[ref] - reached
        reached |= graph[ref]
    assert reached == refs, "a package that nothing needs"
    licensed = [part for part in bill["components"] if part.get("licenses")]
    assert len(licensed) > 0.8 * len(refs)


def test_the_same_release_makes_the_same_files_again(small, service):
    names = ("requirements.lock", "sbom.cdx.json", "image.dockerfile", "service.json")
    before = [(service / name).read_bytes() for name in names]
    assert before[0].startswith(b"# No digests: none were asked for.\n")
    render_service(small.settings, small.folder)
    assert [(service / name).read_bytes() for name in names] == before


def test_the_lines_hold_the_release_the_base_and_no_root(small, service):
    text = (service / "image.dockerfile").read_text()
    assert f'image.version="{small.folder.name}"' in text and f"FROM {default_base()}\n" in text
    assert re.search(rf'image\.revision="sha256:{small.folder.name}[0-9a-f]{{52}}"', text)
    assert "HEALTHCHECK" in text and "STOPSIGNAL SIGTERM" in text and "$" not in text
    assert "useradd -o -u 1034 " in text  # the number that the page tells users of Kubernetes
    assert json.loads((service / "service.json").read_text())["serve"]["workers"] == 1
    for name in ("requirements.lock", "image.dockerfile", "sbom.cdx.json"):
        assert not re.search(r"://[^/\s]*@|PRIVATE KEY|index-url", (service / name).read_text())


@pytest.mark.parametrize("base", ["", "a b", "x\nRUN true", "$HOME", "--platform=x", "é:1", '"'])
def test_a_base_that_is_no_image_is_a_mistake(base):
    with pytest.raises(Mistake, match="is no image"):
        image_lines(base, {}, hashes=True)


def test_the_time_of_the_image_is_told_or_that_of_the_evidence(monkeypatch):
    when = dt.datetime(2026, 3, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert image_time(when) == "2026-03-01T10:00:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert image_time(when) == "1970-01-01T00:00:00Z"
    for bad in ("-1", "yesterday", "1.5", "²"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", bad)
        with pytest.raises(Mistake, match="SOURCE_DATE_EPOCH"):
            image_time(when)


def test_trees_are_served_without_what_graphics_cards_need(small, tmp_path):
    """A model with no ONNX form brings its libraries, at the versions installed here."""
    names = dict(line.split("==") for line in server_packages(tmp_path))
    assert names["xgboost-cpu"] == metadata.version("xgboost")
    assert names["pandas"] == metadata.version("pandas") and "xgboost" not in names
    assert not [name for name in names if name.startswith("nvidia-nccl")]
    assert len(names) > len(server_packages(small.folder)) + 4


def test_the_store_of_online_features_brings_its_client(small, tmp_path, monkeypatch):
    plain = server_packages(small.folder, "sqlite:///features.db")
    assert plain == server_packages(small.folder, "memory:")
    assert any(line.startswith("redis==") for line in server_packages(small.folder, "redis://x"))
    monkeypatch.setitem(image.STORES, "redis", ("no-such-client",))
    asked = replace(small.settings, serve=Serve(features="redis://x"), root=tmp_path)
    with pytest.raises(Mistake, match="no-such-client is not installed here"):
        server_packages(small.folder, asked.serve.features)


def fake_uv(folder, script, monkeypatch):
    """Puts a program called uv first on the PATH."""
    (folder / "uv").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_digests_are_kept_and_an_address_is_not(tmp_path, monkeypatch):
    locked = f"numpy==2.4.6 \\\n    --hash=sha256:{'a' * 64}\n"
    (tmp_path / "said").write_text(f"--index-url https://me:secret@host/simple\n{locked}")
    fake_uv(tmp_path, f"cat {tmp_path}/said", monkeypatch)
    assert lock_packages(["numpy==2.4.6"]) == Lock(locked)
    (tmp_path / "said").write_text(f"{locked}scipy==1.17.1\n")
    lock = lock_packages(["numpy==2.4.6", "scipy==1.17.1"])
    assert lock == Lock("numpy==2.4.6\nscipy==1.17.1\n", "the package index told no digests")


def test_without_an_index_the_lock_says_what_it_lacks(tmp_path, monkeypatch):
    fake_uv(tmp_path, "exit 2", monkeypatch)
    lock = lock_packages(["numpy==2.4.6"])
    assert lock.text == "numpy==2.4.6\n" and "no package index" in lock.lacks


def test_versions_that_the_index_has_not_got_are_a_mistake(tmp_path, monkeypatch):
    fake_uv(tmp_path, "echo 'no version of numpy==99' >&2; exit 1", monkeypatch)
    with pytest.raises(Mistake, match="numpy==99"):
        lock_packages(["numpy==99"])


def test_a_package_that_is_not_here_is_in_the_bill_all_the_same():
    versions = {"never-heard-of": "1.0"}
    bill = bill_of_materials(versions, "x", "0", "00", "2026-01-01T00:00:00Z")
    assert bill["components"][-1]["purl"] == "pkg:pypi/never-heard-of@1.0"
    assert needed(metadata.distribution("prodml"))


# What is refused.


def test_a_release_that_did_not_pass_makes_no_image(small, tmp_path):
    """The same sentence as without --image, before any tool is looked for."""
    bad = sealed(small, tmp_path, FAILED)
    (bad.settings.root / "settings.ini").write_text(INI)
    said = []
    for more in ([], ["--image"], ["--image", "--backend", "kaniko"]):
        run = prodml("build", "-p", tmp_path, *more, env={"PATH": str(tmp_path)})
        assert run.returncode == 1 and "Traceback" not in run.stderr
        said.append(run.stderr)
    assert said[0] == said[1] == said[2] and "roc_auc" in said[0]


def test_without_a_tool_nothing_is_begun(small, tmp_path):
    shutil.rmtree(small.settings.root / "services", ignore_errors=True)
    for tool in ("", "podman", "kaniko"):
        asked = ["--image", *(["--backend", tool] if tool else [])]
        run = prodml("build", "-p", small.settings.root, *asked, env={"PATH": str(tmp_path)})
        assert run.returncode == 2 and "podman" in run.stderr and "Traceback" not in run.stderr
        assert ("apt install" in run.stderr) == (tool != "kaniko")
    assert not (small.settings.root / "services").exists()


def test_a_docker_whose_daemon_is_silent_is_passed_over(tmp_path):
    for name, code in (("docker", 1), ("podman", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    assert find_backend(path=str(tmp_path)) == "podman"
    with pytest.raises(Mistake, match="daemon does not answer"):
        find_backend("docker", path=str(tmp_path))


def test_what_a_tool_said_last_is_found_wherever_bentoml_puts_it():
    """podman's words follow BentoML's; docker's come before them, with a bare command after."""
    ends = (
        "\nTraceback (most recent call last):\n  File x\nbentoml.exceptions.BentoMLException: ..."
    )
    for said in (
        f"INFO: begun\n{image.BEGAN}STEP 3\nno space left{ends}",
        f"#3 STEP\nno space left\n{image.BEGAN}Command '['docker']' returned 1{ends}",
        "no space left\n",
    ):
        assert image.last_lines(said, 1) == "no space left"
    assert image.last_lines("") == ""


@pytest.mark.slow
def test_a_build_that_fails_ends_with_what_was_said_last(small, tmp_path):
    (tmp_path / "podman").write_text("#!/bin/sh\necho 'no space left on device' >&2\nexit 125\n")
    (tmp_path / "podman").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "BENTOML_HOME": str(tmp_path / "home")}
    asked = ["build", "--image", "--backend", "podman", "-p", small.settings.root]
    run = prodml(*asked, env=environment)
    assert run.returncode == 1 and run.stdout == "" and "Traceback" not in run.stderr
    assert run.stderr.rstrip().endswith("no space left on device")


# One made, and run.

CLIENT = """
import json, urllib.request
rows = json.load(open("/rows.json"))
for start in range(0, len(rows), 500):
    body = json.dumps({"rows": rows[start : start + 500]}).encode()
    head = {"content-type": "application/json"}
    asked = urllib.request.Request("http://127.0.0.1:3000/predict", body, head)
    print(urllib.request.urlopen(asked, timeout=120).read().decode())
"""
READY = "import urllib.request as u; u.urlopen('http://127.0.0.1:3000/readyz', timeout=10)"


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    if why := containers.missing():
        if os.environ.get("PRODML_REQUIRE_SERVICES") and containers.installable():
            pytest.fail(f"{why}; .ci/run installs them")
        pytest.skip(why)
    uv = importlib.util.find_spec("uv")
    assert uv and uv.origin, "the lab extra brings uv"
    one = containers.Podman(tmp_path_factory.mktemp("podman"), find_uv())
    try:
        containers.make_base(one.folder / "base.tar")
        one("import", "--quiet", one.folder / "base.tar", f"docker.io/library/{default_base()}")
        yield one
    finally:
        one.end()
    assert not one.folder.exists()


def find_uv():
    code = "import uv; print(uv.find_uv_bin())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout[:-1]


@pytest.fixture(scope="module")
def made(small, podman, tmp_path_factory):
    """What `prodml build --image` answers."""
    environment = podman.environment | {"BENTOML_HOME": str(tmp_path_factory.mktemp("bentoml"))}
    environment |= {"SOURCE_DATE_EPOCH": "1750000000"}
    asked = ["build", "--image", "--backend", "podman", "--json", "-p", small.settings.root]
    run = prodml(*asked, env=environment)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["digests"] and answer["image"] == answer["bento"]
    return answer | {"environment": environment}


@pytest.fixture(scope="module")
def root(podman, made):
    """The root file system of the image."""
    path = Path(podman("image", "mount", made["image"]))
    yield path
    podman("image", "unmount", made["image"])


@pytest.mark.slow
def test_the_image_serves_every_row_with_no_rights_and_no_network(small, podman, made, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(small.rows))
    name = "served"
    closed = ["--network", "none", "--read-only", "--tmpfs", "/tmp:rw,size=64m"]
    closed += ["--cap-drop", "all", "--security-opt", "no-new-privileges"]
    closed += ["--memory", "400m", "--pids-limit", "100", "--no-healthcheck"]
    closed += ["--volume", f"{tmp_path / 'rows.json'}:/rows.json:ro"]
    podman("run", "--detach", "--name", name, *closed, made["image"])
    end = time.monotonic() + 300
    while not podman("exec", name, "python", "-c", f"{READY}; print(1)", check=False):
        running = podman("inspect", name, "--format", "{{.State.Running}}")
        assert running == "true" and time.monotonic() < end, podman("logs", name)
        time.sleep(0.2)
    assert podman("exec", name, "id", "-u") == "1034"
    assert not podman("exec", name, "sh", "-c", "touch /home/x /data/x && echo x", check=False)
    capabilities = podman("exec", name, "sh", "-c", "grep -h Cap /proc/1/status")
    assert set(re.findall(r"\S+$", capabilities, re.MULTILINE)) == {"0" * 16}
    answers = map(json.loads, podman("exec", name, "python", "-c", CLIENT).splitlines())
    found = [one for answer in answers for one in answer["predictions"]]
    assert len(found) == len(small.answers) > 300
    assert np.abs(told(small, found) - small.answers).max() < 1e-6
    podman("stop", "--time", "60", name)
    assert podman("inspect", name, "--format", "{{.State.ExitCode}}") == "0"


@pytest.mark.slow
def test_the_image_holds_the_lock_and_nothing_else(small, made, root):
    site = next(root.glob("app/.venv/lib/python3*/site-packages"))
    there = {}
    for path in site.glob("*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        there[image.plain_name(name)] = version
    folder = root / "home/bentoml/bento/src"
    text = (folder / "requirements.lock").read_text()
    digests = len(re.findall(r"==.* \\\n    --hash=sha256:", text))
    assert there == Lock(text).versions and digests == len(there) > 50
    bill = json.loads((folder / "sbom.cdx.json").read_text())
    assert {part["name"]: part["version"] for part in bill["components"][1:]} == there
    assert (folder / "sbom.cdx.json").read_bytes() == (
        Path(made["service"]) / "sbom.cdx.json"
    ).read_bytes()
    assert [name for name in there if name.startswith("nvidia")] in ([], ["nvidia-ml-py"])
    assert not {"pandas", "scikit-learn", "xgboost", "pip", "uv"} & set(there)
    assert not [path for path in site.rglob("tests") if path.is_dir()]


@pytest.mark.slow
def test_no_secret_and_no_address_is_in_the_image(root):
    bad = re.compile(rb"://[^/\s\"']+:[^/\s\"']+@|PRIVATE KEY-|--(extra-)?index-url")
    read = 0
    for top in ("home", "data", "root", "etc", "tmp"):
        for path in (root / top).rglob("*"):
            if path.is_file() and not path.is_symlink() and "prodml" not in path.parts:
                assert not bad.search(path.read_bytes()), path
                read += 1
    assert read > 50


@pytest.mark.slow
def test_the_image_says_what_it_is_and_is_small(small, podman, made):
    (facts,) = json.loads(podman("image", "inspect", made["image"]))
    labels, settings = facts["Labels"], facts["Config"]
    kept = {key.removeprefix("org.opencontainers.image."): labels[key] for key in labels}
    assert kept["version"] == small.folder.name and kept["base.name"] == default_base()
    assert kept["revision"].startswith(f"sha256:{small.folder.name}")
    assert kept["created"] == "2025-06-15T15:06:40Z"
    assert settings["User"] == "bentoml" and settings["StopSignal"] == "SIGTERM"
    assert "/readyz" in facts["Healthcheck"]["Test"][-1] and "3000/tcp" in settings["ExposedPorts"]
    environment = set(settings["Env"])
    assert {"BENTOML_HOME=/tmp/bentoml", "BENTOML_DO_NOT_TRACK=True"} <= environment
    assert facts["Size"] < 350e6


@pytest.mark.slow
def test_another_file_under_a_locked_version_stops_the_build(small, podman, made):
    """A digest that is wrong: no image, exit code 1, and what was there stays."""
    folder, environment = Path(made["service"]), made["environment"]
    lock = folder / "requirements.lock"
    text = lock.read_text()
    spoilt = re.sub(
        r"^(schema==.*\n)(    --hash.*\n)+", rf"\1    --hash=sha256:{'0' * 64}\n", text, flags=re.M
    )
    assert spoilt != text
    lock.write_text(spoilt)
    before = podman("images", "--all", "--no-trunc", "--format", "{{.Id}} {{.Names}}")
    command = [sys.executable, "-m", "bentoml", "build", "--version", "spoilt"]
    with_home = os.environ | environment
    subprocess.run(command, cwd=folder, env=with_home, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        with pytest.raises(image.NotBuilt, match=r"(?i)hash mismatch"):
            image.containerize("credit-demo:spoilt", folder, "podman")
    assert podman("images", "--all", "--no-trunc", "--format", "{{.Id}} {{.Names}}") == before
