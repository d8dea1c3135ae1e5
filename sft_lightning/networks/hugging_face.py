"""Published encoders in the form of Hugging Face, read from folders: no code of a folder is run."""

from pathlib import Path
from typing import Any

from sft_lightning.utils.errors import InputError, did_you_mean

POOLS = ("mean", "cls")


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


def find_file(name: str, file: str) -> Path:
    """Return the path of a file of a published model: in a folder, or in the cache of Hugging Face.

    Args:
        name: Name `hf/FOLDER` or `hf/NAME`, with or without a pooling such as `:cls`.
        file: Name of the file.

    Raises:
        InputError: It is at neither place.
    """
    where = name.removeprefix("hf/").partition(":")[0]
    folder = Path(where).expanduser()
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


def load_model(name: str, has_weights: bool) -> Any:
    """Load a model of transformers in single precision, with weights from safetensors alone.

    Args:
        name: Name `hf/FOLDER` or `hf/NAME`, with or without a pooling.
        has_weights: Whether to load the published weights, or to draw them.

    Raises:
        InputError: The library or the model is missing, or the model cannot be loaded.
    """
    folder = find_file(name, "config.json").parent
    try:
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise InputError(f"backbone {name!r} needs transformers: pip install 'sft-lightning[text]'") from error
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if has_weights:
            find_file(name, "model.safetensors")
            net = AutoModel.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        else:
            net = AutoModel.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"backbone {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    if getattr(net, "pooler", None) is not None:
        net.pooler = None  # its output is not used, and DDP would wait for its gradients
    return net.float()
