"""What all models with a head on a backbone share that is tuned to some depth: stages of training, and groups."""

from pathlib import Path
from typing import Any, Self, get_args

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from sft_lightning.networks.adapters import Adapter
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.weights import find_weights
from sft_lightning.paradigms.base import Paradigm
from sft_lightning.paradigms.freezing import NormStats, Tune, TuningDepth, has_finetuning, rewrap
from sft_lightning.runs.lineage import find_run
from sft_lightning.runs.record import RunRecord
from sft_lightning.training.optimizers import Group
from sft_lightning.utils.errors import InputError, check_min

# Paradigms that keep the statistics of published weights by default.
_KEEPING = (
    "FineTuneClassifier", "SemiSupervisedModule", "DecoupledFeatureClassifier", "FineTuneDetector",
    "SemiSupervisedDetector",
)  # fmt: skip


class TunedBackbone(Paradigm):
    """Base of models with a head on a backbone, whose setting `weights` says where the backbone starts.

    Attributes:
        backbone: Network from inputs to features or maps.
        head: Module on top of it, which is trained from the first step.
        depth: Depth to which the backbone is trained.
        head_only_epochs: Epochs in which only the head is trained.
    """

    backbone: Encoder
    head: nn.Module
    depth: TuningDepth
    head_only_epochs: int

    def tune_backbone(
        self,
        tune: Tune,
        last_k_blocks: int,
        adapter: Adapter | None,
        lr_scale: float,
        layer_decay: float,
        norm_stats: NormStats,
        weights: str,
        keeps_by_default: bool,
        head_only_epochs: int,
    ) -> None:
        """Set how much of the backbone is trained, after its weights were loaded; the settings are recorded already.

        Args:
            tune: Parameters to train, as in `FineTuneClassifier`.
            last_k_blocks: Number k of blocks that `last_k_blocks` trains.
            adapter: Adapter that is trained instead of the backbone's own weights, or None.
            lr_scale: Learning rate of the backbone as a share of the head's.
            layer_decay: Factor of the learning rate from each block to the one before it.
            norm_stats: Statistics of batch normalization: `batch`, `weights` or `auto`.
            weights: Where the backbone started.
            keeps_by_default: Whether `auto` keeps the statistics of weights unless training has learned them.
            head_only_epochs: Epochs in which only the head is trained before the rest is released.

        Raises:
            InputError: A setting is out of its range.
        """
        check_min(0, head_only_epochs=head_only_epochs)
        if norm_stats not in get_args(NormStats):
            raise InputError(f"norm_stats is {norm_stats!r}: give {', '.join(get_args(NormStats))}")
        keep = norm_stats == "weights"
        if norm_stats == "auto" and weights != "none" and keeps_by_default:
            keep = not _has_learned_statistics(weights)
        self._norm_stats_given = norm_stats
        self.hparams["norm_stats"] = "weights" if keep else "batch"  # a resumed run takes it from there
        self.depth = TuningDepth(self.backbone, tune, last_k_blocks, adapter, lr_scale, layer_decay, keep)
        self.depth.release(head_only_epochs == 0)
        self.head_only_epochs = head_only_epochs

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but keep frozen blocks in eval mode."""
        super().train(mode)
        if mode:
            self.depth.hold()
        return self

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what batch normalization normalized by."""
        super().on_load_checkpoint(checkpoint)
        if self._norm_stats_given == "auto":  # `weights` is none in a resumed run; version 0.2 had no such setting
            settings = checkpoint.get("hyper_parameters", {})
            self.hparams["norm_stats"] = settings.get("norm_stats", "batch")
            self.depth.keep_norm_stats(self.hparams["norm_stats"] == "weights")
            self.train(self.training)

    def check_norm_stats(self) -> None:
        """Say where the setting of the statistics of batch normalization makes no sense."""
        if self._norm_stats_given == "auto":
            return
        if not self.depth.has_norm_stats:
            rank_zero_info(
                f"norm_stats is {self._norm_stats_given!r}, and backbone {self.backbone.name!r} has no batch "
                "normalization: leave it out."
            )
        elif (self._norm_stats_given, self.hparams["weights"]) == ("weights", "none") and not self.trainer.ckpt_path:
            rank_zero_info(
                "Warning: norm_stats is 'weights', and the backbone starts from random weights, whose statistics come "
                "from no examples: give weights, or set norm_stats to auto."
            )

    def on_train_start(self) -> None:
        """Release the backbone when training resumes in the middle of an epoch."""
        super().on_train_start()
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Release or freeze the backbone when its epoch has come, and log what a callback has changed besides."""
        self._set_depth(self.current_epoch)
        changes = self.depth.find_changes()
        if changes:
            rank_zero_info(
                f"Epoch {self.current_epoch}: parameters of the backbone beside those that tune and head_only_epochs "
                f"freeze or release were changed by a callback and stay so: {changes}."
            )
            self.on_depth_change()

    def on_train_epoch_end(self) -> None:
        """Release what the next epoch trains, before its callbacks run, so that they can override it."""
        super().on_train_epoch_end()
        if not self.is_last_epoch:
            self._set_depth(self.current_epoch + 1)

    def _set_depth(self, epoch: int) -> None:
        if self.depth.release(self.backbone_learns(epoch)):
            word = "released" if self.depth.released else "frozen"
            rank_zero_info(f"Epoch {epoch}: the backbone is {word}.")
            self.on_depth_change()

    def on_depth_change(self) -> None:
        """Make DDP average the gradients of what is trained from now on."""
        rewrap(self.trainer)

    def backbone_learns(self, epoch: int) -> bool:
        """Return whether the backbone is trained in an epoch.

        Args:
            epoch: Number of the epoch, counted from 0.
        """
        return epoch >= self.head_only_epochs

    def groups(self) -> list[Group]:
        """Return the group of the head and a decoder, then those of the backbone from the last block to the first."""
        new = [p for part in (self.head, *self.backbone.new_parts) for p in part.parameters()]
        groups = [Group("head", new, 1.0), *self.depth.groups()]
        return self.depth.leave(groups, self._lr_scheduler is not None) if has_finetuning(self._trainer) else groups


def _has_learned_statistics(weights: str) -> bool:
    """Return whether the statistics of weights come from a run, from scratch or without labels; others were kept."""
    run = None if weights == "default" else find_run(find_weights(Path(weights)))
    links = [] if run is None else RunRecord(run).chain
    return any(link.get("weights") in (None, "none") or link.get("model") not in _KEEPING for link in links)
