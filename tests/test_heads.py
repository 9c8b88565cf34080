"""A connection whose request does not begin, or begins without end, costs nobody anything."""

import asyncio
import contextlib
import json
import socket
import time
from threading import Thread

import pytest
import uvicorn
from processes import BIN, free_port, server
from released import released
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from prodml.serve.bento import bounded
from prodml.serve.build import render_service


class Protocol(HttpToolsProtocol):
    """uvicorn's, for these tests alone."""


bounded(Protocol, most=4_000, seconds=1.5)


async def echo(scope, receive, send):
    """Answers with the length of the body, after a while where the path says so."""
    size, more, tail = 0, True, scope["path"] == "/early"
    while more and not tail:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(3)
    said = b"%d" % size
    head = {"status": 200, "headers": [(b"content-length", b"%d" % len(said))]}
    await send({"type": "http.response.start", **head})
    await send({"type": "http.response.body", "body": said})


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def address(request):
    """Where a server listens, in each event loop."""
    told = {"http": Protocol, "loop": request.param, "log_level": "critical", "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(echo, port=0, timeout_keep_alive=120, **told))
    server.capture_signals = contextlib.nullcontext
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(60)


def talk(address, *pieces, pause=0.05):
    """(all that is said until the server closes, how long that took) to `pieces`, or a wait."""
    began = time.monotonic()
    with socket.create_connection(address, timeout=60) as line:
        for piece in pieces:
            with contextlib.suppress(OSError):  # it may have been closed by now
                time.sleep(piece if isinstance(piece, float) else pause)
                line.sendall(b"" if isinstance(piece, float) else piece)
        told = b""
        with contextlib.suppress(ConnectionResetError):
            while more := line.recv(65536):
                told += more
    return told, time.monotonic() - began


POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
SOON = 30  # seconds, where nothing would end the connection otherwise
WHOLE, LAST = POST + b"\r\n12345", POST + b"Connection: close\r\n\r\n12345"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_silent_connection_is_let_go_and_half_a_head_is_told(address):
    told, seconds = talk(address)
    assert told == b"" and seconds < SOON
    told, seconds = talk(address, POST, b"a: b\r\n", 0.6, b"c: d\r\n", 0.6, b"e: f\r\n", 0.6, b"g:")
    assert told.startswith(b"HTTP/1.1 408 ") and seconds < SOON
    assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "slow_head"
    told, seconds = talk(address, WHOLE, POST)  # of the second request
    assert told.count(b"HTTP/1.1 200 ") == 1 == told.count(b"HTTP/1.1 408 ") and seconds < SOON
    told, seconds = talk(address, WHOLE, b"\r\n")  # what is no beginning of anything
    assert told.count(b"HTTP/1.1") == 1 and seconds < SOON


@pytest.mark.parametrize("first", [b"", WHOLE], ids=["first", "later"])
def test_a_head_without_end_is_refused(address, first):
    many = [b"x: %s\r\n" % (b"x" * 1000) for _ in range(12)]
    told, _ = talk(address, *filter(None, [first]), POST, *many, pause=0.01)
    assert told.count(b"HTTP/1.1 431 ") == 1
    told, _ = talk(address, *filter(None, [first]), POST, b"x: ", *[b"x" * 1000] * 12, pause=0.01)
    assert told.count(b"HTTP/1.1 431 ") == 1


def test_trailers_without_end_are_refused(address):
    many = [b"x: %s\r\n" % (b"x" * 1000) for _ in range(12)]
    told, seconds = talk(address, CHUNKED, b"1\r\na\r\n", b"0\r\n", *many, pause=0.01)
    assert b" 200 " not in told and seconds < SOON


def test_who_asks_properly_is_answered(address):
    large = POST.replace(b": 5", b": 300000") + b"Connection: close\r\n\r\n"
    slow = WHOLE.replace(b"POST /", b"POST /slow")
    for pieces, answers in {
        (WHOLE, LAST): 2,
        (WHOLE + WHOLE + LAST,): 3,  # at once
        (WHOLE + POST, b"\r\n", b"12345" + LAST): 3,
        (*(LAST[i : i + 2] for i in range(0, len(LAST), 2)),): 1,
        (large, *[b"x" * 100_000] * 3): 1,
        (large, 2.0, b"x" * 300_000): 1,  # how long a body may take is for the application
        (CHUNKED, *[b"1\r\na\r\n"] * 20, b"0\r\n\r\n" + LAST): 2,
        (slow + LAST[:40], 2.0, LAST[40:]): 2,  # the first is still being answered
        (slow, LAST): 2,
        (large.replace(b": close", b": x") + b"x" * 300_000 + LAST[:40], LAST[40:]): 2,
    }.items():
        told, _ = talk(address, *pieces, pause=0.001)
        assert told.count(b"HTTP/1.1 200 OK") == answers, pieces[0][:80]
        assert told.count(b"HTTP/1.1") == answers


def test_what_is_left_of_a_body_that_was_answered_is_dropped(address):
    early = POST.replace(b"POST /", b"POST /early").replace(b": 5", b": 50000") + b"\r\n"
    told, _ = talk(address, early, *[b"x" * 10_000] * 5, LAST, pause=0.02)
    assert told.count(b"HTTP/1.1 200 OK") == 2 == told.count(b"HTTP/1.1")


def test_an_offer_of_http_2_loses_no_body(address):
    offer = POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    offer += b"HTTP2-Settings: AAMA\r\n\r\n"
    for pieces in ((offer + b"12345", LAST), (offer, b"12345", LAST), (offer + b"12h2c" + LAST,)):
        told, _ = talk(address, *pieces)
        assert told.count(b"\r\n\r\n5") == 2, told


def test_the_generated_service_has_the_bounds(tmp_path):
    small = released(tmp_path / "small", kind="linear")
    folder, port = render_service(small.settings, small.folder), free_port()
    command = [BIN / "bentoml", "serve", "--host", "127.0.0.1", "--port", port]
    with server(command, port, tmp_path / "log", {"BENTOML_HOME": str(tmp_path)}, folder):
        many = [b"x: %s\r\n" % (b"x" * 10_000) for _ in range(20)]
        told, _ = talk(("127.0.0.1", port), POST, *many, pause=0.01)
        assert told.startswith(b"HTTP/1.1 431 ") and b"head_too_large" in told
        body = json.dumps(small.rows[0]).encode()
        offer = (
            b"POST /predict HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n"
        )
        head = offer + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        told, _ = talk(("127.0.0.1", port), head + body)
        assert told.startswith(b"HTTP/1.1 200 ") and b"probability" in told
