"""How the cost grows: images per second, memory and start against the number of images and of processes.

    python scripts/bench/growth.py --out scripts/bench/results/growth.json --plot docs/images/growth.png

Each training is that of `configs/quickstart/fine_tune.yaml` (the MLP, batches of 64) with all labels, through the
command line and in a process of its own. `start` is from the start of the process to the first step,
`images_per_second` that of the steps after the first 20, of all processes together. What is resident is told by
`/proc/self/status` (Linux only), in bytes beyond what was resident when the imports were done: `peak` (VmHWM), and in
the last step `rss` (VmRSS) and `anonymous` (RssAnon).

- `memory`: random images of 28x28 in MNIST's files, which are held in memory. `peak_over_bytes` is by how much the
  peak grew from the smallest number of images to the largest, for each byte of pixels that came with it, in each round.
- `files`: class folders of PNG files, images of the sample, each with a few bytes behind its end that make it unlike
  the others. They are listed, looked through for broken ones and for copies, and decoded as batches need them.
- `index`: names of files that do not exist, divided into splits: what numbers of images cost that no disk here holds.
- `ranks`: `memory` at the largest number with one process and with two (gloo), `batch_size` 64 in each.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
SIDE, BATCH, TEST, SKIPPED = 28, 64, 100, 20


def resident() -> dict[str, int]:
    """Bytes that are resident now (`rss`, of these `anonymous`), and the most that were (`peak`)."""
    told = Path("/proc/self/status").read_text()
    names = {"rss": "VmRSS", "anonymous": "RssAnon", "peak": "VmHWM"}
    return {name: 1024 * int(re.findall(rf"{field}:\s+(\d+)", told)[0]) for name, field in names.items()}


def beyond(first: dict[str, int]) -> dict[str, int]:
    """What `resident` tells, without what it told when the imports were done."""
    return {name: size - first["rss" if name == "peak" else name] for name, size in resident().items()}


def training(words: list[str]) -> dict[str, Any] | None:
    """One training in this process; None where it is not the first of its processes."""
    import torchvision.datasets  # noqa: F401  # as the data module does
    from lightning.pytorch import Callback, LightningModule, Trainer

    from sft_lightning.cli import lightning_cli

    class Watch(Callback):
        """Looks at the clock before each step, and at the memory in the last one."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            """Looks."""
            self.times.append(time.time())

        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            """Keeps what is resident."""
            self.memory = beyond(first)

    watch, made = Watch(), lightning_cli.SFTCLI._instantiate_trainer

    def with_watch(self: lightning_cli.SFTCLI, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        return made(self, config, [*callbacks, watch])

    lightning_cli.SFTCLI._instantiate_trainer = with_watch  # type: ignore[method-assign]
    first = resident()
    done = lightning_cli.run(words)
    if not done.trainer.is_global_zero:
        return None
    steps = len(watch.times) - 1 - SKIPPED
    seconds = watch.times[-1] - watch.times[SKIPPED]
    return {
        "start": round(watch.times[0] - float(os.environ["BENCH_START"]), 2),
        "images_per_second": round(steps * BATCH * done.trainer.world_size / seconds),
        **watch.memory,
    }


def index(count: int) -> dict[str, Any]:
    """Splits of so many names in this process."""
    import torch

    from sft_lightning.data.source import Examples
    from sft_lightning.data.splits import SplitConfig, make_splits
    from sft_lightning.data.vision.images import FileImages

    first, start = resident(), time.time()
    ids = [f"class_{i % 10}/{i:09}.png" for i in range(count)]
    part = Examples(FileImages([Path("gone", name) for name in ids], ids), ids, torch.arange(count) % 10)
    make_splits(
        {"train": part}, None, SplitConfig(num_labels=1000 if count > 5000 else 10), [str(c) for c in range(10)]
    )
    return {"start": round(time.time() - start, 2), **beyond(first)}


def alone(*words: str) -> dict[str, Any]:
    """What one measurement says in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, str(HERE), "--only", *words],
        env={**environment, "BENCH_START": str(time.time())},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return told


def fit(source: list[str], steps: int, ranks: int = 1) -> dict[str, Any]:
    """One training of so many steps."""
    words = [
        "fit", f"--config={ROOT / 'configs' / 'quickstart' / 'fine_tune.yaml'}", "--run_name=bench",
        "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
        "--data.init_args.num_labels=null", f"--data.init_args.batch_size={BATCH}", "--data.init_args.val_size=100",
        f"--data.init_args.steps_per_epoch={steps}", "--model.init_args.lr_scheduler=null", *source,
    ]  # fmt: skip
    both = ["--trainer.strategy=ddp", f"--trainer.devices={ranks}"] if ranks > 1 else []
    return alone("training", *words, *both)


def idx(root: Path, count: int) -> list[str]:
    """MNIST's files with so many training images; words that name them."""
    import numpy as np

    draw = np.random.default_rng(count)
    folder = root / f"memory_{count}" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, size in (("train", count), ("t10k", TEST)):
        for kind, shape in (("images-idx3", (size, SIDE, SIDE)), ("labels-idx1", (size,))):
            data = draw.integers(0, 10 if len(shape) == 1 else 256, shape, dtype=np.uint8)
            header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + data.tobytes())
    return ["--data.init_args.source=MNIST", f"--data.init_args.root={folder.parents[1]}"]


