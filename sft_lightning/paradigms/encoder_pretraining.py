"""Pre-training without labels: what its paradigms share is the encoder that they leave to all others."""

from pathlib import Path
from typing import Any, ClassVar

from sft_lightning._version import __version__
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.weights import write_weights
from sft_lightning.paradigms.base import Paradigm
from sft_lightning.runs.record import RunRecord

ENCODER = "encoder.safetensors"


class EncoderPretraining(Paradigm):
    """Base of the paradigms that learn an encoder from unlabeled examples.

    At the end of `fit` the encoder is written as `encoder.safetensors` into the run's folder.

    Attributes:
        encoder: Network that is kept.
    """

    batch_parts: ClassVar[tuple[str, ...]] = ("unlabeled",)
    encoder: Encoder

    def on_fit_end(self) -> None:
        """Save the encoder to a file of its own."""
        if not self.trainer.loggers or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = self.trainer.log_dir  # on every rank: it is broadcast
        if self.trainer.is_global_zero and folder is not None:
            self.save_encoder(Path(folder) / ENCODER, {"run": folder, "chain": RunRecord(Path(folder)).chain})

    def save_encoder(self, path: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Write the encoder with the metadata that `rebuild_encoder` needs.

        Args:
            path: Path of the file to write; ends in `.safetensors`.
            provenance: Further metadata for the file, such as its run.
        """
        metadata = {
            "part": "backbone",
            **self.encoder.describe(),
            "made_by": type(self).__name__,
            "version": __version__,
        }
        write_weights(Path(path), self.encoder.state_dict(), {**metadata, **(provenance or {})})
