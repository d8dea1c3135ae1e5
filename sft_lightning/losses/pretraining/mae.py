"""MAE: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners"."""

import torch
from torch import Tensor

from sft_lightning.data.batches import Unlabeled
from sft_lightning.losses.pretraining.base import Network, Objective, ObjectiveStep
from sft_lightning.networks.encoder import Encoder, MaskedDecoder
from sft_lightning.utils.errors import InputError, check_min
from sft_lightning.utils.inputs import Inputs, count_inputs
from sft_lightning.utils.transfer import to_device

_EPSILON = 1e-6  # added to the variance of a patch
_GRAY = 0.5  # in which hidden patches are shown


class MAE(Objective):
    """Squared error of the predicted pixels of hidden patches, from those that are visible.

    A vision transformer of torchvision or timm encodes the visible patches alone, and a small transformer predicts the
    others. A convolutional network sees hidden patches in the mean color, and one layer on its last map predicts them,
    as in SimMIM (Xie et al. 2022), whose reference setting hides 60 % in patches of 32 pixels. MAE needs no negatives
    and no momentum network.

    Reference setting (ImageNet, ViT-B/16, batch 4,096, 1,600 epochs): 75 % hidden, pixels normalized in each patch,
    decoder of 8 blocks and 512 channels, views cropped from .2 and mirrored only, AdamW with rate 1.5e-4 for each 256
    examples, betas .9 and .95, weight decay .05, warm-up of 40 epochs, then cosine; accuracy 83.6 when fine-tuned.
    """

    num_views = 1

    def __init__(
        self,
        hidden: float = 0.75,
        patch: int | None = None,
        normalize: bool = True,
        decoder_width: int = 512,
        decoder_depth: int = 8,
    ) -> None:
        """Check and store the settings.

        Args:
            hidden: Share of the patches that are hidden.
            patch: Side of a patch in pixels; null for that of a transformer, and otherwise for the largest divisor of
                the side of the image up to a seventh.
            normalize: Whether the pixels of each patch are normalized by their own mean and deviation to be predicted.
            decoder_width: Number of channels of the decoder of a transformer.
            decoder_depth: Number of blocks of the decoder of a transformer.

        Raises:
            InputError: A setting is out of range.
        """
        super().__init__()
        check_min(1, patch=patch, decoder_width=decoder_width, decoder_depth=decoder_depth)
        if not 0 < hidden < 1:
            raise InputError(f"hidden is {hidden}: give a share above 0 and below 1")
        self.hidden, self.patch, self.normalize = hidden, patch, normalize
        self.decoder_width, self.decoder_depth = decoder_width, decoder_depth

    def attach(self, encoder: Encoder) -> None:
        """Build the decoder, which is discarded after training.

        Args:
            encoder: Network from inputs to features.

        Raises:
            InputError: The encoder has no decoder of this kind, or too few patches.
        """
        self.decoder: MaskedDecoder = encoder.build_masked_decoder(self.patch, self.decoder_width, self.decoder_depth)
        self.num_visible = round(self.decoder.num_patches * (1 - self.hidden))
        if not 0 < self.num_visible < self.decoder.num_patches:
            raise InputError(
                f"hidden is {self.hidden} of {self.decoder.num_patches} patches, which leaves {self.num_visible} "
                "visible: set a smaller patch or a larger image_size"
            )

    def compute(
        self, encoder: Encoder, momentum: Network | None, batch: Unlabeled, global_step: int, epoch: int
    ) -> ObjectiveStep:
        """Compute the mean error of the hidden patches, in full precision.

        Args:
            encoder: Network from inputs to features.
            momentum: None.
            batch: Examples with one view, and the seed of the hidden patches.
            global_step: Number of optimizer steps so far.
            epoch: Number of epochs so far.
        """
        x = batch.crops[0]
        visible = self.draw_visible(x, batch.seed)
        predicted, features = self.decoder(encoder, x, visible)
        with torch.autocast(predicted.device.type, enabled=False):
            predicted = predicted.float() if predicted.dtype.itemsize < 4 else predicted
            patches = self.decoder.split(x).to(predicted.dtype)
            mean, deviation = torch.zeros_like(patches[..., :1]), torch.ones_like(patches[..., :1])
            if self.normalize:
                mean = patches.mean(-1, keepdim=True)
                deviation = (patches.var(-1, keepdim=True) + _EPSILON).sqrt()
            error = (predicted - (patches - mean) / deviation).square().mean(-1)
            is_hidden = torch.ones_like(error).scatter(1, visible, 0.0)
            # All examples have equally many hidden patches.
            loss = (error * is_hidden).sum() / (len(error) * (error.shape[1] - self.num_visible))
            # Layers after the last map or token are not trained, and DDP waits for a gradient of each.
            loss = loss + 0 * features.sum()

        def make_rows() -> tuple[Inputs, ...]:
            chosen = is_hidden.unsqueeze(-1).bool()
            masked = patches.masked_fill(chosen, _GRAY)
            drawn = torch.where(chosen, predicted.detach() * deviation + mean, patches)
            return x, self.decoder.merge(masked), self.decoder.merge(drawn)

        return ObjectiveStep(loss, {}, features.detach(), make_rows)

    def draw_visible(self, x: Inputs, seed: int) -> Tensor:
        """Draw the patches that are visible, as many in each example.

        Args:
            x: Inputs, (B, ...) each.
            seed: Seed of the batch.

        Returns:
            Positions, int64, (B, V).
        """
        generator = torch.Generator().manual_seed(seed)
        # Of one type, whatever the precision of the training, so that its patches are those of any other.
        numbers = torch.rand(count_inputs(x), self.decoder.num_patches, generator=generator, dtype=torch.float32)
        device = next(self.decoder.parameters()).device
        return to_device(numbers.argsort(1)[:, : self.num_visible].contiguous(), device)
