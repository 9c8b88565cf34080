"""What log, gauge and metrics cost: the same service with and without them, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/serving/observers.py [REQUESTS] [ROUNDS] [CONNECTIONS]

A release of the demo is served by `bentoml serve`, one worker on one core, and asked for one row at
a time over some connections (16) from another core; over 1 no rows are gathered, which is the
dearest. The variants run by turns, ROUNDS times. Told are the medians of the processor's time of
the worker for one request, which other work on the machine disturbs little, and of the requests in
a second; and both as a ratio of the service without.
"""

import asyncio
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from processes import BIN, free_port, server
from released import released

from prodml.serve.build import render_service

VARIANTS = {
    "nothing": {"metrics": False, "gauge": False},
    "metrics": {"metrics": True, "gauge": False},
    "metrics and gauge": {"metrics": True, "gauge": True},
    "log": {"metrics": False, "gauge": False, "log": "log"},
    "log, metrics and gauge": {"metrics": True, "gauge": True, "log": "log"},
}


def variant_of(service: Path, folder: Path, asked: dict[str, object]) -> Path:
    """A copy of `service` in `folder`, with the settings that are `asked` for."""
    shutil.copytree(service, folder)
    told = json.loads((folder / "service.json").read_text())
    told["serve"] |= asked
    (folder / "service.json").write_text(json.dumps(told))
    return folder


async def load(port: int, bodies: list[bytes], requests: int, connections: int) -> None:
    """Nothing; asks so many `requests` over all connections, and checks each status."""
    left = iter(range(requests))

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in left:
            body = bodies[number % len(bodies)]
            head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            top = await reader.readuntil(b"\r\n\r\n")
            assert top.startswith(b"HTTP/1.1 200"), top
            length = top.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))


def worker_at(port: int) -> Path:
    """The folder in /proc of the worker that serves at `port`."""
    for one in psutil.process_iter(["cmdline"]):
        line = one.info["cmdline"] or []
        if "serve" in line and str(port) in line:
            for child in one.children(recursive=True):
                if "_bentoml_impl.worker.service" in child.cmdline():
                    return Path(f"/proc/{child.pid}")
    raise LookupError(f"nobody serves at {port}")


def cpu_of(process: Path) -> float:
    """The processor's seconds of all threads of `process`, to the nanosecond."""
    tasks = process.glob("task/*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in tasks) / 1e9


def main(requests: int = 5000, rounds: int = 5, connections: int = 16) -> None:
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        root = Path(place)
        one, cores = released(root / "release", profiled=True), sorted(os.sched_getaffinity(0))
        service = render_service(one.settings, one.folder)
        bodies, ports = [json.dumps(row).encode() for row in one.rows], {}
        for number, (variant, asked) in enumerate(VARIANTS.items()):
            folder, port = variant_of(service, root / str(number), asked), free_port()
            command = ["taskset", "-c", str(cores[0]), BIN / "bentoml", "serve", "--port", port]
            told = {"BENTOML_HOME": place, "PRODML_ROOT": f"{place}/{number}"}
            stack.enter_context(server(command, port, root / f"{number}.txt", told, folder))
            ports[variant] = port
        workers = {variant: worker_at(port) for variant, port in ports.items()}
        os.sched_setaffinity(0, {cores[-1]})
        cpu: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        speed: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for turn in range(rounds + 1):
            for variant, port in ports.items():
                before, begin = cpu_of(workers[variant]), time.perf_counter()
                asyncio.run(load(port, bodies, requests, connections))
                took = time.perf_counter() - begin
                time.sleep(1.2)  # the last flush is counted too
                if turn:  # the first is to warm up
                    cpu[variant].append((cpu_of(workers[variant]) - before) / requests * 1e6)
                    speed[variant].append(requests / took)
        base, fastest = (statistics.median(of["nothing"]) for of in (cpu, speed))
        for variant in VARIANTS:
            spent, quick = statistics.median(cpu[variant]), statistics.median(speed[variant])
            told = f"{spent:7.1f} us CPU a request, {spent - base:+6.1f} ({spent / base:.3f})"
            print(f"{variant:24} {told}   {quick:7.0f} requests/s ({quick / fastest:.3f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
