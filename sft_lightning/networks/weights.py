"""Weights from files: read without running anything, matched by name and shape, and said aloud."""

import json
import pickle  # noqa: TID251  # for the name of its error
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sft_lightning.networks.file_networks import choose_network, flatten_networks
from sft_lightning.networks.merging import merge_weights
from sft_lightning.networks.metadata import check_metadata
from sft_lightning.networks.resampling import Filter, Tensors as Tensors, fit_to_network
from sft_lightning.utils.atomic import open_atomic
from sft_lightning.utils.errors import InputError

_AVERAGE = "average."
_START = "regularizer."
_SETTINGS = "hyper_parameters"


_LEAST = 0.5  # share of a network's matrices and kernels: less is what another architecture has by chance


@dataclass
class WeightsMatch:
    """What a file gave to a network.

    Attributes:
        prefix: What stood before the network's own names in the file.
        taken: Names that were loaded.
        missing: Names of the network that the file lacks.
        other_shape: Names in both whose shapes differ.
        unused: Names of the file that the network lacks.
        classifier: Names of the file that belong to a classifier, which is not part of the network.
        notes: Phrases about what was made to fit, or passed over.
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
        for words, names in (
            ("not in the file, so they start anew", self.missing),
            ("of another shape, so they start anew", self.other_shape),
            ("in the file but not used", self.unused),
            ("classifier in the file", self.classifier),
        ):
            if names:
                text += f"; {words}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        return "; ".join([text, *self.notes])


def find_weights(path: Path, part: Literal["backbone", "head"] = "backbone") -> Path:
    """The file with weights that a path means.

    Args:
        path: A file, or the folder of a run: its `encoder.safetensors` where no head is asked for, else its last
            checkpoint.
        part: What is asked for.

    Raises:
        InputError: There is none.
    """
    setting = "head_weights" if part == "head" else "weights"
    if path.is_dir():
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
    """Reads tensors and what is said about them; nothing in the file is run.

    Args:
        path: `.safetensors`, or a checkpoint or state dict that `torch.load(weights_only=True)` takes.

    Returns:
        Tensors by name, and the description that `write_weights` put beside them; of a checkpoint its
        `hyper_parameters`, its step, the state of its data and nothing more; of any other file an empty one.

    Raises:
        InputError: The file is damaged, or holds objects other than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                about = check_metadata(
                    json.loads((file.metadata() or {}).get("sft_lightning", "{}")), "its description"
                )
                return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
        with torch.serialization.safe_globals([Namespace]):  # plain values, in which publishers keep their settings
            content = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  # the one place, and safely
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {str(path)!r} is damaged or holds objects other than tensors, which could run code: "
            "save its state dict as .safetensors"
        ) from error
    except Exception as error:  # torch names no types for damaged files: struct.error, IndexError, AssertionError, ...
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"weights {str(path)!r} cannot be read ({reason}): fetch or save it again") from error
    about = {}
    if isinstance(content, Mapping):
        about = {name: content[name] for name in (_SETTINGS, "global_step", "ImageDataModule") if name in content}
    else:
        raise InputError(f"weights {str(path)!r} holds no tensors by name: save a state dict")
    return flatten_networks(content), about


