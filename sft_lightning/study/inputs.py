"""Digests of everything that the result of a run depends on, which become part of its key."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from sft_lightning.cli.lightning_cli import DryRunCLI, run
from sft_lightning.cli.logging import silence_logs
from sft_lightning.cli.shipped_configs import locate_configs
from sft_lightning.data.digests import digest_file, digest_folder
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.label_files import read_label_rows
from sft_lightning.data.source import Examples
from sft_lightning.networks.weights import find_weights
from sft_lightning.study.user_code import digest_code
from sft_lightning.utils.errors import InputError, find_input_error
from sft_lightning.utils.yaml_files import read_yaml

Inputs = dict[str, Any]
VARIED = ("seed_everything", "data.init_args.seed", "data.init_args.num_labels")  # what a study sets for each run
_DATA = "data.init_args."
_CONTENTS = ("source", "root", "unlabeled_source", "split_file", "labels")  # their content counts, not their path
_WEIGHTS = ("weights", "head_weights")
# Settings that change no result.
_LEFT_OUT = {
    *VARIED, "run_name", "config", "trainer.enable_progress_bar", f"{_DATA}num_workers", f"{_DATA}cache",
    f"{_DATA}download", f"{_DATA}predict_source",
}  # fmt: skip


class SettingsCLI(DryRunCLI):
    """Command line that parses the settings of `fit`, with nested files and defaults, and builds nothing."""

    def _set_seed(self) -> None:
        """Leave the seed of the process unchanged."""

    def before_instantiate_classes(self) -> None:
        """Check nothing: an invalid run fails with its reason."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Check nothing."""

    def settings(self) -> dict[str, Any]:
        """Return all settings as JSON values."""
        text = self._parser("fit").dump(self.config.fit, skip_none=False, format="json")
        settings: dict[str, Any] = json.loads(text)
        return settings

    def make_data(self) -> Any:
        """Build the data module alone."""
        return self._parser("fit").instantiate_classes(Namespace(data=self.config.fit.data)).data


class InputReader:
    """Reader of the inputs of runs, which reads each source of data once."""

    def __init__(self) -> None:
        """Start without anything read."""
        self._inputs: dict[tuple[str, ...], Inputs] = {}
        self._data: dict[str, Inputs] = {}

    def read(self, argv: Sequence[str], configs: Sequence[Path]) -> Inputs:
        """Return the inputs of a run.

        Args:
            argv: Arguments of its `fit`, without the settings that a study varies.
            configs: Config files among the arguments, whose content counts if they are invalid.

        Returns:
            Digests by name in `config`, `data`, `files` and `code`; `names` has the path behind each digest.

        Raises:
            InputError: The data cannot be read.
        """
        key = tuple(argv)
        if key not in self._inputs:
            self._inputs[key] = self._read(argv, configs)
        return self._inputs[key]

    def _read(self, argv: Sequence[str], configs: Sequence[Path]) -> Inputs:
        try:
            with silence_logs():
                cli = run(["fit", *argv], SettingsCLI)
            assert isinstance(cli, SettingsCLI)
            leaves = dict(_iterate_leaves(cli.settings()))
        except Exception:  # also from custom classes: the run itself fails with its reason
            plain = [argument for argument in argv if argument != "--config" and argument not in map(str, configs)]
            return {"config": {"unread": _digest([[*map(_read_nested, configs)], plain])}}
        names: dict[str, str] = {}
        data = self._read_data(cli, names)
        replaced = {f"{_DATA}{name}" for name in _CONTENTS} if data else set[str]()
        files = _read_files({name: value for name, value in leaves.items() if name not in {*_LEFT_OUT, *replaced}})
        names.update((name, leaves[name]) for name in files)
        replaced |= {name for name in files if name.rpartition(".")[2] in _WEIGHTS}
        groups: dict[str, dict[str, Any]] = {}
        for name, value in leaves.items():
            if name not in _LEFT_OUT and name not in replaced:
                top = name.partition(".")[0]
                groups.setdefault(top if top in ("model", "data", "trainer") else "others", {})[name] = value
        config = {top: _digest(settings) for top, settings in groups.items()}
        code = digest_code(value for value in leaves.values() if isinstance(value, str))
        return {"config": config, "data": data, "files": files, "code": code, "names": names}

    def _read_data(self, cli: SettingsCLI, names: dict[str, str]) -> Inputs:
        """Return digests of a `FewLabelDataModule`; `_read_files` reads the files of other data modules."""
        with silence_logs():
            try:
                data = cli.make_data()
            except Exception as error:
                if input_error := find_input_error(error):
                    raise input_error from error
                return {}  # a custom class: the run itself fails with its reason
            if not isinstance(data, FewLabelDataModule):
                return {}
            given = {"source": data._named, "unlabeled_source": data.unlabeled_source}
            given |= {"split_file": data.split_file, "labels": data.labels}
            names.update({name: value for name, value in given.items() if value is not None})
            key = json.dumps([data.source_key, *given.values()])
            if key not in self._data:
                self._data[key] = _describe_data(data)
        return self._data[key]


