"""Compare the framework's speed on a GPU with that of hand-written loops, and with the card's peak.

    python scripts/bench/gpu.py --out scripts/bench/results/gpu.json
    python scripts/bench/gpu.py --quick              # on any machine, at a small size: check that it runs

- `fine_tune`: all layers of ResNet-50 and ViT-B/16 (torchvision's and timm's) at 224, batches of 256 in mixed bfloat16,
  from the cache of an image folder (200 photographs, linked many times), with random flips. The plain loop has the
  pixels on the device, and the same network, optimizer (fused SGD), autocast and memory format. With `torch.compile`
  and without.
- `features`: features of all images of the folder from ResNet-50 in evaluation mode, from the cache to the CPU
  (`feature_cache.features`, which also computes its key and writes to disk), against the same network on pixels that
  are already on the device.
- `fixmatch`: WRN-28-2 at 28x28 on Fashion-MNIST, 64 labeled and 448 unlabeled images per step. The plain loop uses the
  framework's batched views and the same losses, without logging, pseudo-label metrics and moving average.

The framework runs through the command line with logging, a terminal's progress bar and checkpoints. Each epoch is timed
from an idle device to an idle device; the first, which compiles, is not counted. Saves during an epoch are included,
and their seconds are also listed. `share_of_peak` is the share of the card's dense bfloat16 arithmetic (`--peak`
TFLOP/s) that the network's operations take, counted by torch's `FlopCounterMode`. `busy` is the share of the time in
which the device works: the time of kernels in a few steps under torch's profiler, divided by the time of as many steps
without it; `kernels` lists the longest ones.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from commands import CONFIGS, time_saves
from gpu_clock import CUDA, DEVICE, Clock, autocast_bfloat16, synchronize
from image_folder import link_images, write_images
from provenance import publish
from terminal import discard_terminal_output
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.data.vision.views import StrongView, WeakView, strong, to_float, weak
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.paradigms import feature_cache


def train_framework(argv: list[str], epochs: int) -> tuple[Clock, SFTCLI]:
    """Train through the command line; the first epoch is not counted, and one more epoch at the end is profiled.

    Args:
        argv: Options of `fit`.
        epochs: Number of epochs that count.

    Returns:
        The clock with these epochs, and the CLI.
    """
    clock, original = Clock(profiles=CUDA), SFTCLI._instantiate_trainer
    SFTCLI._instantiate_trainer = lambda self, config, callbacks: original(self, config, [*callbacks, clock])  # type: ignore[method-assign]
    more = [f"--trainer.max_epochs={epochs + 1 + CUDA}", "--trainer.limit_val_batches=0", "--run_name=bench"]
    more += ["--trainer.precision=bf16-mixed", f"--trainer.accelerator={'gpu' if CUDA else 'cpu'}"]
    try:
        with discard_terminal_output(), time_saves(clock.saves):
            cli = run(["fit", *argv, *more, "--trainer.devices=1"])
    finally:
        SFTCLI._instantiate_trainer = original  # type: ignore[method-assign]
    clock.epochs = clock.epochs[1:]
    return clock, cli


def time_plain_loop(step: Callable[[], int], steps: int, epochs: int) -> list[dict[str, float]]:
    """Return seconds, steps and images of each epoch of a plain loop, without its first epoch.

    Args:
        step: Function that trains one step and returns the number of its images.
        steps: Number of steps per epoch.
        epochs: Number of epochs that count.
    """
    rows = []
    for _ in range(epochs + 1):
        start = synchronize()
        images = sum(step() for _ in range(steps))
        rows.append({"seconds": synchronize() - start, "steps": steps, "images": images})
    return rows[1:]


def compare(ours: Clock, plain: list[dict[str, float]], flops: float, peak: float) -> dict[str, Any]:
    """Return speeds of the framework and of the plain loop, their ratio, and the share of the device's peak.

    Args:
        ours: Clock of the framework's training.
        plain: Epochs of the plain loop.
        flops: FLOP per image.
        peak: FLOP/s of the device.
    """

    def compute_speeds(epochs: list[dict[str, float]], unit: str) -> list[float]:
        return [round(epoch[unit] / epoch["seconds"], 2) for epoch in epochs]

    framework_speeds, plain_speeds = compute_speeds(ours.epochs, "images"), compute_speeds(plain, "images")
    result: dict[str, Any] = {
        "images_per_second": {"framework": framework_speeds, "plain": plain_speeds},
        "steps_per_second": {
            "framework": compute_speeds(ours.epochs, "steps"),
            "plain": compute_speeds(plain, "steps"),
        },
        "share_of_plain": [round(a / b, 3) for a, b in zip(framework_speeds, plain_speeds, strict=True)],
        "seconds_of_saves": [round(epoch["saves"], 3) for epoch in ours.epochs],
        "gigaflop_a_picture": round(flops / 1e9, 3),
    }
    if ours.profile:
        step_ms = 1e3 / statistics.median(result["steps_per_second"]["framework"])
        result["share_of_peak"] = round(statistics.median(framework_speeds) * flops / peak, 3)
        result["busy"] = round(ours.profile["kernels_ms"] / step_ms, 3)
        result["profile"] = ours.profile
    return result


def build_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the plain loops."""
    return torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, fused=CUDA)


