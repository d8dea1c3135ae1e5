import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import ComplementNB
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from sft_lightning import ImageDataModule, TextDataModule
from sft_lightning.classifiers import LabelSpreading, SmoothedLogisticRegression
from sft_lightning.data.text.datamodule import get_texts
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.study.baselines import (
    fit_label_spreading,
    fit_logistic_regression,
    fit_naive_bayes,
    fit_smoothed_regression,
)
from sft_lightning.utils.errors import InputError
from tests.modality.test_texts import make_texts


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
    assert len(list((workdir / "lightning_logs" / "features").iterdir())) == 1


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
    monkeypatch.setattr("sft_lightning.study.baselines._fit_on_pool", lambda *_: 0.123)
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
    backbone.eval()
    x, x_test = (
        torch.cat(
            [backbone(batch.x).detach() for name in names for batch in data.batches_of(name, torch.device("cpu"))]
        )
        for names in (("labeled", "unlabeled"), ("test",))
    )
    model = SmoothedLogisticRegression().fit(x[:10], data.splits["labeled"].labels, x[10:])
    expected = float((model.predict(x_test) == data.splits["test"].labels).double().mean())
    assert fit_smoothed_regression(data, backbone) == pytest.approx(expected, abs=0.02)
    assert len([*Path("lightning_logs/features/smoothed_regression").iterdir()]) == 1
    assert len([*Path("lightning_logs/features/label_spreading").iterdir()]) == 2


def test_texts_are_compared_by_tf_idf_of_all_training_texts(tmp_path: Path) -> None:
    rows = [
        f"{text},{label},{('train', 'train', 'test')[i // 3 % 3]}" for i, (text, label) in enumerate(make_texts(300))
    ]
    (tmp_path / "texts.csv").write_text("text,label,split\n" + "\n".join(rows))
    data = TextDataModule(str(tmp_path / "texts.csv"), num_labels=30, val_size=0, max_length=4)  # of networks alone
    data.setup("fit")
    labeled, unlabeled, test = (get_texts(data.splits[name]) for name in ("labeled", "unlabeled", "test"))
    theirs = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]").fit([*labeled, *unlabeled])
    x, x_test = theirs.transform(labeled), theirs.transform(test)
    y, y_test = (data.splits[name].labels.numpy() for name in ("labeled", "test"))
    linear = LogisticRegression(C=10, max_iter=1000).fit(x, y).score(x_test, y_test)
    assert fit_logistic_regression(data) == pytest.approx(linear)
    assert fit_naive_bayes(data) == pytest.approx(ComplementNB().fit(x, y).score(x_test, y_test))
    assert linear > 0.6


def test_naive_bayes_refuses_measured_values() -> None:
    data = ImageDataModule("sample", num_labels=50)
    data.setup("fit")
    with pytest.raises(InputError, match="naive Bayes needs counts, such as those of words, and the data has images"):
        fit_naive_bayes(data)


def test_many_words_are_never_made_dense(tmp_path: Path) -> None:
    rows = [
        f"{' '.join(f'w{i * 40 + k}' for k in range(40))} c{i % 2},k{i % 2},{'test' if i % 9 == 0 else 'train'}"
        for i in range(2500)
    ]
    (tmp_path / "texts.csv").write_text("text,label,split\n" + "\n".join(rows))
    data = TextDataModule(str(tmp_path / "texts.csv"), val_size=0)
    data.setup("fit")
    tracemalloc.start()
    assert fit_naive_bayes(data) == 1.0  # 2,222 texts of 88,890 words: 1.6 GB as a dense matrix
    assert tracemalloc.get_traced_memory()[1] < 2e8
    tracemalloc.stop()
