"""Programs in 8-bit integers: smaller, nearly as accurate, and measured beside the others."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sft_lightning.__main__ import main
from sft_lightning.cli.loaded_run import LoadedRun, add_subset
from sft_lightning.export.int8 import describe_int8
from tests.tasks.helpers import write_texts

DATA = ["--data=ImageDataModule", "--data.source=sample", "--data.num_labels=300", "--data.val_size=0"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--model=FineTuneClassifier", "--model.backbone=resnet8", "--model.optimizer=Adam"]
        words += ["--model.optimizer.lr=0.002", "--data.steps_per_epoch=40", "--trainer.max_epochs=1"]
        assert main(["fit", *DATA, *words, "--trainer.accelerator=cpu", "--run_name=run"]) == 0
        run = ["export", "lightning_logs/run/version_0", "--format=onnx", "--out=model.onnx", "--int8=true"]
        assert main([*run, "--measure_on=500"]) == 0
    return folder


def run_program(path: Path, images: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def test_the_program_computes_in_8_bits_and_is_a_quarter_of_the_size(exported: Path) -> None:
    model = onnx.load(exported / "model.int8.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    large = {one.data_type for one in model.graph.initializer if np.prod(one.dims) > 1000}
    assert large == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}
    floats = [one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]
    assert [one.dims[0] for one in floats if np.prod(one.dims) > 1000] == [10]  # the head, of ten classes
    sizes = [(exported / name).stat().st_size for name in ("model.onnx", "model.int8.onnx")]
    assert sizes[1] < 0.4 * sizes[0]
    names = {one.key: one.value for one in model.metadata_props}
    assert json.loads(names["class_names"])[0] == "T-shirt/top"


def test_what_is_measured_is_what_the_programs_answer(exported: Path) -> None:
    """On the same held-out images as the card's metrics."""
    measured = json.loads((exported / "model.onnx.json").read_text())["int8"]
    assert measured["file"] == "model.int8.onnx"
    assert measured["bytes"] == [(exported / n).stat().st_size for n in ("model.onnx", "model.int8.onnx")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(exported)
        opened = LoadedRun("lightning_logs/run/version_0")
    chosen = add_subset(opened.data, "test", 500)
    batches = [*opened.data.batches_of(chosen, torch.device("cpu"))]
    images = torch.cat([(batch.x * 255).round().to(torch.uint8) for batch in batches])
    y = torch.cat([batch.y for batch in batches])
    for value, name in zip(measured["values"], ("model.onnx", "model.int8.onnx"), strict=True):
        assert value == pytest.approx((run_program(exported / name, images).argmax(1) == y).double().mean().item())
    assert (measured["count"], measured["split"], measured["title"]) == (500, "test", "accuracy")
    assert abs(measured["values"][0] - measured["values"][1]) < 0.05
    assert all(milliseconds > 0 for milliseconds in measured["milliseconds"])
    assert "accuracy" in describe_int8(measured, "images")
    assert "images in place of" in (alone := describe_int8({**measured, "count": 0}, "images"))
    assert "not compared on held-out examples, of which it has or was given none (batches" in alone
    card = (exported / "model_card.md").read_text()
    assert re.search(r"`model\.int8\.onnx` is the same in 8-bit integers: 0\.\d+ MB in place of 1\.\d+", card)


@pytest.mark.slow
def test_a_network_without_convolutions_is_quantized_while_it_runs(workdir: Path) -> None:
    write_texts(workdir / "texts.csv", 120)
    words = ["--model=FineTuneClassifier", "--model.backbone=small_transformer", "--model.optimizer=Adam"]
    words += ["--data=TextDataModule", "--data.source=texts.csv", "--data.label_separator=;", "--data.max_length=16"]
    words += ["--data.steps_per_epoch=2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    assert main(["fit", *words, "--run_name=run"]) == 0
    assert main(["export", "lightning_logs/run/version_0", "--format=onnx", "--out=model.onnx", "--int8=true"]) == 0
    kinds = {node.op_type for node in onnx.load("model.int8.onnx").graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= kinds
    measured = json.loads(Path("model.onnx.json").read_text())["int8"]
    assert np.isfinite(measured["values"]).all()


@pytest.mark.parametrize("words", [["--format=pt2"], ["--format=onnx", "--part=backbone"], ["--format=safetensors"]])
def test_other_exports_have_none(words: list[str], exported: Path, cli_error: Callable[..., str]) -> None:
    run = str(exported / "lightning_logs/run/version_0")
    assert "int8 is true, which is for a model of a run as ONNX" in cli_error("export", run, "--int8=true", *words)
