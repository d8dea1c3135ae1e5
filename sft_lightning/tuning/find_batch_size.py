"""`sft-lightning find-batch-size`: measure the training throughput by batch size until memory runs out.

Lightning's `BatchSizeFinder` looks for the largest size that fits and trains with it. Beyond some size, however, a
batch only takes longer; and on a CPU, where Linux kills a process that takes too much memory, that search cannot end
well.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.memory import garbage_collection_cuda

from sft_lightning.cli.lightning_cli import SFTCLI, run
from sft_lightning.data.contract import HasBatchSize
from sft_lightning.training.oom import is_out_of_memory, read_available_memory, read_peak_memory
from sft_lightning.tuning.dry_run import TrialCLI
from sft_lightning.tuning.throughput import ThroughputMeter, measure_throughput, skip_to_full_training
from sft_lightning.utils.errors import InputError, check_min, check_positive
from sft_lightning.utils.tables import align_columns

FIRST = 2  # batch normalization has nothing to normalize in one example
MIN_GAIN = 1.05  # speedup from which a larger size counts as better
PATIENCE = 2  # doublings without that gain before the search ends


class FindBatchSizeCLI(TrialCLI):
    """Trial with options for the largest size and the duration."""

    command = "find-batch-size"
    has_progress_bar: ClassVar[bool] = False

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--max` and `--seconds`.

        Args:
            parser: Parser of a subcommand.
        """
        super().add_arguments_to_parser(parser)
        parser.add_argument("--max", type=int, default=4096, help="Largest batch_size to try.")
        parser.add_argument("--seconds", type=float, default=1.0, help="Seconds to time each size.")

    def before_instantiate_classes(self) -> None:
        """Check both options before the data is opened."""
        super().before_instantiate_classes()
        check_min(FIRST, max=self.config.fit.max)
        check_positive(seconds=self.config.fit.seconds)


class SizeResult(NamedTuple):
    """Measurement of one batch size.

    Attributes:
        size: Value of `batch_size`.
        examples: Mean number of examples per step, labeled and unlabeled together; fewer where the data has no more.
        rate: Throughput in examples per second.
    """

    size: int
    examples: float
    rate: float


def find_batch_size(argv: Sequence[str]) -> str:
    """Train for some steps with batch sizes of 2, 4, 8, ... and suggest one.

    Each step is real: forward, backward and optimizer, on labeled and unlabeled examples in the config's own ratio,
    with its views, precision and accumulation. The learning rate is 0, and a backbone that is unfrozen later is trained
    from the first step.

    Args:
        argv: Arguments of `fit`, and `--max` and `--seconds`.

    Returns:
        A table, the suggestion, and the option for `fit`.

    Raises:
        InputError: The input is wrong, or not even the smallest size fits into memory.
    """
    cli = run(["fit", *argv], FindBatchSizeCLI)
    given, data = cli.config.fit, cli.datamodule
    if cli.trainer.world_size > 1:
        raise InputError(
            f"trainer.devices is {cli.trainer.world_size}: batch_size is that of each process, so find it with "
            "trainer.devices: 1 and trainer.strategy: auto"
        )
    if not isinstance(data, HasBatchSize) or not isinstance(data.batch_size, int):
        raise InputError(f"data {type(data).__name__} has no whole number batch_size, which find-batch-size is to set")
    if budget := getattr(data, "batch_budget", None):
        raise InputError(
            f"{budget} limits the batches in place of batch_size, which find-batch-size is to set: unset it"
        )
    turn = skip_to_full_training(cli)
    rows: list[SizeResult] = []
    best, size, memory = 0, FIRST, read_peak_memory()
    while True:
        end = _try_size(cli, size, ThroughputMeter(turn, given.seconds), rows)
        if end:
            break
        if rows[-1].rate >= MIN_GAIN * rows[best].rate:
            best = len(rows) - 1
        before, memory = memory, read_peak_memory()
        free = read_available_memory() if cli.trainer.strategy.root_device.type == "cpu" else None
        if len(rows) - 1 - best >= PATIENCE:
            end = f"{PATIENCE} doublings gained less than {MIN_GAIN - 1:.0%}"
        elif 2 * size > given.max:
            end = f"--max is {given.max}"
        elif len(rows) > 1 and free is not None and 2 * (memory - before) > free:
            end = f"{2 * size} would take more than the {free / 2**30:.1f} GiB of memory that are left"
        if end:
            break
        size *= 2
    return format_sizes(rows, best, end)


def _try_size(cli: SFTCLI, size: int, pace: ThroughputMeter, rows: list[SizeResult]) -> str:
    """Measure a batch size and append the result, or return why the search ends."""
    rank_zero_info(f"batch_size {size} ...")
    end, cli.datamodule.batch_size = "", size
    try:
        measure_throughput(cli, pace)
    except Exception as error:
        if not rows or not is_out_of_memory(error):
            raise
        end = f"memory ran out at {size}"
    cli.model.zero_grad()
    garbage_collection_cuda()  # outside of the exception, whose traceback holds the step's tensors
    if not end and rows and pace.examples <= rows[-1].examples:
        end = "the data has no more examples for a batch"
    if not end:
        rows.append(SizeResult(size, pace.examples, pace.rate))
    return end


def format_sizes(rows: Sequence[SizeResult], best: int, end: str) -> str:
    """Format the measurements and the suggestion as text.

    Args:
        rows: Measurements, at least one.
        best: Position of the suggested size.
        end: Reason why no larger size was tried.
    """
    cells = [[str(row.size), f"{row.examples:,.0f}", f"{row.rate:,.0f}"] for row in rows]
    lines = align_columns([["batch_size", "examples a step", "examples/s"], *cells], ">")
    lines += [
        f"ended      {end}",
        f"suggested  {rows[best].size}: no larger one that was tried is {MIN_GAIN - 1:.0%} faster",
        f"for fit    --data.init_args.batch_size {rows[best].size}",
        "Another batch size may need another learning rate: sft-lightning find-lr.",
    ]
    return "\n".join(lines)
