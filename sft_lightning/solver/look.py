"""The first screen: what the source holds, what is wrong with it, the machine, and the starts at hand."""

from collections.abc import Sequence

import torch

from sft_lightning.audit.image_checks import summarize_files
from sft_lightning.cli.logging import silence_logs
from sft_lightning.data.copies import find_exact_copies
from sft_lightning.data.splits import Split
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.data.vision.image_stats import compute_image_stats
from sft_lightning.modalities import Modality
from sft_lightning.solver.find_starts import DEFAULT, FoundStart
from sft_lightning.solver.labels import LabeledSource
from sft_lightning.utils.cpu import count_cores

_SAMPLED = 48  # files whose sizes are looked at
_FINDINGS = 4  # findings that are shown


def describe_source(source: LabeledSource) -> list[str]:
    """Describe the examples, what is wrong with them, and the machine, in a few lines.

    Args:
        source: Source.
    """
    data = source.data
    held = f", {len(data.splits['test']):,} for a test" if source.has_test else ""
    lines = [
        f"{data.source.name}: {data.input_spec.plural}, {_describe_files(source)}",
        f"labels:   {data.describe_labels()}, {source.pool_size:,} unlabeled{held}",
    ]
    if source.groups is not None:
        copies = find_exact_copies([data.splits["labeled"]]).count
        copied = f"; {copies:,} labeled examples copy others" if copies else ""
        lines.append(f"groups:   {len(set(source.groups)):,} among the labels, which stay together{copied}")
    alone = int((source.folds < 0).sum())
    if alone:
        lines.append(f"alone:    {alone} label(s) are alone in their class and are learned from, but cannot judge")
    lines.append(f"checked:  {_describe_checks(source)}")
    findings = [finding.message for finding in data.request.findings]
    lines += [f"note:     {message}" for message in findings[:_FINDINGS]]
    if len(findings) > _FINDINGS:
        lines.append(f"note:     {len(findings) - _FINDINGS} more, which the log of each run lists")
    cards = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    lines.append(f"machine:  {count_cores()} CPU core(s), {', '.join(cards) or 'no GPU'}")
    return lines


def _describe_files(source: LabeledSource) -> str:
    """Return the sizes of some files, and the shape of what networks get."""
    data = source.data
    if not isinstance(data, ImageDataModule):
        return data.describe_inputs()
    labeled = data.splits["labeled"]
    some = Split(labeled.part, list(labeled.indices[:: max(1, len(labeled) // _SAMPLED)])[:_SAMPLED])
    with silence_logs():
        facts = summarize_files([compute_image_stats("labeled", some, data.geometry)], data.geometry)
    if not facts:
        return f"{data.describe_inputs()} in memory"
    formats, modes = facts["formats"], facts["modes"]
    assert isinstance(formats, dict)
    assert isinstance(modes, dict)
    sizes = str(facts["smallest"])
    if facts["different_sizes"] != 1:
        sizes += f" to {facts['largest']} pixels"
    return f"{', '.join(formats)} files ({', '.join(modes)}) of {sizes}, read as {data.describe_inputs()}"


def _describe_checks(source: LabeledSource) -> str:
    data = source.data
    copies = find_exact_copies([data.splits["labeled"], data.splits["unlabeled"]]).count
    leaks = sum(finding.kind == "leak" for finding in data.request.findings)
    broken = len(data.bad.reasons)
    return (
        f"{broken:,} unreadable, {copies:,} exact copies, {leaks:,} finding(s) of leaks into the test; `sft-lightning "
        "audit` says more"
    )


def describe_starts(starts: Sequence[FoundStart], is_searched: bool, modality: Modality) -> list[str]:
    """Describe the starts at hand.

    Args:
        starts: Starts.
        is_searched: Whether they were searched for; the user may have named them or none.
        modality: Kind of the examples.
    """
    if starts:
        return [f"start:    {start.candidate}: {start.reason}" for start in starts]
    if not is_searched:
        return ["starts:   none, as you asked"]
    if modality.solve.candidate:
        named = f"hf/ and the folder of {modality.solve.candidate}"
        return [f"starts:   none at hand; name one with --candidates, such as {named}"]
    return [f"starts:   none at hand; name one with --candidates, or fetch {DEFAULT} with --download true"]
