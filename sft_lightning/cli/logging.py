"""What the user need not read: advertising, and warnings that they cannot act on. Each line has its reason."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Beginnings of log messages.
_CHATTER = (
    "💡",  # Lightning's advertising of its cloud services
    "GPU available",  # `RunFolder` tells the device that is used
    "TPU available",  # the same
    "HPU available",  # the same
    "Seed set to",  # stands in the run's config
    "`Trainer.fit` stopped",  # the report at the end says how far the training came
    "Restoring states from",  # the user named the checkpoint
    "Restored all states",  # the same
    "Loaded model weights",  # the same
    "`weights_only` was not set",  # of a file that Lightning's batch-size finder has just written
)

# Patterns of warnings.
_WARNINGS = (
    # A run's folder may be moved; its checkpoints are found from where they lie.
    r"The dirpath has changed from.*",
    # Our batches carry the positions of their examples; Lightning's way to find them needs its own sampler.
    r"Couldn't infer the batch indices fetched from your dataloader.*",
    # Metrics come out of torchmetrics' own synchronization: they are equal on all ranks already.
    r"It is recommended to use `self.log\(.*sync_dist=True\)`.*",
    # The words were taken from the process by our own entry point.
    r"LightningCLI's args parameter is intended to run from within Python.*",
    # Our loaders know rank and world size; a batch is a slice, no worker would help it.
    r"The '.*_dataloader' does not have many workers",
    # An epoch of a few labels is short; the averages are logged by step number all the same.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Lightning 2.6 calls functions of jsonargparse that version 5 will remove; the requirement is below 5.
    r".*jsonargparse.*",
    # A resumed or tested run keeps its folder; our files have one name for each command.
    r"Checkpoint directory .* exists and is not empty",
    # torch.utils.data asks for it in Lightning's own code path.
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    # Validation is left out where no example is held out; the data line says so with `0 val`.
    r"Total length of `list` across ranks is zero.*",
    r".*`val_dataloader` yielded no data.*",
    # A split of zero examples gives Lightning an empty list of loaders: meant so.
    r"You defined a `validation_step` but have no `val_dataloader`.*",
    # Frozen blocks are in eval mode on purpose.
    r"Found \d+ module\(s\) in eval mode at the start of training.*",
    # On a machine of a cluster, a command without `srun` is meant to run there and then.
    r"The `srun` command is available on your system but is not used.*",
    # The precision of matrix products is the user's choice by flag, not a warning at each start.
    r"You are using a CUDA device .* that has Tensor Cores.*",
)

_OURS = "sft_lightning"
_OF_LIGHTNING = tuple(
    f"{name}{child}"
    for name in ("lightning.pytorch", "lightning.fabric")
    for child in ("", ".utilities.rank_zero", ".utilities.seed")
)
LOGGERS = (_OURS, *_OF_LIGHTNING)  # what `silence_third_party` changes


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_CHATTER)


_QUIET = _Quiet()


def silence_third_party() -> None:
    """Silences the lists above."""
    for name in _OF_LIGHTNING:
        logging.getLogger(name).addFilter(_QUIET)
    for pattern in _WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    own = logging.getLogger(_OURS)
    if not own.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        own.addHandler(handler)
        own.setLevel(logging.INFO)


@contextmanager
def silence_logs() -> Iterator[None]:
    """Leaves out what is no warning, for a command that makes many runs."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
