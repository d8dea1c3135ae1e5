"""Weights from files: read without running anything, matched by name and shape, and said aloud."""

import json
import pickle  # noqa: TID251  # for the name of its error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sft_lightning.errors import InputError
from sft_lightning.files import whole
from sft_lightning.networks.described import described
from sft_lightning.networks.merging import merged

Tensors = dict[str, Tensor]
_AVERAGE = "average."
_START = "regularizer."
_SETTINGS = "hyper_parameters"


@dataclass
class Matched:
    """What a file gave to a network.

    Attributes:
        prefix: What stood before the network's own names in the file.
        taken: Names that were loaded.
        missing: Names of the network that the file lacks.
        other_shape: Names in both whose shapes differ.
        unused: Names of the file that the network lacks.
    """

    prefix: str
    taken: list[str]
    missing: list[str]
    other_shape: list[str]
    unused: list[str]

    def __str__(self) -> str:
        total = len(self.taken) + len(self.missing) + len(self.other_shape)
        text = f"{len(self.taken)} of {total} backbone tensors matched"
        for words, names in (
            ("not in the file", self.missing),
            ("of another shape", self.other_shape),
            ("in the file but not used", self.unused),
        ):
            if names:
                text += f"; {words}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        return text


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
        `hyper_parameters`, its step and nothing more; of any other file an empty one.

    Raises:
        InputError: The file is damaged, or holds objects other than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                about = described(json.loads((file.metadata() or {}).get("sft_lightning", "{}")), "its description")
                return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
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
        about = {name: content[name] for name in (_SETTINGS, "global_step") if name in content}
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
    if not isinstance(content, Mapping):
        raise InputError(f"weights {str(path)!r} holds no tensors by name: save a state dict")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}, about


def settings_of(about: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings of the model in a checkpoint of ours; nothing where it has none.

    Args:
        about: From `read_weights`.
        path: Named in the error.

    Raises:
        InputError: They are of other types than a training writes.
    """
    try:
        described({"step": about.get("global_step")}, "it")
        return described(about.get(_SETTINGS, {}), _SETTINGS)
    except ValueError as error:
        raise InputError(
            f"checkpoint {str(path)!r} is none that `fit` wrote ({error}): fetch or make it again"
        ) from error


def read_about(path: Path) -> dict[str, Any]:
    """What a `.safetensors` file says of itself, without its tensors; nothing of another file.

    Args:
        path: That `read_weights` has taken.
    """
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(json.loads((file.metadata() or {}).get("sft_lightning", "{}")))


def evaluated(tensors: Tensors) -> Tensors:
    """The plain network that was evaluated: averaged weights where a checkpoint has them, adapters merged.

    Args:
        tensors: From `read_weights`; those of an average are named `average.` and the name in the network, those of a
            regularizer's start, which are left out, `regularizer.`.
    """
    averaged = {n.removeprefix(_AVERAGE): t for n, t in tensors.items() if n.startswith(_AVERAGE)}
    averaged.pop("steps", None)
    return merged({**{n: t for n, t in tensors.items() if not n.startswith((_AVERAGE, _START))}, **averaged})


def write_weights(path: Path, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> None:
    """Writes tensors as safetensors, whole or not at all.

    Args:
        path: The file; its folder is made.
        tensors: By name.
        about: Primitives that tell how to rebuild what they are of.
    """
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as staged:
        save_file(own, staged, metadata={"sft_lightning": json.dumps(about)})


def load_into(network: nn.Module, tensors: Tensors, source: str) -> Matched:
    """Copies what fits by name and shape.

    The names of the file may carry any prefix (`backbone.net.`, `module.`, `_orig_mod.`); the one under which most
    tensors fit is taken.

    Args:
        network: Changed in place.
        tensors: From `read_weights`.
        source: Named in the error.

    Raises:
        InputError: Nothing fits, or nothing but counters and the like.
    """
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    own = network.state_dict()
    prefixes = {""} | {name[: name.rfind(".", 0, k) + 1] for name in tensors for k in _dots(name)}

    def fits(prefix: str) -> list[str]:
        return [n for n, t in own.items() if (f := tensors.get(prefix + n)) is not None and f.shape == t.shape]

    prefix = max(sorted(prefixes, key=len), key=lambda p: len(fits(p)))
    taken = fits(prefix)
    if not any(own[name].ndim > 1 for name in taken):
        raise InputError(
            f"weights {source!r} fit nothing: the file has {_some(sorted(tensors))}, the backbone "
            f"{_some(sorted(own))}; give weights of the same architecture"
        )
    network.load_state_dict({n: tensors[prefix + n] for n in taken}, strict=False)
    rest = [n for n in own if n not in set(taken)]
    used = {prefix + n for n in own} | {prefix.removesuffix("net.") + n for n in ("mean", "std")}
    return Matched(
        prefix,
        taken,
        missing=[n for n in rest if prefix + n not in tensors],
        other_shape=[n for n in rest if prefix + n in tensors],
        unused=[n for n in tensors if n not in used],
    )


def _dots(name: str) -> list[int]:
    return [i + 1 for i, letter in enumerate(name) if letter == "."]


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} tensors ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
