"""Python code that uses an exported file, as it stands on its model card."""

from pathlib import Path
from typing import Any

from sft_lightning.export.program_form import find_form
from sft_lightning.tasks.make_task import make_task


def format_snippet(file: Path, metadata: dict[str, Any]) -> str:
    """Write Python code that applies an exported file to one example.

    Args:
        file: Exported file; the code runs in its folder.
        metadata: Metadata of the export.
    """
    if metadata["part"] == "head":
        option = _format_option("head_weights", file)
        return f"# A head goes onto a backbone of {metadata['num_features']} features:\n{option}"
    if "format" not in metadata:
        both = [_format_option("weights", file)] + [_format_option("head_weights", file)] * (
            metadata["part"] == "model"
        )
        return "# A start for another training, with the same classes or others:\n" + "\n".join(both)
    form = find_form(metadata)
    assert form is not None  # of a program
    lines = form.format_code(file)
    if metadata["part"] == "model":
        scale = metadata.get("temperature", {}).get("value", 1.0)
        lines.append(f"logits = logits / {scale}  # the temperature")
        described = metadata_path(file).name if metadata["class_names"] else None
        lines += make_task(metadata.get("target", "class"), metadata["output"]["shape"][1]).format_code(described)
    return "\n".join(lines)


def metadata_path(file: Path) -> Path:
    """Return the path of a file's JSON: one for each format, so that exports do not overwrite each other's.

    Args:
        file: Exported file.
    """
    return file.with_suffix(".json") if file.suffix == ".safetensors" else file.with_name(f"{file.name}.json")


def _format_option(setting: str, file: Path) -> str:
    return f"# sft-lightning fit --config ... --model.init_args.{setting} {file.name}"