def build_classifier(backbone: str, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Build a classifier for training on the device."""
    body, _ = build_backbone(backbone, shape)
    return nn.Sequential(body, nn.Linear(body.num_features, classes)).to(DEVICE).train()


def compile_in_place(network: nn.Module, mode: str) -> None:
    """Compile a network as the framework does.

    Args:
        network: Network.
        mode: `false`, `true` or a mode of `torch.compile`.
    """
    if mode != "false":
        network.compile(mode=None if mode == "true" else mode)


def count_flops(network: nn.Module, shape: tuple[int, int, int], backward: bool = True) -> float:
    """Count the FLOP per image of the forward pass and, where `backward` is set, the backward pass."""
    x = torch.rand(2, *shape, device=DEVICE)
    with FlopCounterMode(display=False) as counter:
        value = network(x).sum()
        if backward:
            value.backward()
    network.zero_grad()
    return float(counter.get_total_flops()) / 2


def build_folder_argv(folder: Path, args: argparse.Namespace) -> list[str]:
    """Return the options of `fit` for training on a folder with a cache."""
    argv = ["--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), f"--data.init_args.source={folder}"]
    argv += [f"--data.init_args.image_size={args.side}", "--data.init_args.num_labels=null"]
    argv += ["--data.init_args.val_size=0", "--data.init_args.test_size=2"]
    argv += [f"--data.init_args.cache={folder.parent / 'cache'}"]
    argv += [f"--data.init_args.batch_size={args.batch}", f"--data.init_args.steps_per_epoch={args.steps}"]
    return [*argv, f"--data.init_args.eval_batch_size={args.batch}", "--data.init_args.on_leak=drop"]


def load_training_images(cli: SFTCLI) -> tuple[Tensor, Tensor]:
    """Return the training images of a run, uint8 on the device, and their labels."""
    stream = cli.datamodule._stream("labeled", cli.datamodule.splits["labeled"], train=True)
    images = stream._memory
    if images is None:  # on a CPU, images stay in the cache
        images = torch.cat([batch.inputs for batch in stream.batches(0, 4)])
    return images, cli.datamodule.splits["labeled"].labels[: len(images)].to(DEVICE)


def measure_fine_tuning(backbone: str, compile: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Compare fine-tuning of all layers, with images from the cache."""
    argv = [*build_folder_argv(folder, args), f"--model.init_args.backbone={backbone}"]
    argv += [f"--model.init_args.compile={compile}", "--data.init_args.weak_view.flip=true"]
    argv += ["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.init_args.lr=0.01"]
    argv += ["--model.init_args.optimizer.init_args.momentum=0.9"]
    ours, cli = train_framework(argv, args.epochs)
    images, labels = load_training_images(cli)
    shape = cli.datamodule.image_shape
    del cli
    network = build_classifier(backbone, shape, 2)
    flops = count_flops(network, shape)
    compile_in_place(network[0], compile)
    optimizer = build_optimizer(network)

    def step() -> int:
        indices = torch.randint(len(images), (args.batch,), device=DEVICE)
        x = images.index_select(0, indices).float().div_(255)
        x = torch.where(torch.rand(args.batch, 1, 1, 1, device=DEVICE) < 0.5, x.flip(-1), x)
        with autocast_bfloat16():
            loss = F.cross_entropy(network(x.contiguous(memory_format=torch.channels_last)), labels[indices])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return int(args.batch)

    return compare(ours, time_plain_loop(step, args.steps, args.epochs), flops, args.peak * 1e12)


def measure_features(backbone: str, compile: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Compare the computation of features for all images."""
    argv = [*build_folder_argv(folder, args), f"--model.init_args.backbone={backbone}", "--trainer.max_steps=1"]
    _, cli = train_framework(argv, 1)
    images, _ = load_training_images(cli)
    network = cli.model.backbone.to(DEVICE).eval()
    flops = count_flops(network, cli.datamodule.image_shape, backward=False)
    compile_in_place(network, compile)

    @torch.no_grad()
    def measure_plain_loop() -> float:
        start, features = synchronize(), []
        with autocast_bfloat16():
            for batch in torch.split(images, args.batch):
                x = batch.float().div_(255).contiguous(memory_format=torch.channels_last)
                features.append(network(x))
        torch.cat(features).cpu()
        return len(images) / (synchronize() - start)

    def measure_framework(number: int) -> dict[str, float]:
        start = synchronize()
        folder = Path(f"features{number}")
        features = feature_cache.features(network, cli.datamodule, "labeled", folder, context=autocast_bfloat16())
        assert features is not None
        speed, start = len(features) / (synchronize() - start), synchronize()
        with autocast_bfloat16(), torch.no_grad():
            for batch in cli.datamodule.batches_of("labeled", DEVICE):
                network(batch.x)
        return {"whole": speed, "pass": len(features) / (synchronize() - start)}

    measure_framework(0), measure_plain_loop()  # warm up
    rounds = [{**measure_framework(k), "plain": measure_plain_loop()} for k in range(1, args.epochs + 1)]
    speeds = {name: [round(row[name], 1) for row in rounds] for name in rounds[0]}
    shares = [round(row["whole"] / row["plain"], 3) for row in rounds]
    peak = round(statistics.median(speeds["plain"]) * flops / (args.peak * 1e12), 3)
    return {"images_per_second": speeds, "share_of_plain": shares, "plain_share_of_peak": peak}


def measure_fixmatch(backbone: str, compile: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Compare the training step of FixMatch; `folder` is not used."""
    names = ("semi_supervised/shared.yaml", "semi_supervised/fixmatch.yaml")
    argv = [arg for name in names for arg in ("--config", str(CONFIGS / name))]
    argv += ["--data", str(CONFIGS / "data" / "fashion_mnist_semi_supervised.yaml")]
    argv += [f"--data.init_args.source={args.digits}", f"--data.init_args.root={args.root}"]
    argv += [f"--model.init_args.backbone={backbone}", f"--model.init_args.compile={compile}"]
    argv += [f"--data.init_args.batch_size={args.labeled}", f"--data.init_args.steps_per_epoch={args.fixmatch_steps}"]
    argv += ["--data.init_args.labeled_view=weak", "--data.init_args.val_size=0"]
    ours, cli = train_framework(argv, args.epochs)
    unlabeled, labeled = cli.datamodule.splits["unlabeled"], cli.datamodule.splits["labeled"]
    images = unlabeled.part.storage.data.to(DEVICE)
    labels, weak_view, strong_view = labeled.labels.to(DEVICE), WeakView(crop_padding=2), StrongView()
    network = build_classifier(backbone, (1, 28, 28), 10)
    flops = count_flops(network, (1, 28, 28))
    forward_flops = count_flops(network, (1, 28, 28), backward=False)
    compile_in_place(network[0], compile)
    optimizer, ratio, step_idx = build_optimizer(network), 7, 0
    unlabeled_indices = torch.tensor(unlabeled.indices, device=DEVICE)
    labeled_indices = torch.tensor(labeled.indices, device=DEVICE)

    def step() -> int:
        nonlocal step_idx
        step_idx += 1
        drawn = torch.randint(len(labels), (args.labeled,), device=DEVICE)
        unlabeled_drawn = unlabeled_indices[
            torch.randint(len(unlabeled_indices), (args.labeled * ratio,), device=DEVICE)
        ]
        x = weak(to_float(images[labeled_indices[drawn]], 1, 28), weak_view, step_idx)
        u = to_float(images[unlabeled_drawn], 1, 28)
        u_weak, u_strong = weak(u, weak_view, step_idx, 1), strong(u, weak_view, strong_view, step_idx)
        with autocast_bfloat16():
            with torch.no_grad():
                confidence, pseudo_labels = network(u_weak).softmax(1).max(1)
            logits = network(torch.cat([x, u_strong]))
            losses = F.cross_entropy(logits[len(x) :], pseudo_labels, reduction="none")
            loss = F.cross_entropy(logits[: len(x)], labels[drawn]) + (losses * (confidence >= 0.95)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return int(args.labeled) * (1 + ratio)

    # Labeled images and strong views go forward and backward, weak views only forward.
    flops += forward_flops * ratio / (1 + ratio)
    return compare(ours, time_plain_loop(step, args.fixmatch_steps, args.epochs), flops, args.peak * 1e12)


KINDS = {"fine_tune": measure_fine_tuning, "features": measure_features, "fixmatch": measure_fixmatch}
NETWORKS = ("torchvision/resnet50", "torchvision/vit_b_16", "timm/vit_base_patch16_224")
CASES = [  # KIND/BACKBONE/COMPILED, where COMPILED is false, true or a mode of torch.compile
    *(f"fine_tune/{name}/{mode}" for name in NETWORKS for mode in ("false", "true")),
    *(f"features/torchvision/resnet50/{mode}" for mode in ("false", "true")),
    *(f"fixmatch/wrn_28_2/{mode}" for mode in ("false", "reduce-overhead")),
]
QUICK = [f"{kind}/torchvision/resnet18/false" for kind in ("fine_tune", "features")] + ["fixmatch/conv/false"]


def main() -> None:
    """Measure all cases and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--times", type=int, default=60, help="number of links to each of 200 files")
    parser.add_argument("--steps", type=int, default=40, help="steps per epoch")
    parser.add_argument("--fixmatch_steps", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=3, help="number of epochs that count")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--peak", type=float, default=989.0, help="peak in TFLOP/s; by default that of H100 and H200")
    parser.add_argument("--digits", default="FashionMNIST", help="data set for FixMatch")
    parser.add_argument("--root", default="data")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    args.root = str(Path(args.root).resolve())
    for case in args.cases:
        if case.count("/") < 2 or case.partition("/")[0] not in KINDS:
            parser.error(f"--cases {case!r}: give KIND/BACKBONE/COMPILED, as {CASES[0]}; kinds: {', '.join(KINDS)}")
    if not CUDA and not args.quick:
        parser.error("this machine has no GPU: give --quick to check on a CPU that the benchmark runs")
    args.side, args.labeled, files = 224, 64, 200
    if args.quick:
        args.side, args.labeled, args.batch, args.steps, args.fixmatch_steps = 32, 4, 4, 16, 16
        args.epochs, args.times, files, args.digits, args.cases = 1, 2, 24, "sample", QUICK
    results: dict[str, Any] = {}
    # Exit through `finally` below, which publishes the cases that are complete.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        folder = Path(temporary) / "images"
        write_images(Path(temporary) / "originals", files, 500)
        link_images(Path(temporary) / "originals", folder, args.times)
        try:
            for case in args.cases:
                torch.compiler.reset()  # compile each case as a new process would
                kind, _, rest = case.partition("/")
                backbone, _, mode = rest.rpartition("/")
                results[case] = KINDS[kind](backbone, mode, folder, args)
                print(case, json.dumps({k: v for k, v in results[case].items() if k != "profile"}), file=sys.stderr)
        finally:
            for name in ("side", "labeled", "root"):
                delattr(args, name)
            publish(args, {"cases": results})


if __name__ == "__main__":
    main()
