from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sft_lightning import ImageDataModule
from sft_lightning.study.baselines import logistic_regression


def test_it_is_scikit_learn_on_the_labeled_pixels(fashion: tuple[Tensor, Tensor]) -> None:
    data = ImageDataModule("sample", num_labels=50)
    data.setup("fit")
    labeled = data.splits["labeled"]
    x = labeled.part.images.data[labeled.indices].flatten(1).float().div(255)  # type: ignore[attr-defined]
    model = LogisticRegression(max_iter=1000).fit(x.numpy(), labeled.labels.numpy())
    images, labels = fashion
    assert logistic_regression(data) == pytest.approx(model.score(images.flatten(1).numpy() / 255, labels.numpy()))


def test_it_reads_files_too(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    data = ImageDataModule(str(write_folder(tmp_path, {"train": 20, "test": 20})), image_size=28, channels=1)
    data.setup("fit")
    assert logistic_regression(data) > 0.6
