"""Python code that uses an exported file, as it stands on its model card."""

from pathlib import Path
from typing import Any

from sft_lightning.export.program_form import find_form


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
        lines.append("probabilities = np.exp(logits - logits.max(1, keepdims=True))")
        lines.append("probabilities /= probabilities.sum(1, keepdims=True)")
        if metadata["class_names"]:
            lines.append(f'names = json.load(open("{metadata_path(file).name}", encoding="utf-8"))["class_names"]')
        shown = "names[probabilities[0].argmax()]" if metadata["class_names"] else "probabilities[0].argmax()"
        lines.append(f"print({shown}, probabilities[0].max())")
    return "\n".join(lines)


def metadata_path(file: Path) -> Path:
    """Return the path of a file's JSON: one for each format, so that exports do not overwrite each other's.

    Args:
        file: Exported file.
    """
    return file.with_suffix(".json") if file.suffix == ".safetensors" else file.with_name(f"{file.name}.json")


def _format_option(setting: str, file: Path) -> str:
    return f"# sft-lightning fit --config ... --model.init_args.{setting} {file.name}"
