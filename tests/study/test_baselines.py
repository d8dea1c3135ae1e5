from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sft_lightning import ImageDataModule
from sft_lightning.classifiers import LabelSpreading
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.study.baselines import fit_label_spreading, fit_logistic_regression


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
    labels = data.splits["labeled"].labels
    model = LogisticRegression(C=30 / x.shape[1], max_iter=1000).fit(scaler.transform(x.numpy()), labels.numpy())
    expected = model.score(scaler.transform(x_test.numpy()), data.splits["test"].labels.numpy())
    assert fit_logistic_regression(data, backbone=backbone) == pytest.approx(expected, abs=2e-3)
    assert len(list((workdir / "lightning_logs" / "features").iterdir())) == 2


def test_label_spreading_learns_from_the_unlabeled_pixels_and_keeps_its_result(
    workdir: Path, fashion: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ImageDataModule("sample", num_labels=50)
    data.setup("fit")
    labeled, unlabeled = data.splits["labeled"], data.splits["unlabeled"]
    pixels = labeled.part.storage.data.flatten(1).float() / 255  # type: ignore[attr-defined]
    x = pixels[[*labeled.indices, *unlabeled.indices]]
    pca = PCA(64, whiten=True).fit(x.numpy())
    x, x_test = (torch.from_numpy(pca.transform(v.numpy())) for v in (x, fashion[0].flatten(1) / 255))
    model = LabelSpreading(metric="euclidean").fit(x[:50], labeled.labels, x[50:])
    expected = float((model.predict(x_test) == fashion[1]).double().mean())
    accuracy = fit_label_spreading(data)
    assert accuracy == pytest.approx(expected, abs=5e-3)
    assert accuracy > fit_logistic_regression(data)
    (stored,) = (workdir / "lightning_logs" / "features" / "label_spreading").iterdir()
    monkeypatch.setattr("sft_lightning.study.baselines._spread_labels", lambda *_: 0.123)
    assert fit_label_spreading(data) == accuracy
    other = ImageDataModule("sample", num_labels=50, seed=1)
    other.setup("fit")
    assert fit_label_spreading(other) == 0.123  # other labels, so another key
    stored.write_text("damaged")
    assert fit_label_spreading(data) == 0.123


def test_label_spreading_takes_large_images_and_features(workdir: Path, write_folder: Callable[..., Path]) -> None:
    source = str(write_folder(workdir, {"train": 40, "test": 20}))
    data = ImageDataModule(source, image_size=96, channels=1, num_labels=10)  # 9,216 values unless it is shrunk
    data.setup("fit")
    assert fit_label_spreading(data) > 0.4
    backbone, _ = build_backbone("conv", data.image_shape)
    assert fit_label_spreading(data, backbone) > 0.4
    assert len([*Path("lightning_logs/features/label_spreading").iterdir()]) == 2
