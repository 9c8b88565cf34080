"""A worker that is killed under load takes no more with it than what it had in its hands."""

import http.client
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from processes import BIN, free_port, server, until
from released import released

from prodml.serve.build import render_service
from prodml.settings import Serve

CLIENTS, SECONDS = 8, 8.0


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return released(tmp_path_factory.mktemp("small"), serve=Serve(workers=2))


def works(process):
    """Whether `process` is alive, and answers."""
    try:
        return "_bentoml_impl.worker.service" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def workers(port):
    """The processes that answer on `port`: children of the one that was told to."""
    for one in psutil.process_iter(["cmdline"]):
        line = one.info["cmdline"] or []
        if "serve" in line and str(port) in line:
            return list(filter(works, one.children(recursive=True)))
    return []


def client(port, rows, end, told, lost):
    """Nothing; asks for one row after another until `end`, and again where a worker went away."""
    link, at = http.client.HTTPConnection("127.0.0.1", port, timeout=120), 0
    while time.monotonic() < end:
        row = at % len(rows)
        try:
            head = {"content-type": "application/json"}
            link.request("POST", "/predict", json.dumps(rows[row]), head)
            reply = link.getresponse()
            told.append((row, reply.status, json.loads(reply.read())))
            at += 1
        except (OSError, http.client.HTTPException, ValueError) as error:
            lost.append(type(error).__name__)
            link.close()
            time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_worker_loses_only_what_is_in_its_hands(small, tmp_path):
    service = render_service(small.settings, small.folder)
    port, told, lost = free_port(), [], []
    command = [BIN / "bentoml", "serve", "--host", "127.0.0.1", "--port", port]
    with server(command, port, tmp_path / "log", {"BENTOML_HOME": str(tmp_path)}, service):
        assert until(lambda: len(workers(port)) == 2)
        before = workers(port)
        end = time.monotonic() + SECONDS
        rows = small.rows[:50]
        threads = [
            threading.Thread(target=client, args=(port, rows, end, told, lost))
            for _ in range(CLIENTS)
        ]
        for one in threads:
            one.start()
        time.sleep(SECONDS / 4)
        os.kill(before[0].pid, signal.SIGKILL)
        killed = len(told)
        for one in threads:
            one.join()
        assert until(lambda: len(workers(port)) == 2)
        again = {one.pid for one in workers(port)}
    shutil.rmtree(service, ignore_errors=True)
    assert {status for _, status, _ in told} == {200} and len(told) > killed
    assert len(lost) <= CLIENTS  # one request at most in the hands of each connection
    assert before[0].pid not in again and len(again) == 2
    said = np.array([answer["predictions"][0]["probability"] for _, _, answer in told])
    wanted = small.answers[[row for row, _, _ in told], 1]
    assert np.abs(said - wanted).max() < 1e-6
