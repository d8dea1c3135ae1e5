"""`sft-lightning degree`: choose how far to fine-tune by cross-validation on the labeled examples alone.

Each run is an ordinary `fit` with its own split file, which holds one fold out and contains no test example, so that a
run cannot see the test split. A run is judged by its last iterate; its fold is not evaluated earlier.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

from sft_lightning import __version__
from sft_lightning.cli.lightning_cli import DryRunCLI, run
from sft_lightning.cli.logging import silence_logs
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.splits import Split, Splits
from sft_lightning.losses.regularizers.base import ActivationRegularizer, StartRegularizer
from sft_lightning.networks.weights import find_weights
from sft_lightning.runs.lineage import hash_file
from sft_lightning.runs.paths import LOGS
from sft_lightning.transfer.candidates import count_known_labels
from sft_lightning.transfer.folds import plan_folds
from sft_lightning.transfer.scores import split_into_folds
from sft_lightning.tuning.degree_grid import DegreeGrid, DegreeSetting, choose_setting, tabulate_results
from sft_lightning.utils.atomic import write_json, write_text
from sft_lightning.utils.errors import InputError, describe_failure
from sft_lightning.utils.json_files import read_json
from sft_lightning.utils.spreadsheet import format_csv
from sft_lightning.utils.tables import align_columns

RESULTS = "degree.json"
_VALIDATING_CALLBACKS = ("EarlyStopping", "ReduceLROnPlateau")


class DegreeCLI(DryRunCLI):
    """Command line of `fit` with the group `degree`."""

    command = "degree"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the group `degree`."""
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(DegreeGrid, "degree")

    def dump_config(self, options: dict[str, Any]) -> str:
        """Dump the config of `fit` as YAML.

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


class DegreeRun(NamedTuple):
    """One training.

    Attributes:
        setting: Setting to compare.
        fold: Number of the held-out fold.
        key: Digest of all that its result depends on.
        options: Settings that replace those of the command's config.
    """

    setting: DegreeSetting
    fold: int
    key: str
    options: dict[str, Any]


def compare_degrees(argv: Sequence[str]) -> str:
    """Train all runs that have no result yet, and write a table and a config for `fit`.

    Args:
        argv: Arguments of the command line, without the command.

    Returns:
        The table as text, and the path of the config.

    Raises:
        InputError: The input is wrong, or no setting finished.
    """
    cli = run(["fit", *argv], DegreeCLI)
    assert isinstance(cli, DegreeCLI)
    _check_config(cli)
    asked: DegreeGrid = cli.config_init.fit.degree
    settings = asked.list_settings(not isinstance(cli.model.regularizer, StartRegularizer | ActivationRegularizer))
    data = cli.datamodule
    data.setup("fit")
    for path in _find_start_files(cli.config.fit.model.init_args):
        if known := count_known_labels(str(path), data):
            rank_zero_info(f"Degree: {path} has learned from {known} of these labels: accuracies will be too good.")
    held_out = make_folds(data, asked.folds, "unlabeled" in cli.model.batch_parts)
    folder = Path(LOGS) / f"{cli.config.fit.run_name}_degree"
    for k, splits in enumerate(held_out):
        data.write_splits(_split_file(folder, k), splits)
    runs = _plan_runs(cli, settings, held_out, folder)
    accuracies = _train_missing(cli, runs, folder)
    results = {s: [accuracies.get(r.key) for r in runs if r.setting == s] for s in settings}
    best, chosen = choose_setting(results)
    lines = tabulate_results(results, best, chosen, cli.model.task.metric[0])
    write_text(folder / "degree.csv", format_csv(lines))
    why = f"# Chosen by sft-lightning degree: {chosen} (see degree.csv beside this file).\n"
    write_text(folder / "fit.yaml", why + cli.dump_config(chosen.to_options()))
    return (
        "\n".join(align_columns(lines)) + "\n"
        f"Chosen: {chosen}, the least change of the start within one standard error of the best.\n"
        f"  table  {folder / 'degree.csv'}\n"
        f"  train  sft-lightning fit --config {folder / 'fit.yaml'}"
    )


def make_folds(data: FewLabelDataModule, number: int, use_unlabeled: bool) -> list[Splits]:
    """Divide the labeled examples into stratified folds, each held out once as `val`.

    Copies of an example and groups of the source stay together.

    Args:
        data: Data module that is set up.
        number: Number of folds.
        use_unlabeled: Whether runs learn from the unlabeled examples; those of held-out groups are always left out.

    Returns:
        Splits without any example of the data's own validation and test splits.

    Raises:
        InputError: A class has too few examples or groups.
    """
    labeled, unlabeled = data.splits["labeled"], data.splits["unlabeled"]
    further = Split(unlabeled.part, unlabeled.indices if use_unlabeled else [])
    plan = plan_folds(data, labeled, number, further)
    for note in plan.notes:
        rank_zero_info(f"Degree: {note}.")
    made = []
    memberships = data.labeled_memberships()
    targets = data.make_targets(labeled.labels) if memberships is None else memberships
    for train, test in split_into_folds(targets, plan.folds, data.request.seed, plan.groups, data.class_names):
        away = {plan.joined[i] for i in test}
        rest = [i for i, group in zip(further.indices, plan.further, strict=True) if group not in away]
        made.append(
            {
                "labeled": Split(labeled.part, [labeled.indices[i] for i in train]),
                "unlabeled": Split(unlabeled.part, rest),
                "val": Split(labeled.part, [labeled.indices[i] for i in test]),
                "test": Split(labeled.part, []),
            }
        )
    return made


def _check_config(cli: DegreeCLI) -> None:
    config = cli.config.fit
    settings = config.model.init_args
    model = config.model.class_path.rpartition(".")[2]
    if "tune" not in settings:
        raise InputError(f"model {model} has no setting tune: degree compares classifiers, FineTuneClassifier say")
    if not isinstance(cli.datamodule, FewLabelDataModule):
        raise InputError(
            f"data {config.data.class_path.rpartition('.')[2]} reads no split_file: degree needs a FewLabelDataModule"
        )
    if cli.datamodule.target != "mask":
        cli.datamodule.require_classes("degree")
    if config.ckpt_path is not None:
        raise InputError(
            "ckpt_path is set, but degree starts new runs: give the weights to start from as --model.init_args.weights"
        )
    if cli.trainer.world_size > 1:
        raise InputError(
            f"trainer.devices gives {cli.trainer.world_size} processes, but degree trains its short runs on one: set "
            "--trainer.devices 1"
        )
    text = str([config.trainer.callbacks, config.model])
    for name in _VALIDATING_CALLBACKS:
        if name in text:
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


def _plan_runs(cli: DegreeCLI, settings: list[DegreeSetting], held_out: list[Splits], folder: Path) -> list[DegreeRun]:
    """List all runs, grouped by setting."""
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
    start = _digest([__version__, *(hash_file(path) for path in _find_start_files(config.model.init_args))])
    example_digests = _digest_examples([cli.datamodule.splits[name] for name in {"labeled", *cli.model.batch_parts}])
    contents = [_digest_fold(splits, example_digests, cli.datamodule) for splits in held_out]
    runs = []
    for setting in settings:
        name = str(setting).replace(", ", "-").replace(" ", "_")
        options = {**fixed, **setting.to_options()}
        what = cli.dump_config(options)
        for k, content in enumerate(contents):
            per_fold = {"run_name": f"{folder.relative_to(LOGS)}/{name}/fold_{k}"}
            per_fold["data.init_args.split_file"] = str(_split_file(folder, k))
            runs.append(DegreeRun(setting, k, _digest([start, what, content]), {**options, **per_fold}))
    return runs


def _train_missing(cli: DegreeCLI, runs: list[DegreeRun], folder: Path) -> dict[str, float]:
    """Train the runs without a result, and return the metric of all runs by their keys, such as the accuracy."""
    metric, title = cli.model.task.metric
    known = _read_results(folder / RESULTS)
    accuracies = {key: float(result[metric]) for key, result in known.items() if metric in result}
    missing = [one for one in runs if one.key not in accuracies]
    rank_zero_info(f"Degree: {len(runs)} runs, {len(runs) - len(missing)} of them done before.")
    for one in {one.setting: one for one in missing}.values():  # report impossible settings before training
        try:
            with silence_logs():
                run(["fit", "--config", _write_config(cli, one, folder)], DegreeCLI)
        except Exception as error:
            raise InputError(f"degree compares {one.setting}, which cannot be: {describe_failure(error)}") from error
    begin = time.monotonic()
    for number, one in enumerate(missing, 1):
        try:
            with silence_logs():
                accuracy = _measure(_write_config(cli, one, folder))
        except Exception as error:
            outcome = f"failed: {describe_failure(error)}"
        else:
            outcome = f"{title} {accuracy:.4f}"
            accuracies[one.key] = accuracy
            known[one.key] = {**one.setting._asdict(), "fold": one.fold, metric: accuracy}
            write_json(folder / RESULTS, known)
        left = len(missing) - number
        minutes = (time.monotonic() - begin) / number * left / 60
        message = f"Run {number} of {len(missing)}: {one.setting}, fold {one.fold}: {outcome}"
        rank_zero_info(f"{message}; {left} left, about {minutes:.1f} min.")
    return accuracies


def _write_config(cli: DegreeCLI, one: DegreeRun, folder: Path) -> str:
    path = folder / "run.yaml"
    write_text(path, cli.dump_config(one.options))
    return str(path)


def _measure(config: str) -> float:
    """Train a run and return the metric of its task for its last iterate on the held-out fold."""
    cli = run(["fit", "--config", config])
    cli.trainer.limit_val_batches = 1.0
    (metrics,) = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    return float(metrics[cli.model.task.monitor[0]])


def _read_results(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        results: dict[str, dict[str, Any]] = read_json(path, "delete it to start over")
        return {key: _check_result(result) for key, result in results.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}): delete it to start over") from error


def _check_result(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as it is, whose metric stands beside the setting and the fold."""
    (metric,) = result.keys() - {*DegreeSetting._fields, "fold"}
    return {**result, metric: float(result[metric])}


# --- what a result depends on


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _find_start_files(model: Any) -> list[Path]:
    """List the weight files that the model starts from."""
    files = [] if model.weights in ("none", "default") else [find_weights(Path(model.weights))]
    return files if model.head_weights == "none" else [*files, find_weights(Path(model.head_weights), "head")]


def _digest_examples(splits: list[Split]) -> dict[str, str]:
    """Return the digest of each example, and of its mask if it has one, by its name."""
    return {
        name: digest.hex()
        for split in splits
        for name, digest in zip(split.ids, split.part.storage.contents(split.indices), strict=True)
    }


def _digest_fold(splits: Splits, example_digests: dict[str, str], data: FewLabelDataModule) -> str:
    """Digest a fold: its examples by split, and all labels that are not hidden."""
    listed = {}
    for name, split in splits.items():
        labels = [] if name == "unlabeled" else data.make_targets(split.labels).tolist()
        listed[name] = [[example_digests[i] for i in split.ids], split.ids, labels]
    return _digest(listed)
