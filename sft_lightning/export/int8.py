"""Programs in 8-bit integers: a quarter of the size, and faster on most CPUs, measured before and after.

Networks with convolutions are quantized with ranges from training examples (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"; weights by channel). Others, such as
transformers, quantize their activations while they run, since ranges of few examples do not hold for their outliers.
The classifier itself stays in floating point.
"""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sft_lightning.cli.loaded_run import LoadedRun, add_subset
from sft_lightning.cli.logging import silence_logs
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.split_datamodule import MANIFEST
from sft_lightning.export.program_form import Given, ProgramForm, find_form
from sft_lightning.export.programs import Run, read_onnx, split_inputs
from sft_lightning.runs.checkpoints import find_run_checkpoint
from sft_lightning.runs.lineage import find_run
from sft_lightning.tasks.base import Task
from sft_lightning.tasks.make_task import make_task
from sft_lightning.utils.atomic import open_atomic
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import concatenate_inputs, count_inputs

_LINEAR = ("Gemm", "MatMul")
CALIBRATED = 256  # training examples that give the ranges
_BATCH, _TIMED, _PASSES = 32, 64, 3  # examples of a batch, timed ones, and passes, of which the fastest counts
_KINDS = {"test": "test", "val": "validation"}


def get_int8_path(file: Path) -> Path:
    """Return the path of the program in 8 bits beside the one that it is made of.

    Args:
        file: Path of the ONNX program.
    """
    return file.with_suffix(".int8.onnx")


def write_int8(run: str, file: Path, metadata: dict[str, Any], most: int) -> dict[str, Any]:
    """Write a program in 8 bits beside an ONNX program of a classifier, and measure both on held-out examples.

    Args:
        run: Folder of the run, or a checkpoint in it.
        file: Path of the ONNX program.
        metadata: Metadata of the program.
        most: Largest number of held-out examples to measure on, sampled with the data's seed.

    Returns:
        What was measured, with the value of the program before and after quantization for each figure.

    Raises:
        InputError: The data of the run cannot be read, or the program cannot be quantized.
    """
    folder = find_run(find_run_checkpoint(run))
    manifest = None if folder is None else folder / MANIFEST
    options = [f"--data.init_args.split_file={manifest}"] if manifest is not None and manifest.is_file() else []
    with silence_logs():
        opened = LoadedRun(run, *options)
    form, data = find_form(metadata), opened.data
    assert form is not None  # as the ONNX program was written
    out = get_int8_path(file)
    with open_atomic(out) as staged:
        _quantize(file, staged, _read_training(form, data))
        runs = [read_onnx(one) for one in (file, staged)]
        found = _measure(runs, form, data, most, make_task(data.target, data.num_classes))
        sizes = [os.path.getsize(one) for one in (file, staged)]
    return {"file": out.name, "bytes": sizes, **found}


def describe_int8(measured: dict[str, Any], plural: str) -> str:
    """Describe in one sentence what quantization has changed.

    Args:
        measured: Result of `write_int8`.
        plural: Word for several examples.
    """
    before, after = (size / 1e6 for size in measured["bytes"])
    slow, fast = measured["milliseconds"]
    parts = [
        f"{after:.2f} MB in place of {before:.2f}",
        f"{fast:.3g} ms for one of the {plural} in place of {slow:.3g}",
    ]
    if measured["count"]:
        old, new = measured["values"]
        where = f"{measured['count']:,} {measured['split']} {plural}"
        parts.append(f"{measured['title']} {new:.4f} in place of {old:.4f} on {where}")
    else:
        parts.append("not compared on held-out examples, of which it has or was given none")
    return f"{', '.join(parts)} (batches of {measured['batch']}, {measured['threads']} thread(s))"


def _read_training(form: ProgramForm, data: FewLabelDataModule) -> Given:
    """Return inputs of training examples, unlabeled ones first, of which there are more."""
    name = next((name for name in ("unlabeled", "labeled") if len(data.splits[name])), None)
    batches = [] if name is None else form.collect(data, add_subset(data, name, CALIBRATED))
    if not batches:
        raise InputError("int8 is true, and the run has no training example that can be read: leave int8 out")
    made: Given = concatenate_inputs(batches)
    return made


def _quantize(file: Path, out: Path, training: Given) -> None:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc] # untyped
        def __init__(self) -> None:
            self.batches: Iterator[Given] = split_inputs(training, [_BATCH])

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: x.numpy() for name, x in batch.items()}

    prepared = out.with_suffix(".prepared")
    try:
        quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
        nodes = onnx.load(str(prepared)).graph.node
        kinds, linear = {node.op_type for node in nodes}, [node.name for node in nodes if node.op_type in _LINEAR]
        # The head stays as it is: weights fitted by logistic regression lose up to 20 points in 8 bits.
        common = {"per_channel": True, "weight_type": QuantType.QInt8, "nodes_to_exclude": linear[-1:]}
        with silence_logs(logging.WARNING):  # that a weight of one axis is quantized as a whole
            if "Conv" in kinds and "Softmax" not in kinds:
                given = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8}
                quantize_static(str(prepared), str(out), Reader(), **given, **common)
            else:
                quantize_dynamic(str(prepared), str(out), **common)
        made = onnx.load(str(out))
        onnx.helper.set_model_props(made, {one.key: one.value for one in onnx.load(str(file)).metadata_props})
        onnx.save(made, str(out))
    except Exception as error:  # the quantizer names no types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"int8 is true, and {file.name} cannot be quantized ({reason}): leave int8 out") from error
    finally:
        prepared.unlink(missing_ok=True)


def _measure(runs: list[Run], form: ProgramForm, data: FewLabelDataModule, most: int, task: Task) -> dict[str, Any]:
    """Return the main metric and the milliseconds of an example for each program."""
    name = next((name for name in _KINDS if len(data.splits[name])), None)
    chosen = add_subset(data, name or "labeled", max(most, _TIMED))
    given = concatenate_inputs(form.collect(data, chosen))
    target = torch.cat([batch.y for batch in data.batches_of(chosen, torch.device("cpu"))])
    known = task.is_known(target)
    found: dict[str, Any] = {"milliseconds": [_time(run, form, given) for run in runs], "batch": _BATCH}
    found |= {"threads": torch.get_num_threads(), "count": 0}
    if name is None or not most or not bool(known.any()):
        return found
    values = []
    for run in runs:
        outputs = torch.cat([run(form.cut(batch)) for batch in split_inputs(given, [_BATCH])])
        values.append(task.measure(outputs[known], target[known])[task.metric[0]])
    return {**found, "count": int(known.sum()), "split": _KINDS[name], "title": task.metric[1], "values": values}


def _time(run: Run, form: ProgramForm, given: Given) -> float:
    batches = [form.cut(batch) for batch in split_inputs(given, [_BATCH])][: _TIMED // _BATCH]
    seconds = []
    for _ in range(_PASSES + 1):
        begin = time.perf_counter()
        for batch in batches:
            run(batch)
        seconds.append(time.perf_counter() - begin)
    return 1000 * min(seconds[1:]) / sum(map(count_inputs, batches))
