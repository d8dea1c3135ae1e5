"""Folders of published encoders whose files are damaged, or do not belong together, are refused in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_lightning.networks.build import build_encoder
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

pytest.importorskip("transformers")

from tests.networks.text.test_text_backbones import WORDS, write_bert


def change_config(**settings: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))

    return change


def write(name: str, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content((folder / name).read_bytes()))

    return change


def give_an_id_beyond(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"][WORDS[0]] = 4000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


WEIGHTS, CONFIG = "model.safetensors", "config.json"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights that are cut off": (write(WEIGHTS, lambda old: old[:2000]), "cannot be loaded"),
    "weights of zero bytes": (write(WEIGHTS, lambda old: b""), "cannot be loaded"),
    "weights that are something else": (write(WEIGHTS, lambda old: b"\xff" * 99), "cannot be loaded"),
    "another width": (change_config(hidden_size=64), r"config\.json and its model\.safetensors have weights of other"),
    "layers without weights": (
        change_config(num_hidden_layers=4), r"lacks 16 tensors of the model in its config\.json, such as 'encoder",
    ),
    "a number that is a word": (change_config(hidden_size="wide"), "cannot be loaded"),
    "a width beyond any memory": (change_config(hidden_size=2**40), "cannot be loaded"),
    "a configuration without end": (write(CONFIG, lambda old: b'{"a":' + b"[" * 100_000), "cannot be loaded"),
    "a configuration that is a list": (write(CONFIG, lambda old: b"[]"), "cannot be loaded"),
    "a token that the network lacks": (give_an_id_beyond, r"and its tokenizer 4,001: give a folder whose files belong"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_one_sentence(name: str, tmp_path: Path) -> None:
    change, message = DAMAGE[name]
    write_bert(tmp_path / "bert", WORDS)
    backbone = f"hf/{tmp_path / 'bert'}"
    spec = InputSpec("text", (16,), "int64", backbone)
    build_encoder(backbone, spec, "default")
    change(tmp_path / "bert")
    with pytest.raises(InputError, match=message):
        build_encoder(backbone, spec, "default")
