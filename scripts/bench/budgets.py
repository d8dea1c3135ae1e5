"""Define the performance budgets: for each, what is measured, what it is compared with, and the target.

To add one, append to `BUDGETS`. Its benchmark is `scripts/bench/NAME.py`, which takes `--out FILE` and writes a JSON
file that has, under the keys in `where`, a list with one number per pair, or a single number. `run_all --quick` passes
the options in `QUICK`, or `--quick` where a benchmark is not listed; otherwise `run_all` passes the options in `FULL`.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Budget:
    """A target for one figure of a benchmark.

    Attributes:
        bench: Name of the benchmark's script, without `.py`.
        where: Keys that lead to the numbers in the benchmark's JSON, separated by slashes.
        what: Description of the figure.
        against: Description of what the figure is compared with.
        better: Whether `more` or `less` is better.
        target: Bound on the median: the minimum where more is better, else the maximum.
        unit: Unit of the numbers.
    """

    bench: str
    where: str
    what: str
    against: str
    better: Literal["more", "less"]
    target: float
    unit: str = "times"

    @property
    def name(self) -> str:
        """Name of the budget, which is unique."""
        return f"{self.bench}/{self.where}"

    def read_numbers(self, result: Mapping[str, Any]) -> list[float]:
        """Return the numbers of a benchmark's result, one per pair.

        Args:
            result: JSON of the benchmark.

        Raises:
            KeyError: The result lacks a key of `where`.
            ValueError: The list of numbers is empty.
        """
        value: Any = result
        for key in self.where.split("/"):
            value = value[key]
        numbers = [float(number) for number in (value if isinstance(value, list) else [value])]
        if not numbers:
            raise ValueError(f"no numbers at {self.where}")
        return numbers

    def evaluate(self, numbers: Sequence[float]) -> dict[str, Any]:
        """Compare the median with the target and return a row of the table.

        Args:
            numbers: Numbers of the pairs.
        """
        median = statistics.median(numbers)
        met = median >= self.target if self.better == "more" else median <= self.target
        return {
            "name": self.name, "what": self.what, "against": self.against, "unit": self.unit, "numbers": list(numbers),
            "median": median, "lowest": min(numbers), "highest": max(numbers),
            "better": self.better, "target": self.target, "met": met,
        }  # fmt: skip


# Options that make a benchmark small, where it has no `--quick` of its own.
QUICK = {
    "training_speed": ["--pairs=1", "--images=1280", "--epochs=3"],
    "semi_supervised": ["--pairs=1", "--networks", "conv", "--steps=1"],
    "feature_cache": ["--backbone=conv", "--image_size=32", "--labels=64", "--epochs=3"],
    "startup": ["--rounds=1", "--warm=0"],
    "checkpoint_cost": ["--networks", "conv", "--pairs=1", "--steps=52"],
    "image_folder": ["--images=64", "--width=100", "--rounds=1", "--times=2"],
    "streaming": ["--sizes", "500", "1000", "--kinds", "shards", "--seconds=1"],
    "step_overhead": ["--pairs=2", "--steps=20"],
    "cpu_precision": [
        "--backbone=conv", "--side=32", "--accuracy_side=32", "--batch=4", "--rounds=1", "--seconds=0.1", "--seeds=1",
        "--steps=3",
    ],
}  # fmt: skip
# Options that skip what no budget needs, or measure it for a shorter time.
FULL = {
    "training_speed": ["--pairs=3"],
    "cpu_precision": ["--parts", "speed", "--batch=8"],  # more take minutes where half precision is emulated
    "checkpoint_cost": ["--networks", "conv", "--pairs=3"],
    "image_folder": ["--images=800", "--rounds=3", "--times=5"],
    "streaming": ["--seconds=20"],
}

PER_SAMPLE, SLICED = "per-sample `DataLoader` loop", "sliced plain loop with fused Adam"
FOLDER = "`ImageFolder`, PIL, `DataLoader`"
LAMDA = "LAMDA-SSL 1.0.2, the fastest way to run it"
EAGER = "plain loop in full precision"
FIXMATCH, PLAIN = "FixMatch's step, images/s", "plain loop, all in one batch with gradient"
BUDGETS = [
    Budget("training_speed", "autoencoder/times_faster_than_per_sample", "autoencoder, speed", PER_SAMPLE, "more", 4),
    Budget("training_speed", "fine_tune/times_faster_than_per_sample", "fine-tuning, speed", PER_SAMPLE, "more", 4),
    Budget("training_speed", "autoencoder/times_the_sliced_loop", "autoencoder, time", SLICED, "less", 1.5),
    Budget("training_speed", "fine_tune/times_the_sliced_loop", "fine-tuning, time", SLICED, "less", 2),
    Budget("step_overhead", "overhead", "step overhead", "plain loop, same batches", "less", 500, "µs a step"),
    Budget("semi_supervised", "conv/framework_speed_over/one_batch", f"{FIXMATCH}, small CNN", PLAIN, "more", 1.4),
    Budget("semi_supervised", "wrn_28_2/framework_speed_over/one_batch", f"{FIXMATCH}, WRN-28-2", PLAIN, "more", 1.4),
    Budget("semi_supervised", "conv/framework_speed_over/lamda_ssl", f"{FIXMATCH}, small CNN", LAMDA, "more", 2),
    Budget("semi_supervised", "wrn_28_2/framework_speed_over/lamda_ssl", f"{FIXMATCH}, WRN-28-2", LAMDA, "more", 2),
    Budget("image_folder", "later_epoch_by_image_folder", "files at 224 from the cache, speed", FOLDER, "more", 5),
    Budget("image_folder", "first_epoch_by_image_folder", "files at 224, cache being filled, speed", FOLDER, "more", 1),
    Budget("feature_cache", "times_faster", "epoch of a linear probe, speed", "features recomputed", "more", 20),
    Budget("cpu_precision", "speed/chosen_over_plain", "ResNet-18 at 224 on a CPU, images/s", EAGER, "more", 1.7),
    Budget("startup", "first_step_ratios", "time to the first step", "bare LightningCLI", "less", 1.1),
    Budget("startup", "seconds/help", "`--help`", "the clock", "less", 2, "s"),
    Budget("startup", "seconds/unknown option", "a mistake in the command", "the clock", "less", 2, "s"),
    Budget("checkpoint_cost", "conv/share_by_the_clock", "saves on the way", "the training", "less", 0.02, "of it"),
    Budget("streaming", "bytes_for_each_image/shards", "memory of shards", "their images", "less", 64, "bytes each"),
    Budget("growth", "memory/peak_over_bytes", "memory of data held in it", "bytes of the pixels", "less", 1.2),
]  # fmt: skip
