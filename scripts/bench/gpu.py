"""What a GPU is kept busy with: the framework against hand-written loops, and what of the card's peak that is.

    python scripts/bench/gpu.py --out scripts/bench/results/gpu.json
    python scripts/bench/gpu.py --quick              # on any machine, at a small size: does it still run?

- `fine_tune`: all layers of ResNet-50 and ViT-B/16 (torchvision's and timm's) at 224, batches of 256 in mixed bfloat16,
  from the cache of an image folder (200 photographs, linked many times), with random flips. The plain loop has the
  pixels on the device, and the same network, optimizer (fused SGD), autocast and memory format. With `torch.compile`
  and without.
- `features`: what ResNet-50 makes of all images of the folder, once, in evaluation: from the cache to features on the
  CPU (`feature_cache.features`: with its key, and written to disk), against the same network over pixels on the device.
- `fixmatch`: WRN-28-2 at 28x28 on Fashion-MNIST, 64 labeled and 448 unlabeled images a step. The plain loop makes our
  batched views and the same losses, without logging, health and moving average.

The framework runs through the command line with logging, the bar of a terminal and checkpoints. Each epoch is timed
from a device that has nothing to do to one that has nothing left; the first, which compiles, does not count. Saves on
the way are part of it, and their seconds stand beside it. `peak` is the share of the card's dense bfloat16 arithmetic
(`--peak` TFLOP/s) that the network's operations take, counted by torch's `FlopCounterMode`. `busy` is the share of the
time in which the device works: the kernels' time of some steps under torch's profiler, over the time of as many without
it; `kernels` are those that take most of it.
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
from about import publish
from commands import timed_saves
from gpu_clock import CUDA, DEVICE, Clock, half, idle
from image_folder import link_pictures, write_pictures
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from training_speed import Terminal

from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.data.vision.views import StrongView, WeakView, strong, to_float, weak
from sft_lightning.networks.vision.backbones import build_backbone
from sft_lightning.paradigms import feature_cache

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def framework(words: list[str], epochs: int) -> tuple[Clock, SFTCLI]:
    """One training through the command line; the epochs after the first count, the last one is profiled."""
    clock, own = Clock(profiles=CUDA), SFTCLI._instantiate_trainer
    SFTCLI._instantiate_trainer = lambda self, config, callbacks: own(self, config, [*callbacks, clock])  # type: ignore[method-assign]
    more = [f"--trainer.max_epochs={epochs + 1 + CUDA}", "--trainer.limit_val_batches=0", "--run_name=bench"]
    more += ["--trainer.precision=bf16-mixed", f"--trainer.accelerator={'gpu' if CUDA else 'cpu'}"]
    terminal, sys.stdout = sys.stdout, Terminal()
    try:
        with timed_saves(clock.saves):
            done = run(["fit", *words, *more, "--trainer.devices=1"])
    finally:
        sys.stdout = terminal
        SFTCLI._instantiate_trainer = own  # type: ignore[method-assign]
    clock.epochs = clock.epochs[1:]
    return clock, done


def loop(step: Callable[[], int], steps: int, epochs: int) -> list[dict[str, float]]:
    """Seconds and images of the epochs of a plain loop, but for the first.

    Args:
        step: Makes a step; gives the number of its images.
        steps: Of an epoch.
        epochs: That count.
    """
    found = []
    for _ in range(epochs + 1):
        start = idle()
        pictures = sum(step() for _ in range(steps))
        found.append({"seconds": idle() - start, "steps": steps, "pictures": pictures})
    return found[1:]


def compared(ours: Clock, plain: list[dict[str, float]], operations: float, peak: float) -> dict[str, Any]:
    """The result of a training.

    Args:
        ours: Of the framework.
        plain: Of the loop.
        operations: FLOP of an image.
        peak: FLOP/s of the device.
    """

    def speeds(epochs: list[dict[str, float]], what: str) -> list[float]:
        return [round(epoch[what] / epoch["seconds"], 2) for epoch in epochs]

    by_framework, by_loop = speeds(ours.epochs, "pictures"), speeds(plain, "pictures")
    found: dict[str, Any] = {
        "images_per_second": {"framework": by_framework, "plain": by_loop},
        "steps_per_second": {"framework": speeds(ours.epochs, "steps"), "plain": speeds(plain, "steps")},
        "share_of_plain": [round(a / b, 3) for a, b in zip(by_framework, by_loop, strict=True)],
        "seconds_of_saves": [round(epoch["saves"], 3) for epoch in ours.epochs],
        "gigaflop_a_picture": round(operations / 1e9, 3),
    }
    if ours.profile:
        step = 1e3 / statistics.median(found["steps_per_second"]["framework"])
        found["share_of_peak"] = round(statistics.median(by_framework) * operations / peak, 3)
        found["busy"] = round(ours.profile["kernels_ms"] / step, 3)
        found["profile"] = ours.profile
    return found


def learning(network: nn.Module) -> torch.optim.Optimizer:
    """Of the plain loops."""
    return torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, fused=CUDA)


def classifier(backbone: str, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """A network on the device."""
    body, _ = build_backbone(backbone, shape)
    return nn.Sequential(body, nn.Linear(body.num_features, classes)).to(DEVICE).train()


def compiled(network: nn.Module, how: str) -> None:
    """As the framework does it."""
    if how != "false":
        network.compile(mode=None if how == "true" else how)


def operations(network: nn.Module, shape: tuple[int, int, int], backward: bool = True) -> float:
    """FLOP of an image."""
    x = torch.rand(2, *shape, device=DEVICE)
    with FlopCounterMode(display=False) as counter:
        value = network(x).sum()
        if backward:
            value.backward()
    network.zero_grad()
    return float(counter.get_total_flops()) / 2


def folder_words(folder: Path, args: argparse.Namespace) -> list[str]:
    """The data of a folder with a cache."""
    words = ["--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), f"--data.init_args.source={folder}"]
    words += [f"--data.init_args.image_size={args.side}", "--data.init_args.num_labels=null"]
    words += ["--data.init_args.val_size=0", "--data.init_args.test_size=2"]
    words += [f"--data.init_args.cache={folder.parent / 'cache'}"]
    words += [f"--data.init_args.batch_size={args.batch}", f"--data.init_args.steps_per_epoch={args.steps}"]
    return [*words, f"--data.init_args.eval_batch_size={args.batch}", "--data.init_args.on_leak=drop"]


def pixels(done: SFTCLI) -> tuple[Tensor, Tensor]:
    """The training images of a run, uint8 on the device, and their labels."""
    stream = done.datamodule._stream("labeled", done.datamodule.splits["labeled"], train=True)
    kept = stream._memory
    if kept is None:  # on a CPU they stay in the cache
        kept = torch.cat([batch.images for batch in stream.batches(0, 4)])
    return kept, done.datamodule.splits["labeled"].labels[: len(kept)].to(DEVICE)


def fine_tune(backbone: str, compile: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All layers, from the cache."""
    words = [*folder_words(folder, args), f"--model.init_args.backbone={backbone}"]
    words += [f"--model.init_args.compile={compile}", "--data.init_args.weak_view.flip=true"]
    words += ["--model.init_args.optimizer=torch.optim.SGD", "--model.init_args.optimizer.init_args.lr=0.01"]
    words += ["--model.init_args.optimizer.init_args.momentum=0.9"]
    ours, done = framework(words, args.epochs)
    images, labels = pixels(done)
    shape = done.datamodule.image_shape
    del done
    network = classifier(backbone, shape, 2)
    count = operations(network, shape)
    compiled(network[0], compile)
    sgd = learning(network)

    def step() -> int:
        mine = torch.randint(len(images), (args.batch,), device=DEVICE)
        x = images.index_select(0, mine).float().div_(255)
        x = torch.where(torch.rand(args.batch, 1, 1, 1, device=DEVICE) < 0.5, x.flip(-1), x)
        with half():
            loss = F.cross_entropy(network(x.contiguous(memory_format=torch.channels_last)), labels[mine])
        sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        return int(args.batch)

    return compared(ours, loop(step, args.steps, args.epochs), count, args.peak * 1e12)


