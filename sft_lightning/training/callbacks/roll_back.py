"""Comparison of semi-supervised training with its control and its start, and the way back where it did harm."""

from collections.abc import Iterator, Mapping
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
from sft_lightning.training.judges import Results
from sft_lightning.training.module_interfaces import HasControl, LearnsFromUnlabeled
from sft_lightning.utils.inputs import Inputs

LEVEL = 0.05  # probability below which a loss of accuracy counts as more than noise
_PARTS = ("backbone", "head")


class _Reference(NamedTuple):
    """Network before semi-supervised training: its step, weights, and what its judge found out."""

    step: int
    weights: dict[str, Tensor]
    results: Results


class RollBack(Callback):
    """Keeps the control or the network before semi-supervised training if that is better on validation examples.

    A control (`control: true`) is a second network with the same start, steps and labels. Both are candidates of equal
    standing: the one with more validation examples right, or the better mean average precision of found objects, is
    kept, the semi-supervised one if they are equal.

    The reference is the network that is evaluated (the average, if any) when the first unlabeled batch arrives: after
    the warm-up on labels, or at the start of the training if the head is trained. A new head without a warm-up has no
    reference. It had fewer steps than the network that is kept, so it must be better beyond noise (one-sided, 5 %) on
    the same examples, by the test of the module's `judge`.

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
        kept: dict[str, Any] = {"displaced": self._displaced} if self._displaced else {}
        if self._reference is not None:
            kept |= {"step": self._reference.step, "weights": self._reference.weights, **self._reference.results}
        return kept

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the reference from a checkpoint.

        Args:
            state_dict: Value of `state_dict`.
        """
        kept = dict(state_dict)
        self._displaced = kept.pop("displaced", [])
        self._reference = _Reference(kept.pop("step"), kept.pop("weights"), kept) if kept else None

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
        starts = data is not None and not self._is_judged and trainer.global_step == 0
        if starts and isinstance(pl_module, LearnsFromUnlabeled) and not len(known_splits(trainer).get("val", ())):
            rank_zero_info(
                "Unlabeled examples: no label is held out (val_size), so this run cannot notice if they do harm"
                f"{pl_module.judge.remedy}."
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
            self._reference = _Reference(trainer.global_step, weights, _collect(trainer, pl_module, pl_module))

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
        results, trained = _collect(trainer, module, module), "semi-supervised training"
        if control is not None:
            by_control = _collect(trainer, module, control)
            if self._keep_control(trainer, module, control, results, by_control):
                results, trained = by_control, "training on the labels alone"
        if self._reference is not None:
            self._compare_reference(trainer, module, results, trained)

    def _keep_control(
        self, trainer: Trainer, module: Any, control: nn.Module, results: Results, by_control: Results
    ) -> bool:
        """Keep the control if it is better on validation examples, and say which network the run keeps.

        Args:
            trainer: Trainer at the end of its training.
            module: Module that learned from unlabeled examples.
            control: Network that learned from the labels alone.
            results: What the judge of the module found out about it.
            by_control: The same about the control.

        Returns:
            Whether the control is kept.
        """
        judge = module.judge
        score, other = judge.measure(results), judge.measure(by_control)
        scores = (
            f"with the unlabeled examples the {judge.title} on {judge.count(results):,} validation examples is "
            f"{score:.3f}, on the labels alone {other:.3f}"
        )
        if not trainer.strategy.broadcast(other > score):
            rank_zero_info(f"Control: {scores}: the run keeps the former network.")
            return False
        networks = _list_networks(module)
        self._displaced = [
            {name: tensor.detach().cpu().clone() for name, tensor in _tensors(network)} for network in networks
        ]
        for network, twin in zip(networks, _list_networks(control), strict=True):
            _copy_weights(network, dict(_tensors(twin)))
        rank_zero_info(
            f"Warning: {scores}: the run keeps the network of the labels alone. --roll_back false keeps the other."
        )
        return True

    def _compare_reference(self, trainer: Trainer, module: Any, results: Results, trained: str) -> None:
        assert self._reference is not None
        reference, self._reference, judge = self._reference, None, module.judge
        found = judge.compare(reference.results, results)
        if found is None:  # resumed with another `limit` of the data
            return
        before, after = judge.measure(reference.results), judge.measure(results)
        change = (
            f"from {before:.3f} at step {reference.step} to {after:.3f} on {judge.count(results):,} validation "
            f"examples ({found.details})"
        )
        if trainer.strategy.broadcast(found.p_value >= LEVEL):
            verdict = "" if after >= before else f", which is within noise (p = {found.p_value:.2f})"
            rank_zero_info(f"{trained.capitalize()} changed the {judge.title} {change}{verdict}.")
            return
        for network in _list_networks(module):
            _copy_weights(network, reference.weights)
        rank_zero_info(
            f"Warning: {trained} lowered the {judge.title} {change}, which is more than noise "
            f"(p = {found.p_value:.2g}): the run returned to the network of step {reference.step}. --roll_back false "
            "keeps the last one."
        )


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
def _collect(trainer: Trainer, module: Any, network: Any) -> Results:
    """Return what the judge of a module finds out about a network, the module or a part of it.

    Equal on all processes, each of which judges all examples.
    """
    data, plugin = few_label_data(trainer), trainer.precision_plugin
    assert data is not None
    batches = data.labeled_batches(module.judge.most, module.device, "val")

    def convert() -> Iterator[tuple[Inputs, Tensor]]:
        for batch in batches:
            yield plugin.convert_input(batch.x), batch.y

    with isolate_rng(), eval_mode(module), plugin.forward_context():
        results: Results = module.judge.collect(network, convert())
    return results
