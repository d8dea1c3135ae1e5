"""Killed at any moment, or with a full disk: the newest whole file is there, and no half one is taken for it."""

import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_lightning.__main__ import main
from sft_lightning.networks.weights import read_weights, write_weights
from sft_lightning.training.callbacks.checkpoint import AtomicCheckpointIO
from sft_lightning.utils.atomic import open_atomic, write_text
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS
from tests.forks import FORKS

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")
SHORT = ["--trainer.max_epochs=1", "--data.init_args.steps_per_epoch=2", "--run_name=run"]


def save(path: Path, number: int) -> None:
    content = torch.full((200_000,), float(number))
    if path.suffix == ".ckpt":
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": content}}, path)
    elif path.suffix == ".safetensors":
        write_weights(path, {"a": content}, {})
    else:
        write_text(path, f"{number}\n" * 100_000 + "end")


def read(path: Path) -> float:
    """The number that was saved; an error where the file is not whole."""
    if path.suffix in (".ckpt", ".safetensors"):
        content = read_weights(path)[0]["a"]
        assert content.shape == (200_000,)
        assert (content == content[0]).all()
        return float(content[0])
    *lines, end = path.read_text().splitlines()
    assert (end, len(lines), len(set(lines))) == ("end", 100_000, 1)
    return float(lines[0])


def save_on(path: Path) -> None:
    number = 0
    while True:
        number += 1
        save(path, number)


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("last.ckpt", 20),
        ("head.safetensors", 10),
        ("results.csv", 10),
        pytest.param("last.ckpt", 200, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_of_a_save(name: str, times: int, tmp_path: Path) -> None:
    path, draw = tmp_path / name, random.Random(0)
    torn = 0
    for _ in range(times):
        process = FORKS.Process(target=save_on, args=(path,))
        before = path.stat().st_mtime_ns if path.exists() else 0
        process.start()
        while not path.exists() or path.stat().st_mtime_ns == before:  # until it has saved once
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert read(path) >= 1
        torn += path.with_name(path.name + ".part").exists()
    assert torn  # or it was never killed within a save
    save(path, -1)
    assert read(path) == -1
    # safetensors stages in a file of its own, which nobody reads either.
    assert {file.name for file in tmp_path.iterdir() if not file.name.startswith(".tmp")} == {name}


def limited(target: Callable[..., int], size: int, *args: Any) -> None:
    """In a process that may write no file larger than this, which the system refuses as it does on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    raise SystemExit(target(*args))


def refused(path: Path) -> int:
    try:
        save(path, 2)
    except InputError as error:
        Path(str(path) + ".said").write_text(str(error))
        return 7
    return 0


@pytest.mark.parametrize("name", ["last.ckpt", "head.safetensors", "results.csv"])
def test_no_room_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save(path, 1)
    process = FORKS.Process(target=limited, args=(refused, 100_000, path))
    process.start()
    process.join(60)
    assert process.exitcode == 7
    said = Path(str(path) + ".said").read_text()
    assert said.startswith(f"{str(path)!r} cannot be written (File too large): free space")
    assert read(path) == 1
    assert not path.with_name(path.name + ".part").exists()


def test_no_room_ends_a_training_with_a_sentence(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", FINE_TUNE, *SHORT]) == 0
    last = Path("lightning_logs/run/version_0/checkpoints/last.ckpt")
    before = last.read_bytes()
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        assert main(["fit", "--config", FINE_TUNE, *SHORT, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith(f"sft-lightning: {str(last)!r} cannot be written (File too large)")
    assert last.read_bytes() == before
    assert main(["fit", "--config", FINE_TUNE, *SHORT, "--trainer.max_epochs=2", "--ckpt_path=last"]) == 0


def test_a_damaged_last_checkpoint_is_left_out_and_named(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["fit", "--config", FINE_TUNE, *SHORT]) == 0
    folder = Path("lightning_logs/run/version_0/checkpoints")
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    (folder / "last.ckpt.part").write_bytes(b"half")
    for given in ("last", str(folder.parent)):
        caplog.clear()
        assert main(["test", "--config", FINE_TUNE, "--run_name=run", f"--ckpt_path={given}"]) == 0
        assert f"Skipped {last}, which is damaged" in caplog.text
    for path in folder.glob("best-*.ckpt"):
        path.unlink()
    assert main(["test", "--config", FINE_TUNE, "--run_name=run", "--ckpt_path=last"]) == 2


def test_the_staged_file_lies_beside_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a temporary folder on another device, or one that is full or gone, does not matter."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    with open_atomic(tmp_path / "a" / "b.txt") as staged:
        assert staged == tmp_path / "a" / "b.txt.part"
        staged.write_text("x")
    assert (tmp_path / "a" / "b.txt").read_text() == "x"
    with pytest.raises(ZeroDivisionError), open_atomic(tmp_path / "a" / "b.txt") as staged:
        staged.write_text(str(1 / (staged.write_text("half") - 4)))
    assert [(file.name, file.read_text()) for file in (tmp_path / "a").iterdir()] == [("b.txt", "x")]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), open_atomic(tmp_path / "file" / "c.txt") as staged:
        staged.write_text("z")
