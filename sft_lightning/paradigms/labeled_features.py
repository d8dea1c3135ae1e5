"""Features of the labeled examples, with which evaluations compare those of others."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, distributed

from sft_lightning.data.contract import few_label_data
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.modes import eval_mode
from sft_lightning.utils.distributed import is_distributed


@torch.no_grad()
def compute_labeled_features(module: LightningModule, encoder: Encoder, most: int) -> tuple[Tensor, Tensor] | None:
    """Compute the features of unaugmented labeled training examples, the same on every process.

    Args:
        module: Module in training or evaluation.
        encoder: Its encoder.
        most: Maximum number of examples; if there are more, classes take turns.

    Returns:
        Features, float32 (N, F), and labels, int64 (N,); None without a data module of ours or without labels.
    """
    data = few_label_data(module.trainer)
    if data is None or not len(data.splits["labeled"]):
        return None
    if is_distributed():  # running statistics differ between processes until DDP's next forward pass
        for buffer in encoder.buffers():
            distributed.broadcast(buffer, 0)
    with eval_mode(module), module.trainer.precision_plugin.forward_context():
        # A copy: a compiled backbone may give the same memory again.
        pairs = [(encoder(batch.x).float().clone(), batch.y) for batch in data.labeled_batches(most, module.device)]
    return torch.cat([features for features, _ in pairs]), torch.cat([labels for _, labels in pairs])
