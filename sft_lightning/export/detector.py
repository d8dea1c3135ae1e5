"""Export of detectors: safetensors that start other trainings, and ONNX programs from an image to boxes.

A program is traced, since the number of boxes depends on the image, and so takes one image at a time. It is read back,
and its boxes on held-out images of the run, or on those of training without any, must be those of PyTorch.
"""

import warnings
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from sft_lightning.cli.loaded_run import LoadedRun
from sft_lightning.cli.logging import silence_logs
from sft_lightning.detection.base import DetectionHead
from sft_lightning.export.detector_card import format_detector_card
from sft_lightning.export.program_form import find_form
from sft_lightning.export.programs import MAX_BYTES, OPSET, check_format
from sft_lightning.export.usage_snippet import metadata_path
from sft_lightning.networks.encoder import Encoder
from sft_lightning.networks.weights import Tensors, read_weights, select_evaluated_weights, write_weights
from sft_lightning.paradigms.fine_tune_detector import FineTuneDetector
from sft_lightning.runs.trained_network import TrainedNetwork
from sft_lightning.utils.atomic import open_atomic, write_json, write_text
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec

DETECTORS = ("FineTuneDetector", "SemiSupervisedDetector")
CARD = "model_card.md"
_NUM_COMPARED = 16  # images
_TOLERANCE = 1e-3  # of scores, and of corners in sides of the image
_OUTPUTS = ("boxes", "scores", "classes")


