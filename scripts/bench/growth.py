"""Measure how speed, memory and startup time grow with the number of images and of processes.

    python scripts/bench/growth.py --out scripts/bench/results/growth.json --plot docs/images/growth.png

Each training runs `configs/quickstart/fine_tune.yaml` (the MLP, batches of 64) with all labels, through the command
line and in a process of its own. `start` is the time from the start of the process to its first step, and
`images_per_second` the speed after the first 20 steps, of all processes together. Memory comes from
`/proc/self/status` (Linux only), in bytes beyond the resident memory after the imports: `peak` (VmHWM), and in the
last step `rss` (VmRSS) and `anonymous` (RssAnon).

- `memory`: random images of 28x28 in MNIST's files, which are held in memory. `peak_over_bytes` is the growth of the
  peak from the smallest to the largest number of images, per byte of additional pixels, in each round.
- `files`: class folders of PNG files, images of the sample, each with a few trailing bytes that make it unique. They
  are listed, checked for damage and duplicates, and decoded as batches need them.
- `index`: names of files that do not exist, divided into splits, for more images than fit on this disk.
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


def read_memory() -> dict[str, int]:
    """Return the resident memory (`rss`), the anonymous part of it and the peak of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    fields = {"rss": "VmRSS", "anonymous": "RssAnon", "peak": "VmHWM"}
    return {name: 1024 * int(re.findall(rf"{field}:\s+(\d+)", status)[0]) for name, field in fields.items()}


def measure_growth(initial: dict[str, int]) -> dict[str, int]:
    """Return the memory of this process minus the memory that `read_memory` returned after the imports."""
    return {name: size - initial["rss" if name == "peak" else name] for name, size in read_memory().items()}


