"""What log, gauge and metrics cost: the same server with and without them, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/serving/observers.py [REQUESTS] [ROUNDS]

A release of the demo is served by uvicorn, one worker on one core, and asked for one row at a time
over 16 connections from another core. The variants run by turns, ROUNDS times; told are the
medians of the processor's time of the server for one request, which other work on the machine
disturbs little, and of the requests in a second, and both as a ratio of the server without.
"""

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from processes import free_port, server

CONNECTIONS = 16
VARIANTS = {
    "nothing": {"metrics": False, "gauge": False},
    "metrics": {"metrics": True, "gauge": False},
    "metrics and gauge": {"metrics": True, "gauge": True},
    "log": {"metrics": False, "gauge": False, "log": "log"},
    "log, metrics and gauge": {"metrics": True, "gauge": True, "log": "log"},
}


def serve(folder: str, keys: str, variant: str, port: str) -> None:
    """Serves the release in `folder` until it is ended."""
    import uvicorn

    from prodml.serve.app import create_app
    from prodml.settings import Serve

    os.sched_setaffinity(0, {0})
    asked = Serve(**VARIANTS[variant])
    app = create_app(folder, json.loads(keys), serve=asked)
    uvicorn.run(app, port=int(port), log_level="warning", access_log=False)


async def load(port: int, bodies: list[bytes], requests: int) -> None:
    """Nothing; asks so many `requests` over all connections, and checks each status."""
    requests_left = iter(range(requests))

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in requests_left:
            body = bodies[number % len(bodies)]
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            top = await reader.readuntil(b"\r\n\r\n")
            assert top.startswith(b"HTTP/1.1 200"), top
            length = top.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))


def process_at(port: int) -> Path:
    """The folder in /proc of the process that serves at `port`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if str(port).encode() in words and b"serve" in words:
                return path.parent
    raise LookupError(f"nobody serves at {port}")


def cpu_of(process: Path) -> float:
    """The processor's seconds of all threads of `process`, to the nanosecond."""
    tasks = process.glob("task/*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in tasks) / 1e9


def main(requests: int = 4000, rounds: int = 5) -> None:
    from released import released

    from prodml.serve.build import checks

    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        one = released(Path(place) / "release")
        keys = json.dumps(checks(one.settings)["trusted_keys"])
        bodies = [json.dumps(row).encode() for row in one.rows]
        ports = {variant: free_port() for variant in VARIANTS}
        for variant, port in ports.items():
            command = [sys.executable, __file__, "serve", one.folder, keys, variant, port]
            root = {"PRODML_ROOT": f"{place}/{port}"}
            stack.enter_context(server(command, port, Path(place) / "log.txt", env=root))
        processes = {variant: process_at(port) for variant, port in ports.items()}
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        cpu: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        speed: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for turn in range(rounds + 1):
            for variant, port in ports.items():
                before, begin = cpu_of(processes[variant]), time.perf_counter()
                asyncio.run(load(port, bodies, requests))
                took = time.perf_counter() - begin
                time.sleep(1.2)  # the last flush is counted too
                if turn:  # the first is to warm up
                    cpu[variant].append((cpu_of(processes[variant]) - before) / requests * 1e6)
                    speed[variant].append(requests / took)
        base, fastest = (statistics.median(of["nothing"]) for of in (cpu, speed))
        for variant in VARIANTS:
            spent, quick = statistics.median(cpu[variant]), statistics.median(speed[variant])
            told = f"{spent:7.1f} us CPU a request, {spent - base:+6.1f} ({spent / base:.3f})"
            print(f"{variant:24} {told}   {quick:7.0f} requests/s ({quick / fastest:.3f})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    else:
        main(*map(int, sys.argv[1:]))
