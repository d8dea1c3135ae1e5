"""Models with a control: the part that trains, saves and resumes it beside the model, whatever the target is."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.paradigms.averaged import AveragedWeights
from sft_lightning.paradigms.base import compile_in_place
from sft_lightning.paradigms.control import Control, find_obstacle
from sft_lightning.paradigms.tuned_backbone import TunedBackbone
from sft_lightning.training.ema import EMA
from sft_lightning.training.judges import Judge
from sft_lightning.training.optimizers import Group


class ControlledModel(TunedBackbone, AveragedWeights):
    """Base of models that learn from unlabeled examples, and perhaps train a second network on the labels alone.

    Attributes:
        control: Second copy of the network that learns from the labels alone, or None.
    """

    fit_only: ClassVar[tuple[str, ...]] = ("control.",)  # what `fit` adds to checkpoints and nothing else needs
    control: Control | None
    _wants_control: bool

    @property
    @abstractmethod
    def judge(self) -> Judge:
        """Judge of the network and its control on validation examples."""

    @abstractmethod
    def copy_network(self, ema_decay: float) -> Control:
        """Copy the network as it is.

        Args:
            ema_decay: Decay of the average of the copy; 0 for none.
        """

    def start_control(self) -> None:
        """Build the control, if it is wanted and of use."""
        self.control = None
        if self._wants_control and not (reason := find_obstacle(self)):
            self.control = self.copy_network(0.0 if self.average is None else self.average.decay)
            compile_in_place(self.control.backbone, self.hparams.get("compile", False))
        elif self._wants_control:
            rank_zero_info(f"Control: not trained, because {reason}.")

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but keep frozen blocks in eval mode, those of the control, too."""
        super().train(mode)
        if self.control is not None:
            self.control.follow(self)
        return self

    def on_depth_change(self) -> None:
        """Freeze and release the same parts of the control."""
        if self.control is not None:
            self.control.follow(self)
        super().on_depth_change()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on without a control where the checkpoint has none."""
        super().on_load_checkpoint(checkpoint)
        is_fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        has_control = any(name.startswith(self.fit_only) for name in checkpoint["state_dict"])
        if is_fitting and self.control is not None and not has_control:
            rank_zero_info("Control: not trained, because the checkpoint has none to go on with.")
            self.control = None

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the tensors, but for those of a control where none is trained."""
        if self.control is None and any(name.startswith(self.fit_only) for name in state_dict):
            state_dict = {name: t for name, t in state_dict.items() if not name.startswith(self.fit_only)}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def control_groups(self, groups: Sequence[Group]) -> list[Group]:
        """Return the groups of the control, which follow those of the model.

        Args:
            groups: Groups of the network that was copied.
        """
        return [] if self.control is None else self.control.groups(groups, self)

    def _update_average(self, average: EMA) -> None:
        super()._update_average(average)
        if self.control is not None:
            self.control.update_average()
