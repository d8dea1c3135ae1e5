"""Parts through saved files: what is taken apart and put together again computes the same."""

import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sft_lightning import (
    AutoencoderModule,
    DecoupledFeatureClassifier,
    FineTuneClassifier,
    SemiSupervisedModule,
)
from sft_lightning.__main__ import main
from sft_lightning.export import export as module
from sft_lightning.losses.features import SupCon
from sft_lightning.losses.unlabeled import PseudoLabel
from sft_lightning.runs.lineage import show_lineage
from sft_lightning.runs.record import RunRecord
from sft_lightning.utils.errors import InputError
from tests.paradigms.helpers import ROOT, SHAPE, cli

export = partial(module.export, measure_on=0)
X = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))


def fitted(name: str, *words: str, config: str = "fine_tune") -> tuple[Path, Any]:
    run = cli("fit", config, f"--run_name={name}", *words)
    return Path(str(run.trainer.log_dir)), run.model.eval()


def put_together(backbone: Path, head: Path, name: str = "mlp") -> FineTuneClassifier:
    return FineTuneClassifier(name, 10, SHAPE, weights=str(backbone), head_weights=str(head)).eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    found: Tensor = model(X)
    return found


def test_backbones_and_heads_are_swapped_between_runs(workdir: Path) -> None:
    runs = [fitted(f"run{seed}", f"--seed_everything={seed}") for seed in (0, 1)]
    exported = [(export(str(run), "backbone"), export(str(run), "head")) for run, _ in runs]
    assert not torch.equal(logits(runs[0][1]), logits(runs[1][1]))
    for k in (0, 1):
        for j in (0, 1):
            with torch.no_grad():
                expected = runs[j][1].head(runs[k][1].backbone(X))
            assert torch.equal(logits(put_together(exported[k][0], exported[j][1])), expected)
    whole = export(str(runs[0][0]), "model", out="whole.safetensors")
    assert torch.equal(logits(FineTuneClassifier("mlp", 10, SHAPE, weights=str(whole)).eval()), logits(runs[0][1]))
    assert torch.equal(logits(put_together(whole, whole)), logits(runs[0][1]))
    assert torch.equal(
        logits(put_together(exported[1][0], runs[0][0])), logits(put_together(exported[1][0], exported[0][1]))
    )


@pytest.mark.parametrize("head", ["linear", "nearest_class_mean", "tau_normalized", "lws"])
def test_every_head_is_exported_as_the_linear_layer_that_it_is(workdir: Path, head: str) -> None:
    words = ["--model.class_path=DecoupledFeatureClassifier", "--model.init_args.feature_loss=SupCon"]
    words += [f"--model.init_args.head={head}", "--model.init_args.backbone=mlp"]
    if head == "lws":
        words += ["--model.init_args.coupling=two_stage", "--model.init_args.feature_epochs=1"]
    run, model = fitted("run", *words)
    whole = export(str(run), "model")
    torch.testing.assert_close(logits(put_together(whole, whole)), logits(model), rtol=1e-5, atol=1e-6)


def test_averaged_weights_are_what_is_exported(workdir: Path) -> None:
    words = ["--model.class_path=SemiSupervisedModule", "--model.init_args.strategy=PseudoLabel"]
    run, model = fitted("run", *words, "--model.init_args.ema_decay=0.9", "--data.init_args.unlabeled_ratio=1")
    whole = export(str(run))
    assert torch.equal(logits(put_together(whole, whole)), model.average(X))
    assert not torch.equal(logits(put_together(whole, whole)), model.head(model.backbone(X)))


def test_an_exported_part_describes_itself(workdir: Path) -> None:
    run, _ = fitted("run", "--model.init_args.mean=0.3", "--model.init_args.std=0.4")
    file = export(str(run), "backbone")
    about = json.loads(file.with_suffix(".json").read_text())
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["sft_lightning"]) == about
    split = json.loads((run / "split.csv").read_text().splitlines()[0].removeprefix("# "))
    assert about["part"] == "backbone"
    assert (about["backbone"], about["image_shape"], about["num_features"]) == ("mlp", [1, 28, 28], 32)
    assert about["mean"] == pytest.approx([0.3])
    assert about["std"] == pytest.approx([0.4])
    assert about["class_names"][1] == "Trouser"
    assert (about["run"], about["data_sha256"], about["step"]) == (str(run), split["sha256"], 12)
    taken = FineTuneClassifier("mlp", 10, SHAPE, weights=str(file))
    assert taken.backbone.get_buffer("mean").item() == pytest.approx(0.3)  # the normalization travels


def test_every_paradigm_starts_from_an_exported_backbone(workdir: Path) -> None:
    run, made = fitted("run", "--model.init_args.backbone=conv")
    file = str(export(str(run), "backbone"))
    conv: dict[str, Any] = {"backbone": "conv", "num_classes": 10, "input_spec": SHAPE, "weights": file}
    starts: list[Any] = [
        FineTuneClassifier(**conv).backbone,
        SemiSupervisedModule(PseudoLabel(), **conv).backbone,
        DecoupledFeatureClassifier(SupCon(), **conv).backbone,
        AutoencoderModule("conv", SHAPE, weights=file).encoder,
    ]
    for start in starts:
        assert torch.equal(start.eval()(X), made.backbone(X))


