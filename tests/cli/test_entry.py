import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from sft_lightning import __version__
from sft_lightning.__main__ import main
from sft_lightning.cli.commands import COMMANDS, RUN
from sft_lightning.runs import lineage
from sft_lightning.utils.errors import IssuesFound
from tests.boxes import write_boxes_folder
from tests.conftest import CONFIGS

# What makes an example cheap; None where it is parsed alone.
TINY = {
    "fit": "--trainer.max_epochs 1 --data.init_args.steps_per_epoch 2 --data.init_args.num_workers 0",
    "predict": "--data.init_args.num_workers 0",
    "find-lr": "--steps 10",
    "find-batch-size": "--max 4 --seconds 0.001",
    "find-precision": "--rounds 1 --seconds 0.001",
    "rank": "--data.init_args.num_labels 20 --folds 2",
    "solve": "--minutes 0.1",
    "study": None,
    "degree": None,
}
# It reads 12,000 images; `tests/audit` has audits of fewer.
LONG = {"audit --config configs/quickstart/fine_tune.yaml", "solve sample --num_labels 40 --minutes 1"}

EARLY = {
    "": "usage: sft-lightning COMMAND",
    "--help": "usage: sft-lightning COMMAND",
    "help": "usage: sft-lightning COMMAND",
    "--version": "sft-lightning ",
    "lineage --help": "Folder of a run, or a file in it.",
    "lineage run": "model",
    "fti": "'fti' is not a command (did you mean 'fit'?)",
    "fit": "no model or no data: add --config",
    "test": "test needs RUN: give sft-lightning test RUN [options]",
    "export": "export needs RUN: give sft-lightning export RUN [options]",
    "fit a.yaml": "'a.yaml' stands alone: give it as --config a.yaml",
    "fit --config rigt.yaml": "'rigt.yaml' does not exist (did you mean 'right.yaml'?): check the path",
    "fit -c=gone/b.yaml": "'gone/b.yaml' does not exist: check the path",
    "fit --config right.yaml --config torn.yaml": "config 'torn.yaml': a YAML file cannot be read (line 3)",
    "test gone": "ckpt_path 'gone' is neither a checkpoint nor a run with checkpoints/last.ckpt: check the path",
    "predict gone images/": "ckpt_path 'gone' is neither a checkpoint nor a run with checkpoints/last.ckpt",
    "fit --ckpt_path last --run_name gone": "ckpt_path is 'last', but no run in 'lightning_logs/gone' has a checkpoint",
    "report gone": "run 'gone' is neither a checkpoint nor a run with checkpoints/last.ckpt: check the path",
    "export --run=gone": "run 'gone' is neither a checkpoint nor a run with checkpoints/last.ckpt: check the path",
    "lineage gone": "run 'gone' is not the folder of a run (it has no fit.yaml)",
}  # fmt: skip
RIGHT = {"", "--help", "help", "--version", "lineage --help", "lineage run"}
LIGHT = """
import sys
from contextlib import redirect_stderr
from sft_lightning.__main__ import main
for words in sys.argv[1:]:
    print("\\n##")
    with redirect_stderr(sys.stdout):
        try:
            code = main(words.split())
        except SystemExit as stop:
            code = stop.code
    print(sorted({"torch", "lightning", "numpy"} & {*sys.modules}), code)
"""


def test_help_and_mistakes_import_no_torch(tmp_path: Path) -> None:
    (tmp_path / "right.yaml").write_text("model: {}")
    (tmp_path / "torn.yaml").write_text("model:\n  a: 1\n b: 2")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "fit.yaml").touch()
    (tmp_path / "run" / "lineage.json").write_text('[{"run": "run", "model": "model"}]')
    command = [sys.executable, "-c", LIGHT, *EARLY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = done.stdout.split("\n##\n")[1:]
    for (words, expected), said in zip(EARLY.items(), told, strict=True):
        assert expected in said
        assert said.splitlines()[-1] == f"[] {0 if words in RIGHT else 2}", words


def test_help_names_every_command_with_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name:<17}{command.does}\n" in shown for name, command in COMMANDS.items())
    assert __version__ in shown
    groups = list(dict.fromkeys(command.group for command in COMMANDS.values()))
    assert [line[:-1] for line in shown.splitlines() if line.endswith(":")] == [*groups, "examples"]
    assert main(["--help"]) == main(["help"]) == 0
    assert capsys.readouterr().out == 2 * shown


def test_misspelled_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tets"]) == 2
    assert "'tets' is not a command (did you mean 'test'?)" in capsys.readouterr().err


def test_module_and_command_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "sft_lightning", "predct"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'predict'" in done.stderr


