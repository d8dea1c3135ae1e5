"""Compare full and half precision on this CPU: images per second of ResNet-18 at 224, and accuracy on a real task.

    python scripts/bench/cpu_precision.py --out scripts/bench/results/cpu_precision.json
    taskset -c 0,1 python scripts/bench/cpu_precision.py --parts speed      # on two cores of a larger machine

- `speed`: the framework's real steps (`fit` through the command line, images of the sample at 224, batches of 32,
  SGD) in `32-true` and in `bf16-mixed`, against a plain loop in full precision with the same network. They take turns,
  each in a process of its own. `chosen_over_plain` is, for each round, the speed of the precision that
  `find-precision` would choose from all rounds, divided by that of the plain loop.
- `accuracy`: all labels of the sample at 64x64 with both precisions and multiple seeds; test accuracy of the last
  iterate, and the differences per seed with their 95 % interval. `--jobs` of these trainings run in parallel.
  `--emulate` is for a CPU without bfloat16 instructions, where torch is forty times slower: see `EmulatedBFloat16`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from commands import CONFIGS, QUIET, fit, test
from provenance import publish
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from sft_lightning import ImageDataModule
from sft_lightning.cli.lightning_cli import run
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.study.statistics import confidence_interval
from sft_lightning.tuning.dry_run import TrialCLI
from sft_lightning.tuning.find_precision import FULL_PRECISION, MIN_GAIN
from sft_lightning.tuning.throughput import ThroughputMeter, measure_throughput

PRECISIONS = [FULL_PRECISION, "bf16-mixed"]
CONFIG = "quickstart/fine_tune.yaml"
_aten = torch.ops.aten
MATRIX_PRODUCTS = (_aten.convolution.default, _aten.convolution_backward.default, _aten.mm.default, _aten.addmm.default)


class EmulatedBFloat16(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Compute bfloat16 products with sums in float32 that are rounded once, as bfloat16 instructions do.

    Everything else in `bf16-mixed` is unchanged: autocast decides what is in bfloat16.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, in float32 where it multiplies bfloat16 tensors."""
        is_bfloat16 = any(isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 for arg in args)
        if func not in MATRIX_PRODUCTS or not is_bfloat16:
            return func(*args, **(kwargs or {}))
        float32_args = tree_map_only(Tensor, Tensor.float, args)
        return tree_map_only(Tensor, Tensor.bfloat16, func(*float32_args, **(kwargs or {})))


def build_argv(args: argparse.Namespace, side: int) -> list[str]:
    """Return the options of `fit` for network, images and optimizer."""
    argv = [f"--model.init_args.backbone={args.backbone}", f"--data.init_args.image_size={side}"]
    argv += [f"--data.init_args.batch_size={args.batch}", "--data.init_args.num_labels=null"]
    argv += ["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.init_args.lr=0.05"]
    return [*argv, "--model.init_args.optimizer.init_args.momentum=0.9"]


def measure_framework(precision: str, args: argparse.Namespace) -> float:
    """Return the images per second of the framework's training steps."""
    argv = ["fit", f"--config={CONFIGS / CONFIG}", *build_argv(args, args.side), *QUIET]
    cli = run([*argv, f"--trainer.precision={precision}"], TrialCLI)
    meter = ThroughputMeter(1, args.seconds)
    measure_throughput(cli, meter)
    return meter.rate


def measure_plain_loop(args: argparse.Namespace) -> float:
    """Return the images per second of a plain loop in full precision."""
    data = ImageDataModule("sample", image_size=args.side, batch_size=args.batch)
    data.setup("fit")
    batch = next(iter(data.batches_of("labeled", torch.device("cpu"))))
    x, y = batch.x[: args.batch].contiguous(), batch.y[: args.batch]
    backbone, _ = build_backbone(args.backbone, data.image_shape)
    network = nn.Sequential(backbone, nn.Linear(backbone.num_features, 10)).train()
    sgd = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    ends: list[float] = []
    while len(ends) < 6 or ends[-1] - ends[2] < args.seconds:  # skip the first steps, as `ThroughputMeter` does
        loss = F.cross_entropy(network(x), y)
        sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        ends.append(time.perf_counter())
    return len(x) * (len(ends) - 3) / (ends[-1] - ends[2])


