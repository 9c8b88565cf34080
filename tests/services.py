"""Real services that tests need: found, started on loopback, and always ended.

A service that is not installed skips the test with a reason; with PRODML_REQUIRE_SERVICES=1, as in
`.ci/run`, it fails it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest


def absent(reason):
    """Nothing; skips the test, or fails it where services are required."""
    if os.environ.get("PRODML_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{reason}, and PRODML_REQUIRE_SERVICES=1", pytrace=False)
    pytest.skip(reason)


def program(name):
    """The path of the program called `name`; `PRODML_SERVICES` is a folder to look into first."""
    found = shutil.which(name, path=os.environ.get("PRODML_SERVICES")) or shutil.which(name)
    return found or absent(f"no {name} here: apt-get install {name}")


def connects(port):
    """Whether a connection is taken at `port`."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
        return True
    return False


@contextlib.contextmanager
def running(command, port, log, timeout=300, env=None, ready=connects):
    """The process of `command` once it is `ready` at `port`; its group is ended after."""
    with open(log, "ab") as out:
        process = subprocess.Popen(
            list(map(str, command)),
            **{"stdout": out, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL},
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    try:
        end = time.monotonic() + timeout
        while True:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} did not start: {Path(log).read_text()[-2000:]}")
            if ready(port):
                break
            time.sleep(0.02)
        yield process
    finally:
        for sign in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            if sign != signal.SIGCONT:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                    break


def redis_server(port, folder):
    """A running Redis at `port`, its process as a context manager; nothing of it is kept."""
    command = [program("redis-server"), "--bind", "127.0.0.1", "--port", port, "--save", ""]
    return running([*command, "--dir", folder], port, folder / "redis.log")


def postgres_answers(port):
    """Whether PostgreSQL answers at `port`: it takes connections before it does."""
    import psycopg

    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect(f"host=127.0.0.1 port={port} user=postgres connect_timeout=5").close()
        return True
    return False


@contextlib.contextmanager
def postgres_server(port, folder):
    """A running PostgreSQL at `port` that trusts whoever comes from this machine.

    `folder` must not lie in one that only root may enter, as pytest's own do.
    """
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian's are on no path
    bins = [p for p in installed if (p / "initdb").exists()]
    if not bins and not shutil.which("initdb"):
        absent("no PostgreSQL here: apt-get install postgresql")
    place = bins[-1] if bins else Path(shutil.which("initdb")).resolve().parent
    first = []
    if os.getuid() == 0:  # it will not run as root
        first = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"
    made = [*first, place / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"]
    subprocess.run(made, check=True, capture_output=True, cwd="/")
    options = ["-p", port, "-k", folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    command = [*first, place / "postgres", "-D", data, *options]
    with running(command, port, folder / "postgres.log", ready=postgres_answers) as process:
        yield process
        process.send_signal(signal.SIGINT)  # it waits for no client then
        process.wait(60)