def features(backbone: str, compile: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Of all images, once."""
    words = [*folder_words(folder, args), f"--model.init_args.backbone={backbone}", "--trainer.max_steps=1"]
    _, done = framework(words, 1)
    images, _ = pixels(done)
    network = done.model.backbone.to(DEVICE).eval()
    count = operations(network, done.datamodule.image_shape, backward=False)
    compiled(network, compile)

    @torch.no_grad()
    def plain() -> float:
        start, made = idle(), []
        with half():
            for part in torch.split(images, args.batch):
                x = part.float().div_(255).contiguous(memory_format=torch.channels_last)
                made.append(network(x))
        torch.cat(made).cpu()
        return len(images) / (idle() - start)

    def ours(number: int) -> dict[str, float]:
        start = idle()
        kept = feature_cache.features(network, done.datamodule, "labeled", Path(f"features{number}"), context=half())
        assert kept is not None
        whole, start = len(kept) / (idle() - start), idle()
        with half(), torch.no_grad():
            for batch in done.datamodule.batches_of("labeled", DEVICE):
                network(batch.x)
        return {"whole": whole, "pass": len(kept) / (idle() - start)}

    ours(0), plain()
    rounds = [{**ours(k), "plain": plain()} for k in range(1, args.epochs + 1)]
    found = {name: [round(row[name], 1) for row in rounds] for name in rounds[0]}
    shares = [round(row["whole"] / row["plain"], 3) for row in rounds]
    peak = round(statistics.median(found["plain"]) * count / (args.peak * 1e12), 3)
    return {"images_per_second": found, "share_of_plain": shares, "plain_share_of_peak": peak}


def fixmatch(backbone: str, compile: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """64 + 448 at 28x28."""
    names = ("semi_supervised/shared.yaml", "semi_supervised/fixmatch.yaml")
    words = [word for name in names for word in ("--config", str(CONFIGS / name))]
    words += ["--data", str(CONFIGS / "data" / "fashion_mnist_semi_supervised.yaml")]
    words += [f"--data.init_args.source={args.digits}", f"--data.init_args.root={args.root}"]
    words += [f"--model.init_args.backbone={backbone}", f"--model.init_args.compile={compile}"]
    words += [f"--data.init_args.batch_size={args.labeled}", f"--data.init_args.steps_per_epoch={args.fixmatch_steps}"]
    words += ["--data.init_args.labeled_view=weak", "--data.init_args.val_size=0"]
    ours, done = framework(words, args.epochs)
    free, known = done.datamodule.splits["unlabeled"], done.datamodule.splits["labeled"]
    pictures = free.part.images.data.to(DEVICE)
    labels, mild, hard = known.labels.to(DEVICE), WeakView(crop_padding=2), StrongView()
    network = classifier(backbone, (1, 28, 28), 10)
    passes = operations(network, (1, 28, 28)), operations(network, (1, 28, 28), backward=False)
    compiled(network[0], compile)
    sgd, ratio, number = learning(network), 7, 0
    at, labeled_at = torch.tensor(free.indices, device=DEVICE), torch.tensor(known.indices, device=DEVICE)

    def step() -> int:
        nonlocal number
        number += 1
        mine = torch.randint(len(labels), (args.labeled,), device=DEVICE)
        others = at[torch.randint(len(at), (args.labeled * ratio,), device=DEVICE)]
        x = weak(to_float(pictures[labeled_at[mine]], 1, 28), mild, number)
        u = to_float(pictures[others], 1, 28)
        on_weak, on_strong = weak(u, mild, number, 1), strong(u, mild, hard, number)
        with half():
            with torch.no_grad():
                confidence, guess = network(on_weak).softmax(1).max(1)
            logits = network(torch.cat([x, on_strong]))
            each = F.cross_entropy(logits[len(x) :], guess, reduction="none")
            loss = F.cross_entropy(logits[: len(x)], labels[mine]) + (each * (confidence >= 0.95)).mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        return int(args.labeled) * (1 + ratio)

    # Of each image of a step: labeled and strong ones there and back, weak ones there.
    count = passes[0] + passes[1] * ratio / (1 + ratio)
    return compared(ours, loop(step, args.fixmatch_steps, args.epochs), count, args.peak * 1e12)


KINDS = {"fine_tune": fine_tune, "features": features, "fixmatch": fixmatch}
NETWORKS = ("torchvision/resnet50", "torchvision/vit_b_16", "timm/vit_base_patch16_224")
CASES = [  # what, which network, how it is compiled: false, true or a mode of torch.compile
    *(f"fine_tune/{name}/{how}" for name in NETWORKS for how in ("false", "true")),
    *(f"features/torchvision/resnet50/{how}" for how in ("false", "true")),
    *(f"fixmatch/wrn_28_2/{how}" for how in ("false", "reduce-overhead")),
]
QUICK = [f"{what}/torchvision/resnet18/false" for what in ("fine_tune", "features")] + ["fixmatch/conv/false"]


def main() -> None:
    """Measures all cases and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--times", type=int, default=60, help="so many links to each of 200 files")
    parser.add_argument("--steps", type=int, default=40, help="of an epoch")
    parser.add_argument("--fixmatch_steps", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=3, help="that count")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s; that of H100 and H200 by their data sheets")
    parser.add_argument("--digits", default="FashionMNIST", help="data set of FixMatch")
    parser.add_argument("--root", default="data")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.out = None if args.out is None else args.out.resolve()
    args.root = str(Path(args.root).resolve())
    for case in args.cases:
        if case.count("/") < 2 or case.partition("/")[0] not in KINDS:
            parser.error(f"--cases {case!r}: give KIND/BACKBONE/COMPILED, as {CASES[0]}; kinds: {', '.join(KINDS)}")
    if not CUDA and not args.quick:
        parser.error("there is no GPU here: give --quick, which shows on a CPU that it runs")
    args.side, args.labeled, files = 224, 64, 200
    if args.quick:
        args.side, args.labeled, args.batch, args.steps, args.fixmatch_steps = 32, 4, 4, 16, 16
        args.epochs, args.times, files, args.digits, args.cases = 1, 2, 24, "sample", QUICK
    found: dict[str, Any] = {}
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what is known by then is told
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        folder = Path(home) / "pictures"
        write_pictures(Path(home) / "few", files, 500)
        link_pictures(Path(home) / "few", folder, args.times)
        try:
            for case in args.cases:
                torch.compiler.reset()  # a case compiles as a process of its own would
                what, _, rest = case.partition("/")
                backbone, _, how = rest.rpartition("/")
                found[case] = KINDS[what](backbone, how, folder, args)
                print(case, json.dumps({k: v for k, v in found[case].items() if k != "profile"}), file=sys.stderr)
        finally:
            for name in ("side", "labeled", "root"):
                delattr(args, name)
            publish(args, {"cases": found})


if __name__ == "__main__":
    main()