def measure_accuracy(precision: str, seed: int, args: argparse.Namespace) -> float:
    """Train once and return the test accuracy of the last iterate."""
    argv = [*build_argv(args, args.accuracy_side), f"--data.init_args.steps_per_epoch={args.steps}"]
    argv += ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0", f"--trainer.precision={precision}"]
    emulates = args.emulate and precision != FULL_PRECISION
    with EmulatedBFloat16() if emulates else nullcontext():  # type: ignore[no-untyped-call]
        folder, _ = fit([CONFIG], precision, seed, *argv)
    return test(folder)


def measure_in_subprocess(args: argparse.Namespace, *only: str) -> float:
    """Run one measurement in a process of its own and return its result.

    Args:
        args: Options of this script.
        only: Values of `--only`: a speed, or a precision and a seed.

    Raises:
        SystemExit: The process failed; the message has the last line of its errors.
    """
    passed_on = ("backbone", "side", "accuracy_side", "batch", "seconds", "steps")
    command = [sys.executable, __file__, *(f"--{name}={getattr(args, name)}" for name in passed_on)]
    command += [*(["--emulate"] if args.emulate else []), "--only", *only]
    process = subprocess.run(command, text=True, capture_output=True)
    if process.returncode:
        error = (process.stderr.strip().splitlines() or ["no error message"])[-1]
        raise SystemExit(f"{' '.join(only)} failed: {error}")
    return float(json.loads(process.stdout.splitlines()[-1]))


def compare_speeds(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the plain loop and both precisions in turn."""
    names = ["plain", *PRECISIONS]
    rounds = [{name: measure_in_subprocess(args, name) for name in names} for _ in range(args.rounds)]
    gains = [row["bf16-mixed"] / row[FULL_PRECISION] for row in rounds]
    chosen = "bf16-mixed" if min(gains) >= MIN_GAIN else FULL_PRECISION
    return {
        "images_per_second": {name: [round(row[name], 2) for row in rounds] for name in names},
        "half_over_full": [round(gain, 3) for gain in gains],
        "chosen": chosen,
        "chosen_over_plain": [round(row[chosen] / row["plain"], 3) for row in rounds],
    }


def compare_accuracies(args: argparse.Namespace) -> dict[str, Any]:
    """Train with both precisions and each seed, and compare the test accuracies."""
    cases = [(precision, seed) for seed in range(args.seeds) for precision in PRECISIONS]

    def measure(case: tuple[str, int]) -> float:
        precision, seed = case
        accuracy = measure_in_subprocess(args, precision, str(seed))
        print(precision, seed, accuracy, file=sys.stderr, flush=True)  # an interrupted benchmark has shown something
        return accuracy

    with ThreadPoolExecutor(args.jobs) as pool:
        accuracies = dict(zip(cases, pool.map(measure, cases), strict=True))
    by_precision = {name: [round(accuracies[name, seed], 4) for seed in range(args.seeds)] for name in PRECISIONS}
    gains = [half - full for full, half in zip(*by_precision.values(), strict=True)]
    mean, low, high = confidence_interval(gains)
    return {
        "test_accuracy": by_precision,
        "half_minus_full": [round(gain, 4) for gain in gains],
        "mean": round(mean, 4),
        "mean_95": None if low is None or high is None else [round(low, 4), round(high, 4)],
        "means": {name: round(statistics.mean(values), 4) for name, values in by_precision.items()},
    }


def main() -> None:
    """Measure speed and accuracy and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["speed", "accuracy"], default=["speed", "accuracy"])
    parser.add_argument("--backbone", default="torchvision/resnet18")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--accuracy_side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement of speed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="steps of each training")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--emulate", action="store_true", help="emulate bfloat16 in trainings for accuracy")
    parser.add_argument("--only", nargs="+", help="one measurement in this process: a speed, or a precision and a seed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    for name in ("side", "accuracy_side", "batch", "rounds", "seeds", "steps", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: give 1 or more")
    if args.emulate and "speed" in args.parts and not args.only:
        parser.error("--emulate is for --parts accuracy: emulated speeds mean nothing")
    only, args.only = args.only, None
    if only:
        os.chdir(tempfile.mkdtemp())
        if len(only) > 1:
            print(json.dumps(measure_accuracy(only[0], int(only[1]), args)))
        else:
            print(json.dumps(measure_plain_loop(args) if only == ["plain"] else measure_framework(only[0], args)))
        return
    parts = {"speed": compare_speeds, "accuracy": compare_accuracies}
    publish(args, {"threads": torch.get_num_threads(), **{name: parts[name](args) for name in args.parts}})


if __name__ == "__main__":
    main()
