"""Each expression over jsonargparse's texts, against a message that the installed jsonargparse writes.

A release that words a message otherwise fails here by name, not as a long message somewhere else.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_lightning.__main__ import main
from sft_lightning.cli import error_messages, parser
from tests.conftest import CONFIGS

FIT = ["fit", "--config", str(CONFIGS / "quickstart" / "fine_tune.yaml")]
ADAM = "--model.init_args.optimizer.init_args"
# Name of the expression, arguments that provoke the message, and what the expression finds in it.
MESSAGES = {
    "_KEY": ([*FIT, "--trainer.max_epochs=three"], "trainer.max_epochs"),
    "_OWNER_AFTER": ([*FIT, f"{ADAM}.lrr=1"], "torch.optim.Adam"),
    "_OWNER": ([*FIT, "--data.init_args.sorce=x"], "sft_lightning.ImageDataModule"),
    "_UNKNOWN": ([*FIT, "--data.init_args.sorce=x"], "sorce"),
    "_GROUP": ([*FIT, "--config", "trainer.yaml"], "Group 'trainer'"),
    "_WORD": ([*FIT, "--ckpt_pth=x"], "ckpt_pth"),
    "_NO_CLASS": ([*FIT, "--model=FineTuneClasifier"], "FineTuneClasifier"),
    "_NO_ATTRIBUTE": ([*FIT, "--model.init_args.optimizer=torch.optim.Adamm"], "torch.optim"),
    "_NO_FILE": (["study", "--config", "study.yaml"], "gone.yaml"),
    "_REQUIRED": (["study", "--budgets=[1]"], "name"),
    "_EXPECTED": ([*FIT, "--trainer.max_epochs=three"], "int"),
    "_CHOICE": ([*FIT, "--data.init_args.on_leak=drp"], "drop"),
    "_VALUE": ([*FIT, "--trainer.max_epochs=three"], "three"),
    "_NULL_TEXT": ([*FIT, "--data.init_args.weak_view.crop_scale=null"], "Given value: None"),
    "_OR_TENSOR": ([*FIT, f"{ADAM}.lr=fast"], "float"),
    "_NOISE": ([*FIT, "--trainer.max_epochs=three"], ""),
}
STUDY = "name: a\nbudgets: [1]\nseeds: [0]\nmethods: {labels_only: [{config: [gone.yaml]}]}\n"


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch, workdir: Path) -> Callable[[list[str]], list[str]]:
    """Return what jsonargparse says of a command, before it is condensed."""

    def run(argv: list[str]) -> list[str]:
        Path("study.yaml").write_text(STUDY)
        Path("trainer.yaml").write_text("trainer: {max_epoch: 1}\n")
        texts: list[str] = []

        def keep(message: str, *args: object) -> str:
            texts.append(message)
            return "condensed"

        monkeypatch.setattr(parser, "condense_error", keep)
        assert main(argv) == 2
        return texts

    return run


def test_every_expression_has_its_message() -> None:
    assert {name for name, value in vars(error_messages).items() if isinstance(value, re.Pattern)} == set(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_expression_reads_the_message(name: str, messages: Callable[[list[str]], list[str]]) -> None:
    argv, expected = MESSAGES[name]
    (text,) = messages(argv)
    expression = getattr(error_messages, name)
    if name == "_NOISE":  # applied to single lines
        assert any(expression.match(line.strip()) for line in text.splitlines()), text
        return
    found = expression.search(text)
    assert found is not None, text
    assert expected in found[0], text
