"""Programs that tests start: always on loopback, always ended, with all they started."""

import contextlib
import http.client
import json
import os
import random
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


def until(holds, seconds=120, pause=0.05):
    """What `holds` answers as soon as it answers anything true; the last answer after `seconds`."""
    end = time.monotonic() + seconds
    while not (answer := holds()) and time.monotonic() < end:
        time.sleep(pause)
    return answer


def eventually(check, seconds=120):
    """What `check` answers; it is asked again while it raises `AssertionError`, for `seconds`."""
    end = time.monotonic() + seconds
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > end:
                raise
        time.sleep(0.1)


RESERVED = []


def free_port():
    """A port on loopback for a server that starts soon, and that nobody else takes meanwhile.

    It is none of those that the system gives to clients and to who asks for any port. The UDP port
    of that number is held until this process ends: other processes of tests leave both alone then.
    """
    for _ in range(1000):
        port = random.SystemRandom().randrange(20_000, 32_000)
        held = socket.socket(type=socket.SOCK_DGRAM)
        with contextlib.suppress(OSError), socket.socket() as tried:
            held.bind(("127.0.0.1", port))
            tried.bind(("", port))
            RESERVED.append(held)
            return port
        held.close()
    raise OSError("there is no free port")


@contextlib.contextmanager
def server(command, port, log, env=None, cwd=None, timeout=300):
    """A server's base URL once it says it is ready; its whole process group is ended afterwards."""

    def started():
        with open(log, "wb") as out:
            return subprocess.Popen(
                list(map(str, command)),
                **{"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT},
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )

    process, tries = started(), 3
    try:
        end = time.monotonic() + timeout
        while True:
            if process.poll() is not None:
                tries -= 1  # BentoML's supervisor takes ports that were free a moment before
                if tries and "address already in use" in Path(log).read_text().lower():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process = started()
                    continue
                raise RuntimeError(f"exited {process.returncode}: {Path(log).read_text()[-2000:]}")
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as reply,
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
                process.wait(60)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def console_said(log, words, times=1, seconds=300):
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
        if subprocess.run(install, timeout=900).returncode:  # an index may fail for a moment
            time.sleep(5)
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
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
