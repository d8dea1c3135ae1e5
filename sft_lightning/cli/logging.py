"""Silence third-party log messages and warnings that users cannot act on. Each line has its reason."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Beginnings of log messages.
_CHATTER = (
    "💡",  # Lightning's advertising of its cloud services
    "GPU available",  # `RunFolder` reports the device
    "TPU available",  # likewise
    "HPU available",  # likewise
    "Seed set to",  # written to the run's config
    "`Trainer.fit` stopped",  # the summary at the end says how far training came
    "Restoring states from",  # the user named the checkpoint
    "Restored all states",  # likewise
    "Loaded model weights",  # likewise
    "`weights_only` was not set",  # a file that Lightning's batch-size finder has just written
)

# Patterns of warnings.
_WARNINGS = (
    # A run may be moved; its checkpoints are found where they are now.
    r"The dirpath has changed from.*",
    # Our batches carry the positions of their examples; Lightning's way to find them needs its own sampler.
    r"Couldn't infer the batch indices fetched from your dataloader.*",
    # torchmetrics has synchronized the metrics: they are equal on all ranks.
    r"It is recommended to use `self.log\(.*sync_dist=True\)`.*",
    # A batch is a slice of a tensor, which workers would not speed up.
    r"The '.*_dataloader' does not have many workers",
    # An epoch of a few labels is short; averages are logged by step number.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Lightning 2.6 calls functions of jsonargparse that version 5 will remove; the requirement is below 5.
    r".*jsonargparse.*",
    # A resumed or tested run keeps its folder; our files are named by command.
    r"Checkpoint directory .* exists and is not empty",
    # Raised by Lightning's own use of torch.utils.data.
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    # Validation is skipped if no example is held out; the data line says `0 val`.
    r"Total length of `list` across ranks is zero.*",
    r".*`val_dataloader` yielded no data.*",
    # A split without examples gives Lightning an empty list of loaders on purpose.
    r"You defined a `validation_step` but have no `val_dataloader`.*",
    # Frozen blocks are in eval mode on purpose.
    r"Found \d+ module\(s\) in eval mode at the start of training.*",
    # On a cluster, a command without `srun` is meant to run on this machine.
    r"The `srun` command is available on your system but is not used.*",
    # A classifier that is fitted in one call takes no gradient steps on purpose.
    r"`LightningModule\.configure_optimizers` returned `None`.*",
    r"`training_step` returned `None`.*",
    # The precision of matrix products is the user's choice, not worth a warning at each start.
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
    """Install filters for the messages and warnings above, and a plain handler for our own messages."""
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
def silence_logs(level: int = logging.INFO) -> Iterator[None]:
    """Silence messages up to a level inside of the context, by default those below warnings.

    Args:
        level: Highest level that is silenced.
    """
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)
