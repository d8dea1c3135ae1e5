"""How often do intervals of drawn images hold the mean average precision of new images, and which verdicts are wrong?

    python scripts/bench/box_intervals.py --out scripts/bench/results/box_intervals.json

Nothing is trained: detections are simulated, so that the mean average precision of a detector on many images is known.
An image has some objects of each class and is easy or hard; a detector finds an object with a probability that falls
with that, as exactly as it is easy, and finds things that are not there. Two detectors see the same images: equally
good ones, of which no verdict is right, and one that finds more. A study has a few images in five folds, as in `solve`,
and its intervals and verdicts come from `Draws`, with the factor for folds. Rates over the studies, with the mean width
of the intervals, and the mean of what is reported: of the detections of all folds together, as `solve` does it, and as
the mean over folds. `frequent` has objects of each class in most images; of `rare`, the last class is in one image of
eight.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from provenance import publish

from sft_lightning.detection.bootstrap import MatchRecords
from sft_lightning.detection.held_out_precision import measure_precision
from sft_lightning.detection.metrics import IOUS
from sft_lightning.study.judge import overlap_factor
from sft_lightning.study.resampling import Draws

_FOLDS = 5
_MANY = 4_000  # images on which the mean average precision of a detector is measured
_CLASSES = 3
_NAMES = ("holds", "width", "helped", "hurt", "reported", "mean_over_folds")
Array = NDArray[np.float64]


def simulate(draw: np.random.Generator, objects: NDArray[np.int64], ease: Array, quality: float) -> MatchRecords:
    """Simulate the detections of a detector.

    Args:
        draw: Source of random numbers.
        objects: Number of objects of each class in each image, (N, C).
        ease: How easy each image is, 0 to 1, (N,).
        quality: Probability to find an object of an image of medium ease.
    """
    image, kind = (np.repeat(one, objects.ravel()) for one in (np.repeat(np.arange(len(objects)), _CLASSES), np.tile(
        np.arange(_CLASSES), len(objects)
    )))  # fmt: skip
    found = draw.random(len(image)) < np.clip(quality + 0.5 * (ease[image] - 0.5), 0, 1)
    image, kind = image[found], kind[found]
    overlap = draw.beta(4 + 6 * ease[image], 2)
    false = draw.poisson(1.5, objects.shape)
    wrong, other = np.nonzero(false)
    score = np.concatenate([draw.beta(2 + 3 * ease[image], 2), draw.beta(1, 4, len(wrong))])
    is_right = np.concatenate([overlap[:, None] >= IOUS, np.zeros((len(wrong), len(IOUS)), bool)])
    kinds, images = np.concatenate([kind, other]), np.concatenate([image, wrong])
    return MatchRecords(images, kinds, score, is_right, np.zeros_like(is_right), objects).sort()


def draw_images(draw: np.random.Generator, count: int, is_rare: bool) -> tuple[NDArray[np.int64], Array]:
    """Return the number of objects of each class in each image, (N, C), and how easy each is, (N,)."""
    objects = draw.poisson(1.2, (count, _CLASSES))
    if is_rare:
        objects[:, -1] *= draw.random(count) < 1 / 8
    return objects, draw.random(count)


def measure(draw: np.random.Generator, count: int, is_rare: bool, qualities: tuple[float, float]) -> Array:
    """Return the mean average precision of both detectors on many images, (2,)."""
    objects, ease = draw_images(draw, count, is_rare)
    every = (simulate(draw, objects, ease, quality) for quality in qualities)
    return np.array([measure_precision(one, np.ones((1, count)), range(_CLASSES))[0] for one in every])


def judge(draw: np.random.Generator, count: int, is_rare: bool, truth: Array, qualities: tuple[float, float]) -> Array:
    """Judge one study.

    Returns:
        Whether the interval holds, its width, whether the first "helped" and "hurt", what is reported, and the mean
        over folds, (6,).
    """
    objects, ease = draw_images(draw, count, is_rare)
    folds = draw.permutation(np.arange(count) % _FOLDS)
    draws = Draws(count, None, overlap_factor(folds[None]), int(draw.integers(2**31)))
    every = [simulate(draw, objects, ease, quality) for quality in qualities]
    ours, theirs = (measure_precision(one, draws.weights, range(_CLASSES)) for one in every)
    estimate, verdict = draws.estimate(ours), draws.compare(ours, theirs).verdict
    holds, width = estimate.low <= truth[0] <= estimate.high, estimate.high - estimate.low
    by_fold = measure_precision(every[0], folds == np.arange(_FOLDS)[:, None], range(_CLASSES)).mean()
    return np.array([holds, width, verdict == "helped", verdict == "hurt", estimate.mean, by_fold], dtype=np.float64)


def main() -> None:
    """Simulate studies of several sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--quality", type=float, default=0.6)
    parser.add_argument("--better", type=float, default=0.15, help="what the better detector finds more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for is_rare in (False, True):
        for first, kind in ((args.quality, "equal"), (args.quality + args.better, "better")):
            qualities = first, args.quality
            truth = measure(np.random.default_rng(args.seed), _MANY, is_rare, qualities)
            for count in args.images:
                draw = np.random.default_rng([args.seed, count])
                rows = [judge(draw, count, is_rare, truth, qualities) for _ in range(args.studies)]
                found = dict(zip(_NAMES, np.mean(rows, 0).round(3).tolist(), strict=True))
                name = f"{'rare' if is_rare else 'frequent'}, {kind}, {count} images"
                about = {"map": round(float(truth[0]), 3), "difference": round(float(truth[0] - truth[1]), 3)}
                results[name] = about | found
                print(name, results[name], flush=True)
    publish(args, {"rates": results})


if __name__ == "__main__":
    main()
