"""Measure what keeps semi-supervised training from hurting: each change by itself, and all together.

    python scripts/bench/guards.py --mnist FOLDER --textile FOLDER --out scripts/bench/results/guards.json

Aim: fewer runs in which unlabeled examples do harm, at no loss on average. A run is hurt if it is worse than labels
alone (same seed, split, network and steps) on the same test images with p < .05 (exact McNemar test, one-sided).

Hypotheses, written down before the first run:
1. `unbiased`: running means that start at 1 / C accept almost all answers of a random head. Means without bias
   (momentum min(m, t / (t + 1))) help where the head is fresh and the run is short, and change little elsewhere.
2. `frozen`: the pass that makes the targets shifts the statistics of batch normalization. Leaving them alone helps
   where the unlabeled images differ from the labeled ones (`foreign`), and changes little elsewhere.
3. `warm_up`: a quarter of the steps on labels alone, then a linear rise of lambda over half of the steps, helps a
   random head. It could cost accuracy where steps are scarce.
4. `together`: all three, which is to be better than each.
5. `plain_end`: the last iterate without its average, evaluated in the run `shipped`. The average starts with the decay
   (1 + t) / (10 + t) and so forgets the random head by itself; this should show no gain.
6. `fitted_head`: the head starts as logistic regression on the network's features of the labels (`head_start`), so that
   the first pseudo-labels mean something. It should help every fresh head, also on a random network; `guarded` adds
   means without bias and frozen statistics, and could make the warm-up unnecessary.
7. `rolled_back`: for the start with a trained head, return to it if the result is worse on 500 validation images with
   p < .05. It should halve the harm without changing the mean elsewhere.
8. `control`: warm-up and ramp as the defaults of short runs choose them, and a control (`control: true`), whose network
   is kept if it has more validation images right. Hurt in at most 1 of 18 runs, since the choice can only be wrong
   where both are close; a mean above both `labels_only` and `warm_up`. The control equals `labels_only` exactly.
9. `long` (40 labels of Fashion-MNIST, 300 steps): `warm_up` is at most 1 point below `shipped`. If so, the defaults
   hold for runs of up to 300 steps, else for up to 100. `control` is hurt in no run.

Decision: a change becomes a default if its mean over all starts is not below that of `shipped`, and no start loses more
than 1 point. Budget: six starts, three seeds, 50 to 60 steps, about 12 minutes of one core. FreeMatch is the
strategy, since it is the one that was seen to do harm. `--strategies` compares the means of others.

Starts: `fashion` (40 labels, `conv` from scratch, 60 steps), `own_backbone` (50 labels, encoder of an autoencoder that
was trained on the same images, fresh head, 50 steps), `tuned` (the same after 40 steps on the labels), `foreign` (50
labels of the shipped sample, whose unlabeled images are the shipped digits, 60 steps), `mnist` (40 labels, 60 steps),
and `textile` (30 labels of three classes at 64 pixels, 60 steps; the images of PyPI's `conformal-clip-data`). `--starts
long` compares `shipped`, `warm_up` and `control` over 300 steps.
`--mnist` is a folder of IDX files, `--textile` one of class folders; starts without their folder are left out. Results
that are in the output file are skipped, and two processes that fill the same file share the work.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from commands import fit
from label_budget import Results
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor

from sft_lightning import ImageDataModule, SemiSupervisedModule, WarmupCosine, WeakView
from sft_lightning.losses import unlabeled
from sft_lightning.training.callbacks.roll_back import RollBack
from sft_lightning.training.ema import EMA
from sft_lightning.training.judges import mcnemar

STRATEGIES = {
    "FreeMatch": {"momentum": 0.99},
    "SoftMatch": {"momentum": 0.99},
    "AdaMatch": {"momentum": 0.99},
    "DebiasMatch": {"momentum": 0.99},
}
BATCH, RATIO = 8, 3
LONG = ("shipped", "warm_up", "control")  # variants of the start `long`


class Start(NamedTuple):
    """Data, labels and length of the runs of one start."""

    source: str
    num_labels: int
    steps: int
    data: Mapping[str, Any] = MappingProxyType({})
    pretrained: bool = False
    tuned: bool = False


class Correct(NamedTuple):
    """Which validation and test images a network classifies correctly, boolean tensors."""

    val: Tensor
    test: Tensor


STARTS = {
    "fashion": Start("FashionMNIST", 40, 60),
    "mnist": Start("MNIST", 40, 60),
    "own_backbone": Start("FashionMNIST", 50, 50, pretrained=True),
    "foreign": Start("sample", 50, 60, {"unlabeled_source": "sample-digits"}),
    "tuned": Start("FashionMNIST", 50, 50, pretrained=True, tuned=True),
    "textile": Start("textile", 30, 60, {"image_size": 64, "channels": 1, "test_size": 500, "val_size": 300}),
    "long": Start("FashionMNIST", 40, 300),
}


def variants(steps: int) -> dict[str, tuple[bool, bool, dict[str, Any]]]:
    """Return, by name, whether means start without bias, whether statistics stay, and settings of the paradigm.

    Args:
        steps: Number of optimizer steps of a run.
    """
    at_once = {"warmup_steps": 0, "ramp_steps": 0}
    warm_up = {"warmup_steps": steps // 4, "lambda_ramp": "linear", "ramp_steps": steps // 2}
    return {
        "shipped": (False, False, at_once),
        "unbiased": (True, False, at_once),
        "frozen": (False, True, at_once),
        "warm_up": (False, False, warm_up),
        "unbiased_frozen": (True, True, at_once),
        "together": (True, True, warm_up),
        "fitted_head": (False, False, {**at_once, "head_start": "logistic_regression"}),
        "guarded": (True, True, {**at_once, "head_start": "logistic_regression"}),
        "control": (False, False, {"control": True}),
    }


def list_variants(name: str, strategy: str) -> list[str]:
    """Return the names of the variants that a start and a strategy compare.

    Args:
        name: Name of the start.
        strategy: Name of the strategy.
    """
    names = list(LONG if name == "long" else variants(100))
    return [n for n in names if strategy == "FreeMatch" or n in ("shipped", "unbiased")]


def train_encoder(folder: Path) -> Path:
    """Train the convolutional autoencoder on Fashion-MNIST without labels, unless the folder has its weights.

    Args:
        folder: Folder of the weights.

    Returns:
        Path of the encoder's weights.
    """
    weights = folder / "guards_encoder.safetensors"
    if not weights.exists():
        run, _ = fit(
            ["reference/autoencoder_fashion_mnist.yaml"], "autoencoder", 0, "--model.init_args.network=conv",
            "--data.init_args.batch_size=64", "--data.init_args.steps_per_epoch=150", "--trainer.max_epochs=1",
        )  # fmt: skip
        staged = weights.with_suffix(f".{os.getpid()}")
        staged.write_bytes((run / "encoder.safetensors").read_bytes())
        staged.replace(weights)
    return weights


def build(weights: str, data: ImageDataModule, strategy: Any, **settings: Any) -> SemiSupervisedModule:
    """Build the model of the shipped config.

    Args:
        weights: Weights of the backbone, or `none`.
        data: Data module.
        strategy: Strategy.
        settings: Further settings of the paradigm.
    """
    return SemiSupervisedModule(
        strategy,
        backbone="conv",
        weights=weights,
        num_classes=len(data.class_names),
        input_spec=data.input_spec,
        ema_decay=0.99,
        optimizer=lambda p: torch.optim.SGD(p, 0.03, momentum=0.9, nesterov=True, weight_decay=0.0005),
        lr_scheduler=lambda o: WarmupCosine(o, warmup_steps=20),
        **settings,
    )


def train(model: SemiSupervisedModule, data: ImageDataModule, steps: int) -> None:
    """Train without logs, checkpoints and validation; a control is compared at the end.

    Args:
        model: Model.
        data: Data module.
        steps: Number of optimizer steps.
    """
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(names, False)
    callbacks: list[Callback] = [RollBack()] if model.hparams["control"] else []
    Trainer(
        accelerator="cpu", devices=1, max_steps=steps, max_epochs=1, check_val_every_n_epoch=2, num_sanity_val_steps=0,
        use_distributed_sampler=False, callbacks=callbacks, **quiet,
    ).fit(model, data)  # fmt: skip


@torch.no_grad()
def judge(classify: Callable[[Tensor], Tensor], data: ImageDataModule) -> Correct:
    """Return which of at most 500 validation and 1,000 test images are classified correctly.

    Args:
        classify: Function from images to logits, in eval mode.
        data: Data module.
    """
    parts = []
    for name, most in (("val", 500), ("test", 1000)):
        right: list[Tensor] = []
        for batch in data.batches_of(name, torch.device("cpu")):
            right.append(classify(batch.x).argmax(1) == batch.y)
            if sum(map(len, right)) >= most:
                break
        parts.append(torch.cat(right)[:most])
    return Correct(*parts)


def is_worse(result: Tensor, reference: Tensor) -> bool:
    """Return whether a classifier is worse than another on the same images, by the exact one-sided McNemar test.

    Args:
        result: Correctness of each image, boolean.
        reference: Correctness by the other classifier.
    """
    lost, won = int((reference & ~result).sum()), int((result & ~reference).sum())
    return mcnemar(lost, won) < 0.05


def run_unit(name: str, seed: int, cache: Path, strategies: list[str], results: Results, sources: Any) -> None:
    """Run all variants of one start and seed that are missing.

    Args:
        name: Name of the start.
        seed: Seed of the split, the initialization and the batches.
        cache: Folder of the pretrained encoder.
        strategies: Names of the strategies.
        results: Output file.
        sources: Roots and folders of the data by the name of the source.
    """
    start = STARTS[name]
    source, root = sources[start.source]
    seed_everything(seed, verbose=False)
    data = ImageDataModule(
        source, root=root, num_labels=start.num_labels, seed=seed, batch_size=BATCH, unlabeled_ratio=RATIO,
        eval_batch_size=500, steps_per_epoch=start.steps, weak_view=WeakView(crop_padding=2), labeled_view="both",
        num_workers=0, **{"val_size": 500, **start.data},
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    weights = str(train_encoder(cache)) if start.pretrained else "none"
    trained: dict[str, Tensor] = {}
    reference = None

    def run(row: str, strategy: Any, steps: int = 0, **settings: Any) -> Correct:
        began = time.monotonic()
        seed_everything(seed, verbose=False)
        model = build(weights, data, strategy, **settings)
        if trained:
            model.load_state_dict(trained, strict=False)
            model.average = EMA({"backbone": model.backbone, "head": model.head}, 0.99)
        train(model, data, steps or start.steps)
        model.eval()
        right = judge(model, data)
        plain = judge(lambda x: model.classify(model.backbone(x)), data)
        if row == "tune":
            trained.update({k: v for k, v in deepcopy(model.average).state_dict().items() if k != "steps"})  # type: ignore[union-attr]
        else:
            base, against = reference or right, begun or right
            rolled = is_worse(right.val, against.val)
            kept = against if rolled else right
            if (control := model.control) is not None:  # the run has compared by itself
                kept, rolled = right, all(map(torch.equal, model.head.parameters(), control.head.parameters()))
                own = judge(lambda x: control.evaluated(x)[1], data)
                differing = int((own.test != base.test).sum())
                print(f"{name} {seed}: the control differs from labels only on {differing} of {len(own.test)} images")
            if row == "labels_only" and str(seed) in results.rows.get(f"{name} {row}", {}):
                row = "labels_only_again"  # what the rows of this call are compared with
            results.add(
                f"{name} {row}", seed, float(right.test.float().mean()), float(plain.test.float().mean()),
                is_worse(right.test, base.test), float(kept.test.float().mean()), is_worse(kept.test, base.test),
                rolled, is_worse(right.val, base.val), time.monotonic() - began,
            )  # fmt: skip
        return right

    alone: dict[str, Any] = {"schedule": "alternating", "warmup_steps": 10**9}
    begun = None
    if start.tuned:
        begun = run("tune", unlabeled.EntropyMinimization(), steps=40, **alone)
    reference = run("labels_only", unlabeled.EntropyMinimization(), **alone)
    for strategy in strategies:
        for variant in list_variants(name, strategy):
            unbiased, frozen, settings = variants(start.steps)[variant]
            row = f"{strategy} {variant}"
            if str(seed) in results.rows.get(f"{name} {row}", {}):
                continue
            options = {**STRATEGIES[strategy], "freeze_target_stats": frozen, "unbiased_means": unbiased}
            made = getattr(unlabeled, strategy)(**options)
            run(row, made, **settings)


def main() -> None:
    """Run what is missing in the output file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder of the IDX files of MNIST")
    parser.add_argument("--textile", type=Path, help="folder of class folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", default=[s for s in STARTS if s != "long"], choices=list(STARTS))
    parser.add_argument("--strategies", nargs="+", default=["FreeMatch"], choices=list(STRATEGIES))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()), help="folder of the encoder")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(args.out.resolve(), {"batch": [BATCH, RATIO * BATCH], "figures": FIGURES})
    cache, textile = args.cache.resolve(), args.textile and args.textile.resolve()
    sources: dict[str, tuple[str, str]] = {"FashionMNIST": ("FashionMNIST", "data"), "sample": ("sample", "data")}
    if args.mnist:
        raw = Path(tempfile.mkdtemp()) / "MNIST"
        raw.mkdir()
        (raw / "raw").symlink_to(args.mnist.resolve())
        sources["MNIST"] = "MNIST", str(raw.parent)
    if textile:
        sources["textile"] = str(textile), "data"
    os.chdir(tempfile.mkdtemp())
    for seed in args.seeds:
        for name in args.starts:
            if STARTS[name].source not in sources:
                continue
            with results.claim(f"{name} unit {'-'.join(args.strategies)}", seed) as is_missing:
                if is_missing and _missing(results, name, seed, args.strategies):
                    run_unit(name, seed, cache, args.strategies, results, sources)
    results.read()
    print(format_table(results.rows))