def train(argv: list[str]) -> dict[str, Any] | None:
    """Train in this process and return the measurements, or None where its rank is not 0."""
    import torchvision.datasets  # noqa: F401  # imported by the data module, so its memory must not count
    from lightning.pytorch import Callback, LightningModule, Trainer

    from sft_lightning.cli import lightning_cli

    class Monitor(Callback):
        """Record the time before each step, and the memory at the end."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            """Record the time."""
            self.times.append(time.time())

        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            """Record the memory."""
            self.memory = measure_growth(initial)

    monitor, instantiate_trainer = Monitor(), lightning_cli.SFTCLI._instantiate_trainer

    def instantiate_with_monitor(
        self: lightning_cli.SFTCLI, config: dict[str, Any], callbacks: list[Callback]
    ) -> Trainer:
        return instantiate_trainer(self, config, [*callbacks, monitor])

    lightning_cli.SFTCLI._instantiate_trainer = instantiate_with_monitor  # type: ignore[method-assign]
    initial = read_memory()
    cli = lightning_cli.run(argv)
    if not cli.trainer.is_global_zero:
        return None
    steps = len(monitor.times) - 1 - SKIPPED
    seconds = monitor.times[-1] - monitor.times[SKIPPED]
    return {
        "start": round(monitor.times[0] - float(os.environ["BENCH_START"]), 2),
        "images_per_second": round(steps * BATCH * cli.trainer.world_size / seconds),
        **monitor.memory,
    }


def split_names(count: int) -> dict[str, Any]:
    """Divide `count` names of files into splits in this process, and return its time and memory."""
    import torch

    from sft_lightning.data.source import Examples
    from sft_lightning.data.splits import SplitConfig, make_splits
    from sft_lightning.data.vision.images import FileImages

    initial, start = read_memory(), time.time()
    ids = [f"class_{i % 10}/{i:09}.png" for i in range(count)]
    examples = Examples(FileImages([Path("gone", name) for name in ids], ids), ids, torch.arange(count) % 10)
    make_splits(
        {"train": examples}, None, SplitConfig(num_labels=1000 if count > 5000 else 10), [str(c) for c in range(10)]
    )
    return {"start": round(time.time() - start, 2), **measure_growth(initial)}


def package_environment() -> dict[str, str]:
    """Return the environment for a subprocess that imports this checkout's package."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def measure_in_subprocess(*only: str) -> dict[str, Any]:
    """Run one measurement in a process of its own and return its result.

    Args:
        only: Arguments after `--only`: `training` and the options of `fit`, or `index` and a number of names.

    Raises:
        SystemExit: The process failed; the message has the end of its errors.
    """
    process = subprocess.run(
        [sys.executable, str(HERE), "--only", *only],
        env={**package_environment(), "BENCH_START": str(time.time())},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        sys.exit(f"{' '.join(only)}: {process.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(next(line for line in process.stdout.splitlines() if line.startswith("{")))
    return result


def measure_training(source: list[str], steps: int, ranks: int = 1) -> dict[str, Any]:
    """Train in processes of their own and return the measurements.

    Args:
        source: Options of `fit` that name the data.
        steps: Number of steps.
        ranks: Number of processes.
    """
    argv = [
        "fit", f"--config={ROOT / 'configs' / 'quickstart' / 'fine_tune.yaml'}", "--run_name=bench",
        "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
        "--data.init_args.num_labels=null", f"--data.init_args.batch_size={BATCH}", "--data.init_args.val_size=100",
        f"--data.init_args.steps_per_epoch={steps}", "--model.init_args.lr_scheduler=null", *source,
    ]  # fmt: skip
    ddp = ["--trainer.strategy=ddp", f"--trainer.devices={ranks}"] if ranks > 1 else []
    return measure_in_subprocess("training", *argv, *ddp)


def write_mnist(root: Path, count: int) -> list[str]:
    """Write `count` random training images in MNIST's format and return the options of `fit` that name them."""
    import numpy as np

    rng = np.random.default_rng(count)
    folder = root / f"memory_{count}" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, size in (("train", count), ("t10k", TEST)):
        for kind, shape in (("images-idx3", (size, SIDE, SIDE)), ("labels-idx1", (size,))):
            data = rng.integers(0, 10 if len(shape) == 1 else 256, shape, dtype=np.uint8)
            header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + data.tobytes())
    return ["--data.init_args.source=MNIST", f"--data.init_args.root={folder.parents[1]}"]


def write_png_files(root: Path, count: int) -> list[str]:
    """Write `count` PNG files to class folders and return the options of `fit` that name them."""
    import io

    from PIL import Image

    from sft_lightning.data.storage import TensorStorage
    from sft_lightning.data.vision.sources import open_source

    examples = open_source("sample").load()["test"]
    assert isinstance(examples.storage, TensorStorage)
    encoded = []
    for image in examples.storage.data[:100, 0].numpy():
        Image.fromarray(image).save(file := io.BytesIO(), "PNG")
        encoded.append(file.getvalue())
    folder = root / f"files_{count}"
    for c in range(10):
        (folder / f"class_{c}").mkdir(parents=True)
    for i in range(count):
        content = encoded[i % len(encoded)] + i.to_bytes(4, "big")
        (folder / f"class_{i % 10}" / f"{i:09}.png").write_bytes(content)
    size = [f"--data.init_args.image_size={SIDE}", "--data.init_args.channels=1", "--data.init_args.num_workers=1"]
    return [f"--data.init_args.source={folder}", *size]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all four parts."""
    temporary, working_folder = Path(tempfile.mkdtemp()), Path.cwd()
    os.chdir(temporary)
    results: dict[str, Any] = {"memory": {}, "files": {}, "index": {}, "ranks": {}}
    sources = {count: write_mnist(temporary, count) for count in args.images}
    rounds = [{count: measure_training(sources[count], args.steps) for count in args.images} for _ in range(args.pairs)]
    results["memory"] = {
        str(count): {"bytes": (count + TEST) * SIDE * SIDE, **_medians([row[count] for row in rounds])}
        for count in args.images
    }
    small, large = min(args.images), max(args.images)
    results["memory"]["peak_over_bytes"] = [
        round((row[large]["peak"] - row[small]["peak"]) / ((large - small) * SIDE * SIDE), 3) for row in rounds
    ]
    for count in args.images:
        source = write_png_files(temporary, count)
        results["files"][str(count)] = measure_training(source, args.steps)
        shutil.rmtree(temporary / f"files_{count}")
    for count in [*args.images, *([] if args.quick else [10 * large])]:
        results["index"][str(count)] = measure_in_subprocess("index", str(count))
    for ranks in (1, 2):
        results["ranks"][str(ranks)] = measure_training(sources[large], args.steps, ranks)
    os.chdir(working_folder)
    shutil.rmtree(temporary)
    return results


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot the results as a PNG file.

    Args:
        results: Results of `measure`.
        path: Path of the file, whose folder is created.
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
            rows = {int(n): row for n, row in results[kind].items() if n.isdigit() and field in row}
            values = [row[field] / (1e6 if field == "peak" else 1) for row in rows.values()]
            axes.plot(list(rows), values, color=color, marker=marker, markersize=5, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("images")
        axes.set_title(title, fontsize=10, loc="left")
    pixels = {int(n): row["bytes"] / 1e6 for n, row in results["memory"].items() if n.isdigit()}
    memory.plot(list(pixels), list(pixels.values()), color="#666666", linestyle="--", label="pixels")
    speeds = {int(n): row["images_per_second"] for n, row in results["ranks"].items()}
    ranks.plot(list(speeds), list(speeds.values()), color="#0072b2", marker="s", markersize=5)
    ranks.set_xticks(list(speeds))
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
    """Measure and print JSON."""
    if sys.argv[1:2] == ["--only"]:
        result = train(sys.argv[3:]) if sys.argv[2] == "training" else split_names(int(sys.argv[3]))
        if result is not None:
            print(json.dumps(result))
        return
    from provenance import publish

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--steps", type=int, default=200, help=f"steps per training, the first {SKIPPED} untimed")
    parser.add_argument("--pairs", type=int, default=3, help="rounds of the trainings of `memory`")
    parser.add_argument("--quick", action="store_true", help="few images, one round, no larger `index`")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("--result", type=Path, help="plot this result, or one of run_all, and measure nothing")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.images, args.steps, args.pairs = [300, 3_000], 30, 1
    if args.result is not None:
        if args.plot is None:
            parser.error("--result needs --plot")
        try:
            result = json.loads(args.result.read_text())
            plot(result.get("benches", {}).get("growth", result), args.plot)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            parser.error(f"--result {str(args.result)!r} is not a result of growth or run_all ({error!r})")
        return
    del args.result
    args.out, args.plot = (None if path is None else path.resolve() for path in (args.out, args.plot))
    results = measure(args)
    if args.plot is not None:
        plot(results, args.plot)
    args.plot = None if args.plot is None else args.plot.name
    publish(args, results)


if __name__ == "__main__":
    main()