def helped(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_may_be_asked_for_in_many_ways(capsys: pytest.CaptureFixture[str]) -> None:
    shown = helped(capsys, "lineage", "--help")
    for words in (["help", "lineage"], ["--help", "lineage"], ["lineage", "some", "stray", "words", "-h"]):
        assert helped(capsys, *words) == shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown, command = helped(capsys, name, "--help"), COMMANDS[name]
    usage = " ".join(["sft-lightning", name, *command.words, "[options]"])
    assert shown.startswith(f"usage: {usage}\n\n{command.does}\n")
    assert command.examples
    assert all(f"\n  sft-lightning {example}\n" in shown for example in command.examples)
    assert all(f"--{option}" in shown for what, option in command.words.items() if what != "DATA")
    assert shown.count("usage:") == 1
    assert ("--run_name" in shown) == command.takes_fit
    assert ("also takes the settings of fit" in shown) == (command.takes_fit and name != "fit")


def test_the_sentence_stands_there_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from sft_lightning.__main__ import main; main(['degree', '-h'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert COMMANDS["degree"].does in done.stdout


def test_what_a_command_was_to_look_for_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(run: str) -> str:
        raise IssuesFound(f"two lines\nof {run}")

    monkeypatch.setattr(lineage, "show_lineage", found)
    assert main(["lineage", "mine"]) == 1
    assert capsys.readouterr().out == "two lines\nof mine\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, write_folder: Callable[..., Path]) -> Path:
    """Configs, `my_images/` and a run as the first example of `fit` makes it."""
    place = tmp_path_factory.mktemp("checkout")
    shutil.copytree(CONFIGS, place / "configs")
    write_folder(place / "my_images", {"train": 6})
    write_boxes_folder(place / "my_scenes", {"train": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(shlex.split(f"{COMMANDS['fit'].examples[0]} {TINY['fit']}")) == 0
    assert (place / RUN / "fit.yaml").is_file()
    return place


@pytest.mark.parametrize(
    ("name", "example"),
    [
        pytest.param(name, example, marks=[pytest.mark.slow] if example in LONG else [])
        for name in COMMANDS
        if name != "completion"
        for example in COMMANDS[name].examples
    ],
)
def test_examples_can_be_pasted(name: str, example: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    words = [*shlex.split(example), *shlex.split(TINY.get(name, "") or "")]
    assert words[0] == name
    if TINY.get(name, "") is None:
        words.append("--print_config")
    if {"--print_config", "--model.help"} & {*words}:
        with pytest.raises(SystemExit) as stop:
            main(words[: words.index("--model.help") + 2] if "--model.help" in words else words)
        assert stop.value.code == 0
    else:
        assert main(words) == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which both examples of `completion` were pasted, with some files to complete."""
    home = tmp_path_factory.mktemp("home")
    (home / "bin").mkdir()
    for shell in ("bash", "zsh"):
        with (home / "bin" / shell).open("w") as file, redirect_stdout(file):
            assert main(["completion", shell]) == 0
    (home / "bin" / "sft-lightning").write_text('#!/bin/sh\n[ "$1" = completion ] && cat ~/bin/"$2"\n')
    (home / "bin" / "sft-lightning").chmod(0o755)
    (home / "my_configs").mkdir()
    (home / "my_configs" / "a b.yaml").touch()
    environment = {**os.environ, "HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    for example in COMMANDS["completion"].examples:
        subprocess.run(["bash", "-c", f"sft-lightning {example}"], env=environment, check=True, cwd=home)
    return home


def completed(home: Path, *words: str) -> list[str]:
    """What bash offers for the last word; without a PATH, so that nothing is started."""
    code = (
        'source ~/.bashrc; PATH=; COMP_WORDS=(sft-lightning "$@"); COMP_CWORD=$#; '
        '_sft_lightning sft-lightning "${@: -1}" "${@: -2:1}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code, "bash", *words],
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("\n")[:-1]


def test_bash_completes(home: Path) -> None:
    assert completed(home, "") == list(COMMANDS)
    assert completed(home, "fit", "--trainer.max_e") == ["--trainer.max_epochs"]
    assert completed(home, "preview", "--config", "a", "--run") == ["--run_name"]
    assert completed(home, "fit", "--config", "my") == ["my_configs"]
    assert completed(home, "fit", "--config", "my_configs/") == ["my_configs/a b.yaml"]
    assert completed(home, "test", "my") == ["my_configs"]
    assert completed(home, "fit", "--model.init_args.lambda_") == [
        "--model.init_args.lambda_u",
        "--model.init_args.lambda_ramp",
    ]
    assert completed(home, "fit", "--model.init_args.strategy.init_args.thresh") == [
        "--model.init_args.strategy.init_args.threshold"
    ]
    assert completed(home, "fit", "--model.init_args.strategy", "Fi") == ["FixMatch"]
    assert completed(home, "fit", "--model.init_args.backbone", "torchvision/resnet5") == ["torchvision/resnet50"]
    assert completed(home, "fit", "--data.init_args.num_l") == ["--data.init_args.num_labels"]
    assert completed(home, "degree", "--degree.fo") == ["--degree.folds"]
    assert completed(home, "find-lr", "--min") == ["--min_lr"]
    assert completed(home, "export", "--part", "") == ["backbone", "head", "model"]
    assert completed(home, "study", "--ju") == ["--judge"]
    assert completed(home, "completion", "") == ["bash", "zsh"]
    assert completed(home, "configs", "") == ["list", "copy"]
    assert completed(home, "configs", "copy", "reuse/") == ["reuse/degree.yaml", "reuse/rank.yaml"]
    assert completed(home, "fit", "--config", "=", "my_configs/") == ["my_configs/a b.yaml"]
    assert completed(home, "fit", "--run_name", "=", "a", "--config", "=") == completed(home, "fit", "--config", "")
    assert completed(home, "export", "--part", "=", "h", "--format", "=", "o") == ["onnx"]
    assert "--min_lr" not in completed(home, "fit", "--")
    assert "--trainer.max_epochs" not in completed(home, "export", "--")


def test_zsh_finds_the_completion(home: Path) -> None:
    script = (home / ".sft-lightning.zsh").read_text()
    assert all(f"{name}:'{command.does}'" in script for name, command in COMMANDS.items())
    assert "--model.init_args.lambda_u" in script
    if shutil.which("zsh"):
        shell = ["zsh", "-ic", "print -r -- ${_comps[sft-lightning]}"]
        done = subprocess.run(shell, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("_shtab_sft_lightning")


def test_completion_names_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'sft-lightning[completion]'" in capsys.readouterr().err