def _describe_data(data: FewLabelDataModule) -> Inputs:
    if data.target == "defect":
        data.require_classes("study")
    source = data.source if data.labels is None else data.opened_source
    digests: Inputs = {"source": _describe_examples(source.load(), source.label_names)}
    if data.unlabeled_source is not None:
        second = data.open_unlabeled(data.unlabeled_source)
        digests["unlabeled_source"] = _describe_examples({"unlabeled": second}, ())
    if data.split_file is not None:
        try:
            digests["split_file"] = {"content": digest_file(Path(data.split_file))}
        except OSError as error:
            raise InputError(f"split_file {data.split_file!r} cannot be read: give the split.csv of a run") from error
    if data.labels is not None:
        rows = sorted(row[:3] for row in read_label_rows(Path(data.labels)) if row.label and not row.status)
        digests["labels"] = {"content": _digest([data.class_names, rows])}
    return digests


def _describe_examples(examples: Mapping[str, Examples], label_names: Sequence[str]) -> Inputs:
    """Return digests of the examples, labels and groups, and of their order, which sets the order of batches."""
    contents, order = [], []
    labels: list[Any] = [list(label_names)]
    groups: list[Any] = []
    for name, part in sorted(examples.items()):
        ids = list(part.ids)
        contents.append([name, part.storage.digest(), _digest(sorted(ids))])
        order.append([name, _digest(ids)])
        labels += sorted(
            (one, label_names[k] if k >= 0 else "") for one, k in zip(ids, part.labels.tolist(), strict=True)
        )
        if part.groups is not None:
            groups += sorted(zip(ids, map(str, part.groups), strict=True))
    count = sum(map(len, examples.values()))
    digests = {"images": contents, "labels": labels, "groups": groups, "order": order}
    return {"count": count, **{name: _digest(content) for name, content in digests.items()}}


def _read_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return digests of the files in settings; of a run's folder, the digest of the weights that are loaded from it."""
    digests: dict[str, str] = {}
    for name, value in settings.items():
        if not isinstance(value, str) or value in ("none", "default"):
            continue
        path, last = Path(value), name.rpartition(".")[2]
        if os.path.isdir(path) and last in _WEIGHTS:
            path = find_weights(path, "head" if last == "head_weights" else "backbone")
        if os.path.isfile(path):
            digests[name] = digest_file(path)
        elif os.path.isdir(path) and name.startswith(_DATA):
            digests[name] = digest_folder(path)
    return digests


def _iterate_leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by their full names."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _iterate_leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _read_nested(path: Path) -> list[Any]:
    """Return the content of a config that cannot be parsed, and of the files that it names."""
    visited: set[Path] = set()

    def read(value: Any, folder: Path) -> Iterator[Any]:
        for name, one in _iterate_leaves(value):
            yield name, one
            is_config = isinstance(one, str) and one.endswith((".yaml", ".yml"))
            inner = folder / locate_configs(one, folder) if is_config else None
            if inner is not None and inner.is_file() and inner.resolve() not in visited:
                visited.add(inner.resolve())
                yield from read(read_yaml(inner), inner.parent)

    return list(read(read_yaml(path), path.parent))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
