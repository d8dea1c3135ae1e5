"""Which parts of a network are trained when, the same on all ranks.

`BaseFinetuning` of Lightning adds parameters to the optimizer later, which breaks schedules, resuming and DDP
(pl#20340, pl#21901). Here every parameter that is ever trained is in the optimizer from the start; only
`requires_grad` changes.
"""

from collections.abc import Iterable

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def set_trainable(modules: Iterable[nn.Module], trainable: bool) -> None:
    """Freezes or releases modules. A frozen module is in eval mode: its running statistics do not move.

    Args:
        modules: Whole modules.
        trainable: Whether they are trained.
    """
    for module in modules:
        module.requires_grad_(trainable)
        module.train(trainable)


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
