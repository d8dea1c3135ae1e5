"""Train the reference in plain PyTorch: an autoencoder, then fine-tuning, on the full Fashion-MNIST.

Two loops compute the same: `sliced` indexes one tensor and uses a fused Adam; `per_sample` is the loop of most
tutorials (torchvision data set, `ToTensor`, `DataLoader`). They use nothing of the framework except its IDX reader, so
that the framework can be compared with them.

    python scripts/bench/reference_loop.py --loop sliced --epochs 100 --seeds 0 1 2 --out result.json

It prints JSON with, for each seed, the final test accuracy, the reconstruction loss on the test split and, for both
phases, the median seconds of the epochs after the first. The first is faster: in later epochs, Adam's moments of dead
units are denormal numbers.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from provenance import collect_provenance
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from sft_lightning.data.vision.torchvision_sources import DEBIAN_FASHION_MNIST, read_idx

Loader = Callable[[], Iterable[tuple[Tensor, Tensor]]]
BATCH = 64


def build_encoder() -> nn.Sequential:
    """Build an MLP of 784-128-64-32 with a ReLU after each layer."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()
    )


def build_decoder() -> nn.Sequential:
    """Build an MLP of 32-64-128-784 with ReLUs and a final sigmoid."""
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 784), nn.Sigmoid())


def make_sliced_loader(images: Tensor, labels: Tensor) -> Loader:
    """Return a function that yields the shuffled batches of one epoch by indexing the tensors."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(images))
        for start in range(0, len(images), BATCH):
            index = order[start : start + BATCH]
            yield images[index].float().div_(255), labels[index]

    return batches


class PerSample(Dataset[tuple[Tensor, int]]):
    """A data set that converts each image with PIL and `ToTensor`, as torchvision's MNIST classes do."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        """Keep the tensors.

        Args:
            images: Images (N, 28, 28), uint8.
            labels: Labels (N,), int64.
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
    """Train with Adam at a learning rate of 1e-3 and return the seconds of each epoch.

    Args:
        epochs: Number of epochs.
        batches: Function that returns the batches of an epoch.
        model: Network whose parameters are trained.
        loss: Function from images and labels to the loss.
        fused: Whether Adam is fused.
    """
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


def train_and_test(seed: int, loop: str, epochs: int, data: Path, images: int) -> dict[str, object]:
    """Train both phases with one seed, and test once after the last step.

    Args:
        seed: Seed of the initialization and the order of batches.
        loop: `sliced` or `per_sample`.
        epochs: Number of epochs per phase.
        data: Folder of the IDX files.
        images: Number of training images to use.
    """
    torch.manual_seed(seed)
    x, y, x_test, y_test = (
        read_idx(data / f"{split}-{kind}-ubyte.gz")
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )
    x, y, y_test = x[:images], y[:images].long(), y_test.long()
    flat_test = x_test.float().div(255)
    batches: Loader
    if loop == "sliced":
        batches = make_sliced_loader(x, y)
    else:
        loader = DataLoader(PerSample(x, y), batch_size=BATCH, shuffle=True)
        batches = lambda: loader  # noqa: E731
    fused = loop == "sliced"
    encoder = build_encoder()
    autoencoder = nn.Sequential(encoder, build_decoder())
    autoencoder_seconds = train(
        epochs, batches, autoencoder, lambda x, _: F.mse_loss(autoencoder(x), x.flatten(1)), fused
    )
    with torch.no_grad():
        reconstruction = F.mse_loss(autoencoder(flat_test), flat_test.flatten(1)).item()
    classifier = nn.Sequential(encoder, nn.Linear(32, 10))
    fine_tune_seconds = train(epochs, batches, classifier, lambda x, y: F.cross_entropy(classifier(x), y), fused)
    with torch.no_grad():
        accuracy = (classifier(flat_test).argmax(1) == y_test).float().mean().item()
    return {
        "seed": seed,
        "test_accuracy": accuracy,
        "test_reconstruction_loss": reconstruction,
        "autoencoder_seconds_per_epoch": statistics.median(autoencoder_seconds[1:] or autoencoder_seconds),
        "fine_tune_seconds_per_epoch": statistics.median(fine_tune_seconds[1:] or fine_tune_seconds),
    }


def main() -> None:
    """Run the seeds one after another and rewrite the output after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=("sliced", "per_sample"), default="sliced")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of each phase")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=60_000, help="number of training images")
    parser.add_argument("--data", type=Path, default=DEBIAN_FASHION_MNIST)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    runs = []
    for seed in args.seeds:
        runs.append(train_and_test(seed, args.loop, args.epochs, args.data, args.images))
        settings = {"loop": args.loop, "epochs": args.epochs, "threads": torch.get_num_threads()}
        text = json.dumps({**collect_provenance(), **settings, "runs": runs}, indent=1)
        if args.out:
            args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
