"""The shipped configs are found by name from any folder, listed and copied."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from sft_lightning.__main__ import main
from sft_lightning.cli import shipped_configs
from sft_lightning.cli.shipped_configs import find_shipped, list_shipped, locate_configs
from tests.conftest import CONFIGS

TINY = ["--trainer.max_epochs=1", "--data.init_args.steps_per_epoch=1", "--data.init_args.num_workers=0"]
AUTOENCODER = "quickstart/autoencoder.yaml"


def fit(*words: str) -> Path:
    """Train for one step, and return the config of the run."""
    assert main(["fit", *words, *TINY, "--run_name=shipped"]) == 0
    return max(Path("lightning_logs/shipped").glob("version_*"), key=lambda path: path.name) / "fit.yaml"


def test_names_are_those_of_the_folder() -> None:
    assert list_shipped() == sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("name", [AUTOENCODER, f"configs/{AUTOENCODER}", f"./configs/{AUTOENCODER}"])
def test_name_is_found_with_and_without_the_folder(name: str) -> None:
    assert find_shipped(name) == CONFIGS / AUTOENCODER


@pytest.mark.parametrize(
    "name", ["quickstart/autoencoder", "autoencoder.yaml", "../setup.yaml", "", "a.yaml", f"{'long' * 999}.yaml"]
)
def test_other_names_are_not_found(name: str) -> None:
    assert find_shipped(name) is None
    assert locate_configs(name) == name


def test_config_and_the_configs_that_it_names_train_from_any_folder(workdir: Path) -> None:
    settings = yaml.safe_load(fit("--config", AUTOENCODER).read_text())
    assert settings["model"]["class_path"].endswith("AutoencoderModule")
    assert settings["data"]["init_args"]["num_labels"] == 100


@pytest.mark.parametrize("join", [lambda option, name: [option, name], lambda option, name: [f"{option}={name}"]])
def test_data_and_model_are_found_by_name(join: Callable[[str, str], list[str]], workdir: Path) -> None:
    words = [*join("--config", f"configs/{AUTOENCODER}"), *join("--data", "data/sample_semi_supervised.yaml")]
    settings = yaml.safe_load(fit(*words, *join("--model", "configs/model/autoencoder_mlp.yaml")).read_text())
    assert settings["data"]["init_args"]["unlabeled_ratio"] == 7
    assert settings["model"]["init_args"]["network"] == "mlp"


def test_existing_path_comes_before_the_shipped_config(workdir: Path) -> None:
    own = workdir / AUTOENCODER
    own.parent.mkdir()
    own.write_text("data: sample.yaml\nmodel: configs/model/autoencoder_mlp.yaml\n")
    (own.parent / "sample.yaml").write_text((CONFIGS / "data" / "sample_100_labels.yaml").read_text() + "  seed: 77\n")
    settings = yaml.safe_load(fit("--config", AUTOENCODER).read_text())
    assert settings["data"]["init_args"]["seed"] == 77
    assert settings["model"]["class_path"].endswith("AutoencoderModule")


def test_study_finds_the_configs_of_its_stages_by_name(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my_study.yaml").write_text(
        "name: mine\nbudgets: [10]\nseeds: [0]\nbaseline: alone\nmethods:\n"
        "  alone: [{config: [quickstart/fine_tune.yaml]}]\n  other: [{config: [configs/quickstart/decoupled.yaml]}]\n"
    )
    with pytest.raises(SystemExit) as stop:
        main(["study", "--config", "my_study.yaml", "--print_config"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(str(CONFIGS / "quickstart" / f"{name}.yaml") in shown for name in ("fine_tune", "decoupled"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fit --config quickstart/fine_tun.yaml", "does not exist (did you mean 'quickstart/fine_tune.yaml'?)"),
        (
            "fit --config configs/quickstart/fine_tun.yaml",
            "(did you mean 'quickstart/fine_tune.yaml'?): check the path",
        ),
        ("fit --config absent.yml", "'absent.yml' does not exist: check the path"),
        ("configs copy", "copy needs NAME: give 'sft-lightning configs copy quickstart/fine_tune.yaml'"),
        ("configs list fixmatch", "list takes no name: give 'sft-lightning configs copy NAME'"),
        ("configs copi fixmatch", "action is 'copi' (did you mean 'copy'?): give list or copy"),
        ("configs copy finetune", "(did you mean 'quickstart/fine_tune.yaml'?): 'sft-lightning configs' lists them"),
        ("configs copy quickstart/finetune.yaml", "(did you mean 'quickstart/fine_tune.yaml'?)"),
        ("configs copy xyz", "'xyz' is not a shipped config: 'sft-lightning configs' lists them"),
        ("configs copy model/autoencoder_mlp --to taken.yaml", "'taken.yaml' exists and is not overwritten: remove it"),
        ("configs copy model/autoencoder_mlp --to taken.yaml/x.yaml", "'taken.yaml/x.yaml' cannot be written"),
    ],
)
def test_mistake_is_one_sentence(words: str, expected: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken.yaml").write_text("mine")
    assert main(words.split()) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert len(shown.splitlines()) == 1
    assert Path("taken.yaml").read_text() == "mine"


def test_list_shows_the_title_of_each_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == list_shipped()
    assert all((CONFIGS / name).read_text().startswith(f"# {title}\n") for name, title in lines)


@pytest.mark.parametrize(
    ("words", "target"),
    [([], "autoencoder.yaml"), (["--to", "a/b.yaml"], "a/b.yaml"), (["--to=."], AUTOENCODER[11:])],
)
def test_copy_trains_as_the_shipped_config(
    words: list[str], target: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["configs", "copy", AUTOENCODER, *words]) == 0
    assert capsys.readouterr().out == f"Written: {target}\n"
    assert Path(target).read_text().splitlines()[0] == (CONFIGS / AUTOENCODER).read_text().splitlines()[0]
    settings = [yaml.safe_load(fit("--config", config).read_text()) for config in (target, AUTOENCODER)]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("name", list_shipped())
def test_copy_names_no_file_beside_the_shipped_config(name: str, workdir: Path) -> None:
    shipped_configs.configs("copy", name, "copy.yaml")
    assert "../" not in Path("copy.yaml").read_text()