class DetectorProgram(nn.Module):
    """Module from one uint8 image to its boxes, scores and classes, by falling score."""

    def __init__(self, backbone: Encoder, head: DetectionHead) -> None:
        """Join the parts.

        Args:
            backbone: Network from images to maps.
            head: Detector on the maps.
        """
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find objects.

        Args:
            images: Image, uint8, (1, C, S, S).

        Returns:
            Corners x1, y1, x2, y2 in pixels of the image, (N, 4), scores, (N,), and classes, int64, (N,).
        """
        (found,) = self.head.find(self.backbone.forward_maps(images.float() / 255), images.shape[-1])
        return found["boxes"], found["scores"], found["labels"] - self.head.first_class


def export_detector(
    run: str,
    trained: TrainedNetwork,
    checkpoint: Path,
    part: str,
    format: str,
    file: Path,
    data: dict[str, Any],
) -> Path:
    """Write a detector or its backbone, with a JSON of the same name.

    Args:
        run: Folder of the run, or a checkpoint.
        trained: What the run says of itself.
        checkpoint: File of its weights.
        part: `model` or `backbone`.
        format: `safetensors` or `onnx`.
        file: Path of the file.
        data: Section `data` of the config of the run.

    Raises:
        InputError: The part or format is not written for detectors, or the program differs from PyTorch.
    """
    if part == "head" or (part == "backbone" and format != "safetensors"):
        raise InputError(
            f"part is {part!r} and format {format!r}, and of detectors the model is written (safetensors, onnx), or "
            "the backbone as safetensors: give --part model"
        )
    if format == "pt2":
        raise InputError("format is 'pt2', in which the number of boxes cannot depend on the image: give --format onnx")
    metadata: dict[str, Any] = {"part": part, "target": "boxes", **trained.metadata}
    if (form := find_form(metadata)) is not None:
        metadata["preprocessing"] = form.describe_preprocessing(data.get("init_args") or {})
    if format == "safetensors":
        tensors = select_evaluated_weights(read_weights(checkpoint)[0])
        kept = ("backbone.",) if part == "backbone" else ("backbone.", "head.")
        write_weights(file, _select(tensors, kept, part), metadata)
    else:
        check_format(part, "onnx", InputSpec.parse(trained.metadata["input_spec"]))
        metadata |= _write_onnx(run, file)
    write_json(metadata_path(file), metadata)
    write_text(file.with_name(CARD), format_detector_card(file, metadata, checkpoint, data.get("init_args") or {}))
    return file


def _select(tensors: Tensors, prefixes: tuple[str, ...], part: str) -> Tensors:
    kept = {name: t for name, t in tensors.items() if name.startswith(prefixes)}
    return {n.removeprefix("backbone."): t for n, t in kept.items()} if part == "backbone" else kept


def _write_onnx(run: str, file: Path) -> dict[str, Any]:
    """Write a program, read it back and compare it with PyTorch; return what its users need to know."""
    with silence_logs():
        opened = LoadedRun(run)
    model = opened.cli.model
    assert isinstance(model, FineTuneDetector)
    model.load_state_dict(read_weights(opened.checkpoint)[0])
    program = DetectorProgram(*model.eval().evaluated_network()).eval()
    channels, side, _ = model.backbone.input_spec.shape
    if sum(p.numel() * p.element_size() for p in program.parameters()) > MAX_BYTES:
        raise InputError("the detector is larger than one file of ONNX holds, 2 GB: give --format safetensors")
    name = next(one for one in ("test", "val", "labeled") if len(opened.data.splits[one]))
    images = [
        (x[None] * 255).round().to(torch.uint8)
        for position in range(min(_NUM_COMPARED, len(opened.data.splits[name])))
        for x in _read(opened, name, position)
    ]
    free = {output: {0: "objects"} for output in _OUTPUTS}
    with open_atomic(file) as staged:
        try:
            # The other exporter, as of torch 2.14, writes no program whose steps depend on how many boxes there are.
            with warnings.catch_warnings(), redirect_stderr(StringIO()), torch.no_grad():
                warnings.simplefilter("ignore")  # of the tracer, about what is constant here
                torch.onnx.export(
                    program, (images[0],), str(staged), input_names=["images"], output_names=[*_OUTPUTS],
                    dynamic_axes=free, opset_version=OPSET, dynamo=False,
                )  # fmt: skip
        except Exception as error:  # the exporter names no types
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"the detector cannot be written as onnx ({reason}): give --format safetensors") from error
        parity = _compare(staged, program, images, side)
    rank_zero_info(
        f"Parity: {file.name} differs from PyTorch by {parity['largest_difference']:.2g} at most (scores, and corners "
        f"in sides of the image), on {parity['images']} images with {parity['detections']:,} detections."
    )
    return {
        "format": "onnx",
        "opset": OPSET,
        "input": {"name": "images", "type": "uint8", "range": [0, 255], "shape": [1, channels, side, side]},
        "inside": ["division by 255", "normalization by mean and std", "choice of boxes (non-maximum suppression)"],
        "output": [
            {"name": "boxes", "type": "float32", "shape": ["objects", 4], "unit": "pixels: x1, y1, x2, y2"},
            {"name": "scores", "type": "float32", "shape": ["objects"]},
            {"name": "classes", "type": "int64", "shape": ["objects"], "unit": "positions in class_names"},
        ],
        "parity": parity,
    }


def _read(opened: LoadedRun, name: str, position: int) -> Tensor:
    x = opened.data.inputs_of(name, [position])
    assert isinstance(x, Tensor)
    return x


@torch.no_grad()
def _compare(path: Path, program: DetectorProgram, images: list[Tensor], side: int) -> dict[str, Any]:
    """Compare the detections of a program with those of the network that it was written from.

    Raises:
        InputError: They differ.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    largest, count = 0.0, 0
    for x in images:
        boxes, scores, classes = (torch.from_numpy(out) for out in session.run(None, {"images": x.numpy()}))
        own = program(x)
        same = len(scores) == len(own[1]) and torch.equal(classes, own[2])
        differences = [(boxes - own[0]) / side, scores - own[1]] if same else [torch.ones(1)]
        largest = max(largest, *(float(one.abs().amax()) if one.numel() else 0.0 for one in differences))
        count += len(own[1])
    if not largest <= _TOLERANCE:
        raise InputError(
            f"the program's detections differ from PyTorch's by {largest:.2g}: give --format safetensors, or raise "
            "score_threshold, since boxes of nearly equal scores may change places"
        )
    return {
        "images": len(images),
        "detections": count,
        "largest_difference": largest,
        "tolerance": _TOLERANCE,
        "runtime": f"onnxruntime {version('onnxruntime')}",
    }
