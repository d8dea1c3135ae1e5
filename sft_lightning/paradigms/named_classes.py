"""Models whose outputs have the names of classes, by which data and checkpoints are matched."""

from collections.abc import Sequence
from typing import Any

from sft_lightning.data.class_names import describe_difference, parse_class_names
from sft_lightning.data.contract import few_label_data
from sft_lightning.paradigms.base import Paradigm
from sft_lightning.utils.errors import InputError


class NamedClasses(Paradigm):
    """Base of models with classes.

    Attributes:
        num_classes: Number of classes.
        class_names: Names of the outputs, which checkpoints record.
    """

    num_classes: int
    class_names: list[str]

    def name_classes(self, names: Sequence[str]) -> None:
        """Name the outputs; checkpoints record the names.

        Args:
            names: Name of each class.
        """
        self.class_names = list(names)
        self.hparams["class_names"] = self.class_names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the names of the classes with the weights."""
        super().on_load_checkpoint(checkpoint)
        names = parse_class_names(checkpoint.get("hyper_parameters", {}).get("class_names"))
        if names is not None and len(names) == self.num_classes:
            self.name_classes(names)

    def check_classes(self) -> None:
        """Check that the data numbers its classes like the outputs; name outputs that have no names yet.

        Raises:
            InputError: The data has other classes, or the same ones in another order.
        """
        data = few_label_data(self.trainer)
        if data is None or list(names := data.class_names) == self.class_names:
            return
        if self.hparams.get("class_names") is None:
            if len(names) == self.num_classes:
                self.name_classes(names)
            return
        raise InputError(
            f"the model and the data have other classes, or another order of them "
            f"({describe_difference(self.class_names, names)}): give the data the class_names of the model, or data of "
            "the same classes"
        )

    def on_validation_start(self) -> None:
        """Compare the classes of the data with the model's."""
        self.check_classes()

    def on_test_start(self) -> None:
        """Compare the classes of the data with the model's."""
        self.check_classes()
