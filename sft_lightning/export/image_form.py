"""Programs of images: uint8 pixels, and the code from an image file to them.

The input is uint8 images, as every decoder returns them: a program that divides by 255 and normalizes cannot be fed
pixels in another range, and a float is refused by its type. The number of images of a batch is free, their size is not.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.vision.images import Geometry
from sft_lightning.export.program_form import Given, Program, ProgramForm, format_call, format_imports, list_inputs


class ImageProgram(Program):
    """Module from uint8 images to logits, or to features if it has no head."""

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits or features.

        Args:
            images: Images, uint8, (N, C, H, W).

        Returns:
            Logits (N, K) or features (N, F), float32.
        """
        return self.compute(images.float() / 255)


class ImageForm(ProgramForm):
    """uint8 images, (N, C, H, W)."""

    program = ImageProgram

    def collect(self, data: FewLabelDataModule, name: str) -> list[Given]:
        """Return pixels from 0 to 255."""
        return [{"images": (x * 255).round().to(torch.uint8)} for x in list_inputs(data, name)]

    def decode(self, given: Given) -> Tensor:
        """Return pixels in [0, 1]."""
        return given["images"].float() / 255

    def draw(self, count: int, generator: torch.Generator) -> Given:
        """Return noise."""
        return {"images": torch.randint(0, 256, (count, *self.spec.shape), dtype=torch.uint8, generator=generator)}

    @property
    def free_sides(self) -> dict[str, dict[int, Dim]]:
        """The number of images alone."""
        return {"images": {0: Dim("batch")}}

    def describe(self) -> dict[str, Any]:
        """Return the metadata on the pixels."""
        channels, height, width = self.spec.shape
        wide = ["repetition of one gray channel to three"] if len(self.metadata["mean"]) > channels else []
        shape = ["batch", channels, height, width]
        return {
            "input": {"name": "images", "type": "uint8", "range": [0, 255], "shape": shape},
            "inside": ["division by 255", *wide, "normalization by mean and std"],
        }

    def describe_preprocessing(self, data: dict[str, Any]) -> dict[str, Any]:
        """Describe, in order, how an image file becomes pixels."""
        channels, height, width = self.spec.shape
        resize = data.get("resize") or Geometry.resize
        shapes = {"crop": "central square", "pad": "whole image, padded to a square", "squash": "whole image, squashed"}
        share = "share_of_shorter_side" if resize == "crop" else "share_of_each_side"
        ranges = self.metadata.get("value_ranges")
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

    def explain(self) -> str:
        """Return the sentences on the pixels."""
        shape = ", ".join(map(str, self.metadata["input"]["shape"]))
        guessed = "" if self.metadata["preprocessing"]["known"] else " The data of the run is unknown: crop and "
        guessed += "background below are guesses." if guessed else ""
        return (
            f"Input `images`: uint8, 0 to 255, ({shape}). Another way to resize or crop than the one below gives other "
            f"outputs.{guessed}"
        )

    def explain_limits(self) -> list[str]:
        """Return a sentence on the size of what the network sees."""
        channels, height, width = self.spec.shape
        pixels = f"{width} x {height} {'gray' if channels == 1 else 'color'} pixels"
        shape = self.metadata.get("preprocessing", {}).get("crop", {}).get("shape", "central square")
        outside = ", nothing outside it" if shape == "central square" else ""
        return [f"It sees {pixels} of the {shape}: nothing smaller{outside}."]

    def format_code(self, file: Path) -> list[str]:
        """Return code for `image.png`."""
        steps = self.metadata["preprocessing"]
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
        return [
            *format_imports(self.metadata, "from PIL import Image, ImageOps"),
            "",
            'image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGBA")' + f"  # {eight}",
            f'over = Image.new("RGBA", image.size, {(*steps["background"], 255)})',
            "image = Image.alpha_composite(over, image)",
            *(padded if "padded" in shape else []),
            f'image = image.convert("{mode}")',
            *(squashed if "squashed" in shape else square),
            f"image = image.resize(({width}, {height}), Image.Resampling.BILINEAR, box=box)",
            f"pixels = np.asarray(image).reshape(1, {height}, {width}, {len(mode)}).transpose(0, 3, 1, 2)  # uint8",
            *format_call(file, self.metadata, {"images": "pixels"}),
        ]
