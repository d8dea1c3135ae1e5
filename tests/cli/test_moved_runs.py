import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sft_lightning.__main__ import main
from sft_lightning.cli.lightning_cli import run as command
from sft_lightning.training.callbacks.checkpoint import RunCheckpoint
from tests.cli.test_run_config import FIT, RUN


def test_a_moved_run_keeps_its_best_checkpoint(workdir: Path) -> None:
    words = [word for word in FIT if "source" not in word and "image_size" not in word and "num_labels" not in word]
    first = command([*words, "--trainer.max_epochs=3", "--data.init_args.steps_per_epoch=20"]).trainer
    saved = first.checkpoint_callback
    assert isinstance(saved, RunCheckpoint)
    moved = shutil.move(RUN, RUN.parent.parent / "moved")
    # Nothing is learned any more, so nothing can be better.
    more = ["fit", f"--ckpt_path={moved}", "--trainer.max_epochs=4", "--data.init_args.steps_per_epoch=20"]
    second = command(more).trainer.checkpoint_callback
    assert isinstance(second, RunCheckpoint)
    assert Path(second.best_model_path).parent == Path(moved) / "checkpoints"
    assert Path(second.best_model_path).is_file()
    assert second.best_model_score is not None
    assert saved.best_model_score is not None
    assert float(second.best_model_score) >= float(saved.best_model_score)
    assert len(list(Path(moved, "checkpoints").glob("best-*.ckpt"))) == 1


def test_a_run_that_is_called_elsewhere_names_where_it_was_started(
    workdir: Path,
    write_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_folder(workdir / "set", {"": 12})
    assert main(FIT) == 0
    elsewhere = workdir / "elsewhere"
    elsewhere.mkdir()
    copy = shutil.copytree(RUN, elsewhere / "copy")
    monkeypatch.chdir(elsewhere)
    for words in (["test", "copy"], ["predict", "copy"], ["report", "copy"], ["fit", "--ckpt_path=copy"]):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert "source 'set', which 'copy/fit.yaml' names, is missing" in told
        assert f"the run was started in {str(workdir)!r}" in told
        assert "--data.init_args.source" in told
    assert main(["test", str(copy), "--data.init_args.source=../set"]) == 0


@pytest.mark.parametrize("is_there", [True, False])
def test_a_best_checkpoint_counts_with_its_score_where_it_lies_beside_the_others(
    is_there: bool, tmp_path: Path
) -> None:
    old, score = "/elsewhere/checkpoints", torch.tensor(0.9)
    best = f"{old}/best-epoch=1-accuracy=0.9000.ckpt"
    here = tmp_path / "best-epoch=1-accuracy=0.9000.ckpt"
    if is_there:
        here.touch()
    checkpoint = RunCheckpoint()
    checkpoint.dirpath = str(tmp_path)
    paths = {"best_model_path": best, "kth_best_model_path": best, "last_model_path": f"{old}/last.ckpt"}
    state = {"monitor": None, "dirpath": old, "best_k_models": {best: score}, "best_model_score": score}
    checkpoint.load_state_dict({**state, **paths, "kth_value": score, "current_score": score})
    assert checkpoint.best_model_path == (str(here) if is_there else "")
    assert checkpoint.best_k_models == ({str(here): score} if is_there else {})
    assert checkpoint.best_model_score == (score if is_there else None)
    assert checkpoint.last_model_path == (str(tmp_path / "last.ckpt") if is_there else "")


def test_data_that_was_moved_is_named_with_its_setting(
    workdir: Path, write_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder, the table's folder of files, the unlabeled images, and a disk that is not mounted."""
    write_folder(workdir / "set", {"": 12})
    write_folder(workdir / "more", {"unlabeled": 8})
    names = sorted(path.relative_to(workdir / "set") for path in (workdir / "set").rglob("*.png"))
    Path("table.csv").write_text("\n".join(["path,label", *(f"{name},{name.parent}" for name in names)]))
    unlabeled = ["--data.init_args.unlabeled_source=more/unlabeled"]
    assert main([*FIT, *unlabeled]) == 0
    table = ["--data.init_args.source=table.csv", "--data.init_args.root=set"]
    assert main([*FIT, *table, "--run_name=table"]) == 0
    for name, path, run in (
        ("unlabeled_source", "more/unlabeled", "run"),
        ("source", "set", "run"),
        ("root", "set", "table"),
        ("source", "table.csv", "table"),
    ):
        again = ["fit", "--ckpt_path=last", f"--run_name={run}", "--trainer.max_epochs=2"]
        moved, option = shutil.move(path, "moved"), f"--data.init_args.{name}"
        said = f"{name} '{path}', which 'lightning_logs/{run}/version_0/fit.yaml' names, is"
        assert main(again) == 2
        assert f"{said} missing: put it back, or give the place of its data by {option}\n" in capsys.readouterr().err
        if path != "table.csv":
            Path(path).mkdir()
            if name != "root":  # else the table's files are missing, which is named
                assert main(again) == 2
                assert f"{said} an empty folder: put it back" in capsys.readouterr().err
            Path(path).rmdir()
        assert main([*again, f"{option}=typo"]) == 2  # a mistake of the command
        assert "fit.yaml" not in capsys.readouterr().err
        if name == "root":  # a table may be moved without its name
            assert main([*again, f"{option}={moved}"]) == 0
        shutil.move(moved, path)


def test_a_data_set_whose_root_was_moved_is_named(
    workdir: Path, idx_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(idx_root, "root")
    words = ["--data.init_args.source=MNIST", "--data.init_args.root=root", "--data.init_args.num_labels=20"]
    assert main([*FIT, *words]) == 0
    shutil.move("root", "moved")
    assert main(["fit", "--ckpt_path=last", "--run_name=run"]) == 2
    assert "root 'root', which 'lightning_logs/run/version_0/fit.yaml' names, is missing" in capsys.readouterr().err
    assert main(["test", str(RUN), "--data.init_args.root=moved"]) == 0
