"""Measure how often the intervals of `sft_lightning/detection/bootstrap.py` hold the truth, on simulated detections.

    python scripts/bench/map_interval_rates.py --out scripts/bench/results/map_interval_rates.json

Each image has a few objects of three classes, and a difficulty that decides with chance which of them are found, how
exactly, and with what score; false detections have lower scores. The truth is the value of 30,000 further images. The
second detector of a pair sees the same images, and is as good as the first, or better.

`covered` is the share of 95% intervals that hold the truth, of one detector and of the difference of two; `wrong` how
often the one-sided p-value of two equal ones is below 5%, and `found` how often it is so for the better one. `plain`
are intervals of the percentiles of the draws, as a bootstrap gives them without reflection. `bias` is the mean of the
value of the images minus the truth.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from provenance import publish

from sft_lightning.detection.bootstrap import (
    MatchRecords,
    average_classes,
    bootstrap_map,
    compare_maps,
    draw_examples,
    measure_map,
)

Array = NDArray[Any]
CLASSES, IOUS = 3, np.linspace(0.5, 0.95, 10)
SKILLS = {"poor": -1.5, "fair": 0.5, "good": 2.5}  # mean over the images
LEAD = 0.3  # of the better detector
MANY = 30_000


def draw_detectors(images: int, skill: float, lead: float, draw: np.random.Generator) -> list[MatchRecords]:
    """Return the matches of two detectors on the same images, the first of which is better by `lead`."""
    objects = draw.poisson(1.2, (images, CLASSES))
    skills = draw.normal(skill, 0.8, images)
    common = [draw.normal(0, 0.8, objects[:, k].sum()) for k in range(CLASSES)]
    return [detect(objects, skills + more, common, draw) for more in (lead, 0.0)]


def detect(objects: Array, skills: Array, common: list[Array], draw: np.random.Generator) -> MatchRecords:
    """Return the matches of a detector: objects of an ease of their own, found with chance, and false detections."""
    rows: list[tuple[Array, Array, Array, Array]] = []
    for k in range(CLASSES):
        image = np.repeat(np.arange(len(objects)), objects[:, k])
        sure = skills[image] + common[k] + draw.normal(0, 0.6, len(image))
        image, sure = image[sure > 0], sure[sure > 0]
        scores = 1 / (1 + np.exp(0.5 * draw.normal(0, 1, len(image)) - sure))
        overlap = 0.45 + 0.6 * draw.beta(4, 2, len(image)) * (0.5 + 0.5 * scores)
        rows.append((image, np.full(len(image), k), scores, overlap[:, None] >= IOUS))
        false = np.repeat(np.arange(len(objects)), draw.poisson(1.0, len(objects)))
        rows.append((false, np.full(len(false), k), draw.beta(1.5, 4, len(false)), np.zeros((len(false), 10), bool)))
    image, kind, scores, is_right = (np.concatenate(part) for part in zip(*rows, strict=True))
    return MatchRecords(image, kind, scores, is_right, np.zeros_like(is_right), objects.astype(float)).sort()


def measure(skill: float, images: int, repeats: int, draws: int, truth: tuple[float, float]) -> dict[str, float]:
    """Return the rates of one kind of detectors."""
    draw = np.random.default_rng(images)
    better, base = truth
    rates: dict[str, list[float]] = {}
    for seed in range(repeats):
        ours, equal = draw_detectors(images, skill, 0.0, draw)
        low, high = bootstrap_map(ours, draws, seed)
        values = average_classes(ours, draw_examples(images, draws, seed, None))
        below, above = np.nanquantile(values, [0.025, 0.975])
        same = compare_maps(ours, equal, draws, seed)
        ahead, behind = draw_detectors(images, skill, LEAD, draw)
        lead = compare_maps(ahead, behind, draws, seed)
        for name, value in {
            "bias": measure_map(ours) - base,
            "covered": low <= base <= high,
            "plain": below <= base <= above,
            "covered_equal": same.low <= 0 <= same.high,
            "covered_lead": lead.low <= better - base <= lead.high,
            "wrong": same.p_value < 0.05,
            "found": lead.p_value < 0.05,
        }.items():
            rates.setdefault(name, []).append(float(value))
    return {name: round(float(np.mean(values)), 4) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=500, help="simulated test splits of each kind")
    parser.add_argument("--draws", type=int, default=400, help="draws of each bootstrap")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    chosen = parser.parse_args()
    results = []
    for name, skill in SKILLS.items():
        truth = tuple(map(measure_map, draw_detectors(MANY, skill, LEAD, np.random.default_rng(0))))
        for images in (20, 60, 150):
            rates = measure(skill, images, chosen.repeats, chosen.draws, (truth[0], truth[1]))
            row = {"detector": name, "map": round(truth[1], 4), "lead": round(truth[0] - truth[1], 4), **rates}
            results.append({"images": images, **row})
            print(results[-1], flush=True)
    publish(chosen, {"rates": results})


if __name__ == "__main__":
    main()
