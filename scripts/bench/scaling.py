"""On paper: what 8 and 64 GPUs would give on 10^8 images, and where it stops scaling. See `docs/scaling.md`.

    python scripts/bench/scaling.py
    python scripts/bench/scaling.py --images_per_second resnet50=4100 --storage 5 --out scaling.json

Nothing here is measured but what `--images_per_second` names, and the overhead of a step where `--budgets` names a
result of `run_all`: the speeds of a GPU are the targets of the project. Prints a Markdown table, or with `--out` also
writes JSON.
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from about import about

IMAGES = 10**8
GPUS = (1, 8, 64)
IN_ONE_MACHINE = 8  # GPUs


@dataclass(frozen=True)
class Training:
    """What one step of a training asks for.

    Attributes:
        what: In words.
        parameters: That are trained.
        pixels: Bytes of an image as the cache holds it, uint8.
        encoded: Bytes of an image as a file.
        batch: Images that a GPU reads for a step.
        speed: Images per second that a GPU takes; assumed.
    """

    what: str
    parameters: int
    pixels: int
    encoded: int
    batch: int
    speed: float


# Parameters with 1,000 classes (torchvision), and of WRN-28-2 with 10 (networks/wide_resnet.py).
TRAININGS = {
    "resnet50": Training("ResNet-50 at 224, all layers", 25_557_032, 3 * 224 * 224, 110_000, 256, 4000),
    "vit_b_16": Training("ViT-B/16 at 224, all layers", 86_567_656, 3 * 224 * 224, 110_000, 256, 3000),
    "fixmatch": Training("FixMatch, WRN-28-2 at 32, 64 + 448", 1_467_610, 3 * 32 * 32, 2_300, 512, 60 * 512),
}


@dataclass(frozen=True)
class Line:
    """One training on so many GPUs, with communication that hides nothing, and with one that hides all it can.

    Attributes:
        what: Is trained.
        gpus: How many.
        read_pixels: GB/s from the cache.
        read_encoded: GB/s from files.
        sent: MB that each GPU sends, and receives, in a step.
        compute_ms: Of a step.
        communicate_ms: Of a step.
        efficiency: Share of n times one GPU, where nothing is hidden, and where communication hides behind the backward
            pass, which is two thirds of a step.
        hours: Of an epoch, in these two cases, where reading keeps up.
        storage_gpus: GPUs that the storage feeds: from the cache, and from files.
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


def line(one: Training, gpus: int, network: float, link: float, storage: float, overhead: float) -> Line:
    """Works it out: ring all-reduce of float32 gradients, 2 (n - 1) / n times their bytes through the slowest link.

    Args:
        one: The training.
        gpus: n.
        network: GB/s that a machine sends and receives at once; a ring crosses it once in each direction.
        link: GB/s between two GPUs of one machine.
        storage: GB/s that all machines together read.
        overhead: Seconds that the framework adds to a step.
    """
    compute = one.batch / one.speed + overhead
    sent = 2 * (gpus - 1) / gpus * 4 * one.parameters
    communicate = sent / 1e9 / (link if gpus <= IN_ONE_MACHINE else network)
    visible = (communicate, max(0.0, communicate - one.batch / one.speed * 2 / 3))
    steps = [compute + shown for shown in visible]
    speeds = [gpus * one.batch / step for step in steps]
    fastest = speeds[1]
    return Line(
        one.what,
        gpus,
        fastest * one.pixels / 1e9,
        fastest * one.encoded / 1e9,
        sent / 1e6,
        1e3 * compute,
        1e3 * communicate,
        (compute / steps[0], compute / steps[1]),
        (IMAGES / speeds[0] / 3600, IMAGES / speeds[1] / 3600),
        (storage * 1e9 / (fastest / gpus * one.pixels), storage * 1e9 / (fastest / gpus * one.encoded)),
    )


def table(lines: list[Line]) -> str:
    """Markdown.

    Args:
        lines: Of `line`.
    """
    head = "what | GPUs | read, GB/s (pixels / files) | sent a step, MB | step, ms | all-reduce, ms | efficiency | "
    head += "hours an epoch | GPUs that the storage feeds (pixels / files)"
    rows = [f"| {head} |", "|" + "---|" * 9]
    rows += [
        f"| {own.what} | {own.gpus} | {own.read_pixels:.2g} / {own.read_encoded:.2g} | {own.sent:,.0f} | "
        f"{own.compute_ms:.1f} | {own.communicate_ms:.2f} | {own.efficiency[0]:.0%} to {own.efficiency[1]:.0%} | "
        f"{own.hours[1]:.2g} to {own.hours[0]:.2g} | {own.storage_gpus[0]:.0f} / {own.storage_gpus[1]:.0f} |"
        for own in lines
    ]
    return "\n".join(rows)


def overhead_of(path: Path | None) -> float:
    """Seconds that the framework adds to a step, of a result of `run_all`; the target where there is none."""
    if path is None:
        return 500e-6
    lines: list[dict[str, Any]] = json.loads(path.read_text())["budgets"]
    numbers = next(line["numbers"] for line in lines if line["name"] == "step_overhead/overhead")
    return max(0.0, float(statistics.median(numbers)) / 1e6)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=float, default=25.0, help="GB/s of a machine (25 is 200 Gbit/s)")
    parser.add_argument("--link", type=float, default=300.0, help="GB/s between GPUs of one machine")
    parser.add_argument("--storage", type=float, default=10.0, help="GB/s of all that is read")
    parser.add_argument("--budgets", type=Path, help="a result of run_all, for the overhead of a step")
    parser.add_argument(
        "--images_per_second", nargs="+", default=[], metavar="NAME=N", help=f"measured: {', '.join(TRAININGS)}"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    measured = {name: float(speed) for name, speed in (word.split("=") for word in args.images_per_second)}
    if unknown := set(measured) - set(TRAININGS):
        parser.error(f"--images_per_second names {', '.join(sorted(unknown))}: give {', '.join(TRAININGS)}")
    trainings = [
        Training(one.what, one.parameters, one.pixels, one.encoded, one.batch, measured.get(name, one.speed))
        for name, one in TRAININGS.items()
    ]
    overhead = overhead_of(args.budgets)
    lines = [line(one, n, args.network, args.link, args.storage, overhead) for one in trainings for n in GPUS]
    print(table(lines))
    if args.out is not None:
        how = {"network": args.network, "link": args.link, "storage": args.storage, "overhead": overhead}
        told = {**about(), "how": how, "measured": measured, "lines": [vars(own) for own in lines]}
        args.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
