"""Weights from files: read without running code, matched by name and shape, and reported."""

import json
import pickle  # noqa: TID251  # for the name of its error
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sft_lightning.networks.adapters import merge_weights
from sft_lightning.networks.encoder import Encoder, get_architecture
from sft_lightning.networks.file_networks import choose_network, flatten_networks
from sft_lightning.networks.metadata import check_metadata
from sft_lightning.networks.resampling import Filter, Tensors as Tensors, fit_to_network
from sft_lightning.utils.atomic import open_atomic
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.solution_folder import resolve_solution

_AVERAGE = "average."
_BESIDE = ("regularizer.", "control.")  # networks in a checkpoint that are not the trained one
_SETTINGS = "hyper_parameters"
_MIN_SHARE = 0.5  # of a network's matrices and kernels; other architectures match less than that by chance


@dataclass
class WeightsMatch:
    """Which tensors of a file were loaded into a network.

    Attributes:
        prefix: Prefix of the network's names in the file.
        taken: Names of loaded tensors.
        missing: Names in the network that the file lacks.
        other_shape: Names in both whose shapes differ.
        unused: Names in the file that the network lacks.
        classifier: Names in the file that belong to a classifier, which is not part of the network.
        notes: Phrases about tensors that were resampled, renamed or ignored.
    """

    prefix: str
    taken: list[str]
    missing: list[str]
    other_shape: list[str]
    unused: list[str]
    classifier: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = len(self.taken) + len(self.missing) + len(self.other_shape)
        text = f"{len(self.taken)} of {total} backbone tensors matched"
        for label, names in (
            ("not in the file, so randomly initialized", self.missing),
            ("of another shape, so randomly initialized", self.other_shape),
            ("in the file but not used", self.unused),
            ("classifier in the file", self.classifier),
        ):
            if names:
                text += f"; {label}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        return "; ".join([text, *self.notes])


def find_weights(path: Path, part: Literal["backbone", "head"] = "backbone", setting: str = "") -> Path:
    """Find the weights file that a path refers to.

    Args:
        path: File, or folder of a run or a solution: its `encoder.safetensors` for a backbone, else its last
            checkpoint.
        part: Part of the network that the caller needs.
        setting: Name of the setting, for messages; empty for `weights` or `head_weights`.

    Raises:
        InputError: The path does not exist, or the folder has no weights.
    """
    setting = setting or ("head_weights" if part == "head" else "weights")
    if path.is_dir():
        path = resolve_solution(path)
        for name in ("encoder.safetensors", "checkpoints/last.ckpt")[part == "head" :]:
            if (path / name).is_file():
                return path / name
        raise InputError(
            f"{setting} {str(path)!r} is a folder without encoder.safetensors or checkpoints/last.ckpt: give the "
            "folder of a run (lightning_logs/.../version_0) or a file"
        )
    if not path.is_file():
        raise InputError(f"{setting} {str(path)!r} does not exist: give none, default, a file or the folder of a run")
    return path


def read_weights(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read tensors and metadata without running code from the file.

    Args:
        path: `.safetensors` file, or a checkpoint or state dict that `torch.load(weights_only=True)` accepts.

    Returns:
        Tensors by name, and the metadata that `write_weights` stored; of a checkpoint its `hyper_parameters`, step and
        state of the data instead; of any other file an empty dict.

    Raises:
        InputError: The file is damaged, or holds objects other than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = check_metadata(
                    json.loads((file.metadata() or {}).get("sft_lightning", "{}")), "its description"
                )
                return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
        with torch.serialization.safe_globals([Namespace]):  # plain values, used by publishers for settings
            content = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  # the one place, and safely
    except (pickle.UnpicklingError, KeyError) as error:  # KeyError: of plain text
        raise InputError(
            f"weights {str(path)!r} is damaged or holds objects other than tensors, which could run code: "
            "save its state dict as .safetensors"
        ) from error
    except Exception as error:  # of damaged files torch raises anything: struct.error, IndexError, AssertionError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"weights {str(path)!r} cannot be read ({reason}): fetch or save it again") from error
    if not isinstance(content, Mapping):
        raise InputError(f"weights {str(path)!r} holds no tensors by name: save a state dict")
    metadata = {name: content[name] for name in (_SETTINGS, "global_step", "ImageDataModule") if name in content}
    return flatten_networks(content), metadata


def check_model_settings(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the model's settings from the metadata of a checkpoint, after a check of their types.

    Args:
        metadata: Metadata from `read_weights`.
        path: Path of the checkpoint for the error.

    Returns:
        Settings by name; empty if the checkpoint has none.

    Raises:
        InputError: A setting has another type than a training writes.
    """
    try:
        check_metadata({"step": metadata.get("global_step")}, "it")
        return check_metadata(metadata.get(_SETTINGS, {}), _SETTINGS)
    except ValueError as error:
        raise InputError(
            f"checkpoint {str(path)!r} was not written by `fit` ({error}): fetch or make it again"
        ) from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a `.safetensors` file without its tensors; empty for other files.

    Args:
        path: File that `read_weights` accepts.

    Raises:
        InputError: The file is damaged.
    """
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get("sft_lightning", "{}")))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"weights {str(path)!r} cannot be read ({error}): fetch or save it again") from error


