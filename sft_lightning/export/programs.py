"""Export of a trained network as one program: ONNX, or PyTorch's own `.pt2`.

What a program takes is up to the modality (`ProgramForm`). The output is logits, not probabilities: a temperature
divides logits, and they show a difference between two programs that probabilities hide near 0 and 1.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sft_lightning.classifiers import Classifier
from sft_lightning.export.evaluate import ExportEvaluation
from sft_lightning.export.program_form import Given, Program, ProgramForm, find_form
from sft_lightning.modalities import get_modality
from sft_lightning.runs.trained_network import TrainedNetwork
from sft_lightning.tasks.base import Task
from sft_lightning.tasks.make_task import make_task, rebuild_head
from sft_lightning.utils.atomic import open_atomic
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.inputs import InputSpec, concatenate_inputs, count_inputs, select_inputs

ProgramFormat = Literal["onnx", "pt2"]
Run = Callable[[Given], Tensor]
OPSET = 18  # of ONNX: the oldest that PyTorch writes without converting, which most runtimes read
MAX_BYTES = 2_000_000_000  # bytes: one file of ONNX holds less than 2 GiB
TOLERANCE = 1e-3  # of an output, and of the mean output where that is below 1


def check_format(part: str, language: ProgramFormat, spec: InputSpec) -> None:
    """Check that a program can be written here.

    Args:
        part: Part to export: `backbone`, `head` or `model`.
        language: Format of the program.
        spec: Inputs of the network.

    Raises:
        InputError: The part is a head, which takes no examples, programs do not take the inputs, or a package is
            missing.
    """
    plural = spec.plural
    if not get_modality(spec.modality).program_form:
        raise InputError(
            f"format is {language!r}, which is not written for networks of {plural}: give --format safetensors"
        )
    if part == "head":
        raise InputError(
            f"part is 'head' and format {language!r}: a program takes {plural}, a head takes features; give --part "
            "model or --format safetensors"
        )
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if language == "onnx" and missing:
        raise InputError(
            f"format 'onnx' needs the extra 'export' ({', '.join(missing)} is missing): "
            "pip install 'sft-lightning[export]'"
        )


def write_program(
    file: Path,
    language: ProgramFormat,
    trained: TrainedNetwork,
    measured: ExportEvaluation,
    metadata: dict[str, Any],
    classifier: Classifier | None = None,
) -> dict[str, Any]:
    """Write a program, read it back and compare it with PyTorch; delete the file if it differs.

    Args:
        file: Path of the file.
        language: Format of the program.
        trained: Network to export.
        measured: Evaluation with the inputs to compare on.
        metadata: Metadata of the export, with `part`.
        classifier: Classifier with a layer of its own, for a network without a head.

    Returns:
        The metadata with what users of the program need: `format`, `input`, `output`, `inside`, `parity`.

    Raises:
        InputError: The network cannot be written, or the program's outputs differ.
    """
    with_head = metadata["part"] == "model"
    network, form = trained.network(), find_form(metadata)
    assert form is not None  # as `check_format` found
    layer = None if classifier is None else classifier.make_layer()
    target = metadata.get("target", "class")
    program = form.program(network, (layer or rebuild_head(target, trained.head)) if with_head else None)
    expected = _run_pytorch(trained, form, measured.inputs, with_head, classifier)
    task = make_task(target, expected.shape[1]) if with_head else None
    contract = {**metadata, "format": language, **form.describe()}
    contract["output"] = {
        "name": "logits" if with_head else "features", "type": "float32", "shape": ["batch", *expected.shape[1:]],
    }  # fmt: skip
    if language == "onnx":
        contract["opset"] = OPSET
    with open_atomic(file) as staged:
        try:
            with warnings.catch_warnings(), redirect_stderr(StringIO()), torch.no_grad():
                # The exporters warn of their own insides, and that channels-last weights are not contiguous,
                # and print whole graphs of networks that they cannot write.
                warnings.simplefilter("ignore")
                {"onnx": _write_onnx, "pt2": _write_pt2}[language](program, form, staged, contract)
                run = {"onnx": read_onnx, "pt2": _read_pt2}[language](staged)
                parity = _check_parity(run, form, measured, expected, language, task)
        except InputError:
            raise
        except Exception as error:  # the exporters name no types, and each network fails in its own way
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
            raise InputError(
                f"backbone {metadata['backbone']!r} cannot be written as {language} ({reason}): give --format "
                f"{'pt2 or safetensors' if language == 'onnx' else 'safetensors'}"
            ) from error
    return {**contract, "parity": parity}


def describe_parity(parity: dict[str, Any], plural: str) -> str:
    """Describe in one line how closely the program's outputs match PyTorch's.

    Args:
        parity: Entry `parity` of the metadata from `write_program`.
        plural: Word for several examples.
    """
    why = f", which are random since {parity['why_random']}" if parity["why_random"] else ""
    classes = "" if parity["equal_classes"] is None else f", {parity['equal_classes']:.1%} of the classes are equal"
    *sizes, last = map(str, parity["batch_sizes"])
    return (
        f"differs from PyTorch by {parity['largest_difference']:.2g} at most{classes}, on {parity[plural]} "
        f"{parity['of']} {plural} in batches of {', '.join(sizes)} and {last} ({parity['runtime']}){why}"
    )


@torch.no_grad()
def _run_pytorch(
    trained: TrainedNetwork, form: ProgramForm, given: Given, with_head: bool, classifier: Classifier | None
) -> Tensor:
    """Compute the expected outputs without a `Program`, so that a mistake in that class would show."""
    network = trained.network()
    x = torch.cat([network(form.decode(some)) for some in split_inputs(given, [32])])
    if with_head and classifier is not None:
        logits: Tensor = classifier(x)
        return logits
    return rebuild_head(trained.metadata.get("target", "class"), trained.head)(x) if with_head else x


def split_inputs(given: Given, sizes: Sequence[int]) -> Iterator[Given]:
    """Yield batches of some sizes, the last of which repeats.

    Args:
        given: Inputs of a program, (N, ...) each.
        sizes: Number of examples of each batch.
    """
    first, number = 0, 0
    while first < count_inputs(given):
        size = sizes[min(number, len(sizes) - 1)]
        yield select_inputs(given, slice(first, first + size))
        first, number = first + size, number + 1


def _trace(program: Program, form: ProgramForm) -> torch.export.ExportedProgram:
    # An example of one row would make 1 a constant.
    example = form.draw(2, torch.Generator().manual_seed(0))
    made = torch.export.export(program, tuple(example.values()), dynamic_shapes=form.free_sides)
    for module in made.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return made


def _write_pt2(program: Program, form: ProgramForm, file: Path, metadata: dict[str, Any]) -> None:
    made = _trace(program, form)
    with file.open("wb") as opened:
        torch.export.save(made, opened, extra_files={"sft_lightning.json": json.dumps(metadata)})


def _write_onnx(program: Program, form: ProgramForm, file: Path, metadata: dict[str, Any]) -> None:
    size = sum(tensor.nbytes for tensor in program.state_dict().values())
    if size > MAX_BYTES:
        raise InputError(f"the network has {size / 1e9:.1f} GB, one ONNX file holds 2: give --format pt2")
    made, free = _trace(program, form), form.free_sides
    written = torch.onnx.export(
        made, input_names=[*free], output_names=[metadata["output"]["name"]], dynamic_shapes=free,
        opset_version=OPSET, verbose=False,
    )  # fmt: skip
    assert written is not None
    names = {"class_names": json.dumps(metadata["class_names"])} if metadata["part"] == "model" else {}
    written.model.metadata_props.update({**names, "sft_lightning": json.dumps(metadata)})
    written.save(file, external_data=False)


def _read_pt2(file: Path) -> Run:
    with file.open("rb") as opened:
        run = torch.export.load(opened).module()
    return lambda given: run(*given.values())


def read_onnx(file: Path) -> Run:
    """Return a function that runs an ONNX program on the CPU, with as many threads as torch has.

    Args:
        file: Path of the program.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda given: torch.from_numpy(session.run(None, {name: x.numpy() for name, x in given.items()})[0])


