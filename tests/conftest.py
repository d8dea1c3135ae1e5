"""What all tests share: the configs, small real data sets on disk, and a folder of their own to run in."""

import gc
import os
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from sft_lightning.__main__ import main
from sft_lightning.data import few_label_datamodule
from sft_lightning.data.vision import sources
from sft_lightning.data.vision.sources import SAMPLE
from sft_lightning.data.vision.torchvision_sources import read_idx

ROOT = Path(__file__).resolve().parents[1]
Crop = Callable[[int], Image.Image]
CONFIGS = ROOT / "configs"
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: more threads only get into each other's way
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files come first (studies, promises ...), so that no worker waits for one at the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("study", "promises", "solver", "tuning"))


def pytest_collection_finish() -> None:
    """Leave the objects of the imports, half a million, out of every later collection: trainings cause many."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _sample() -> Iterator[None]:
    """Decompress the sample once: some thousand trainings of the tests read it. Each gets a copy of its own."""
    read_once = cache(read_idx)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "read_idx", lambda path: read_once(path).clone())
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_workers() -> Iterator[None]:
    """Read files in the process itself: starting workers takes longer than the rest of a small training.

    Tests of workers ask for a number of them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_label_datamodule, "count_cores", lambda: 0)
        yield


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli_error(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must refuse its input, and return the one sentence that it prints: cli_error("fit", ...)."""

    def results() -> set[Path]:
        return {path for name in ("*.ckpt", "predictions.csv*") for path in Path().glob(f"lightning_logs/**/{name}")}

    def run(*argv: str) -> str:
        capsys.readouterr()
        before = results()
        assert main(argv) == 2, argv
        captured = capsys.readouterr()
        sentences = [line for line in captured.err.splitlines() if line.startswith("sft-lightning: ")]
        assert len(sentences) == 1, captured.err
        assert results() == before
        return sentences[0].removeprefix("sft-lightning: ")

    return run


@pytest.fixture(scope="session")
def fashion() -> tuple[Tensor, Tensor]:
    """2,000 real pictures (N, 28, 28) and their labels."""
    images, labels = (read_idx(SAMPLE / f"fashion-test-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    return images, labels.long()


@pytest.fixture(scope="session")
def write_folder(fashion: tuple[Tensor, Tensor]) -> Callable[..., Path]:
    """Writes real pictures as class folders: write_folder(path, {"train": 4}) makes 4 a class for 3 classes."""

    def write(path: Path, per_class: dict[str, int], classes: int = 3) -> Path:
        images, labels = fashion
        used = dict.fromkeys(range(classes), 0)
        for split, count in per_class.items():
            for c in range(classes):
                folder = path / split / f"class_{c}" if split != "unlabeled" else path / split
                folder.mkdir(parents=True, exist_ok=True)
                for i in (labels == c).nonzero()[used[c] : used[c] + count, 0].tolist():
                    Image.fromarray(images[i].numpy()).save(folder / f"{i}.png")
                used[c] += count
        return path

    return write


@pytest.fixture(scope="session")
def idx_root(tmp_path_factory: pytest.TempPathFactory, fashion: tuple[Tensor, Tensor]) -> Path:
    """A root with MNIST and FashionMNIST in their true format, 200 + 200 pictures each."""
    root = tmp_path_factory.mktemp("root")
    images, labels = fashion
    for name in ("MNIST", "FashionMNIST"):
        folder = root / name / "raw"
        folder.mkdir(parents=True)
        for k, part in enumerate(("train", "t10k")):
            chosen = slice(200 * k, 200 * (k + 1))
            for kind, data in (("images-idx3", images[chosen]), ("labels-idx1", labels[chosen].to(torch.uint8))):
                header = struct.pack(">HBB", 0, 8, data.ndim) + struct.pack(f">{data.ndim}I", *data.shape)
                (folder / f"{part}-{kind}-ubyte").write_bytes(header + data.numpy().tobytes())
    return root


@pytest.fixture(scope="session")
def crop() -> Crop:
    """Real photographs: crop(7) is a part of one, 96 pixels a side, that no other number gives; odd ones are flowers.

    Both photographs have places where nothing is to be seen, which are left out.
    """
    whole = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]

    def make(number: int) -> Image.Image:
        draw = np.random.default_rng(number)
        picture = whole[number % 2]
        while True:
            x, y = (int(draw.integers(0, picture.shape[k] - 96)) for k in (0, 1))
            part = picture[x : x + 96, y : y + 96]
            if part.std() > 40:
                return Image.fromarray(part)

    return make
