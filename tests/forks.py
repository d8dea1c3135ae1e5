"""Processes forked from one that has imported everything: a Python that imports torch anew takes 8 seconds to start."""

import importlib
import os
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["tests.forked"])


class Done(NamedTuple):
    """What a process left."""

    code: int | None
    stdout: str
    stderr: str


def environments(ranks: int) -> list[dict[str, str]]:
    """What the processes of one training find in their environment, as `torchrun` sets it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    return [{**shared, "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def enter(own: dict[str, str]) -> None:
    """The environment as a process of `torchrun` finds it: without what an earlier training of the tests left there."""
    os.environ.pop("SFT_VERSION", None)
    os.environ.update(own)


def _inside(target: Callable[..., Any], args: Sequence[Any], folder: Path, own: dict[str, str], files: Path) -> None:
    os.chdir(folder)
    enter(own)
    torch.set_num_threads(1)
    for number, name in ((1, "stdout"), (2, "stderr")):
        with Path(f"{files}.{name}").open("wb") as file:
            os.dup2(file.fileno(), number)
    # What was in their buffers belongs to the process that was forked.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.exit(target(*args))


def started(
    target: Callable[..., Any], *args: Any, folder: Path, files: Path, own: dict[str, str] | None = None
) -> BaseProcess:
    """A process that has begun; its output goes to `FILES.stdout` and `FILES.stderr`."""
    process = FORKS.Process(target=_inside, args=(target, args, folder, own or {}, files))
    process.start()
    return process


def both_ranks(target: Callable[..., Any], *args: Any, folder: Path, files: Path) -> list[Done]:
    """Two processes of one training, at their end."""
    named = [files / f"rank{rank}" for rank in range(2)]
    running = [
        started(target, *args, folder=folder, files=name, own=own)
        for name, own in zip(named, environments(2), strict=True)
    ]
    for process in running:
        process.join(240)
        process.kill()
        process.join()
    texts = [[Path(f"{name}.{kind}").read_text() for kind in ("stdout", "stderr")] for name in named]
    return [Done(process.exitcode, *own) for process, own in zip(running, texts, strict=True)]


def work(module: str, *args: Any) -> None:
    """Run the `main` of a worker module."""
    importlib.import_module(module).main(*args)
