"""How far to fine-tune, by cross-validation on the labeled examples alone.

Each run is an ordinary `fit` with a split file of its own, which holds one fold out and has no test example, so that a
run cannot see the test split. It is judged by its last iterate; nothing is measured on the fold before.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

from sft_lightning import ImageDataModule, __version__
from sft_lightning.cli.lightning_cli import DryRunCLI, run
from sft_lightning.cli.logging import silence_logs
from sft_lightning.data.splits import Split, Splits
from sft_lightning.losses.regularizers.base import ActivationRegularizer, StartRegularizer
from sft_lightning.networks.weights import find_weights
from sft_lightning.runs.lineage import hash_file
from sft_lightning.runs.paths import LOGS, describe_failure
from sft_lightning.transfer.candidates import seen
from sft_lightning.transfer.folds import plan_folds
from sft_lightning.transfer.scores import split_into_folds
from sft_lightning.tuning.degree_grid import Degree, Setting, choose, rows, table
from sft_lightning.utils.atomic import write_json, write_text
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.spreadsheet import format_csv

RESULTS = "degree.json"
_JUDGES = ("EarlyStopping", "ReduceLROnPlateau")


class DegreeCLI(DryRunCLI):
    """Takes what `fit` takes, and the group `degree`."""

    command = "degree"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the group."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(Degree, "degree")

    def with_options(self, options: dict[str, Any]) -> str:
        """The config of `fit` as YAML.

        Args:
            options: New values of settings by their full names.
        """
        config = self.config.fit.clone()
        for name in ("config", "degree"):
            config.pop(name, None)
        for name, value in options.items():
            config[name] = value
        text: str = self._parser("fit").dump(config, skip_none=False)
        return text


class Run(NamedTuple):
    """One training.

    Attributes:
        setting: What is compared.
        fold: Which one is held out.
        key: Digest of all that its result depends on.
        options: What its config has in place of the command's settings.
    """

    setting: Setting
    fold: int
    key: str
    options: dict[str, Any]


def degree(words: Sequence[str]) -> str:
    """What `sft-lightning degree` does: all runs that have no result yet, a table, and a config for `fit`.

    Args:
        words: Of the command line, without the command.

    Returns:
        The table, and where the config is.

    Raises:
        InputError: The input is wrong, or no setting finished.
    """
    cli = run(["fit", *words], DegreeCLI)
    assert isinstance(cli, DegreeCLI)
    _check(cli)
    asked: Degree = cli.config_init.fit.degree
    settings = asked.settings(not isinstance(cli.model.regularizer, StartRegularizer | ActivationRegularizer))
    data = cli.datamodule
    data.setup("fit")
    for path in _starts(cli.config.fit.model.init_args):
        if known := seen(str(path), data):
            rank_zero_info(f"Degree: {path} has learned from {known} of these labels: accuracies will be too good.")
    held_out = folds(data, asked.folds, "unlabeled" in cli.model.batch_parts)
    folder = Path(LOGS) / f"{cli.config.fit.run_name}_degree"
    for k, splits in enumerate(held_out):
        data.write_splits(_split_file(folder, k), splits)
    runs = _runs(cli, settings, held_out, folder)
    accuracies = _train(cli, runs, folder)
    results = {s: [accuracies.get(r.key) for r in runs if r.setting == s] for s in settings}
    best, chosen = choose(results)
    lines = rows(results, best, chosen)
    write_text(folder / "degree.csv", format_csv(lines))
    why = f"# Chosen by sft-lightning degree: {chosen} (see degree.csv beside this file).\n"
    write_text(folder / "fit.yaml", why + cli.with_options(chosen.options()))
    return (
        f"{table(lines)}\n"
        f"Chosen: {chosen}, the least change of the start within one standard error of the best.\n"
        f"  table  {folder / 'degree.csv'}\n"
        f"  train  sft-lightning fit --config {folder / 'fit.yaml'}"
    )


def folds(data: ImageDataModule, number: int, unlabeled: bool) -> list[Splits]:
    """Divide the labeled examples into stratified folds, each held out once as `val`.

    Copies of an image and groups of the source stay together.

    Args:
        data: Data module that is set up.
        number: Number of folds.
        unlabeled: Whether the unlabeled examples are learned from; those of held-out groups never are.

    Returns:
        Splits without any example of the data's own validation and test splits.

    Raises:
        InputError: A class has too few examples or groups.
    """
    own, others = data.splits["labeled"], data.splits["unlabeled"]
    further = Split(others.part, others.indices if unlabeled else [])
    plan = plan_folds(own, data.geometry, number, data.class_names, further)
    for note in plan.notes:
        rank_zero_info(f"Degree: {note}.")
    made = []
    for train, test in split_into_folds(own.labels, plan.folds, data.request.seed, plan.groups, data.class_names):
        away = {plan.joined[i] for i in test}
        rest = [i for i, group in zip(further.indices, plan.further, strict=True) if group not in away]
        made.append(
            {
                "labeled": Split(own.part, [own.indices[i] for i in train]),
                "unlabeled": Split(others.part, rest),
                "val": Split(own.part, [own.indices[i] for i in test]),
                "test": Split(own.part, []),
            }
        )
    return made


def _check(cli: DegreeCLI) -> None:
    config = cli.config.fit
    settings = config.model.init_args
    model = config.model.class_path.rpartition(".")[2]
    if "tune" not in settings:
        raise InputError(f"model {model} has no setting tune: degree compares classifiers, FineTuneClassifier say")
    if not isinstance(cli.datamodule, ImageDataModule):
        raise InputError(
            f"data {config.data.class_path.rpartition('.')[2]} reads no split_file: degree needs an ImageDataModule"
        )
    if config.ckpt_path is not None:
        raise InputError(
            "ckpt_path is set, but degree trains anew: give what to start from as --model.init_args.weights"
        )
    if cli.trainer.world_size > 1:
        raise InputError(
            f"trainer.devices gives {cli.trainer.world_size} processes, but degree trains its short runs on one: set "
            "--trainer.devices 1"
        )
    told = str([config.trainer.callbacks, config.model])
    for name in _JUDGES:
        if name in told:
            raise InputError(f"{name} looks at a validation, which the runs of degree do without: leave it out")
    if config.degree.regularizer_weight is not None:
        if settings.regularizer is None:
            raise InputError("degree.regularizer_weight is set, but the model has no regularizer: set one, or null")
        if "weight" not in (settings.regularizer.get("init_args") or {}):
            name = settings.regularizer.class_path.rpartition(".")[2]
            raise InputError(
                f"degree.regularizer_weight is set, but regularizer {name} has no setting weight: set null"
            )


def _split_file(folder: Path, fold: int) -> Path:
    return folder / f"fold_{fold}.csv"


def _runs(cli: DegreeCLI, settings: list[Setting], held_out: list[Splits], folder: Path) -> list[Run]:
    """All runs, those of one setting after each other."""
    config = cli.config.fit
    given = config.trainer.callbacks or []
    callbacks = given if isinstance(given, list) else [given]
    fixed = {
        "data.init_args.on_leak": "drop",  # copies within the labels are no leak before the folds make them one
        "trainer.callbacks": [c for c in callbacks if not c.class_path.endswith("Checkpoint")],
        "trainer.enable_checkpointing": False,
        "trainer.enable_progress_bar": False,
        "trainer.limit_val_batches": 0,
    }
    start = _digest([__version__, *(hash_file(path) for path in _starts(config.model.init_args))])
    pictures = _pictures([cli.datamodule.splits[name] for name in {"labeled", *cli.model.batch_parts}])
    contents = [_content(splits, pictures) for splits in held_out]
    found = []
    for setting in settings:
        name = str(setting).replace(", ", "-").replace(" ", "_")
        options = {**fixed, **setting.options()}
        what = cli.with_options(options)
        for k, content in enumerate(contents):
            own = {"run_name": f"{folder.relative_to(LOGS)}/{name}/fold_{k}"}
            own["data.init_args.split_file"] = str(_split_file(folder, k))
            found.append(Run(setting, k, _digest([start, what, content]), {**options, **own}))
    return found


def _train(cli: DegreeCLI, runs: list[Run], folder: Path) -> dict[str, float]:
    """Trains what has no result yet; gives back all results by their keys."""
    known = _known(folder / RESULTS)
    accuracies = {key: float(result["accuracy"]) for key, result in known.items()}
    missing = [one for one in runs if one.key not in known]
    rank_zero_info(f"Degree: {len(runs)} runs, {len(runs) - len(missing)} of them done before.")
    for one in {one.setting: one for one in missing}.values():  # what cannot be is told before the first training
        try:
            with silence_logs():
                run(["fit", "--config", _written(cli, one, folder)], DegreeCLI)
        except Exception as error:
            raise InputError(f"degree compares {one.setting}, which cannot be: {describe_failure(error)}") from error
    begin = time.monotonic()
    for number, one in enumerate(missing, 1):
        try:
            with silence_logs():
                accuracy = _accuracy(_written(cli, one, folder))
        except Exception as error:
            outcome = f"failed: {describe_failure(error)}"
        else:
            outcome = f"accuracy {accuracy:.4f}"
            accuracies[one.key] = accuracy
            known[one.key] = {**one.setting._asdict(), "fold": one.fold, "accuracy": accuracy}
            write_json(folder / RESULTS, known)
        left = len(missing) - number
        minutes = (time.monotonic() - begin) / number * left / 60
        told = f"Run {number} of {len(missing)}: {one.setting}, fold {one.fold}: {outcome}"
        rank_zero_info(f"{told}; {left} left, about {minutes:.1f} min.")
    return accuracies


def _written(cli: DegreeCLI, one: Run, folder: Path) -> str:
    path = folder / "run.yaml"
    write_text(path, cli.with_options(one.options))
    return str(path)


def _accuracy(config: str) -> float:
    """Of the last iterate, on the fold that was held out."""
    cli = run(["fit", "--config", config])
    cli.trainer.limit_val_batches = 1.0
    (metrics,) = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    return float(metrics["val/accuracy"])


def _known(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return {key: {**result, "accuracy": float(result["accuracy"])} for key, result in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): remove it to run all anew") from error


# --- what a result depends on


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _starts(model: Any) -> list[Path]:
    """The files that the model starts from."""
    found = [] if model.weights in ("none", "default") else [find_weights(Path(model.weights))]
    return found if model.head_weights == "none" else [*found, find_weights(Path(model.head_weights), "head")]


def _pictures(splits: list[Split]) -> dict[str, str]:
    """Digest of each picture by its name."""
    return {
        name: found.hex()
        for split in splits
        for name, found in zip(split.ids, split.part.images.fingerprints(split.indices), strict=True)
    }


def _content(splits: Splits, pictures: dict[str, str]) -> str:
    """Of a fold: its pictures, in their splits, and those labels that are not hidden."""
    listed = {
        name: [[pictures[i] for i in split.ids], split.ids, [] if name == "unlabeled" else split.labels.tolist()]
        for name, split in splits.items()
    }
    return _digest(listed)
