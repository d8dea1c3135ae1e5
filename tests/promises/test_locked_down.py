"""Nothing leaves the machine: no command talks to a network, and what is served is served to this machine alone."""

import re
import socket
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from PIL import Image

from sft_lightning.__main__ import main
from tests.conftest import CONFIGS, ROOT

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")
RUN = "lightning_logs/offline/version_0"
TALK = {f"socket.{name}" for name in ("connect", "bind", "sendto", "sendmsg", "getaddrinfo", "gethostbyname")}
_tried: list[str] | None = None  # Python keeps an audit hook for good: it is of effect while this is a list


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if _tried is None or event not in TALK:
        return
    if isinstance(args[0], socket.socket) and args[0].family == socket.AF_UNIX:  # between own processes
        return
    _tried.append(f"{event} {args[1:] if isinstance(args[0], socket.socket) else args}")
    raise ConnectionRefusedError(f"{event}: no network here")


@pytest.fixture
def tried() -> Iterator[list[str]]:
    """Without a network: whatever is tried over it is refused, and stands here even if the error is swallowed."""
    global _tried
    sys.addaudithook(_refuse)
    _tried = []
    yield _tried
    _tried = None


def test_without_a_network_every_command_works_and_none_asks_for_it(workdir: Path, tried: list[str]) -> None:
    with pytest.raises(OSError, match="no network here"):
        urllib.request.urlopen("http://example.org", timeout=1)
    with pytest.raises(OSError, match="no network here"):
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    assert [attempt.partition(" ")[0] for attempt in tried] == ["socket.getaddrinfo"] * 2
    tried.clear()
    Image.new("L", (28, 28)).save("new.png")
    few = ["--data.init_args.steps_per_epoch=2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    for words in (
        ["fit", "--config", FINE_TUNE, *few, "--run_name=offline"],
        ["test", RUN],
        ["predict", RUN, "new.png"],
        ["export", RUN, "--out=model.safetensors", "--measure_on=0"],
        ["report", RUN],
        ["lineage", RUN],
        ["fit", "--config", FINE_TUNE, *few, "--run_name=again", "--model.init_args.weights=model.safetensors"],
    ):
        assert main(words) == 0, words
        assert tried == [], words


def test_what_needs_a_network_says_so_in_one_sentence(
    workdir: Path, tried: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.init_args.source=CIFAR10", "--data.init_args.download=true"]
    assert main(["fit", "--config", FINE_TUNE, *words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sft-lightning: ")]
    assert len(said) == 1
    assert "CIFAR10" in said[0]
    assert tried


def test_tensorboard_serves_this_machine_alone(workdir: Path) -> None:
    """As the documentation calls it."""
    from tensorboard import program

    commands = re.findall(r"`(tensorboard [^`]*)`", (ROOT / "docs" / "reproducibility.md").read_text(encoding="utf-8"))
    assert commands == ["tensorboard --logdir lightning_logs"]
    Path("lightning_logs").mkdir()
    board = program.TensorBoard()
    board.configure([*commands[0].split(), "--port=0", "--load_fast=false", "--reload_interval=0"])
    server = board._make_server()
    try:
        assert ip_address(server.socket.getsockname()[0]).is_loopback
    finally:
        server.server_close()


@pytest.mark.parametrize("bad", ["2.6.2", "2.6.3"])
def test_malicious_releases_cannot_be_installed(bad: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    needed = [one for one in map(Requirement, texts) if one.name in ("lightning", "pytorch-lightning")]
    assert needed
    assert not any(one.specifier.contains(bad, prereleases=True) for one in needed)
