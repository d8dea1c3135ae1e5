"""Estimate training on 10^8 images with 8 and 64 GPUs, and where it stops scaling. See `docs/scaling.md`.

    python scripts/bench/scaling.py
    python scripts/bench/scaling.py --images_per_second resnet50=4100 --storage 5 --out scaling.json

The only measurements are those that `--images_per_second` gives, and the overhead per step if `--budgets` names a
result of `run_all`; other speeds are the targets of the project. It prints a Markdown table and, with `--out`, writes
JSON.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from provenance import collect_provenance

IMAGES = 10**8
GPUS = (1, 8, 64)
GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Training:
    """The size and speed of a training on one GPU.

    Attributes:
        what: Description of the training.
        parameters: Number of trained parameters.
        pixels: Bytes of an image in the cache, uint8.
        encoded: Bytes of an image file.
        batch: Images per GPU and step.
        speed: Images per second on one GPU, assumed or measured.
    """

    what: str
    parameters: int
    pixels: int
    encoded: int
    batch: int
    speed: float


# Numbers of parameters are with 1,000 classes (torchvision), and for WRN-28-2 with 10.
TRAININGS = {
    "resnet50": Training("ResNet-50 at 224, all layers", 25_557_032, 3 * 224 * 224, 110_000, 256, 4000),
    "vit_b_16": Training("ViT-B/16 at 224, all layers", 86_567_656, 3 * 224 * 224, 110_000, 256, 3000),
    "fixmatch": Training("FixMatch, WRN-28-2 at 32, 64 + 448", 1_467_610, 3 * 32 * 32, 2_300, 512, 60 * 512),
}


@dataclass(frozen=True)
class Estimate:
    """The estimate for one training on a number of GPUs.

    Attributes:
        what: Description of the training.
        gpus: Number of GPUs.
        read_pixels: GB/s read from the cache.
        read_encoded: GB/s read from files.
        sent: MB that each GPU sends, and receives, per step.
        compute_ms: Milliseconds of computation per step.
        communicate_ms: Milliseconds of communication per step.
        efficiency: Speed relative to n times one GPU, first without overlap, then with communication that overlaps
            with the backward pass, which takes two thirds of a step.
        hours: Hours per epoch in these two cases, provided that reading keeps up.
        storage_gpus: Numbers of GPUs that the storage can feed from the cache, and from files.
    """

    what: str
    gpus: int
    read_pixels: float
    read_encoded: float
    sent: float
    compute_ms: float
    communicate_ms: float
    efficiency: tuple[float, float]
    hours: tuple[float, float]
    storage_gpus: tuple[float, float]


def estimate(training: Training, gpus: int, network: float, link: float, storage: float, overhead: float) -> Estimate:
    """Estimate a training with a ring all-reduce of float32 gradients.

    Each GPU sends 2 (n - 1) / n times the bytes of the gradients through the slowest link.

    Args:
        training: Training on one GPU.
        gpus: Number of GPUs, n.
        network: GB/s that a machine sends and receives at once; a ring crosses it once in each direction.
        link: GB/s between two GPUs of one machine.
        storage: GB/s that all machines together can read.
        overhead: Seconds that the framework adds to a step.
    """
    compute = training.batch / training.speed + overhead
    sent = 2 * (gpus - 1) / gpus * 4 * training.parameters
    communicate = sent / 1e9 / (link if gpus <= GPUS_PER_MACHINE else network)
    exposed = (communicate, max(0.0, communicate - training.batch / training.speed * 2 / 3))
    steps = [compute + seconds for seconds in exposed]
    speeds = [gpus * training.batch / step for step in steps]
    fastest = speeds[1]
    return Estimate(
        training.what,
        gpus,
        fastest * training.pixels / 1e9,
        fastest * training.encoded / 1e9,
        sent / 1e6,
        1e3 * compute,
        1e3 * communicate,
        (compute / steps[0], compute / steps[1]),
        (IMAGES / speeds[0] / 3600, IMAGES / speeds[1] / 3600),
        (storage * 1e9 / (fastest / gpus * training.pixels), storage * 1e9 / (fastest / gpus * training.encoded)),
    )


def format_table(estimates: list[Estimate]) -> str:
    """Format estimates as a Markdown table.

    Args:
        estimates: Estimates of `estimate`.
    """
    head = "what | GPUs | read, GB/s (pixels / files) | sent a step, MB | step, ms | all-reduce, ms | efficiency | "
    head += "hours an epoch | GPUs that the storage feeds (pixels / files)"
    rows = [f"| {head} |", "|" + "---|" * 9]
    rows += [
        f"| {row.what} | {row.gpus} | {row.read_pixels:.2g} / {row.read_encoded:.2g} | {row.sent:,.0f} | "
        f"{row.compute_ms:.1f} | {row.communicate_ms:.2f} | {row.efficiency[0]:.0%} to {row.efficiency[1]:.0%} | "
        f"{row.hours[1]:.2g} to {row.hours[0]:.2g} | {row.storage_gpus[0]:.0f} / {row.storage_gpus[1]:.0f} |"
        for row in estimates
    ]
    return "\n".join(rows)


def read_overhead(path: Path | None) -> float:
    """Return the seconds that the framework adds to a step: from a result of `run_all`, or the target."""
    if path is None:
        return 500e-6
    budgets: list[dict[str, Any]] = json.loads(path.read_text())["budgets"]
    numbers = next(budget["numbers"] for budget in budgets if budget["name"] == "step_overhead/overhead")
    return max(0.0, float(statistics.median(numbers)) / 1e6)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=float, default=25.0, help="GB/s of a machine (25 is 200 Gbit/s)")
    parser.add_argument("--link", type=float, default=300.0, help="GB/s between GPUs of one machine")
    parser.add_argument("--storage", type=float, default=10.0, help="GB/s that all machines together can read")
    parser.add_argument("--budgets", type=Path, help="result of run_all, for the overhead per step")
    parser.add_argument(
        "--images_per_second", nargs="+", default=[], metavar="NAME=N", help=f"measured speeds: {', '.join(TRAININGS)}"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    measured = {name: float(speed) for name, speed in (option.split("=") for option in args.images_per_second)}
    if unknown := set(measured) - set(TRAININGS):
        parser.error(f"--images_per_second names {', '.join(sorted(unknown))}: give {', '.join(TRAININGS)}")
    trainings = [replace(training, speed=measured.get(name, training.speed)) for name, training in TRAININGS.items()]
    overhead = read_overhead(args.budgets)
    estimates = [
        estimate(training, n, args.network, args.link, args.storage, overhead) for training in trainings for n in GPUS
    ]
    print(format_table(estimates))
    if args.out is not None:
        settings = {"network": args.network, "link": args.link, "storage": args.storage, "overhead": overhead}
        content = {
            **collect_provenance(),
            "how": settings,
            "measured": measured,
            "lines": [vars(row) for row in estimates],
        }
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
