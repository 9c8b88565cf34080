"""Programs that tests start: always on loopback, always ended, with all they started."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from services import absent

BIN = Path(sys.executable).parent


def prodml(*arguments, cwd=None, env=None, timeout=600):
    """The finished process of `prodml` with `arguments`."""
    command = [BIN / "prodml", *map(str, arguments)]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(command, port, log, env=None, cwd=None, timeout=120):
    """A server's base URL once it says it is ready; its whole process group is ended afterwards."""
    with open(log, "wb") as out:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
    try:
        end = time.monotonic() + timeout
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"exited {process.returncode}: {Path(log).read_text()[-2000:]}")
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as reply,
            ):
                if reply.status == 200:
                    break
            if time.monotonic() > end:
                raise TimeoutError(Path(log).read_text()[-2000:])
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def console_said(log, words, times=1, seconds=60):
    """The time at which the console in the file `log` has said `words` so often, soon enough."""
    end = time.monotonic() + seconds
    while (text := Path(log).read_text()).count(words) < times:
        assert time.monotonic() < end, f"not said: {words!r}; but: {text[-2000:]}"
        time.sleep(0.05)
    return time.monotonic()


def plain_server(folder, log):
    """A plain server of the release in `folder`, whose evidence is not asked for: its base URL."""
    port = free_port()
    code = (
        "import uvicorn; from prodml.serve.app import App;"
        "from prodml.serve.scorer import load_scorer;"
        f"uvicorn.run(App(load_scorer({str(folder)!r})), port={port}, log_level='warning')"
    )
    return server([sys.executable, "-c", code], port, log)


def environment(place, packages):
    """The Python of the virtual environment at `place` with `packages`, made unless it is there."""
    python, ready = Path(place) / "bin" / "python", Path(place) / "ready"
    if not ready.exists():
        make = [BIN / "uv", "venv", "-q", "--clear", "--python", sys.executable, place]
        subprocess.run(make, check=True)
        install = [BIN / "uv", "pip", "install", "-q", "--python", python, *packages]
        subprocess.run(install, check=True, timeout=900)
        ready.touch()
    return python


def required(place, packages):
    """`environment`, for a test, which is absent where it cannot be made."""
    try:
        return environment(place, packages)
    except subprocess.CalledProcessError as error:
        absent(f"{' '.join(map(str, packages))} cannot be installed: {error}")


def beside(place, packages):
    """The Python of an environment of `packages`, and behind them all that is installed here.

    For what cannot live beside our own versions of something: theirs are found first.
    """
    python = required(place, packages)
    site = next(Path(place).glob("lib/python3*/site-packages"))
    behind = [p for p in sys.path if p.endswith("site-packages")]
    root = Path(__file__).resolve().parents[1]
    (site / "behind.pth").write_text("\n".join([str(root), *behind]))
    return python


def post(url, body):
    """(status, answer) of a JSON request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
