"""`PredictDataModule`: the examples that `predict` reads, the test split or those of another source."""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sft_lightning.data.eval_batches import NamedBatches
from sft_lightning.data.loaders import EvalLoader, RawBatch
from sft_lightning.data.source import SPLITS, Source, concatenated
from sft_lightning.data.split_datamodule import SplitDataModule
from sft_lightning.data.splits import Split
from sft_lightning.utils.errors import InputError


class PredictDataModule(SplitDataModule):
    """Data module whose setting `predict_source` names what `predict` reads in place of the test split."""

    predict_source: str | None = None
    _predicted: Any = None

    # --- what a modality adds

    def open_to_predict(self, name: str) -> Source:
        """Open a source of examples to predict, which needs no labels.

        Args:
            name: Name as the user wrote it.
        """
        return self.open_source(name)

    def read_predicted(self, name: str) -> Any:
        """Return the examples to predict: a `Split`, or what a modality makes batches of.

        Args:
            name: Value of `predict_source`.

        Raises:
            InputError: They cannot be read, or there are none.
        """
        parts = self.open_to_predict(name).load()
        part = concatenated(*((parts[split], range(len(parts[split]))) for split in SPLITS if split in parts))
        return Split(part, range(len(part)))

    @abstractmethod
    def _eval(self, name: str, split: Split) -> EvalLoader | list[Any]: ...

    # --- prediction

    def setup(self, stage: str) -> None:
        """Read the source and make the splits, once; for `predict`, open the data to predict.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if stage != "predict" or self.predict_source is None:
            super().setup(stage)
        if stage == "predict":
            self.open_predicted()

    def open_predicted(self) -> Any:
        """Return the data to predict, opened once.

        Raises:
            InputError: The data does not exist or is empty.
        """
        if self._predicted is None:
            name = self.predict_source
            self._predicted = self.splits["test"] if name is None else self.read_predicted(name)
        return self._predicted

    @property
    def predict_name(self) -> str:
        """Name of the data to predict: the name of a source, or the absolute path of a file or folder."""
        name = self._named if self.predict_source is None else self.predict_source
        full = str(Path(name).resolve()) if Path(name).exists() else name
        return full if self.predict_source else f"{'all' if self.test_on == 'all' else 'test split'} of {full}"

    @property
    def predict_count(self) -> int:
        """Number of examples to predict, as far as it is known before they are read."""
        return len(self.open_predicted())

    @property
    def predict_listed(self) -> tuple[int, int]:
        """Number and checksum of listed files; zeros for a split, which is the same in all processes."""
        return 0, 0

    def predict_dataloader(self) -> Iterable[RawBatch]:
        """Return the examples to predict with their names.

        Raises:
            InputError: There are none.
        """
        return self.named_batches(self.open_predicted())

    def named_batches(self, split: Split) -> NamedBatches:
        """Return batches of a split with the names of its examples.

        Args:
            split: Examples to predict.

        Raises:
            InputError: There are none.
        """
        batches = self._eval("predict", split)
        if isinstance(batches, list):
            raise InputError(
                "the source has no test example to predict: set predict_source to a folder, a manifest or a file"
            )
        return NamedBatches(batches, split.ids)