def reject_unmerged_adapters(tensors: Tensors, source: str) -> None:
    """Refuse adapters of other programs, whose scale is not among their tensors.

    Args:
        tensors: Tensors from `read_weights`.
        source: Name of the file for the error.

    Raises:
        InputError: The file holds such an adapter.
    """
    for name in tensors:
        layer, adapter, _ = name.partition(".lora_")
        if adapter and f"{layer}.lora_scale" not in tensors:
            raise InputError(
                f"weights {source!r} hold an adapter beside the network ({name}): merge it (`merge_and_unload()` of "
                "peft) and save the state dict of the network"
            )


def select_evaluated_weights(tensors: Tensors) -> Tensors:
    """Select the weights that were evaluated: averaged ones where a checkpoint has them, with adapters merged.

    Args:
        tensors: Tensors from `read_weights`. The prefix `average.` marks averaged weights. Tensors with the prefix
            `regularizer.` (the initial network of a regularizer) or `control.` (a network that learned from the labels
            alone for comparison) are left out.
    """
    averaged = {n.removeprefix(_AVERAGE): t for n, t in tensors.items() if n.startswith(_AVERAGE)}
    averaged.pop("steps", None)
    return merge_weights({**{n: t for n, t in tensors.items() if not n.startswith((_AVERAGE, *_BESIDE))}, **averaged})


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors to a safetensors file atomically.

    Args:
        path: Path of the file; missing folders are created.
        tensors: Tensors by name.
        metadata: Metadata of JSON types, from which the network can be rebuilt.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with open_atomic(path) as staged:
        save_file(on_cpu, staged, metadata={"sft_lightning": json.dumps(metadata)})


def load_into(
    network: nn.Module,
    tensors: Tensors,
    source: str,
    library_filter: Filter | None = None,
    classifier: str | None = None,
) -> WeightsMatch:
    """Copy the tensors that match by name and shape.

    Names in the file may have any prefix (`backbone.net.`, `module.`, `_orig_mod.`), which `choose_network` finds.
    Tensors of another input size are resampled by the code of the network's library.

    Args:
        network: Network to change in place.
        tensors: Tensors from `read_weights`.
        source: Name of the file for messages.
        library_filter: Function of the network's library that adapts published files, or None.
        classifier: Name of the layer that was cut off the network, or None.

    Returns:
        Names of loaded and other tensors.

    Raises:
        InputError: Too few tensors match, several networks match, or a value cannot be a weight.
    """
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    state = network.state_dict()
    prefix, others = choose_network(state, tensors, source)
    file_state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    file_state, notes = fit_to_network(network, file_state, library_filter)
    taken = [n for n, t in state.items() if n in file_state and file_state[n].shape == t.shape]
    matrices = [n for n, t in state.items() if t.ndim > 1]  # vectors have few lengths and match by chance
    matched = [n for n in taken if state[n].ndim > 1]
    if not matched or len(matched) < _MIN_SHARE * len(matrices):
        match = f"only {len(matched)} of {len(matrices)} matrices and kernels" if matched else "nothing"
        raise InputError(
            f"weights {source!r} fit {match}: the file has {_summarize(sorted(tensors))}, the backbone "
            f"{_summarize(sorted(state))}; give weights of the same architecture"
        )
    _check_values({name: file_state[name] for name in taken if state[name].is_floating_point()}, source)
    network.load_state_dict({n: file_state[n] for n in taken}, strict=False)
    if others:
        notes.append(
            f"taken from {prefix.rstrip('.') or 'the names without a prefix'!r}, not from "
            + ", ".join(repr(p.rstrip(".") or "the names without a prefix") for p in others)
        )
    not_taken = [n for n in state if n not in set(taken)]
    heads = tuple(f"{name}." for name in ("head", f"{prefix}{classifier}")[: 1 if classifier is None else 2])
    used = {prefix + n for n in {**state, **file_state}} | {prefix.removesuffix("net.") + n for n in ("mean", "std")}
    extra = [n for n in file_state if n not in state]
    _check_depth(state, {n: file_state[n] for n in extra if not f"{prefix}{n}".startswith(heads)}, source)
    unused = [prefix + n for n in extra] + [n for n in tensors if n not in used and not n.startswith(tuple(others))]
    unused = [n for n in dict.fromkeys(unused) if n in tensors]
    return WeightsMatch(
        prefix,
        taken,
        missing=[n for n in not_taken if n not in file_state],
        other_shape=[
            f"{n} ({_format_shape(file_state[n])} there, {_format_shape(state[n])} here)"
            for n in not_taken
            if n in file_state
        ],
        unused=[n for n in unused if not n.startswith(heads)],
        classifier=[n for n in unused if n.startswith(heads)],
        notes=notes,
    )