def test_the_chain_from_source_to_target_outlives_its_folders(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = fitted("digits", "--data.init_args.unlabeled_source=sample-digits", config="autoencoder")
    second, _ = fitted("tuned", f"--model.init_args.weights={first}")
    file = export(str(second), "backbone", out="kept/backbone.safetensors")
    shutil.rmtree(first)
    shutil.rmtree(second)
    third, _ = fitted("again", f"--model.init_args.weights={file}")
    chain = RunRecord(third).chain
    assert [link["model"] for link in chain] == ["AutoencoderModule", "FineTuneClassifier", "FineTuneClassifier"]
    assert [link["unlabeled"] for link in chain] == ["sample-digits", None, None]
    assert chain[1]["weights_sha256"] != chain[2]["weights_sha256"]
    cli("fit", "fine_tune", "--run_name=again", f"--ckpt_path={third}", "--trainer.max_epochs=3")
    assert RunRecord(third).chain == chain  # a resumed run started where it started
    capsys.readouterr()
    assert main(["lineage", str(third)]) == 0
    lines = capsys.readouterr().out.splitlines()
    *links, leak = lines
    assert [line.strip().removeprefix("-> ").split()[0] for line in links] == [link["model"] for link in chain]
    assert "which has no split.csv any more" in leak
    assert str(first) in lines[0]
    assert show_lineage(str(third / "checkpoints" / "last.ckpt")).splitlines() == lines


def test_a_file_from_elsewhere_is_named_by_its_content(workdir: Path) -> None:
    weights = {f"net.{n}": t for n, t in FineTuneClassifier("mlp", 10, SHAPE).backbone.net.state_dict().items()}
    save_file(weights, "given.safetensors")
    run, _ = fitted("run", "--model.init_args.weights=given.safetensors")
    assert RunRecord(run).chain[0]["file"] == "given.safetensors"
    assert show_lineage(str(run)).startswith("file given.safetensors (SHA-256 ")


def test_weights_between_start_and_tuned(workdir: Path) -> None:
    first, _ = fitted("start")
    second, tuned = fitted("tuned", f"--model.init_args.weights={first}", "--seed_everything=1")
    start = FineTuneClassifier("mlp", 10, SHAPE, weights=str(first)).state_dict()
    for alpha in (0.0, 0.25, 1.0):
        file = export(str(second), wise=alpha, out="between.safetensors")
        between = put_together(file, file).state_dict()
        assert json.loads(Path("between.json").read_text()).get("wise", 1.0) == alpha
        for name, tensor in tuned.state_dict().items():
            if name.startswith(("backbone.net", "head")):
                expected = start[name] + alpha * (tensor - start[name])
                torch.testing.assert_close(between[name], expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match="has no start on disk"):
        export(str(first), wise=0.5)
    with pytest.raises(InputError, match=r"wise is 1\.5: give a share"):
        export(str(second), wise=1.5)


class Payload:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_parts_that_do_not_fit_are_refused(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = fitted("run")
    encoder, _ = fitted("encoder", config="autoencoder")
    backbone, head = export(str(run), "backbone"), export(str(run), "head")
    cut = Path("cut.safetensors")
    cut.write_bytes(head.read_bytes()[:200])
    with Path("evil.ckpt").open("wb") as file:
        pickle.dump({"state_dict": Payload()}, file)
    save_file({"head.weight": torch.zeros(3, 32), "head.bias": torch.zeros(3)}, "three.safetensors")
    config = str(ROOT / "configs" / "quickstart" / "fine_tune.yaml")
    for words, expected in (
        ([f"weights={head}"], "is a head without a backbone: give it as head_weights"),
        ([f"head_weights={backbone}"], "holds no head"),
        ([f"head_weights={encoder}"], "holds no head"),
        ([f"head_weights={head}", "backbone=conv"], "takes 32 features, backbone 'conv' gives"),
        (["head_weights=three.safetensors"], "has 3 classes, the data has 10"),
        ([f"weights={backbone}", "backbone=conv"], "are of backbone 'mlp', asked for is 'conv'"),
        ([f"head_weights={cut}"], "cannot be read"),
        (["head_weights=evil.ckpt"], "could run code"),
        (["head_weights=gone"], "head_weights 'gone' does not exist"),
    ):
        given = [f"--model.init_args.{word}" for word in words]
        assert main(["fit", "--config", config, "--run_name=bad", *given]) == 2
        assert expected in capsys.readouterr().err
        assert not Path("lightning_logs/bad").exists() or not list(Path("lightning_logs/bad").glob("*/checkpoints"))
    assert not Path("ran").exists()
    for words, expected in (
        (["nowhere"], "run 'nowhere' is neither a checkpoint nor a run"),
        ([str(encoder), "--part=head"], "has no head: give --part backbone"),
        (["evil.ckpt"], "could run code"),
        ([str(run), "--part=hed"], "did you mean 'head'"),
        ([str(run), "--out=part.bin"], "does not end in .safetensors"),
    ):
        assert main(["export", *words]) == 2
        assert expected in capsys.readouterr().err
    assert main(["lineage", "nowhere"]) == 2
    assert "run 'nowhere' is not the folder of a run" in capsys.readouterr().err


def test_a_head_of_other_class_names_is_refused(workdir: Path) -> None:
    run, _ = fitted("run")
    head = export(str(run), "head")
    with pytest.raises(InputError, match="knows none of the classes of the data: its classes are 'T-shirt/top'"):
        FineTuneClassifier("mlp", 10, SHAPE, [f"class {k}" for k in range(10)], head_weights=str(head))