def _check_parity(
    run: Run,
    form: ProgramForm,
    measured: ExportEvaluation,
    expected: Tensor,
    language: ProgramFormat,
    task: Task | None,
) -> dict[str, Any]:
    """Compare a program with the expected outputs and return what is recorded of it.

    Raises:
        InputError: The outputs differ.
    """
    if not bool(expected.isfinite().all()):
        raise InputError("the network gives NaN or infinity: its training diverged, give another run or checkpoint")
    count, plural = count_inputs(measured.inputs), form.spec.plural
    enough = -(-8 // count)  # a few are taken more than once
    given, expected = concatenate_inputs([measured.inputs] * enough), torch.cat([expected] * enough)
    # One alone would fail where an example's batch size became a constant; so would several where 1 became one.
    batches = [form.cut(batch) for batch in split_inputs(given, [1, 3, 32])]
    with torch.no_grad():
        outputs = torch.cat([run(batch) for batch in batches])
    apart = (outputs - expected).abs()
    allowed = TOLERANCE * (expected.abs() + expected.abs().mean().clamp_max(1))
    equal = None if task is None else float(task.agrees(outputs, expected, allowed).double().mean())
    parity = {
        "largest_difference": float(apart.max()),
        "equal_classes": equal,
        plural: count,
        "of": measured.kind,
        "why_random": measured.random_reason if measured.kind == "random" else None,
        "batch_sizes": sorted({count_inputs(batch) for batch in batches}),
        "tolerance": f"{TOLERANCE} of each output and of the mean output, the latter not above 1",
        "runtime": f"onnxruntime {version('onnxruntime')}" if language == "onnx" else f"torch {torch.__version__}",
    }
    if not bool((apart <= allowed).all()) or equal not in (None, 1.0):  # NaN is not less than anything
        raise InputError(
            f"the {language} program {describe_parity(parity, plural)}, more than is allowed ({parity['tolerance']}, "
            "no other class), "
            f"so nothing is written: give another --format"
        )
    return parity
