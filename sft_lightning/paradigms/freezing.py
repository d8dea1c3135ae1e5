"""Freezing and releasing of parts of a network, the same on all ranks.

`BaseFinetuning` of Lightning adds parameters to the optimizer later, which breaks schedules, resuming and DDP
(pl#20340, pl#21901). Here every parameter that is ever trained is in the optimizer from the start; only
`requires_grad` changes. Frozen parts are in eval mode, so that their running statistics do not move.
"""

from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sft_lightning.networks.adapters import Adapter
from sft_lightning.networks.blocks import list_parameters, split_blocks
from sft_lightning.networks.encoder import Encoder
from sft_lightning.training.optimizers import Group
from sft_lightning.utils.errors import InputError, check_fraction, check_min, check_positive

Tune = Literal["head", "last_k_blocks", "all"]
NormStats = Literal["auto", "batch", "weights"]


class TuningDepth:
    """Depth to which a backbone is trained: not at all, its last blocks, all of it, or an adapter beside its layers.

    What others freeze stays frozen: `requires_grad` is changed only when a part is released or frozen by the settings
    here, and only of parameters that were frozen by them.

    Attributes:
        blocks: Blocks of the backbone from input to output.
        released: Whether the part that is ever trained is being trained now.
    """

    def __init__(
        self,
        backbone: Encoder,
        tune: Tune,
        last_k_blocks: int = 1,
        adapter: Adapter | None = None,
        lr_scale: float = 1.0,
        layer_decay: float = 1.0,
        keep_norm_stats: bool = False,
    ) -> None:
        """Insert the adapter, which leaves the outputs as they are, and freeze parameters that never learn.

        Args:
            backbone: Network with the weights that training starts from.
            tune: Parameters to train, as in `FineTuneClassifier`.
            last_k_blocks: Number k of blocks that `last_k_blocks` trains.
            adapter: Adapter that is trained instead of the backbone's own weights, or None.
            lr_scale: Learning rate as a share of the head's.
            layer_decay: Factor of the learning rate from each block to the one before it.
            keep_norm_stats: Whether batch normalization always normalizes by its running statistics, which stay.

        Raises:
            InputError: A setting is out of its range, or does not go with an adapter.
        """
        check_min(0, backbone_lr_scale=lr_scale)
        check_positive(layer_decay=layer_decay)
        check_fraction(layer_decay=layer_decay)
        self.blocks = split_blocks(backbone.net)
        if not 1 <= last_k_blocks <= len(self.blocks):
            raise InputError(f"last_k_blocks is {last_k_blocks}: {backbone.name!r} has {len(self.blocks)} blocks")
        self.released = True
        self._backbone, self._adapter = backbone, adapter
        self._tuned = {"head": 0, "last_k_blocks": last_k_blocks, "all": len(self.blocks)}[tune]
        self._lr_scale, self._layer_decay, self._keeps_norm_stats = lr_scale, layer_decay, keep_norm_stats
        if adapter is not None:
            name = type(adapter).__name__
            if tune != "all":
                raise InputError(
                    f"tune is {tune!r}, but adapter {name} selects the parameters to train: leave it at 'all'"
                )
            if layer_decay != 1:
                raise InputError(
                    f"layer_decay is {layer_decay}, but adapter {name} learns at one rate: leave it at 1, or set "
                    "backbone_lr_scale"
                )
            adapter.apply(backbone)
        learning = {id(p) for p in self._learning()}
        learning |= {id(p) for part in backbone.new_parts for p in part.parameters()}  # as a head does
        self._held = [p for p in backbone.parameters() if id(p) not in learning]  # frozen by the settings
        for p in self._held:
            p.requires_grad_(False)
        self._changes = (0, 0)
        self.hold()

    @property
    def learns(self) -> bool:
        """Whether any part of the backbone is ever trained."""
        return self._tuned > 0

    def release(self, released: bool) -> bool:
        """Release or freeze all that is ever trained, unless it is in that state already.

        Args:
            released: Whether the backbone is trained as far as it ever is, or not at all.

        Returns:
            Whether that changed.
        """
        if released == self.released:
            return False
        self.released = released
        learning = self._learning()
        if released:
            now = {id(p) for p in learning}
            for p in self._held:
                if id(p) in now:
                    p.requires_grad_(True)
            self._held = [p for p in self._held if id(p) not in now]
        else:
            now = {id(p) for p in learning if p.requires_grad}
            self._held += [p for p in learning if id(p) in now]
            for p in learning:
                p.requires_grad_(False)
        self._backbone.train(released and self.learns)  # dropout between blocks, too
        self.hold()
        return True

    def keep_norm_stats(self, keep: bool) -> None:
        """Choose whether batch normalization normalizes by its running statistics, which then stay.

        Args:
            keep: Whether it does, from the next call of `hold` on.
        """
        self._keeps_norm_stats = keep

    def hold(self) -> None:
        """Put parts that the settings freeze into eval mode; call it again after `Module.train()`."""
        if self._adapter is not None:
            self._backbone.eval()
            self._adapter.set_modes(self._backbone.net, self.released)
        elif not self.released or not self.learns:
            self._backbone.eval()
        else:
            for block in self.blocks[: len(self.blocks) - self._tuned]:
                for module in block.modules:
                    module.eval()
        for module in self._find_norms() if self._keeps_norm_stats else ():
            module.eval()

    @property
    def has_norm_stats(self) -> bool:
        """Whether the backbone has batch normalization, which normalizes by statistics."""
        return bool(self._find_norms())

    def _find_norms(self) -> list[nn.Module]:
        return [m for m in self._backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def find_changes(self) -> str:
        """Return a phrase about what a callback has frozen or released beside the settings, or an empty string.

        The same changes are named once.
        """
        frozen = sum(self.is_frozen_by_others(p) for p in self._learning())
        released = sum(p.requires_grad for p in self._held)
        before, self._changes = self._changes, (frozen, released)
        if self._changes in (before, (0, 0)):
            return ""
        return " and ".join(f"{n} {word}" for n, word in ((frozen, "frozen"), (released, "released")) if n)

    def is_frozen_by_others(self, parameter: nn.Parameter) -> bool:
        """Return whether a callback has frozen a parameter that the settings do not freeze now.

        Args:
            parameter: Parameter of the backbone.
        """
        return not parameter.requires_grad and all(parameter is not p for p in self._held)

    def leave(self, groups: list[Group], has_schedule: bool) -> list[Group]:
        """Leave out what a callback such as `BackboneFinetuning` has frozen, which it adds to the optimizer later.

        Args:
            groups: Groups of all parameters that are ever trained.
            has_schedule: Whether the learning rate follows a schedule.

        Raises:
            InputError: There is a schedule, which cannot follow groups that are added later.
        """
        kept = [
            group._replace(parameters=[p for p in group.parameters if not self.is_frozen_by_others(p)])
            for group in groups
        ]
        if has_schedule and any(len(a.parameters) < len(b.parameters) for a, b in zip(kept, groups, strict=True)):
            raise InputError(
                "a callback such as BackboneFinetuning adds parameters to the optimizer later, which lr_scheduler "
                "cannot follow: set lr_scheduler: null, or head_only_epochs in place of the callback"
            )
        return kept

    def _learning(self) -> list[nn.Parameter]:
        """Return the parameters that are ever trained."""
        return [p for group in self.groups() for p in group.parameters]

    def groups(self) -> list[Group]:
        """Return the groups that are ever trained, from the last block to the first."""
        if self._adapter is not None:
            return [Group("adapter", self._adapter.list_parameters(self._backbone), self._lr_scale)]
        tuned = self.blocks[len(self.blocks) - self._tuned :]
        if self._layer_decay == 1.0:
            inside = {id(p) for block in tuned for p in block.parameters}
            ordered = [p for p in list_parameters(self._backbone.net) if id(p) in inside]
            return [Group("backbone", ordered, self._lr_scale)]
        last = len(tuned) - 1
        return [
            Group(f"block_{i}", tuned[i].parameters, self._lr_scale * self._layer_decay ** (last - i + 1))
            for i in range(last, -1, -1)
        ]


def has_finetuning(trainer: Trainer | None) -> bool:
    """Return whether a callback freezes parameters and adds them to the optimizer later.

    Args:
        trainer: Trainer of the run, or None outside of a training.
    """
    callbacks = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, BaseFinetuning) for callback in callbacks)


def rewrap(trainer: Trainer) -> None:
    """Make DDP average the gradients of parameters that have just been released.

    DDP registers what requires gradients when it wraps a module; without a new wrapper the replicas would drift apart
    (pl#20340). Does nothing on one process.

    Args:
        trainer: Trainer whose strategy may wrap the module.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.model.module
        strategy.configure_ddp()
