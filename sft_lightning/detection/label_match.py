"""Thresholds of pseudo-boxes from the number of objects in annotated examples.

After Chen et al. 2022, "Label Matching Semi-Supervised Object Detection": a class gets as many pseudo-boxes in an
unlabeled example, on average, as it has objects in an annotated one, whatever scores a detector gives after so much
training. The paper sorts the detections of all unlabeled examples from time to time; here, a histogram of the scores of
recent batches takes their place, so that the thresholds follow the teacher.
"""

import torch
from torch import Tensor, nn

from sft_lightning.detection.base import Detections
from sft_lightning.utils.distributed import sum_over_ranks

_BINS = 1000
_DECAY = 0.95  # of the histogram at each batch, so that about 20 batches count


class LabelMatch(nn.Module):
    """Counts of objects and scores over all processes, from which the threshold of each class follows.

    Attributes:
        objects: Objects of each class in annotated examples, and the number of these examples, int64, (C + 1,).
        scores: Detections of each class and bin of scores in recent unlabeled examples, and the number of these,
            float32, (C * 1000 + 1,).
    """

    objects: Tensor
    scores: Tensor

    def __init__(self, num_classes: int) -> None:
        """Start without counts.

        Args:
            num_classes: Number of classes C.
        """
        super().__init__()
        self.register_buffer("objects", torch.zeros(num_classes + 1, dtype=torch.int64))
        self.register_buffer("scores", torch.zeros(num_classes * _BINS + 1))

    @torch.no_grad()
    def count_objects(self, y: Tensor) -> None:
        """Count the objects of an annotated batch.

        Args:
            y: Targets, (B, M, 6), as in `sft_lightning.data.vision.boxes`.
        """
        classes = y[..., 0][(y[..., 0] >= 0) & (y[..., 5] == 0)].long()
        counts = torch.bincount(classes, minlength=len(self.objects) - 1)
        self.objects += _sum_with_examples(counts, len(y))

    @torch.no_grad()
    def count_scores(self, found: Detections) -> None:
        """Count the scores of the teacher in an unlabeled batch.

        Args:
            found: Detections.
        """
        is_found = found.classes >= 0
        bins = (found.scores[is_found] * _BINS).long().clamp(0, _BINS - 1)
        counts = torch.bincount(found.classes[is_found] * _BINS + bins, minlength=len(self.scores) - 1)
        self.scores.mul_(_DECAY).add_(_sum_with_examples(counts, len(found.scores)))

    def find_thresholds(self) -> Tensor:
        """Return the score from which a class has as many detections as objects, (C,); 2 for one without objects."""
        objects, examples = self.objects[:-1], self.objects[-1].clamp_min(1)
        wanted = objects / examples * self.scores[-1]
        from_top = self.scores[:-1].view(len(objects), _BINS).flip(1).cumsum(1)
        bins = (from_top <= wanted[:, None]).sum(1)
        return torch.where(objects > 0, 1 - bins / _BINS, 2.0)


def _sum_with_examples(counts: Tensor, examples: int) -> Tensor:
    """Append the number of examples to counts, and sum both over all processes."""
    return sum_over_ranks(torch.cat([counts, counts.new_full((1,), examples)]))