FIGURES = [
    "test accuracy", "of the last iterate without average", "hurt", "test accuracy with roll-back", "hurt with it",
    "rolled back", "worse than labels only on validation", "seconds",
]  # fmt: skip


def _missing(results: Results, name: str, seed: int, strategies: list[str]) -> bool:
    rows = [f"{name} {strategy} {variant}" for strategy in strategies for variant in list_variants(name, strategy)]
    return any(str(seed) not in results.rows.get(row, {}) for row in rows)


def format_table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Format the mean test accuracy of each variant and start, and the number of runs that were hurt, as Markdown.

    Mean and number are those of the short starts.

    Args:
        rows: Figures by `start variant` and seed.
    """
    starts = [start for start in STARTS if any(row.startswith(f"{start} ") for row in rows)]
    names = list(dict.fromkeys(row.split(" ", 1)[1] for row in rows))
    short = [start for start in starts if start != "long"]
    lines = [f"| test accuracy | {' | '.join(starts)} | mean | hurt |", "|---" * (len(starts) + 3) + "|"]
    for name in names:
        found = {start: list(rows[f"{start} {name}"].values()) for start in starts if f"{start} {name}" in rows}
        means = {start: statistics.mean(run[0] for run in runs) for start, runs in found.items()}
        cells = [f"{means[start]:.3f}" if start in means else "" for start in starts]
        every = [run for start in short for run in found.get(start, [])]
        hurt = f"{sum(int(run[2]) for run in every)} of {len(every)}"
        mean = statistics.mean(means[start] for start in short if start in means) if every else float("nan")
        lines.append(f"| {name} | {' | '.join(cells)} | {mean:.3f} | {hurt} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
