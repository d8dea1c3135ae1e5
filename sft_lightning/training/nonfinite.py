"""A guard that keeps losses and gradients that are NaN or infinite from changing any parameter.

All processes detect them in the same step, since gradients are reduced before the check.

Reading a number makes the CPU wait for the device. No step waits if the training stops at the first bad step anyway and
the optimizer is fused: its `found_inf`, which torch has for gradient scaling, makes it skip updates on the device. From
the first bad step on, neither parameters nor the optimizer's state change. The CPU checks for a bad step where the log
waits for the device anyway, and before anything is saved.
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
from sft_lightning.utils.atomic import write_json
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.lightning_patches import accepts_found_inf

OnNonfinite = Literal["raise", "skip"]
NONFINITE = "nonfinite.json"
_MAX_PENDING = 1000  # updates that are kept before the device is asked


class Batch(NamedTuple):
    """Record of a batch that is kept until its step is known to be finite.

    Attributes:
        indices: Indices of its examples by part.
        terms: Terms of the loss, scalars.
    """

    indices: dict[str, Tensor]
    terms: dict[str, Tensor]


class Update(NamedTuple):
    """Record of an update, on the device.

    Attributes:
        step: Number of the optimizer step.
        rate: Largest learning rate.
        batches: Batches of the step.
        parameters: Parameters with a gradient.
        norms: Norms of their gradients, (P,).
        bad: Whether a loss or gradient is not finite.
    """

    step: int
    rate: float
    batches: list[Batch]
    parameters: list[Tensor]
    norms: Tensor
    bad: Tensor


class NonfiniteGuard:
    """Check of each update before it happens."""

    def __init__(self, policy: OnNonfinite, limit: int) -> None:
        """Check and store the policy.

        Args:
            policy: `raise` to stop the training, `skip` to skip the step.
            limit: Number of steps that `skip` may skip; one more stops the training, too.

        Raises:
            InputError: The limit is negative.
        """
        check_min(0, nonfinite_limit=limit)
        self._limit = limit if policy == "skip" else 0
        self._skipped = 0
        self.reset()

    def reset(self) -> None:
        """Drop the records of a step that was never made, because memory ran out in a search for a batch size."""
        self._batches: list[Batch] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._pending: list[Update] = []
        self._any_bad: Tensor | None = None  # whether one of them was not finite, on the device

    def keep_buffers(self, module: LightningModule) -> None:
        """Copy the running statistics before a batch whose step may be skipped.

        Args:
            module: Module with the buffers.
        """
        if self._limit and not self._batches:  # the first batch of a step
            self._buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def record(self, batch: Any, terms: Mapping[str, Tensor]) -> None:
        """Record a batch after its loss.

        Args:
            batch: Parts of the batch by name.
            terms: Terms of the loss, scalars.
        """
        parts = batch.items() if isinstance(batch, Mapping) else ()
        indices = {part: own.indices for part, own in parts}
        self._batches.append(Batch(indices, {name: value.detach() for name, value in terms.items()}))

    def check_step(self, module: LightningModule, optimizer: Optimizer) -> bool:
        """Check the update, and remove all gradients if it must not happen.

        Args:
            module: Module with its trainer.
            optimizer: Optimizer that is about to step.

        Returns:
            Whether the update may happen, as far as is known without waiting.

        Raises:
            InputError: The loss or a gradient is not finite, and the policy stops the training.
        """
        batches, self._batches = self._batches, []
        plugin: Any = module.trainer.strategy.precision_plugin
        # The scaler handles infinite gradients of a scaled loss: it skips the step and lowers the scale.
        scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = [] if scaled else _norms(parameters)
        numbers = [*(batch.terms["loss"] for batch in batches), *norms]
        if not numbers:
            return True
        if len({value.dtype for value in numbers}) > 1:
            numbers = [value.float() for value in numbers]
        stacked = torch.stack(numbers)  # slow for many tensors, so only once
        total = stacked.sum(dtype=torch.float32)
        if not scaled and not self._limit and needs_sync(module.device) and accepts_found_inf(optimizer):
            bad = ~total.isfinite()
            self._any_bad = bad if self._any_bad is None else self._any_bad | bad
            optimizer.found_inf = self._any_bad.float()  # type: ignore[attr-defined]
            stacked_norms = stacked[len(batches) :]
            self._pending.append(_update(module, optimizer, batches, parameters, stacked_norms, bad))
            if len(self._pending) >= _MAX_PENDING:
                self.flush(module)
            return True
        if math.isfinite(float(total)):
            return True
        gradient_norms = norms or _norms(parameters)
        stacked_norms = torch.stack(gradient_norms) if gradient_norms else total.new_empty(0)
        message = self._describe(
            module, _update(module, optimizer, batches, parameters, stacked_norms, ~total.isfinite())
        )
        self._skipped += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        for buffer, kept in self._buffers:
            buffer.copy_(kept)
        if self._skipped > self._limit:
            self._stop(message)
        rank_zero_info(f"Skipped a step: {message} ({self._skipped} of at most {self._limit}).")
        return False

    def flush(self, module: LightningModule) -> None:
        """Wait for the device, and check all updates since the last call that no step has waited for.

        Args:
            module: Module with its trainer.

        Raises:
            InputError: An update was not finite; no update since then has changed a parameter.
        """
        pending, self._pending = self._pending, []
        bad = torch.stack([update.bad for update in pending]).tolist() if pending else []
        if any(bad):
            self._stop(self._describe(module, pending[bad.index(True)]))

    def _stop(self, message: str) -> NoReturn:
        more = f" after {self._limit} skipped steps" if self._limit else ""
        raise InputError(
            f"{message}{more}: the parameters are those before the step; lower the learning rate, clip gradients "
            "(trainer.gradient_clip_val: 1), or skip such steps (on_nonfinite: skip)"
        )

    def _describe(self, module: LightningModule, update: Update) -> str:
        """Describe what is not finite, and write the examples of the step to the run's folder."""
        trainer = module.trainer
        terms = [{name: float(value) for name, value in batch.terms.items()} for batch in update.batches]
        bad = [
            f"{name} is {value}" for batch in terms for name, value in batch.items() if not abs(value) < float("inf")
        ]
        bad.sort(key=lambda text: text.startswith("loss "))  # a term says more than the sum
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
    """Return whether reading a number makes the CPU wait for the device.

    Args:
        device: Device of the parameters.
    """
    return device.type != "cpu"


def _norms(parameters: list[Tensor]) -> list[Tensor]:
    """Return the norm of each gradient; there are none if Lightning skipped the backward pass."""
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
