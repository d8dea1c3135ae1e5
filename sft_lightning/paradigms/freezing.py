"""Which parts of a network are trained when, the same on all ranks.

`BaseFinetuning` of Lightning adds parameters to the optimizer later, which breaks schedules, resuming and DDP
(pl#20340, pl#21901). Here every parameter that is ever trained is in the optimizer from the start; only
`requires_grad` changes. What is frozen is in eval mode, so that its running statistics do not move.
"""

from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sft_lightning.errors import InputError, above_zero, at_least, shares
from sft_lightning.networks.adapters import Adapter
from sft_lightning.networks.backbones import Backbone
from sft_lightning.networks.blocks import blocks
from sft_lightning.paradigms.optimization import Group

Tune = Literal["head", "last_k_blocks", "all"]


class Depth:
    """How far into a backbone training reaches: nothing, its last blocks or all of it, or an adapter beside its layers.

    Attributes:
        blocks: From input to output.
        released: Whether that part is being trained.
    """

    def __init__(
        self,
        backbone: Backbone,
        tune: Tune,
        last_k_blocks: int = 1,
        adapter: Adapter | None = None,
        lr_scale: float = 1.0,
        layer_decay: float = 1.0,
    ) -> None:
        """Puts the adapter into the backbone, which changes nothing of what it computes; `release` does the rest.

        Args:
            backbone: With the weights of the start.
            tune: See `FineTuneClassifier`, as for the others.
            last_k_blocks: k.
            adapter: What learns instead of the backbone's own weights, or None.
            lr_scale: Learning rate as a share of the head's.
            layer_decay: Factor of the learning rate from each block to the one before it.

        Raises:
            InputError: A setting is out of its range, or does not go with an adapter.
        """
        at_least(0, backbone_lr_scale=lr_scale)
        above_zero(layer_decay=layer_decay)
        shares(layer_decay=layer_decay)
        self.blocks = blocks(backbone.net)
        if not 1 <= last_k_blocks <= len(self.blocks):
            raise InputError(f"last_k_blocks is {last_k_blocks}: {backbone.name!r} has {len(self.blocks)} blocks")
        self.released = True
        self._backbone, self._adapter = backbone, adapter
        self._tuned = {"head": 0, "last_k_blocks": last_k_blocks, "all": len(self.blocks)}[tune]
        self._all = tune == "all"
        self._lr_scale, self._layer_decay = lr_scale, layer_decay
        if adapter is not None:
            name = type(adapter).__name__
            if not self._all:
                raise InputError(f"tune is {tune!r}, but adapter {name} decides what is tuned: leave it at 'all'")
            if layer_decay != 1:
                raise InputError(
                    f"layer_decay is {layer_decay}, but adapter {name} learns at one rate: leave it at 1, or set "
                    "backbone_lr_scale"
                )
            adapter.apply(backbone)

    @property
    def learns(self) -> bool:
        """Whether any part of the backbone is ever trained."""
        return self._tuned > 0

    def release(self, released: bool) -> bool:
        """Sets which modules are trained. `Module.train()` undoes this; call it again after that.

        Args:
            released: Whether the backbone is trained as far as it ever is, or not at all.

        Returns:
            Whether that changed.
        """
        changed, self.released = released != self.released, released
        if self._adapter is not None:
            self._backbone.eval()
            self._adapter.release(self._backbone.net, released)
            return changed
        frozen = len(self.blocks) - (self._tuned if released else 0)
        self._backbone.train(frozen < len(self.blocks))  # dropout between blocks, too
        for i, modules in enumerate(self.blocks):
            for module in modules:
                module.requires_grad_(i >= frozen)
                module.train(i >= frozen)
        for p in self._outside():
            p.requires_grad_(frozen == 0)
        return changed

    def _outside(self) -> list[nn.Parameter]:
        """The parameters in no block: a class token, say."""
        inside = {id(p) for modules in self.blocks for m in modules for p in m.parameters()}
        return [p for p in self._backbone.parameters() if id(p) not in inside]

    def groups(self) -> list[Group]:
        """What is ever trained, from the last block to the first."""
        if self._adapter is not None:
            return [Group("adapter", self._adapter.parameters_of(self._backbone), self._lr_scale)]
        tuned = self.blocks[len(self.blocks) - self._tuned :]
        by_block = [[p for m in modules for p in m.parameters()] for modules in tuned]
        if self._all:
            by_block[0] += self._outside()
        if self._layer_decay == 1.0:
            return [Group("backbone", [p for block in by_block for p in block], self._lr_scale)]
        last = len(by_block) - 1
        return [
            Group(f"block_{i}", by_block[i], self._lr_scale * self._layer_decay ** (last - i + 1))
            for i in range(last, -1, -1)
        ]


def rewrap(trainer: Trainer) -> None:
    """Makes DDP average the gradients of parameters that have just been released.

    DDP registers what requires gradients when it wraps a module; without a new wrapper the replicas would drift apart
    (pl#20340). On one process there is nothing to do.

    Args:
        trainer: Whose strategy may wrap the module.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.model.module
        strategy.configure_ddp()
