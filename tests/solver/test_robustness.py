"""Full and read-only disks, event loops and signals: the best answer so far or one sentence, and no traceback."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft_lightning import solve
from sft_lightning.solver.deliver import EXPORTS
from sft_lightning.solver.labels import DECODED, read_source

MOUNTS = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts a small file system")


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Mount a file system with the given options and go there: mount("size=60k")."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def make(options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("needs the right to mount")
        monkeypatch.chdir(folder)

    yield make
    os.chdir(tmp_path)
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@MOUNTS
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("size=8k", "plan.json' cannot be written (No space left on device): free space"),
        ("size=60k", "cannot be written (No space left on device): free space"),
        ("ro", "'lightning_logs/solve/x' cannot be written (Read-only file system): correct its permissions"),
    ],
)
def test_a_disk_that_is_full_or_read_only_is_one_sentence(
    tmp_path: Path,
    write_folder: Callable[..., Path],
    mount: Callable[[str], None],
    cli_error: Callable[..., str],
    options: str,
    said: str,
) -> None:
    source = write_folder(tmp_path / "images", {"train": 6, "unlabeled": 8})
    mount(options)
    assert said in cli_error("solve", str(source), "--minutes", "0.1", "--image_size", "16", "--name", "x")


def test_decoded_files_are_not_kept_on_a_disk_without_room(
    workdir: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(workdir / "images", {"train": 4}, classes=2)
    source = read_source("images", workdir / "out", None, 16, 0, "data")
    usage = namedtuple("usage", ["free"])
    for free, expected in ((2 * 8 * 3 * 16 * 16, True), (2 * 8 * 3 * 16 * 16 - 2, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(free))
        assert source.is_cached is expected
    (workdir / "out" / DECODED).mkdir(parents=True)
    assert source.is_cached


def test_solve_runs_inside_an_event_loop(
    workdir: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cell of Jupyter."""
    monkeypatch.delitem(EXPORTS, "model.onnx")
    folder = write_folder(workdir / "images", {"train": 4, "unlabeled": 4})

    async def call() -> list[str]:
        solution = solve(str(folder), minutes=0.1, image_size=16)
        return [row["predicted"] for row in solution.predict(folder / "unlabeled")]

    assert len(asyncio.run(call())) == 12


# A shell that starts a process in the background lets it ignore SIGINT.
HEED = "import os, signal, sft_lightning.__main__ as command\n"
HEED += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"


@pytest.mark.slow
def test_ctrl_c_twice_is_one_sentence(workdir: Path) -> None:
    words = ["solve", "sample", "--num_labels", "20", "--minutes", "0.1", "--candidates", "none"]
    argv = [sys.executable, "-c", HEED + f"raise SystemExit(command.main({words}))"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "sample: images" in line:
                break
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert "SIGINT: start solve again to go on; what is done is kept" in rest
    assert "Traceback" not in rest


def test_ctrl_c_before_a_command_has_begun_is_one_sentence() -> None:
    script = HEED + "command._run = lambda argv: os.kill(os.getpid(), signal.SIGINT)\n"
    script += "raise SystemExit(command.main(['solve', 'sample']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "sft-lightning: stopped by Ctrl-C\n"
