"""Position of a training within its epochs."""

from lightning.pytorch import Trainer


def is_last_epoch(trainer: Trainer) -> bool:
    """Return whether training ends with the current epoch.

    Args:
        trainer: Trainer in training, after the last batch of the epoch.
    """
    stopped = trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step
    return stopped or trainer.current_epoch + 1 == trainer.max_epochs
