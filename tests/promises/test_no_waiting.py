"""A training step waits for no device: what is there is read at logging steps alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._pytree import tree_leaves

from sft_lightning.cli import fast_loop
from sft_lightning.cli.lightning_cli import run
from sft_lightning.training import nonfinite
from tests.conftest import CONFIGS
from tests.promises.reads import Reads

FUSED = "--model.init_args.optimizer.init_args.fused=true"
PARADIGMS: dict[str, tuple[list[str], int]] = {  # the shipped configs, and what a logging step reads
    "autoencoder": (["quickstart/autoencoder.yaml"], 4),
    "fine_tune": (["quickstart/fine_tune.yaml"], 4),
    "decoupled": (["quickstart/decoupled.yaml"], 6),
    "self_supervised": (["quickstart/self_supervised.yaml", "--model.init_args.objective=BYOL"], 7),
    "fixmatch": (["semi_supervised/shared.yaml", "semi_supervised/fixmatch.yaml"], 9),
}
OTHERS = sorted({p.stem for p in (CONFIGS / "semi_supervised").glob("*.yaml")} - {"shared", "fixmatch"})


class Watch(Callback):
    """Counts what steps read, line by line; a step ends where the next one begins."""

    def __init__(self) -> None:
        self.found: dict[int, Counter[str]] = {}
        self.reads = Reads()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reads.on_device([*pl_module.parameters(), *pl_module.buffers()])
        self.reads.__enter__()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.reads.found = self.found[trainer.global_step + 1] = Counter()
        for part in batch.values():
            self.reads.on_device(tree_leaves(part._replace(indices=None)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reads.__exit__(None, None, None)


def watched(configs: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[int, Counter[str]]:
    """What 100 steps read, as if on a device, where the first one has read what it needs once."""
    monkeypatch.setattr(nonfinite, "needs_sync", lambda device: True)
    monkeypatch.setattr(
        fast_loop, "CALLBACKS", fast_loop.CALLBACKS | {Watch}
    )  # beside other callbacks Lightning's loop reads
    words = [w for own in configs for w in ([own] if own.startswith("--") else ["--config", str(CONFIGS / own)])]
    words += ["--run_name=run", "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]
    words += ["--data.init_args.batch_size=4", "--data.init_args.steps_per_epoch=102", FUSED]
    words += ["--data.init_args.unlabeled_ratio=2", "--trainer.callbacks=tests.promises.test_no_waiting.Watch"]
    if "quickstart/autoencoder.yaml" not in configs:
        words += ["--model.init_args.backbone=mlp", "--data.init_args.num_labels=40"]
    done = run(["fit", *words])
    (watch,) = (c for c in done.trainer.callbacks if isinstance(c, Watch))  # type: ignore[attr-defined]
    return {step: watch.found[step] for step in range(2, 102)}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("decoupled", "self_supervised") else [])
        for name in PARADIGMS
    ],
)
def test_only_logging_steps_read(name: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs, reads = PARADIGMS[name]
    found = watched(configs, monkeypatch)
    assert {step: own.total() for step, own in found.items() if own} == {50: reads, 100: reads}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_of_every_strategy(name: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = watched(["semi_supervised/shared.yaml", f"semi_supervised/{name}.yaml"], monkeypatch)
    between = {step: own for step, own in found.items() if own and step not in (50, 100)}
    assert not between


def test_the_counting_counts() -> None:
    there, mask, here = torch.arange(3.0), torch.tensor([True, False, True]), torch.ones(3)
    index = torch.tensor([0, 1])
    with Reads() as reads:
        reads.on_device([there, mask])
        for read in (
            lambda: float((there * 2).sum()), lambda: bool((there > 1).any()), there.tolist, there.cpu, there.numpy,
            lambda: here[mask], lambda: mask.nonzero(), lambda: torch.equal(there, here),
            lambda: here.index_put_((mask,), there.sum()),
        ):  # fmt: skip
            reads.found.clear()
            read()
            assert reads.found.total() == 1
        reads.found.clear()
        here = torch.ones(3)
        here.tolist(), float(here.sum()), here[here > 1], there[index], there + here
        assert not reads.found
        here[1].copy_(there[1])
        here.sum().item()
        assert reads.found.total() == 1
    torch.arange(3.0).tolist()
    assert reads.found.total() == 1