def pngs(root: Path, count: int) -> list[str]:
    """Class folders with so many files; words that name them."""
    import io

    from PIL import Image

    from sft_lightning.data.storage import TensorStorage
    from sft_lightning.data.vision.sources import open_source

    part = open_source("sample").load()["test"]
    assert isinstance(part.images, TensorStorage)
    encoded = []
    for picture in part.images.data[:100, 0].numpy():
        Image.fromarray(picture).save(file := io.BytesIO(), "PNG")
        encoded.append(file.getvalue())
    folder = root / f"files_{count}"
    for c in range(10):
        (folder / f"class_{c}").mkdir(parents=True)
    for i in range(count):
        content = encoded[i % len(encoded)] + i.to_bytes(4, "big")
        (folder / f"class_{i % 10}" / f"{i:09}.png").write_bytes(content)
    size = [f"--data.init_args.image_size={SIDE}", "--data.init_args.channels=1", "--data.init_args.num_workers=1"]
    return [f"--data.init_args.source={folder}", *size]


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    place, back = Path(tempfile.mkdtemp()), Path.cwd()
    os.chdir(place)
    found: dict[str, Any] = {"memory": {}, "files": {}, "index": {}, "ranks": {}}
    sources = {count: idx(place, count) for count in args.images}
    rounds = [{count: fit(sources[count], args.steps) for count in args.images} for _ in range(args.pairs)]
    found["memory"] = {
        str(count): {"bytes": (count + TEST) * SIDE * SIDE, **_medians([own[count] for own in rounds])}
        for count in args.images
    }
    small, large = min(args.images), max(args.images)
    found["memory"]["peak_over_bytes"] = [
        round((own[large]["peak"] - own[small]["peak"]) / ((large - small) * SIDE * SIDE), 3) for own in rounds
    ]
    for count in args.images:
        words = pngs(place, count)
        found["files"][str(count)] = fit(words, args.steps)
        shutil.rmtree(place / f"files_{count}")
    for count in [*args.images, *([] if args.quick else [10 * large])]:
        found["index"][str(count)] = alone("index", str(count))
    for ranks in (1, 2):
        found["ranks"][str(ranks)] = fit(sources[large], args.steps, ranks)
    os.chdir(back)
    shutil.rmtree(place)
    return found


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def plot(found: dict[str, Any], path: Path) -> None:
    """Draws it.

    Args:
        found: Of `measured`.
        path: Of the PNG; its folder is made.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from sft_lightning.utils.atomic import open_atomic

    styles = {"memory": ("#0072b2", "s", "in memory"), "files": ("#d55e00", "D", "files"),
              "index": ("#009e73", "^", "names alone")}  # fmt: skip
    figure = Figure(figsize=(12, 3.6), layout="constrained", dpi=120)
    speed, memory, start, ranks = figure.subplots(1, 4)
    for axes, field, title in (
        (speed, "images_per_second", "images per second"),
        (memory, "peak", "peak beyond imports, MB"),
        (start, "start", "seconds to the first step"),
    ):
        for kind, (color, marker, label) in styles.items():
            own = {int(n): row for n, row in found[kind].items() if n.isdigit() and field in row}
            values = [row[field] / (1e6 if field == "peak" else 1) for row in own.values()]
            axes.plot(list(own), values, color=color, marker=marker, markersize=5, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("images")
        axes.set_title(title, fontsize=10, loc="left")
    pixels = {int(n): row["bytes"] / 1e6 for n, row in found["memory"].items() if n.isdigit()}
    memory.plot(list(pixels), list(pixels.values()), color="#666666", linestyle="--", label="pixels")
    own = {int(n): row["images_per_second"] for n, row in found["ranks"].items()}
    ranks.plot(list(own), list(own.values()), color="#0072b2", marker="s", markersize=5)
    ranks.set_xticks(list(own))
    ranks.set_xlabel("processes")
    ranks.set_title("images per second", fontsize=10, loc="left")
    for axes in (speed, memory, start, ranks):
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = memory.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as staged:
        figure.savefig(staged, format="png")


def main() -> None:
    """Measures and prints JSON."""
    if sys.argv[1:2] == ["--only"]:
        told = training(sys.argv[3:]) if sys.argv[2] == "training" else index(int(sys.argv[3]))
        if told is not None:
            print(json.dumps(told))
        return
    from about import publish

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--steps", type=int, default=200, help=f"of a training, the first {SKIPPED} untimed")
    parser.add_argument("--pairs", type=int, default=3, help="rounds of the trainings on memory")
    parser.add_argument(
        "--quick", action="store_true", help="few images, one round, nothing by index alone beyond them"
    )
    parser.add_argument("--plot", type=Path, help="a PNG")
    parser.add_argument("--found", type=Path, help="measures nothing: an earlier result, or one of run_all, for --plot")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.images, args.steps, args.pairs = [300, 3_000], 30, 1
    if args.found is not None:
        if args.plot is None:
            parser.error("--found needs --plot")
        try:
            told = json.loads(args.found.read_text())
            plot(told.get("benches", {}).get("growth", told), args.plot)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            parser.error(f"--found {str(args.found)!r} is no result of growth or run_all ({error!r})")
        return
    args.out, args.plot = (None if path is None else path.resolve() for path in (args.out, args.plot))
    found = measured(args)
    if args.plot is not None:
        plot(found, args.plot)
    args.plot = None if args.plot is None else args.plot.name
    publish(args, found)


if __name__ == "__main__":
    main()
