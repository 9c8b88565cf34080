"""Ten minutes of prodml's endpoint at 80 % of its load: is the memory flat, and does nothing fail?

    python tests/benchmarks/serving/soak.py FOLDER [--minutes 10]

FOLDER is that of run.py. The log, the gauge and the metrics are on. Results go to soak.json.
"""

import argparse
import json
import threading
import time
from pathlib import Path

import numpy as np
from run import HERE, agrees, load, serving, variants, worker_memory

CONNECTIONS, SHARE, EVERY = 64, 0.8, 2.0


def paced(most, port, folder):
    """The pause in milliseconds with which 64 connections make 80 % of `most` requests/s."""
    pause = CONNECTIONS / (SHARE * most) * 1000
    for _ in range(4):  # the time that an answer takes comes off the pause
        rate = load("prodml", port, folder, CONNECTIONS, 5, round(pause))["rate"]
        pause = max(pause + (CONNECTIONS / (SHARE * most) - CONNECTIONS / rate) * 1000, 1)
    return round(pause)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=lambda text: Path(text).resolve())
    parser.add_argument("--minutes", type=float, default=10)
    asked = parser.parse_args()
    variants(asked.folder)
    seen, done = [], threading.Event()
    with serving("prodml", asked.folder) as (port, process, _):
        agrees("prodml", port, asked.folder)
        most = load("prodml", port, asked.folder, CONNECTIONS, 10)["rate"]
        pause = paced(most, port, asked.folder)

        def look():
            start = time.monotonic()
            while not done.wait(EVERY):
                seen.append((time.monotonic() - start, worker_memory(process)))

        watch = threading.Thread(target=look)
        watch.start()
        found = load("prodml", port, asked.folder, CONNECTIONS, round(asked.minutes * 60), pause)
        done.set()
        watch.join()
        agrees("prodml", port, asked.folder)
    at, memory = np.array(seen).T
    late = at > at[-1] / 4
    slope = np.polyfit(at[late] / 60, memory[late], 1)[0]
    told = {"minutes": asked.minutes, "most": most, "share": round(found["rate"] / most, 2)}
    told = {**told, **found,
            "memory": {"first quarter": round(float(memory[~late].mean()), 1),
                       "last": float(memory[-1]), "most": float(memory.max()),
                       "megabytes a minute": round(float(slope), 3)}}  # fmt: skip
    (HERE / "soak.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
