"""What is not finite stops before the update: a loss or gradient that is NaN or infinite changes no parameter.

All processes see it in the same step, since gradients are reduced over them before they are looked at.

A look at a number makes the CPU wait for the device. Where the training stops at the first such step anyway, and a
fused optimizer can be told on the device to change nothing (its `found_inf`, which torch has for gradient scaling), no
step waits: from the first one on that is not finite the optimizer changes neither a parameter nor its own state, and
whether there was one is asked where the log waits for the device anyway, and before anything is saved.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from sft_lightning.data.contract import known_splits
from sft_lightning.training.lightning_patches import accepts_found_inf
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.errors import InputError, check_min

OnNonfinite = Literal["raise", "skip"]
NONFINITE = "nonfinite.json"
_MOST = 1000  # updates that are kept until they are asked about


class Batch(NamedTuple):
    """What is kept of a batch until its step is known to be finite.

    Attributes:
        indices: Of its examples, by part.
        terms: Of the loss, scalars.
    """

    indices: dict[str, Tensor]
    terms: dict[str, Tensor]


class Update(NamedTuple):
    """What is looked at of an update, on the device.

    Attributes:
        step: Its number.
        rate: The largest learning rate.
        batches: Of the step.
        parameters: With a gradient.
        norms: Of their gradients, (P,).
        bad: Whether anything is not finite.
    """

    step: int
    rate: float
    batches: list[Batch]
    parameters: list[Tensor]
    norms: Tensor
    bad: Tensor


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
        check_min(0, nonfinite_limit=limit)
        self._limit = limit if policy == "skip" else 0
        self._skipped = 0
        self.reset()

    def reset(self) -> None:
        """Forgets the batches of a step that was never made: one that memory ran out in, in a search for a size."""
        self._seen: list[Batch] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._unasked: list[Update] = []
        self._ever: Tensor | None = None  # whether one of them was not finite, on the device

    def keep_buffers(self, module: LightningModule) -> None:
        """Before a batch: running statistics are kept where the batch may be left out.

        Args:
            module: Of whose buffers.
        """
        if self._limit and not self._seen:  # the first batch of a step
            self._buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def record(self, batch: Any, terms: Mapping[str, Tensor]) -> None:
        """After the loss of a batch.

        Args:
            batch: What it is of.
            terms: Of the loss, scalars.
        """
        parts = batch.items() if isinstance(batch, Mapping) else ()
        indices = {part: own.indices for part, own in parts}
        self._seen.append(Batch(indices, {name: value.detach() for name, value in terms.items()}))

    def check_step(self, module: LightningModule, optimizer: Optimizer) -> bool:
        """Whether the update may happen; where not, there is no gradient left, so that it changes nothing.

        Args:
            module: With its trainer.
            optimizer: About to step.

        Raises:
            InputError: The training is to stop.
        """
        batches, self._seen = self._seen, []
        plugin: Any = module.trainer.strategy.precision_plugin
        # An infinite gradient of a scaled loss is the scaler's business, which leaves out the step and scales less.
        scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = [] if scaled else _norms(parameters)
        numbers = [*(batch.terms["loss"] for batch in batches), *norms]
        if not numbers:
            return True
        if len({value.dtype for value in numbers}) > 1:
            numbers = [value.float() for value in numbers]
        looked_at = torch.stack(numbers)  # takes long with many tensors, so once
        total = looked_at.sum(dtype=torch.float32)
        if not scaled and not self._limit and needs_sync(module.device) and accepts_found_inf(optimizer):
            bad = ~total.isfinite()
            self._ever = bad if self._ever is None else self._ever | bad
            optimizer.found_inf = self._ever.float()  # type: ignore[attr-defined]
            own_norms = looked_at[len(batches) :]
            self._unasked.append(_update(module, optimizer, batches, parameters, own_norms, bad))
            if len(self._unasked) >= _MOST:
                self.flush(module)
            return True
        if math.isfinite(float(total)):
            return True
        own = norms or _norms(parameters)
        own_norms = torch.stack(own) if own else total.new_empty(0)
        told = self._told(module, _update(module, optimizer, batches, parameters, own_norms, ~total.isfinite()))
        self._skipped += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        for buffer, kept in self._buffers:
            buffer.copy_(kept)
        if self._skipped > self._limit:
            self._stop(told)
        rank_zero_info(f"Left out: {told} ({self._skipped} of at most {self._limit}).")
        return False

    def flush(self, module: LightningModule) -> None:
        """Asks the device whether all updates since the last time were finite, where no step has waited to know.

        Args:
            module: With its trainer.

        Raises:
            InputError: One was not; none since has changed a parameter.
        """
        unasked, self._unasked = self._unasked, []
        bad = torch.stack([update.bad for update in unasked]).tolist() if unasked else []
        if any(bad):
            self._stop(self._told(module, unasked[bad.index(True)]))

    def _stop(self, told: str) -> NoReturn:
        more = f" after {self._limit} that were left out" if self._limit else ""
        raise InputError(
            f"{told}{more}: nothing was learned from it, and the parameters are those before; lower the learning "
            "rate, clip gradients (trainer.gradient_clip_val: 1), or leave such steps out (on_nonfinite: skip)"
        )

    def _told(self, module: LightningModule, update: Update) -> str:
        """What is not finite, in words; in the run's folder also which examples it came of."""
        trainer = module.trainer
        terms = [{name: float(value) for name, value in batch.terms.items()} for batch in update.batches]
        bad = [f"{name} is {value}" for own in terms for name, value in own.items() if not abs(value) < float("inf")]
        bad.sort(key=lambda text: text.startswith("loss "))  # a part says more than the sum
        finite = dict(zip(map(id, update.parameters), update.norms.isfinite().tolist(), strict=True))
        torn = [name for name, p in module.named_parameters() if not finite.get(id(p), True)]
        what = bad[0] if bad else f"the gradient of {torn[0]} is not finite" if torn else "a gradient is not finite"
        splits = known_splits(trainer)
        examples = [
            {
                part: [splits[part].ids[i] if part in splits else i for i in dict.fromkeys(indices.tolist())]
                for part, indices in batch.indices.items()
            }
            for batch in update.batches
        ]
        content = {"step": update.step, "lr": update.rate, "terms": terms, "gradients": torn, "examples": examples}
        where = ""
        folder = trainer.log_dir if trainer.loggers else None  # on every rank: it is broadcast
        if folder is not None:
            rank = f".rank{trainer.global_rank}" if trainer.global_rank else ""
            path = Path(folder) / f"{Path(NONFINITE).stem}{rank}.json"
            write_json(path, content)
            where = f", {path} lists the examples"
        return f"{what} at step {update.step} (learning rate {update.rate:g}{where})"


def needs_sync(device: torch.device) -> bool:
    """Whether a look at a number there makes the CPU wait.

    Args:
        device: Of the parameters.
    """
    return device.type != "cpu"


def _norms(parameters: list[Tensor]) -> list[Tensor]:
    """Return the norm of each gradient; a step without any happens where Lightning skips the backward pass."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return list(torch._foreach_norm(gradients)) if gradients else []


def _update(
    module: LightningModule,
    optimizer: Optimizer,
    batches: list[Batch],
    parameters: list[Tensor],
    norms: Tensor,
    bad: Tensor,
) -> Update:
    rate = max(group["lr"] for group in optimizer.param_groups)
    return Update(module.trainer.global_step, rate, batches, parameters, norms, bad)
