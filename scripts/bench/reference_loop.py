"""The reference of METHODS as plain PyTorch: an autoencoder, then fine-tuning, on the full Fashion-MNIST.

Two loops of the same mathematics: `sliced` indexes one tensor and uses a fused Adam; `per_sample` is the loop of most
tutorials (torchvision data set, `ToTensor`, `DataLoader`). Nothing of the framework is used but its IDX reader, so that
both can be held against it.

    python scripts/bench/reference_loop.py --loop sliced --epochs 100 --seeds 0 1 2 --out result.json

Prints JSON: per seed the final test accuracy, the held-out reconstruction loss and, of both phases, the median seconds
of the epochs after the first. The first is faster: later on, Adam's moments of dead units are denormal numbers.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from about import about
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from sft_lightning.data.vision.torchvision_sources import DEBIAN_FASHION_MNIST, read_idx

Loader = Callable[[], Iterable[tuple[Tensor, Tensor]]]
BATCH = 64


def encoder() -> nn.Sequential:
    """784-128-64-32, ReLU after each layer."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()
    )


def decoder() -> nn.Sequential:
    """32-64-128-784, ReLU, last a sigmoid."""
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 784), nn.Sigmoid())


def sliced(images: Tensor, labels: Tensor) -> Loader:
    """Batches as an index into one tensor."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(images))
        for start in range(0, len(images), BATCH):
            index = order[start : start + BATCH]
            yield images[index].float().div_(255), labels[index]

    return batches


class PerSample(Dataset[tuple[Tensor, int]]):
    """What torchvision's MNIST classes do for each image (`__getitem__`), without their files: PIL, `ToTensor`."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """Keeps the tensors.

        Args:
            images: uint8, (N, 28, 28).
            labels: int64, (N,).
        """
        from torchvision.transforms import ToTensor

        self.images, self.labels, self.transform = images, labels, ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        image, label = self.images[index], int(self.labels[index])
        return self.transform(Image.fromarray(image.numpy())), label


def train(
    epochs: int, batches: Loader, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], fused: bool
) -> list[float]:
    """Adam, learning rate 1e-3; returns the seconds of each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        for x, y in batches():
            optimizer.zero_grad()
            loss(x, y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def one_seed(seed: int, loop: str, epochs: int, data: Path, pictures: int) -> dict[str, object]:
    """Both phases with one seed; the test split is looked at once, after the last step."""
    torch.manual_seed(seed)
    x, y, x_test, y_test = (
        read_idx(data / f"{part}-{kind}-ubyte.gz")
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )
    x, y, y_test = x[:pictures], y[:pictures].long(), y_test.long()
    flat_test = x_test.float().div(255)
    batches: Loader
    if loop == "sliced":
        batches = sliced(x, y)
    else:
        loader = DataLoader(PerSample(x, y), batch_size=BATCH, shuffle=True)
        batches = lambda: loader  # noqa: E731
    fused = loop == "sliced"
    enc, dec = encoder(), decoder()
    autoencoder = nn.Sequential(enc, dec)
    ae = train(epochs, batches, autoencoder, lambda x, _: F.mse_loss(autoencoder(x), x.flatten(1)), fused)
    with torch.no_grad():
        reconstruction = F.mse_loss(autoencoder(flat_test), flat_test.flatten(1)).item()
    classifier = nn.Sequential(enc, nn.Linear(32, 10))
    ft = train(epochs, batches, classifier, lambda x, y: F.cross_entropy(classifier(x), y), fused)
    with torch.no_grad():
        accuracy = (classifier(flat_test).argmax(1) == y_test).float().mean().item()
    return {
        "seed": seed,
        "test_accuracy": accuracy,
        "test_reconstruction_loss": reconstruction,
        "autoencoder_seconds_per_epoch": statistics.median(ae[1:] or ae),
        "fine_tune_seconds_per_epoch": statistics.median(ft[1:] or ft),
    }


def main() -> None:
    """Runs the seeds one after the other and rewrites the output after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=("sliced", "per_sample"), default="sliced")
    parser.add_argument("--epochs", type=int, default=100, help="of each phase")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=60_000, help="so many of the training images")
    parser.add_argument("--data", type=Path, default=DEBIAN_FASHION_MNIST)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    runs = []
    for seed in args.seeds:
        runs.append(one_seed(seed, args.loop, args.epochs, args.data, args.pictures))
        how = {"loop": args.loop, "epochs": args.epochs, "threads": torch.get_num_threads()}
        text = json.dumps({**about(), **how, "runs": runs}, indent=1)
        if args.out:
            args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
