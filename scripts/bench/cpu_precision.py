"""Full and half precision on this CPU: images a second of ResNet-18 at 224, and what both learn of a real task.

    python scripts/bench/cpu_precision.py --out scripts/bench/results/cpu_precision.json
    taskset -c 0,1 python scripts/bench/cpu_precision.py --parts speed      # on two cores of a larger machine

- `speed`: the framework's real steps (`fit` through the command line, images of the sample at 224, batches of 32,
  SGD) in `32-true` and in `bf16-mixed`, against a plain loop in full precision with the same network, in turn and each
  in a process of its own. `chosen_over_plain` is for each round the speed of the precision that `find-precision` would
  choose of all rounds, over that of the plain loop.
- `accuracy`: all labels of the sample at 64x64 with both precisions and several seeds; test accuracy of the last
  iterate, and the differences seed by seed with their 95 % interval. `--jobs` of these trainings run side by side.
  `--emulate` is for a CPU that has no instructions for bfloat16, where torch takes forty times as long: see `Rounded`.
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
from about import publish
from commands import CONFIGS, QUIET, fit, test
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
MULTIPLIES = (_aten.convolution.default, _aten.convolution_backward.default, _aten.mm.default, _aten.addmm.default)


class Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What multiplies bfloat16 numbers adds them up in float32 and rounds once, as instructions for bfloat16 do.

    All else of a training in `bf16-mixed` stays as it is: autocast decides what is in bfloat16.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        half = any(isinstance(own, Tensor) and own.dtype == torch.bfloat16 for own in args)
        if func not in MULTIPLIES or not half:
            return func(*args, **(kwargs or {}))
        whole = tree_map_only(Tensor, Tensor.float, args)
        return tree_map_only(Tensor, Tensor.bfloat16, func(*whole, **(kwargs or {})))


def words(args: argparse.Namespace, side: int) -> list[str]:
    """For the command line: network, images and optimizer."""
    told = [f"--model.init_args.backbone={args.backbone}", f"--data.init_args.image_size={side}"]
    told += [f"--data.init_args.batch_size={args.batch}", "--data.init_args.num_labels=null"]
    told += ["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.init_args.lr=0.05"]
    return [*told, "--model.init_args.optimizer.init_args.momentum=0.9"]


def framework(precision: str, args: argparse.Namespace) -> float:
    """Images a second of real steps."""
    given = ["fit", f"--config={CONFIGS / CONFIG}", *words(args, args.side), *QUIET, f"--trainer.precision={precision}"]
    cli = run(given, TrialCLI)
    pace = ThroughputMeter(1, args.seconds)
    measure_throughput(cli, pace)
    return pace.rate


def plain(args: argparse.Namespace) -> float:
    """Images a second of a plain loop in full precision."""
    data = ImageDataModule("sample", image_size=args.side, batch_size=args.batch)
    data.setup("fit")
    batch = next(iter(data.batches_of("labeled", torch.device("cpu"))))
    x, y = batch.x[: args.batch].contiguous(), batch.y[: args.batch]
    body, _ = build_backbone(args.backbone, data.image_shape)
    network = nn.Sequential(body, nn.Linear(body.num_features, 10)).train()
    sgd = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    ends: list[float] = []
    while len(ends) < 6 or ends[-1] - ends[2] < args.seconds:  # as `ThroughputMeter` does: the first do not count
        loss = F.cross_entropy(network(x), y)
        sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        ends.append(time.perf_counter())
    return len(x) * (len(ends) - 3) / (ends[-1] - ends[2])


def accuracy(precision: str, seed: int, args: argparse.Namespace) -> float:
    """Test accuracy of the last iterate."""
    more = [f"--data.init_args.steps_per_epoch={args.steps}", "--trainer.max_epochs=1"]
    more += ["--trainer.limit_val_batches=0", f"--trainer.precision={precision}"]
    emulates = args.emulate and precision != FULL_PRECISION
    with Rounded() if emulates else nullcontext():  # type: ignore[no-untyped-call]
        folder, _ = fit([CONFIG], precision, seed, *words(args, args.accuracy_side), *more)
    return test(folder)


def alone(args: argparse.Namespace, *only: str) -> float:
    """What one measurement says in a process of its own."""
    same = ("backbone", "side", "accuracy_side", "batch", "seconds", "steps")
    command = [sys.executable, __file__, *(f"--{name}={getattr(args, name)}" for name in same)]
    command += [*(["--emulate"] if args.emulate else []), "--only", *only]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(only)} failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def speeds(args: argparse.Namespace) -> dict[str, Any]:
    """In turn."""
    names = ["plain", *PRECISIONS]
    rounds = [{name: alone(args, name) for name in names} for _ in range(args.rounds)]
    gains = [row["bf16-mixed"] / row[FULL_PRECISION] for row in rounds]
    chosen = "bf16-mixed" if min(gains) >= MIN_GAIN else FULL_PRECISION
    return {
        "images_per_second": {name: [round(row[name], 2) for row in rounds] for name in names},
        "half_over_full": [round(gain, 3) for gain in gains],
        "chosen": chosen,
        "chosen_over_plain": [round(row[chosen] / row["plain"], 3) for row in rounds],
    }


def accuracies(args: argparse.Namespace) -> dict[str, Any]:
    """Of both precisions with each seed."""
    asked = [(precision, seed) for seed in range(args.seeds) for precision in PRECISIONS]

    def one(words: tuple[str, int]) -> float:
        own = alone(args, words[0], str(words[1]))
        print(*words, own, file=sys.stderr, flush=True)  # an interrupted one has told something
        return own

    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(asked, pool.map(one, asked), strict=True))
    by_precision = {name: [round(found[name, seed], 4) for seed in range(args.seeds)] for name in PRECISIONS}
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
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["speed", "accuracy"], default=["speed", "accuracy"])
    parser.add_argument("--backbone", default="torchvision/resnet18")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--accuracy_side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of a speed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--emulate", action="store_true", help="bfloat16 on a CPU without it, for the accuracy")
    parser.add_argument("--only", nargs="+", help="one measurement in this process: a speed, or a precision and a seed")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    for name in ("side", "accuracy_side", "batch", "rounds", "seeds", "steps", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: give 1 or more")
    if args.emulate and "speed" in args.parts and not args.only:
        parser.error("--emulate says nothing of a speed: give --parts accuracy")
    only, args.only = args.only, None
    if only:
        os.chdir(tempfile.mkdtemp())
        if len(only) > 1:
            print(json.dumps(accuracy(only[0], int(only[1]), args)))
        else:
            print(json.dumps(plain(args) if only == ["plain"] else framework(only[0], args)))
        return
    parts = {"speed": speeds, "accuracy": accuracies}
    publish(args, {"threads": torch.get_num_threads(), **{name: parts[name](args) for name in args.parts}})


if __name__ == "__main__":
    main()
