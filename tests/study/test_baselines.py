from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sft_lightning import ImageDataModule
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.study.baselines import fit_logistic_regression


def test_the_baseline_is_scikit_learn_on_labeled_pixels(fashion: tuple[Tensor, Tensor]) -> None:
    data = ImageDataModule("sample", num_labels=50)
    data.setup("fit")
    labeled = data.splits["labeled"]
    x = labeled.part.storage.data[labeled.indices].flatten(1).float().div(255)  # type: ignore[attr-defined]
    model = LogisticRegression(max_iter=1000).fit(x.numpy(), labeled.labels.numpy())
    images, labels = fashion
    assert fit_logistic_regression(data) == pytest.approx(model.score(images.flatten(1).numpy() / 255, labels.numpy()))


def test_the_baseline_reads_image_files(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    data = ImageDataModule(str(write_folder(tmp_path, {"train": 20, "test": 20})), image_size=28, channels=1)
    data.setup("fit")
    assert fit_logistic_regression(data) > 0.6


def test_features_are_standardized_and_cached(workdir: Path) -> None:
    data = ImageDataModule("sample", num_labels=50)
    data.setup("fit")
    backbone, _ = build_backbone("conv", data.image_shape)
    backbone.eval()
    with torch.no_grad():
        x, x_test = (
            torch.cat([backbone(batch.x) for batch in data.batches_of(name, torch.device("cpu"))])
            for name in ("labeled", "test")
        )
    scaler = StandardScaler().fit(x.numpy())
    # The sample's deviation, not the population's.
    factor = (49 / 50) ** 0.5
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(x.numpy()) * factor, data.splits["labeled"].labels)
    expected = model.score(scaler.transform(x_test.numpy()) * factor, data.splits["test"].labels.numpy())
    assert fit_logistic_regression(data, backbone=backbone) == pytest.approx(expected, abs=2e-3)
    assert len(list((workdir / "lightning_logs" / "features").iterdir())) == 2
