"""Measure one and two threads for the quickstart's small networks, alone and beside busy processes.

    python scripts/bench/threads.py --out scripts/bench/results/threads.json

Each training runs in a process of its own, whose time counts from the call of `fit` to its end. A neighbor is a process
that only counts; `--neighbors` of them run beside every second training. Variants take turns within a round, so that a
change of the machine's load meets all of them; each row keeps the load average at its start.

OpenMP's threads meet at the end of each parallel operation, and the one that arrives first spins. Where another process
holds the second core, the first thread spins through the other's whole time slice, some milliseconds for an operation
of microseconds. `OMP_WAIT_POLICY=PASSIVE` makes it sleep instead. A training that outlasts `--limit` counts with it.

`results/threads.json` is one round of 100 steps on 2 cores with 10 to 12 other processes ready to run (`--configs
fine_tune --neighbors 0 --rounds 1`): 4.4 s with one thread, 62 s with two, 8.3 s with two that sleep. Wall times vary
with the load; CPU seconds show the cause: 1.0 with one thread, 11.2 with two, 1.0 with two that sleep. On an idle
machine (`results/threads_idle.json`, three rounds) the medians are 1.2 s with one thread, 1.1 s with two, and 1.7 s
with two that sleep. So `fit` keeps torch's number of threads, which is best on a machine of one's own; set
`OMP_NUM_THREADS=1` for small networks on a shared one, where a second thread wins 8% or loses a factor of 14.
`study --jobs N` divides the cores among its N processes, so `scripts/quickstart` trains with one thread each.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from provenance import publish

VARIANTS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "2 threads, passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}
EPOCHS = {"fine_tune": 2, "autoencoder": 1}


def train(config: str) -> None:
    """Train in this process and print wall, user and system seconds as JSON.

    Args:
        config: Name of a config in `configs/quickstart`.
    """
    from commands import fit

    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    fit([f"quickstart/{config}.yaml"], "threads", 0, f"--trainer.max_epochs={EPOCHS[config]}")
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = {
        "wall": time.perf_counter() - start,
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
    }
    print(json.dumps(seconds))


@contextmanager
def busy_neighbors(count: int) -> Iterator[None]:
    """Keep processes busy, and end them afterward.

    Args:
        count: Number of processes.
    """
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(config: str, variant: str, neighbors: int, limit: float) -> dict[str, Any]:
    """Train in a process of its own and return its seconds, or the limit as its wall time where it took longer.

    Args:
        config: Name of a config in `configs/quickstart`.
        variant: Name of the threads' settings.
        neighbors: Number of busy processes beside it.
        limit: Seconds after which the process is ended.
    """
    row = {"config": config, "variant": variant, "neighbors": neighbors, "load_before": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as folder, busy_neighbors(neighbors):
        try:
            done = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), "--train", config],
                env={**os.environ, **VARIANTS[variant]},
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return {**row, "wall": limit, "ended": True}
    seconds = json.loads(done.stdout.splitlines()[-1])
    return {**row, **{name: round(value, 2) for name, value in seconds.items()}}


def main() -> None:
    """Measure all variants in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=EPOCHS, default=[*EPOCHS], help="trainings to measure")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of each training")
    parser.add_argument("--neighbors", type=int, default=2, help="busy processes of the loaded case")
    parser.add_argument(
        "--limit", type=float, default=120, help="seconds after which a training is ended, its start included"
    )
    parser.add_argument("--train", choices=EPOCHS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="file for the result")
    args = parser.parse_args()
    if args.train:
        train(args.train)
        return
    del args.train
    rows = []
    for _ in range(args.rounds):
        for config in args.configs:
            for neighbors in sorted({0, args.neighbors}):
                for variant in VARIANTS:
                    rows.append(measure(config, variant, neighbors, args.limit))
                    print(rows[-1], file=sys.stderr, flush=True)
    wall: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        case = wall.setdefault(f"{row['config']}, {row['neighbors']} neighbors", {})
        case.setdefault(row["variant"], []).append(row["wall"])
    medians = {case: {name: median(values) for name, values in variants.items()} for case, variants in wall.items()}
    publish(args, {"median_wall_seconds": medians, "rows": rows})


if __name__ == "__main__":
    main()