def load_encoder_weights(
    encoder: Encoder, path: Path, library_filter: Filter | None = None
) -> tuple[WeightsMatch, Tensors]:
    """Load the weights of a file into an encoder, and list those of another shape in its `misfits`.

    Args:
        encoder: Encoder to change in place.
        path: Path of the file.
        library_filter: Function of the network's library that adapts published files, or None.

    Returns:
        Names of loaded and other tensors, and all tensors of the file.

    Raises:
        InputError: The file is of another backbone, is a head alone, or does not fit.
    """
    tensors, metadata = read_weights(path)
    if metadata.get("part") == "head":
        raise InputError(f"weights {str(path)!r} is a head without a backbone: give it as head_weights")
    if get_architecture(metadata.get("backbone", encoder.name)) != encoder.architecture:
        raise InputError(
            f"weights {str(path)!r} are of backbone {metadata['backbone']!r}, asked for is {encoder.name!r}: set "
            f"backbone: {metadata['backbone']}"
        )
    reject_unmerged_adapters(tensors, str(path))
    tensors = select_evaluated_weights(tensors)
    match = load_into(encoder.net, tensors, str(path), library_filter, encoder.classifier)
    encoder.misfits = match.other_shape
    return match, tensors


def _check_depth(state: Tensors, extra: Tensors, source: str) -> None:
    """Refuse a deeper network: its first blocks match, but do not compute the features alone."""
    stages = {stage for name in state for stage, _ in _split_numbered(name)}
    blocks = {block for name in state for _, block in _split_numbered(name)}
    numbered = [pair for name, tensor in extra.items() if tensor.ndim > 1 for pair in _split_numbered(name)]
    deeper = list(dict.fromkeys(block for stage, block in numbered if stage in stages and block not in blocks))
    if deeper:
        more = f" and {len(deeper) - 3} more" if len(deeper) > 3 else ""
        raise InputError(
            f"weights {source!r} are of a deeper network: the backbone lacks {', '.join(deeper[:3])}{more}; set "
            "backbone to the architecture of the file, or give weights of the same architecture"
        )


def _split_numbered(name: str) -> list[tuple[str, str]]:
    """Return (parent, numbered module) for each numbered module that a tensor lies in."""
    pieces = name.split(".")
    return [(".".join(pieces[:i]), ".".join(pieces[: i + 1])) for i in range(1, len(pieces)) if pieces[i].isdecimal()]


def _check_values(tensors: Tensors, source: str) -> None:
    """Refuse quantized weights and values that are not finite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.element_size() < 2:  # 8 bits need a scale
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"weights {source!r} hold {kind} numbers for {name}, which mean nothing without their scale: give "
                "weights that are not quantized"
            )
        if not bool(tensor.isfinite().all()):
            raise InputError(
                f"weights {source!r} hold values that are not finite in {name}: give a file from before its training "
                "failed"
            )


def _format_shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _summarize(names: Sequence[str]) -> str:
    return f"{len(names)} tensors ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
