"""The size of training batches as something that can be set between two trials."""

from typing import Any

from sft_lightning.utils.errors import InputError


class BatchSize:
    """What a data module needs so that Lightning's `BatchSizeFinder` can look for its size.

    The finder of Lightning 2.6 makes its first trial with the loaders from before it has set a size
    (`_adjust_batch_size` in `tuner/batch_size_scaling.py`): it is the config's size that is tried, not the smallest.
    Where not even one image fits it goes on to 0, and what is raised then hinders it in removing its checkpoint.
    """

    trainer: Any
    _batch_size: int

    @property
    def batch_size(self) -> int:
        """Training examples of each batch and process; where labeled and unlabeled ones come together, labeled ones."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        if size < 1:
            raise InputError(
                f"batch_size is {size}: give a number of at least 1; where not even one image fits into memory, lower "
                "image_size or unlabeled_ratio"
            )
        self._batch_size = size
        if self.trainer is not None:
            self.trainer.fit_loop._combined_loader = None  # to be made anew
