"""Encoders by name, whatever their modality: those of this package, of a library, or a class of the user's own."""

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sft_lightning.modalities import get_modality, load
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.weights import Tensors, find_weights, load_encoder_weights, read_weights
from sft_lightning.utils.errors import InputError, did_you_mean
from sft_lightning.utils.inputs import InputSpec

Numbers = float | Sequence[float]
_CLASS_PATH = re.compile(r"(?:\w+\.)+[A-Z]\w*")  # timm's names have dots, too, and small letters


class _Builder(Protocol):
    def __call__(
        self, name: str, spec: InputSpec, weights: str, mean: Numbers | None, std: Numbers | None
    ) -> tuple[Encoder, Tensors]: ...


def build_encoder(
    name: str,
    input_spec: InputSpec | Mapping[str, Any] | Sequence[int],
    weights: str = "none",
    mean: Numbers | None = None,
    std: Numbers | None = None,
    imports: bool = True,
) -> tuple[Encoder, Tensors]:
    """Build an encoder and load its weights.

    Args:
        name: Name of a network of the modality, or the class path of an `Encoder`.
        input_spec: Specification of the inputs, in one of the forms of `InputSpec.parse`.
        weights: `none`, `default` (published weights, downloaded), or the path of a file or run.
        mean: Mean of the normalization; None for that of the weights. For networks of this package or a library.
        std: Standard deviation of the normalization; None for that of the weights.
        imports: Whether a class path is imported. A name from the metadata of a file is not: it could run any module.

    Returns:
        The encoder, and all tensors of the file, which may contain a head.

    Raises:
        InputError: The name is unknown, the inputs do not fit it, or the weights are unavailable or do not fit.
    """
    spec = InputSpec.parse(input_spec)
    if not _CLASS_PATH.fullmatch(name):
        networks = get_modality(spec.modality).networks
        if not networks:
            raise InputError(
                f"backbone {name!r} is not known for {spec.modality} inputs: give the class path of an Encoder, such "
                "as my_networks.MyEncoder"
            )
        build: _Builder = load(networks).build_from_spec
        return build(name, spec, weights, mean, std)
    if mean is not None or std is not None:
        raise InputError(f"mean or std is set, which backbone {name!r} does not take: leave it out")
    kind = _find_class(name, imports)
    if kind.modality != spec.modality:
        raise InputError(f"backbone {name!r} takes {kind.modality} inputs, and the data has {spec.modality}")
    encoder = kind(spec)  # type: ignore[call-arg] # of the subclass
    encoder.name, encoder.input_spec = name, spec
    if weights == "default":
        raise InputError(f"weights is 'default', but backbone {name!r} has no published weights: give none or a path")
    if weights == "none":
        return encoder, {}
    return encoder, load_encoder_weights(encoder, find_weights(Path(weights)))[1]


def use_files_of(run: Path, spec: InputSpec) -> None:
    """Read what encoders are built from, weights aside, from the copies of a run where the original is gone.

    Args:
        run: Folder of the run, or a file in it.
        spec: Inputs of the encoder.

    Raises:
        InputError: Another run has other copies of the same name.
    """
    kept_files = get_modality(spec.modality).kept_files
    if kept_files and isinstance(spec.encoding, str):  # a file may say anything
        load(kept_files)(spec.encoding, run)


def adapt_spec(name: str | None, spec: InputSpec) -> InputSpec:
    """Return the inputs that an encoder takes in place of those of the data, where it takes others of the modality.

    Args:
        name: Name of the encoder, or None.
        spec: Inputs of the data.
    """
    networks = get_modality(spec.modality).networks
    if name is None or not networks:
        return spec
    adapt = getattr(load(networks), "adapt_spec", None)
    adapted: InputSpec = spec if adapt is None else adapt(name, spec)
    return adapted


def rebuild_encoder(path: str | Path) -> Encoder:
    """Rebuild the encoder that an `encoder.safetensors` describes.

    Args:
        path: Path of the file or of its run folder.

    Raises:
        InputError: The file does not name its backbone or its inputs.
    """
    file = find_weights(Path(path))
    _, metadata = read_weights(file)
    spec = InputSpec.from_settings(metadata)
    if "backbone" not in metadata or spec is None:
        raise InputError(f"weights {str(file)!r} do not say which backbone they are of: name it yourself")
    return build_encoder(metadata["backbone"], spec, str(file), imports=False)[0]


def _find_class(name: str, imports: bool) -> type[Encoder]:
    module, _, attribute = name.rpartition(".")
    if imports:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"backbone {name!r} cannot be imported ({error}): give the class path of an Encoder"
            ) from error
        if not (isinstance(found, type) and issubclass(found, Encoder)):
            raise InputError(
                f"backbone {name!r} is not an Encoder: derive it from sft_lightning.networks.encoder.Encoder"
            )
        return found
    imported = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _list_subclasses()}
    if name not in imported:
        raise InputError(
            f"backbone {name!r}{did_you_mean(name, [*imported])} is named by a file and not imported: import {module} "
            "first, if you trust it"
        )
    return imported[name]


def _list_subclasses() -> Iterator[type[Encoder]]:
    kinds = Encoder.__subclasses__()
    while kinds:
        yield (kind := kinds.pop())
        kinds += kind.__subclasses__()
