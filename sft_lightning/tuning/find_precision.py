"""`sft-lightning find-precision`: measure whether half precision makes a config faster on this machine.

Often it does not: a CPU without bfloat16 instructions converts back and forth, and in a small network the conversions
cost more than they save.
"""

from collections.abc import Sequence
from statistics import median
from typing import ClassVar

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.cli.lightning_cli import run
from sft_lightning.tuning.dry_run import TrialCLI
from sft_lightning.tuning.throughput import ThroughputMeter, measure_throughput, skip_to_full_training
from sft_lightning.utils.errors import check_min, check_positive
from sft_lightning.utils.tables import align_columns

FULL_PRECISION = "32-true"
MIN_GAIN = 1.05  # speedup in every round from which a precision is suggested


class FindPrecisionCLI(TrialCLI):
    """Trial with options for the number and the duration of rounds."""

    command = "find-precision"
    has_progress_bar: ClassVar[bool] = False

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--rounds` and `--seconds`.

        Args:
            parser: Parser of a subcommand.
        """
        super().add_arguments_to_parser(parser)
        parser.add_argument("--rounds", type=int, default=3, help="Number of timings of each precision.")
        parser.add_argument(
            "--seconds",
            type=float,
            default=2.0,
            help="Seconds of each timing.",
        )

    def before_instantiate_classes(self) -> None:
        """Check both options before the data is opened."""
        super().before_instantiate_classes()
        check_min(1, rounds=self.config.fit.rounds)
        check_positive(seconds=self.config.fit.seconds)


def find_precision(argv: Sequence[str]) -> str:
    """Train for some steps in full and in half precision, in turn, and suggest one.

    Steps are real, with the config's own network, batches and views; the learning rate is 0.

    Args:
        argv: Arguments of `fit`, and `--rounds` and `--seconds`.

    Returns:
        A table, the suggestion, and the option for `fit`.

    Raises:
        InputError: The input is wrong.
    """
    cli = run(["fit", *argv], FindPrecisionCLI)
    given, cuda = cli.config.fit, cli.trainer.strategy.root_device.type == "cuda"
    turn = skip_to_full_training(cli)
    rates: dict[str, list[float]] = {
        name: [] for name in (FULL_PRECISION, "bf16-mixed", *(["16-mixed"] if cuda else []))
    }
    for number in range(given.rounds):
        for name, measured in rates.items():
            rank_zero_info(f"round {number + 1} of {given.rounds}: {name} ...")
            cli.config_init.fit.trainer.precision = name
            pace = ThroughputMeter(turn, given.seconds)
            measure_throughput(cli, pace)
            measured.append(pace.rate)
    return format_precisions(rates)


def format_precisions(rates: dict[str, list[float]]) -> str:
    """Format the measurements and the suggestion as text.

    Args:
        rates: Examples per second of each precision, by round.
    """
    cells = [["precision", "examples/s", "against 32-true"]]
    best = FULL_PRECISION
    for name, measured in rates.items():
        ratios = sorted(rate / plain for rate, plain in zip(measured, rates[FULL_PRECISION], strict=True))
        against = "" if name == FULL_PRECISION else f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        cells.append([name, f"{median(measured):,.0f}", against])
        if ratios[0] >= MIN_GAIN and median(measured) > median(rates[best]):
            best = name
    faster = f"at least {MIN_GAIN - 1:.0%} faster than {FULL_PRECISION} in every round"
    lines = [
        *align_columns(cells, "<><"),
        f"suggested  {best}: " + (f"no other is {faster}" if best == FULL_PRECISION else faster),
        f"for fit    --trainer.precision {best}",
    ]
    if best != FULL_PRECISION:
        lines.append("Whether the accuracy stays, a study of both says: sft-lightning study.")
    return "\n".join(lines)
