"""Boundary F1 against SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from sft_lightning.tasks.boundary_f1 import BoundaryF1, find_tolerance


def outline(mask: np.ndarray, counted: np.ndarray) -> np.ndarray:
    eroded = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(2, 1), border_value=1)
    near_unknown = ndimage.binary_dilation(~counted, np.ones((3, 3)))
    found: np.ndarray = mask & ~eroded & ~near_unknown
    return found


def by_scipy(predicted: Tensor, target: Tensor, classes: int, tolerance: float) -> float:
    """Compute the same with distance transforms, image by image and class by class."""
    means = []
    for c in range(classes):
        scores = []
        for guess, truth in zip(predicted.numpy(), target.numpy(), strict=True):
            found, true = (outline(x == c, truth >= 0) for x in (guess, truth))
            if not found.any() and not true.any():
                continue
            if not found.any() or not true.any():
                scores.append(0.0)
                continue
            precision = (ndimage.distance_transform_edt(~true)[found] <= tolerance).mean()
            recall = (ndimage.distance_transform_edt(~found)[true] <= tolerance).mean()
            scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        if scores:
            means.append(np.mean(scores))
    return float(np.mean(means))


def draw_blobs(count: int, classes: int, side: int, seed: int) -> Tensor:
    noise = np.random.default_rng(seed).normal(size=(count, classes, side, side))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 4, 4)).argmax(1))


@pytest.mark.parametrize("side", [32, 300])
def test_it_equals_distances_by_scipy(side: int) -> None:
    count = 6 if side == 32 else 2
    target, predicted = draw_blobs(count, 4, side, 0), draw_blobs(count, 4, side, 1)
    predicted[:, : side // 2] = target[:, : side // 2].roll(2, 2)  # outlines that nearly agree
    predicted[predicted == 3] = 2
    target[0, :5, :9] = -1
    target[1] = target[1].clamp_min(1)
    tolerance = find_tolerance(side, side)
    assert tolerance == max(1, 0.0075 * math.hypot(side, side))
    metric = BoundaryF1(5)  # the last class is nowhere
    for rows in torch.arange(count).split(4):
        metric.update(predicted[rows], target[rows])
    expected = by_scipy(predicted, target, 5, tolerance)
    assert 0.1 < expected < 0.9
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_edges_of_the_image_and_of_ignored_pixels_are_no_boundary() -> None:
    target = torch.zeros(1, 16, 16, dtype=torch.int64)
    target[:, 8:] = -1
    metric = BoundaryF1(2)
    metric.update(torch.zeros_like(target), target)
    assert metric.compute().isnan()
    target[:, :4] = 1
    metric.update(target.clamp_min(0), target)
    assert metric.compute() == 1
