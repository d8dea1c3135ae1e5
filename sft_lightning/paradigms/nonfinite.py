"""What is not finite stops before the update: a loss or gradient that is NaN or infinite changes no parameter.

All processes see it in the same step, since gradients are reduced over them before they are looked at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from sft_lightning.errors import InputError, at_least
from sft_lightning.files import write_json

OnNonfinite = Literal["raise", "skip"]
NONFINITE = "nonfinite.json"


class NonfiniteGuard:
    """Looks at each update before it happens."""

    def __init__(self, policy: OnNonfinite, limit: int) -> None:
        """Sets what happens.

        Args:
            policy: `raise` stops the training, `skip` leaves the step out.
            limit: So many steps may be left out; one more stops the training, too.

        Raises:
            InputError: The limit is negative.
        """
        at_least(0, nonfinite_limit=limit)
        self._limit = limit if policy == "skip" else 0
        self._skipped = 0
        self._seen: list[tuple[Any, dict[str, Tensor]]] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def start(self) -> None:
        """Forgets the batches of a step that was never made: one that memory ran out in, in a search for a size."""
        self._seen, self._buffers = [], []

    def before(self, module: LightningModule) -> None:
        """Before a batch: running statistics are kept where the batch may be left out.

        Args:
            module: Of whose buffers.
        """
        if self._limit and not self._seen:  # the first batch of a step
            self._buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def after(self, batch: Any, terms: Mapping[str, Tensor]) -> None:
        """After the loss of a batch.

        Args:
            batch: What it is of.
            terms: Of the loss, scalars.
        """
        self._seen.append((batch, {name: value.detach() for name, value in terms.items()}))

    def allows(self, module: LightningModule, optimizer: Optimizer) -> bool:
        """Whether the update may happen; where not, there is no gradient left, so that it changes nothing.

        Args:
            module: With its trainer.
            optimizer: About to step.

        Raises:
            InputError: The training is to stop.
        """
        seen, self._seen = self._seen, []
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        losses = [terms["loss"] for _, terms in seen]
        plugin: Any = module.trainer.strategy.precision_plugin
        # An infinite gradient of a scaled loss is the scaler's business, which leaves out the step and scales less.
        scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
        norms = [] if scaled else list(torch._foreach_norm(gradients))
        numbers = [value.float() for value in (*losses, *norms)]
        if not numbers or bool(torch.stack(numbers).sum().isfinite()):
            return True
        told = self._told(module, optimizer, seen)
        self._skipped += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        for buffer, kept in self._buffers:
            buffer.copy_(kept)
        if self._skipped > self._limit:
            more = f" after {self._limit} that were left out" if self._limit else ""
            raise InputError(
                f"{told}{more}: nothing was learned from it, and the parameters are those before; lower the learning "
                "rate, clip gradients (trainer.gradient_clip_val: 1), or leave such steps out (on_nonfinite: skip)"
            )
        rank_zero_info(f"Left out: {told} ({self._skipped} of at most {self._limit}).")
        return False

    def _told(self, module: LightningModule, optimizer: Optimizer, seen: list[tuple[Any, dict[str, Tensor]]]) -> str:
        """What is not finite, in words; in the run's folder also which examples it came of."""
        trainer = module.trainer
        terms = [{name: float(value) for name, value in own.items()} for _, own in seen]
        bad = [f"{name} is {value}" for own in terms for name, value in own.items() if not abs(value) < float("inf")]
        bad.sort(key=lambda text: text.startswith("loss "))  # a part says more than the sum
        torn = [
            name for name, p in module.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())
        ]
        what = bad[0] if bad else f"the gradient of {torn[0]} is not finite" if torn else "a gradient is not finite"
        rate = max(group["lr"] for group in optimizer.param_groups)
        splits = getattr(getattr(trainer, "datamodule", None), "splits", {})
        batches = [
            {
                part: [splits[part].ids[i] if part in splits else i for i in dict.fromkeys(own.indices.tolist())]
                for part, own in (batch.items() if isinstance(batch, Mapping) else ())
            }
            for batch, _ in seen
        ]
        content = {"step": trainer.global_step, "lr": rate, "terms": terms, "gradients": torn, "examples": batches}
        where = ""
        folder = trainer.log_dir if trainer.loggers else None  # on every rank: it is broadcast
        if folder is not None:
            rank = f".rank{trainer.global_rank}" if trainer.global_rank else ""
            path = Path(folder) / f"{Path(NONFINITE).stem}{rank}.json"
            write_json(path, content)
            where = f", {path} lists the examples"
        return f"{what} at step {trainer.global_step} (learning rate {rate:g}{where})"
