"""Comparison of semi-supervised training with its control and its start, and the way back where it did harm."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from sft_lightning.data.contract import few_label_data, known_splits
from sft_lightning.networks.modes import eval_mode
from sft_lightning.training.epochs import is_last_epoch
from sft_lightning.training.module_interfaces import HasControl, LearnsFromUnlabeled

LEVEL = 0.05  # probability below which a loss of accuracy counts as more than noise
MAX_EXAMPLES = 10_000  # validation examples that are compared
_PARTS = ("backbone", "head")


class _Reference(NamedTuple):
    """Network before semi-supervised training: its step, weights, and scores of validation examples, (N,)."""

    step: int
    weights: dict[str, Tensor]
    correct: Tensor


class RollBack(Callback):
    """Keeps the control or the network before semi-supervised training if that is better on validation examples.

    A control (`control: true`) is a second network with the same start, steps and labels. Both are candidates of equal
    standing: the one with more validation examples right is kept, the semi-supervised one if they have as many.

    The reference is the network that is evaluated (the average, if any) when the first unlabeled batch arrives: after
    the warm-up on labels, or at the start of the training if the head is trained. A new head without a warm-up has no
    reference. It had fewer steps than the network that is kept, so it must be better beyond noise, by the exact McNemar
    test (one-sided, 5 %) on the same examples.

    One sentence says how each comparison came out. They precede the last validation, so that its metrics and
    `last.ckpt` are of the network that the run keeps. Checkpoints contain the reference, so that a resumed run decides
    the same. A run that goes on after its end goes on with the semi-supervised network, even if its control was kept.
    """

    def __init__(self) -> None:
        """Start without a reference."""
        self._reference: _Reference | None = None
        self._is_waiting = self._is_judged = False
        self._displaced: list[
            dict[str, Tensor]
        ] = []  # semi-supervised network and its average, where a control is kept

    @property
    def state_key(self) -> str:
        """Constant key, which Lightning reads in each step."""
        return "RollBack"

    def state_dict(self) -> dict[str, Any]:
        """Return the reference for the checkpoint."""
        reference = {} if self._reference is None else self._reference._asdict()
        return {**reference, **({"displaced": self._displaced} if self._displaced else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the reference from a checkpoint.

        Args:
            state_dict: Value of `state_dict`.
        """
        reference = {name: value for name, value in state_dict.items() if name != "displaced"}
        self._reference = _Reference(**{**reference, "correct": reference["correct"].float()}) if reference else None
        self._displaced = state_dict.get("displaced", [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the semi-supervised network of a run that had kept its control; find out about a reference.

        Args:
            trainer: Trainer about to train.
            pl_module: Any module; only those that learn from unlabeled examples are compared.
        """
        for network, weights in zip(_list_networks(pl_module), self._displaced, strict=False):
            _copy_weights(network, weights)
        self._displaced = []
        data = few_label_data(trainer)
        self._is_judged = bool(getattr(trainer, "fast_dev_run", False))
        learns = isinstance(pl_module, LearnsFromUnlabeled) and data is not None and not self._is_judged
        if learns and trainer.global_step == 0 and not len(known_splits(trainer).get("val", ())):
            rank_zero_info(
                "Unlabeled examples: no label is held out (val_size), so this run cannot notice if they do harm; "
                "`solve` and a study with `folds` hold out each label in turn."
            )
        self._is_waiting = (
            self._reference is None
            and isinstance(pl_module, LearnsFromUnlabeled)
            and (pl_module.has_trained_head or pl_module.warmup_steps > 0)
            and trainer.global_step <= pl_module.warmup_steps  # else a resumed run, whose start is past
            and data is not None
            and len(data.splits.get("val", ())) > 0
            and bool(trainer.limit_val_batches)
            and not self._is_judged
            # A sharded network cannot be run by one process.
            and isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the network when the first unlabeled batch arrives.

        Args:
            trainer: Trainer in training.
            pl_module: Module that learns from unlabeled examples.
            batch: Mapping with the parts of the batch.
            batch_idx: Unused.
        """
        if self._is_waiting and "unlabeled" in batch:
            self._is_waiting = False
            weights = {name: tensor.detach().cpu().clone() for name, tensor in _tensors(_evaluated(pl_module))}
            self._reference = _Reference(trainer.global_step, weights, _classify(trainer, pl_module, pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare before the last validation of a training, which then measures the network that is kept.

        Args:
            trainer: Trainer in training or evaluation.
            pl_module: Module that learns from unlabeled examples.
        """
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and is_last_epoch(trainer):
            has_ended = trainer.is_last_batch or trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step
            if has_ended:
                self._compare(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare where no validation came at the end.

        Args:
            trainer: Trainer at the end of its training.
            pl_module: Module that learns from unlabeled examples.
        """
        self._compare(trainer, pl_module)

    def _compare(self, trainer: Trainer, module: LightningModule) -> None:
        if self._is_judged:
            return
        self._is_judged = True
        control = module.control if isinstance(module, HasControl) else None
        if control is None and self._reference is None:
            return
        correct, trained = _classify(trainer, module, module), "semi-supervised training"
        if control is not None:
            by_control = _classify(trainer, module, control)
            if self._keep_control(trainer, module, control, correct, by_control):
                correct, trained = by_control, "training on the labels alone"
        if self._reference is not None:
            self._compare_reference(trainer, module, correct, trained)

    def _keep_control(
        self, trainer: Trainer, module: LightningModule, control: nn.Module, correct: Tensor, by_control: Tensor
    ) -> bool:
        """Keep the control if it has more validation examples right, and say which network the run keeps.

        Args:
            trainer: Trainer at the end of its training.
            module: Module that learned from unlabeled examples.
            control: Network that learned from the labels alone.
            correct: Score of each validation example by the module: 1 where it is right, of pixels up to 1, (N,).
            by_control: The same by the control, (N,).

        Returns:
            Whether the control is kept.
        """
        accuracies = (
            f"with the unlabeled examples the {_name_score(module)} on {len(correct):,} validation examples is "
            f"{float(correct.mean()):.3f}, on the labels alone {float(by_control.mean()):.3f}"
        )
        if not trainer.strategy.broadcast(float(by_control.sum()) > float(correct.sum())):
            rank_zero_info(f"Control: {accuracies}: the run keeps the former network.")
            return False
        networks = _list_networks(module)
        self._displaced = [
            {name: tensor.detach().cpu().clone() for name, tensor in _tensors(network)} for network in networks
        ]
        for network, other in zip(networks, _list_networks(control), strict=True):
            _copy_weights(network, dict(_tensors(other)))
        rank_zero_info(
            f"Warning: {accuracies}: the run keeps the network of the labels alone. --roll_back false keeps the other."
        )
        return True

    def _compare_reference(self, trainer: Trainer, module: LightningModule, correct: Tensor, trained: str) -> None:
        assert self._reference is not None
        reference, self._reference = self._reference, None
        if len(correct) != len(reference.correct):  # resumed with another `limit` of the data
            return
        lost, won = int((correct < reference.correct).sum()), int((correct > reference.correct).sum())
        p = mcnemar(lost, won)
        before, after = (float(scores.mean()) for scores in (reference.correct, correct))
        change = (
            f"from {before:.3f} at step {reference.step} to {after:.3f} on {len(correct):,} validation examples "
            f"({lost} lost, {won} won)"
        )
        if trainer.strategy.broadcast(p >= LEVEL):
            verdict = "" if after >= before else f", which is within noise (p = {p:.2f})"
            rank_zero_info(f"{trained.capitalize()} changed the {_name_score(module)} {change}{verdict}.")
            return
        for network in _list_networks(module):
            _copy_weights(network, reference.weights)
        rank_zero_info(
            f"Warning: {trained} lowered the {_name_score(module)} {change}, which is more than noise (p = {p:.2g}): "
            f"the run returned to the network of step {reference.step}. --roll_back false keeps the last one."
        )


def mcnemar(lost: int, won: int) -> float:
    """Compute the one-sided exact McNemar test: how probable at least as many losses would be if both were as likely.

    Args:
        lost: Number of examples that only the first classifier has right.
        won: Number of examples that only the second one has right.
    """
    n = lost + won
    return float(sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n)


def _name_score(module: Any) -> str:
    """Return the title of the mean score of validation examples."""
    title: str = module.task.judged_metric[1]
    return title


def _evaluated(module: nn.Module) -> nn.Module:
    """Return the module whose backbone and head are evaluated: the average, if any, or the module itself."""
    average = getattr(module, "average", None)
    return average if isinstance(average, nn.Module) else module


def _list_networks(module: nn.Module) -> list[nn.Module]:
    """Return the module and its average, if any."""
    return [module] if _evaluated(module) is module else [module, _evaluated(module)]


@torch.no_grad()
def _copy_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in _tensors(network):
        tensor.copy_(weights[name])


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (f"{part}.{name}", tensor)
        for part in _PARTS
        for name, tensor in network.get_submodule(part).state_dict().items()
    ]


@torch.no_grad()
def _classify(trainer: Trainer, module: Any, network: Any) -> Tensor:
    """Return how well a network, the module or a part of it, predicts each validation example.

    1 where it is right and 0 elsewhere, of pixels up to 1, float, (N,); equal on all processes.
    """
    data, plugin = few_label_data(trainer), trainer.precision_plugin
    assert data is not None
    correct: list[Tensor] = []
    with isolate_rng(), eval_mode(module), plugin.forward_context():
        for batch in data.labeled_batches(MAX_EXAMPLES, module.device, "val"):
            logits = network.evaluated(plugin.convert_input(batch.x))[1]
            correct.append(module.task.judge(logits, batch.y).cpu())
    return torch.cat(correct)
