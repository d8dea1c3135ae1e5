"""Published encoders in the form of Hugging Face, read from folders: no code of a folder is run."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft_lightning.utils.errors import InputError, did_you_mean

POOLS = ("mean", "cls")
# Weights that published encoders may lack: outputs that are not used, and what stands for hidden parts in pre-training.
_NEW = re.compile(r"(^|\.)(pooler\.|masked_spec_embed$|mask_token$|position_ids$)")
KEPT: dict[str, Path] = {}  # copies of models by `make_key`, read in place of what is gone or has changed since a run


def split_pool(name: str) -> tuple[str, str]:
    """Return the name of an encoder without its pooling, and the pooling, `mean` by default.

    Args:
        name: Name such as `hf/FOLDER` or `hf/FOLDER:cls`.

    Raises:
        InputError: The pooling is unknown.
    """
    where, _, pool = name.partition(":")
    if pool and pool not in POOLS:
        raise InputError(f"backbone {name!r} ends with {pool!r}{did_you_mean(pool, POOLS)}: give :mean or :cls")
    return where, pool or POOLS[0]


def make_key(name: str) -> str:
    """Return the path of a model's folder, or, without such a folder, its name in the cache of Hugging Face.

    Args:
        name: Name `hf/FOLDER` or `hf/NAME`, with or without a pooling such as `:cls`.
    """
    return str(Path(name.removeprefix("hf/").partition(":")[0]).expanduser().absolute())


def find_file(name: str, file: str) -> Path:
    """Return the path of a file of a published model: in a folder, or in the cache of Hugging Face.

    Args:
        name: Name `hf/FOLDER` or `hf/NAME`, with or without a pooling such as `:cls`.
        file: Name of the file.

    Raises:
        InputError: It is at neither place.
    """
    where = name.removeprefix("hf/").partition(":")[0]
    kept = KEPT.get(make_key(name))
    if kept is not None and (kept / file).is_file():
        return kept / file
    folder = Path(where).expanduser()
    if kept is not None and folder.is_dir():
        raise InputError(
            f"folder {where!r} of {name!r} has changed since the run {str(kept.parent)!r}: use its weights in a "
            "command that does not load the run"
        )
    if folder.is_dir():
        if (folder / file).is_file():
            return folder / file
        raise InputError(f"folder {where!r} of {name!r} has no {file}: give a folder of a model with it")
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError as error:
        raise InputError(f"{name!r} needs transformers: pip install 'sft-lightning[text]'") from error
    try:
        found = try_to_load_from_cache(where, file)
    except ValueError:  # not a name that the hub could have
        found = None
    if not isinstance(found, str):
        raise InputError(
            f"{name!r} is neither a folder nor in the cache of Hugging Face: fetch it with `hf download {where}`, or "
            "give the path of its folder"
        )
    return Path(found)


def load_model(name: str, has_weights: bool, kind: str = "AutoModel") -> Any:
    """Load a model of transformers in single precision, with weights from safetensors alone.

    Args:
        name: Name `hf/FOLDER` or `hf/NAME`, with or without a pooling.
        has_weights: Whether to load the published weights, or to draw them.
        kind: Class of transformers that builds it.

    Raises:
        InputError: The library or the model is missing, or the model cannot be loaded.
    """
    folder = find_file(name, "config.json").parent
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"backbone {name!r} needs transformers: pip install 'sft-lightning[text]'") from error
    try:
        with _silence_transformers():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            made: Any = getattr(transformers, kind)
            if has_weights:
                find_file(name, "model.safetensors")
                net, info = made.from_pretrained(
                    folder,
                    config=config,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
                if kind == "AutoModel":  # a head for hidden tokens may be new
                    _refuse_missing(name, info["missing_keys"])
            else:
                net = made.from_config(config, trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # of damaged files: of four libraries, some of which raise plain Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "ignore_mismatched_sizes" in reason:
            reason = "its config.json and its model.safetensors have weights of other shapes"
        raise InputError(f"backbone {name!r} cannot be loaded: {reason}") from error
    if getattr(net, "pooler", None) is not None:
        net.pooler = None  # its output is not used, and DDP would wait for its gradients
    return net.float()


def _refuse_missing(name: str, missing: Iterable[str]) -> None:
    """Refuse a file without weights of the encoder, which the library would draw at random without a word."""
    lacking = sorted(key for key in missing if not _NEW.search(key))
    if lacking:
        raise InputError(
            f"backbone {name!r} cannot be loaded: its model.safetensors lacks {len(lacking):,} tensors of the model in "
            f"its config.json, such as {lacking[0]!r}"
        )


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Hide progress bars, and the table of tensors that a file lacks or has beside, such as those of a head."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
