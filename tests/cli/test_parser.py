"""What the parser does once, or in C, gives what jsonargparse gives each time, in Python."""

from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser, Namespace

from sft_lightning import WeakView
from sft_lightning.cli.dispatch import _parse_options
from sft_lightning.cli.lightning_cli import SFTCLI, FitParser, run
from sft_lightning.cli.parser import Parser
from sft_lightning.study.study import study
from tests.conftest import CONFIGS

TEXTS = ["é ü 漢字", "a: b", "- x", "yes", "1e3", "2024-01-01", "", " lead", "a\nb\n", "\x07", "word " * 60, "'", '"']


def test_settings_of_the_data_of_a_study_reach_its_arguments(tmp_path: Path) -> None:
    config = tmp_path / "study.yaml"
    written = "name: a\nbudgets: [1]\nseeds: [0]\nmethods: {}\n"
    config.write_text(written + "data: {class_path: ImageDataModule, init_args: {source: d, image_size: 32}}\n")
    words = ["--data.init_args.source=e", "--data.image_size", "64", "--data.init_args.weak_view.flip=true"]
    found = _parse_options("study", study, ["--config", str(config), *words, "--data.class_path=DetectionDataModule"])
    settings = {"source": "e", "image_size": 64, "weak_view": {"flip": True}}
    assert found["data"] == {"class_path": "DetectionDataModule", "init_args": settings}
    config.write_text(written)
    found = _parse_options("study", study, ["--config", str(config), *words[:1]])
    assert found["options"] == {"data.init_args.source": "e"}
    assert found["data"] is None


class Settings:
    def __init__(self, sizes: list[int] = [1, 2], shares: dict[str, float] = {"a": 0.5}, view: Any = None) -> None:  # noqa: B006
        self.given = sizes, shares, view


@pytest.mark.parametrize("cls", [Settings, WeakView])
def test_defaults_of_a_class_outlast_their_changes(cls: type) -> None:
    inner, plain = Parser(exit_on_error=False), ArgumentParser(exit_on_error=False)
    for parser in (inner, plain):
        parser.add_class_arguments(cls)
    expected = plain.get_defaults()
    for _ in range(2):
        found = inner.get_defaults()
        assert found == expected
        for name, value in vars(found).items():
            if isinstance(value, list):
                value.append(3)
            elif isinstance(value, dict):
                value["b"] = 1.0
            found[name] = None


def test_defaults_of_a_command_follow_what_is_set_later() -> None:
    parser = FitParser()
    parser.add_argument("--a", type=int, default=1)
    assert parser.get_defaults().a == 1
    parser.set_defaults({"a": 2})
    assert parser.get_defaults().a == 2


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        *((Any, yaml.safe_load(path.read_text("utf-8"))) for path in sorted(CONFIGS.rglob("*.yaml"))),
        (Any, [0.1, 1e-9, 1e22, float("inf"), -3, True, None, [], {}]),
        (list[str], TEXTS),
    ],
)
def test_yaml_is_written_as_python_writes_it(kind: Any, values: Any) -> None:
    parser = Parser()
    parser.add_argument("--given", type=kind)
    text = parser.dump(Namespace(given=values))
    assert yaml.safe_load(text) == {"given": values}
    assert text == yaml.safe_dump({"given": values}, default_flow_style=False, allow_unicode=True, sort_keys=False)


class Parsed(SFTCLI):
    """Keeps what both parsers make of the arguments, and runs nothing."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        super().parse_arguments(parser, args)
        raise SystemExit(vars(parser.parse_args(args))["fit"] == self.config["fit"])


@pytest.mark.parametrize(
    "words",
    [
        ["--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), "--model.init_args.optimizer.init_args.lr=0.3"],
        [f"--config={CONFIGS / 'semi_supervised' / name}.yaml" for name in ("shared", "fixmatch")],
        ["--model=FineTuneClassifier", "--model.backbone=mlp", "--data=ImageDataModule", "--data.source=sample"],
    ],
)
def test_a_command_is_parsed_once_as_it_was_twice(words: list[str], workdir: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        run(["fit", *words, "--trainer.callbacks+=LearningRateMonitor"], Parsed)
    assert stop.value.code is True