def check_model_settings(about: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings of the model in a checkpoint of ours; nothing where it has none.

    Args:
        about: From `read_weights`.
        path: Named in the error.

    Raises:
        InputError: They are of other types than a training writes.
    """
    try:
        check_metadata({"step": about.get("global_step")}, "it")
        return check_metadata(about.get(_SETTINGS, {}), _SETTINGS)
    except ValueError as error:
        raise InputError(
            f"checkpoint {str(path)!r} is none that `fit` wrote ({error}): fetch or make it again"
        ) from error


def read_metadata(path: Path) -> dict[str, Any]:
    """What a `.safetensors` file says of itself, without its tensors; nothing of another file.

    Args:
        path: That `read_weights` has taken.
    """
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(json.loads((file.metadata() or {}).get("sft_lightning", "{}")))


def reject_unmerged_adapters(tensors: Tensors, source: str) -> None:
    """Refuse adapters of other programs, which scale what they add by a number that their tensors do not say.

    Args:
        tensors: From `read_weights`.
        source: Name of the file for the error.

    Raises:
        InputError: There is one.
    """
    for name in tensors:
        layer, adapter, _ = name.partition(".lora_")
        if adapter and f"{layer}.lora_scale" not in tensors:
            raise InputError(
                f"weights {source!r} hold an adapter beside the network ({name}): merge it (`merge_and_unload()` of "
                "peft) and save the state dict of the network"
            )


def select_evaluated_weights(tensors: Tensors) -> Tensors:
    """The plain network that was evaluated: averaged weights where a checkpoint has them, adapters merged.

    Args:
        tensors: From `read_weights`; those of an average are named `average.` and the name in the network, those of a
            regularizer's start, which are left out, `regularizer.`.
    """
    averaged = {n.removeprefix(_AVERAGE): t for n, t in tensors.items() if n.startswith(_AVERAGE)}
    averaged.pop("steps", None)
    return merge_weights({**{n: t for n, t in tensors.items() if not n.startswith((_AVERAGE, _START))}, **averaged})


def write_weights(path: Path, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors as safetensors, whole or not at all.

    Args:
        path: The file; its folder is made.
        tensors: By name.
        about: Primitives that tell how to rebuild what they are of.
    """
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with open_atomic(path) as staged:
        save_file(own, staged, metadata={"sft_lightning": json.dumps(about)})


def load_into(
    network: nn.Module,
    tensors: Tensors,
    source: str,
    library_filter: Filter | None = None,
    classifier: str | None = None,
) -> WeightsMatch:
    """Copy what fits by name and shape.

    The names of the file may carry any prefix (`backbone.net.`, `module.`, `_orig_mod.`), which `choose_network`
    finds; what is of another size is resampled as the network's library does it.

    Args:
        network: Changed in place.
        tensors: From `read_weights`.
        source: Name of the file for messages.
        library_filter: What the network's library does to published files before it loads them, or None.
        classifier: Name of the layer that was cut off the network, or None.

    Returns:
        What was taken and what was not.

    Raises:
        InputError: Nothing or too little fits, several networks fit, or a value cannot be a weight.
    """
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    own = network.state_dict()
    prefix, others = choose_network(own, tensors, source)
    given = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    given, notes = fit_to_network(network, given, library_filter)
    taken = [n for n, t in own.items() if n in given and given[n].shape == t.shape]
    matrices = [n for n, t in own.items() if t.ndim > 1]  # vectors have few lengths, and fit by chance
    fitting = [n for n in taken if own[n].ndim > 1]
    if not fitting or len(fitting) < _LEAST * len(matrices):
        few = f"only {len(fitting)} of {len(matrices)} matrices and kernels" if fitting else "nothing"
        raise InputError(
            f"weights {source!r} fit {few}: the file has {_some(sorted(tensors))}, the backbone {_some(sorted(own))}; "
            "give weights of the same architecture"
        )
    _refuse_values({name: given[name] for name in taken if own[name].is_floating_point()}, source)
    network.load_state_dict({n: given[n] for n in taken}, strict=False)
    if others:
        notes.append(
            f"taken from {prefix.rstrip('.') or 'the names without a prefix'!r}, not from "
            + ", ".join(repr(p.rstrip(".") or "the names without a prefix") for p in others)
        )
    rest = [n for n in own if n not in set(taken)]
    heads = tuple(f"{place}." for place in ("head", f"{prefix}{classifier}")[: 1 if classifier is None else 2])
    used = {prefix + n for n in {**own, **given}} | {prefix.removesuffix("net.") + n for n in ("mean", "std")}
    extra = [n for n in given if n not in own]
    _refuse_deeper(own, {n: given[n] for n in extra if not f"{prefix}{n}".startswith(heads)}, source)
    left = [prefix + n for n in extra] + [n for n in tensors if n not in used and not n.startswith(tuple(others))]
    left = [n for n in dict.fromkeys(left) if n in tensors]
    return WeightsMatch(
        prefix,
        taken,
        missing=[n for n in rest if n not in given],
        other_shape=[f"{n} ({_size(given[n])} there, {_size(own[n])} here)" for n in rest if n in given],
        unused=[n for n in left if not n.startswith(heads)],
        classifier=[n for n in left if n.startswith(heads)],
        notes=notes,
    )


def _refuse_deeper(own: Tensors, extra: Tensors, source: str) -> None:
    """Refuse a network whose stages have more blocks: the first ones fit, but do not compute the features alone."""
    stages = {stage for name in own for stage, _ in _numbered(name)}
    blocks = {block for name in own for _, block in _numbered(name)}
    places = [place for name, tensor in extra.items() if tensor.ndim > 1 for place in _numbered(name)]
    deeper = list(dict.fromkeys(block for stage, block in places if stage in stages and block not in blocks))
    if deeper:
        more = f" and {len(deeper) - 3} more" if len(deeper) > 3 else ""
        raise InputError(
            f"weights {source!r} are of a deeper network: the backbone lacks {', '.join(deeper[:3])}{more}; set "
            "backbone to the architecture of the file, or give weights of the same architecture"
        )


def _numbered(name: str) -> list[tuple[str, str]]:
    """Names of the numbered modules that a tensor lies in, each after the name of what it is numbered in."""
    pieces = name.split(".")
    return [(".".join(pieces[:i]), ".".join(pieces[: i + 1])) for i in range(1, len(pieces)) if pieces[i].isdecimal()]


def _refuse_values(tensors: Tensors, source: str) -> None:
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


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} tensors ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
