"""Pre- and postprocessing of an exported file, as data and as Python code that runs as it is."""

from pathlib import Path
from typing import Any

from sft_lightning.data.vision.images import Geometry


def describe_preprocessing(metadata: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Describe, in order, how an image file becomes pixels, as `predict` does it.

    Args:
        metadata: Metadata of the export, with `image_shape`.
        data: Settings of the run's `ImageDataModule`; empty where they are unknown.
    """
    channels, height, width = metadata["image_shape"]
    resize = data.get("resize") or Geometry.resize
    shapes = {"crop": "central square", "pad": "whole image, padded to a square", "squash": "whole image, squashed"}
    share = "share_of_shorter_side" if resize == "crop" else "share_of_each_side"
    ranges = metadata.get("value_ranges")
    return {
        "orientation": "upright, as EXIF has it",
        "background": list(data.get("background") or Geometry.background),
        "color": "gray" if channels == 1 else "RGB",
        **({"value_ranges": ranges} if ranges else {}),  # of images of more than 8 bits: what becomes 0 and 255
        "crop": {"shape": shapes[resize], share: data.get("center_crop") or Geometry.center},
        "resize": {"size": [height, width], "filter": "bilinear with antialiasing, as PIL has it"},
        "layout": "N, C, H, W",
        "known": bool(data),  # else the crop and the background are those that a run has that asks for nothing
    }


def format_snippet(file: Path, metadata: dict[str, Any]) -> str:
    """Write Python code that applies an exported file to `image.png`.

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
    steps, name = metadata["preprocessing"], metadata["output"]["name"]
    mode = "L" if steps["color"] == "gray" else "RGB"
    (height, width), shape = steps["resize"]["size"], steps["crop"]["shape"]
    share = steps["crop"].get("share_of_shorter_side") or steps["crop"]["share_of_each_side"]
    padded = [
        "side = max(image.size)",
        f'square = Image.new("RGBA", (side, side), {(*steps["background"], 255)})',
        "square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))",
        "image = square",
    ]
    square = [
        f"side = min(image.size) * {share}",
        "left, top = (image.width - side) / 2, (image.height - side) / 2",
        "box = (left, top, left + side, top + side)",
    ]
    squashed = [
        f"left, top = image.width * (1 - {share}) / 2, image.height * (1 - {share}) / 2",
        "box = (left, top, image.width - left, image.height - top)",
    ]
    if steps.get("value_ranges"):
        scales = [f"{kind} from {low:g} to {high:g}" for kind, (low, high) in steps["value_ranges"].items()]
        eight = f"scaled to 8 bits: {', '.join(scales)}"
    else:
        eight = "of 8 bits a channel"
    lines = [
        *(["import json", ""] if metadata["part"] == "model" else []),
        "import numpy as np",
        *(["import onnxruntime"] if metadata["format"] == "onnx" else []),
        *(["import torch"] if metadata["format"] == "pt2" else []),
        "from PIL import Image, ImageOps",
        "",
        'image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGBA")' + f"  # {eight}",
        f'over = Image.new("RGBA", image.size, {(*steps["background"], 255)})',
        "image = Image.alpha_composite(over, image)",
        *(padded if "padded" in shape else []),
        f'image = image.convert("{mode}")',
        *(squashed if "squashed" in shape else square),
        f"image = image.resize(({width}, {height}), Image.Resampling.BILINEAR, box=box)",
        f"pixels = np.asarray(image).reshape(1, {height}, {width}, {len(mode)}).transpose(0, 3, 1, 2)  # uint8",
    ]
    if metadata["format"] == "onnx":
        lines.append(f'session = onnxruntime.InferenceSession("{file.name}")')
        lines.append(f'{name} = session.run(["{name}"], {{"images": pixels}})[0]')
    else:
        lines.append(f'program = torch.export.load("{file.name}").module()')
        lines.append(f"{name} = program(torch.from_numpy(pixels.copy())).numpy()")
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
