"""Pre-training without labels: an autoencoder whose encoder any other paradigm can start from.

L_rec = ||x - dec(enc(x))||^2, mean over all numbers and the batch (Hinton & Salakhutdinov 2006). The denoising and the
masked variant corrupt the input of the encoder, never the target of the decoder.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric

from sft_lightning.losses.reconstruction import compute_reconstruction_errors, reconstruction_loss
from sft_lightning.losses.regularizers.base import Regularizer
from sft_lightning.networks.build import build_encoder
from sft_lightning.paradigms.base import StepResult, compile_in_place, resolve_input_spec
from sft_lightning.paradigms.encoder_pretraining import EncoderPretraining
from sft_lightning.training.figures import ExampleRows, Figure
from sft_lightning.training.nonfinite import OnNonfinite
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import Inputs, InputSpec, count_inputs, select_inputs

_SHOWN = 8


class AutoencoderModule(EncoderPretraining):
    """Autoencoder that learns to reconstruct its inputs from a few features.

    At the end of `fit` the encoder is written as `encoder.safetensors` into the run's folder.
    """

    def __init__(
        self,
        network: str = "mlp",
        input_spec: InputSpec | Mapping[str, Any] | Sequence[int] | None = None,
        noise: float = 0.0,
        hidden: float = 0.0,
        patch: int = 4,
        compile: bool | str = False,
        weights: str = "none",
        regularizer: Regularizer | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonfinite = "raise",
        nonfinite_limit: int = 10,
        image_shape: Sequence[int] | None = None,
    ) -> None:
        """Build encoder and decoder.

        Args:
            network: `mlp` (784-128-64-32 and back at 28x28), `conv` (any image size), or another backbone, such as the
                class path of an `Encoder` that builds a decoder.
            input_spec: Specification of the inputs: `input_spec` of the data, or (C, H, W) of images, by default
                (1, 28, 28). The command line takes it from the data.
            noise: Standard deviation of the noise added to the encoder's input (denoising), for pixels in [0, 1].
            hidden: Share of the patches that the encoder does not see (masking).
            patch: Side of a patch in pixels.
            compile: Compile the encoder: true, or a mode of `torch.compile`.
            weights: Weights of the encoder: `none`, or the path of a `.safetensors` file, checkpoint or run.
            regularizer: lambda R(theta): `L2`, `L2SP`, `DELTA`, `BSS` or a class of your own.
            optimizer: Function that makes an optimizer from parameter groups; needed for training only.
            lr_scheduler: Function that makes a schedule from the optimizer, or None for a constant rate.
            on_nonfinite: Policy for a step whose loss or gradients are NaN or infinite: stop the training (`raise`) or
                leave the step out (`skip`). In either case it changes no parameter.
            nonfinite_limit: Number of steps that may be left out; one more stops the training.
            image_shape: Former name of `input_spec`, which version 0.4 will remove.

        Raises:
            InputError: A setting is out of its range.
        """
        super().__init__(optimizer, lr_scheduler, regularizer, on_nonfinite, nonfinite_limit)
        if noise < 0 or not 0 <= hidden < 1 or patch < 1:
            raise InputError(
                f"noise is {noise}, hidden {hidden}, patch {patch}: give noise >= 0, 0 <= hidden < 1 and patch >= 1"
            )
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "regularizer", "image_shape"])
        spec = resolve_input_spec(input_spec, image_shape, (1, 28, 28))
        self.hparams["input_spec"] = spec.to_dict()
        self.noise, self.hidden, self.patch = noise, hidden, patch
        self.encoder, _ = build_encoder(network, spec, weights)
        self.decoder = self.encoder.build_decoder()
        self.regularize(self.encoder, compile)
        compile_in_place(self.encoder, compile)
        self._held_out = nn.ModuleDict({f"{stage}_loss": MeanMetric() for stage in ("val", "test")})
        self._example: tuple[Inputs, Inputs] | None = None

    def forward(self, x: Inputs) -> Inputs:
        """Reconstruct inputs.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).

        Returns:
            Reconstructions, of the form of `x`.
        """
        return self.encoder.reconstruct(x, self.decoder)

    def features(self, x: Inputs) -> Tensor:
        """Compute features.

        Args:
            x: Inputs as the data module gives them, such as images in [0, 1], (B, C, H, W).

        Returns:
            Features, (B, F).
        """
        encoded: Tensor = self.encoder(x)
        return encoded

    def step(self, batch: Any) -> StepResult:
        """Compute the reconstruction loss of the unlabeled batch."""
        x = batch["unlabeled"].weak
        corrupted = x
        if self.noise or self.hidden:
            generator = torch.Generator().manual_seed(batch["unlabeled"].seed)
            corrupted = self.encoder.corrupt(x, self.noise, self.hidden, self.patch, generator)
        with self.watched():
            reconstruction = self(corrupted)
        return StepResult(reconstruction_loss(reconstruction, x), {})

    def _evaluation_step(self, stage: str, batch: Any, batch_idx: int) -> None:
        reconstruction = self(batch.x)
        metric: Any = self._held_out[f"{stage}_loss"]
        metric.update(reconstruction_loss(reconstruction, batch.x), weight=count_inputs(batch.x))
        if batch_idx == 0:
            few = slice(_SHOWN)
            self._example = select_inputs(batch.x, few), select_inputs(reconstruction, few)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch of uncorrupted examples to the validation loss."""
        self._evaluation_step("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch of uncorrupted examples to the test loss."""
        self._evaluation_step("test", batch, batch_idx)

    def evaluate(self, stage: str) -> dict[str, Tensor]:
        """Return the mean loss over all examples."""
        metric: Any = self._held_out[f"{stage}_loss"]
        loss: Tensor = metric.compute()
        metric.reset()
        return {"loss": loss}

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Compute the reconstruction error of each example, which is high for examples unlike those of training."""
        error = compute_reconstruction_errors(self(batch.x), batch.x)
        return {"indices": batch.indices, "reconstruction_error": error}

    def figures(self, stage: str) -> dict[str, Figure]:
        """Return inputs in the upper row, reconstructions in the lower."""
        return {} if self._example is None else {"reconstructions": ExampleRows(self._example)}
