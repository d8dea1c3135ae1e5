"""`sft-lightning audit`: what is wrong with the data, before anything is trained."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.audit import class_checks, image_checks, label_checks
from sft_lightning.audit.findings import Finding, Row, sheet
from sft_lightning.audit.overlap import dropped, overlaps
from sft_lightning.cli.lightning_cli import DryRunCLI, run
from sft_lightning.data.issues import STRADDLING, Fault, collect_faults
from sft_lightning.data.splits import SplitConfig
from sft_lightning.data.vision.datamodule import ImageDataModule
from sft_lightning.data.vision.file_checks import show_path
from sft_lightning.data.vision.folder_source import FolderSource
from sft_lightning.data.vision.image_stats import SplitStats, compute_image_stats
from sft_lightning.data.vision.images import EncodedImages
from sft_lightning.data.vision.near_duplicates import FIELD, WHOLE, find_near_duplicates
from sft_lightning.networks.vision.backbones import Backbone
from sft_lightning.runs.paths import LOGS
from sft_lightning.utils.atomic import write_json, write_text
from sft_lightning.utils.errors import InputError, IssuesFound


@dataclass
class Audit:
    """What was found.

    Attributes:
        source: Name of the data.
        request: Of the run, whose seed makes the splits.
        names: Of the classes.
        totals: Examples of each split.
        counts: Of each class, by split.
        facts: Sizes and modes of files.
        labels: How labels were looked at.
        topics: All that was looked for, found or not, by topic.
        seconds: That it took.
    """

    source: str
    request: SplitConfig
    names: list[str]
    totals: dict[str, int]
    counts: class_checks.Counts
    facts: dict[str, object]
    labels: str
    topics: dict[str, list[Finding]]
    seconds: float

    @property
    def findings(self) -> list[Finding]:
        """What was found."""
        return [finding for topic in self.topics.values() for finding in topic if finding.rows]

    @property
    def contaminated(self) -> bool:
        """Whether figures of the test or validation split cannot be trusted."""
        return any(finding.contaminates for finding in self.findings)


class Auditing(DryRunCLI):
    """Takes what `fit` takes, and `--strict`."""

    command = "audit"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the option."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--strict", action="store_true", help="Exit code 1 where test or validation leaks.")


def audit(words: Sequence[str]) -> str:
    """Looks at the data of a config and writes `audit.json` and `findings.csv`.

    Args:
        words: What `fit` takes, and `--strict`.

    Returns:
        What was found, in words.

    Raises:
        InputError: The input is wrong in another way than an audit is for.
        Found: The same words, where with `--strict` the test or validation split is contaminated.
    """
    found, folder, strict = examine(words)
    write_text(folder / "findings.csv", sheet(found.findings))
    write_json(folder / "audit.json", _about(found))
    text = f"{format_audit(found)}\nWritten: {folder / 'audit.json'} and {folder / 'findings.csv'}"
    if strict and found.contaminated:
        raise IssuesFound(text)
    return text


def examine(words: Sequence[str]) -> tuple[Audit, Path, bool]:
    """The audit itself.

    Args:
        words: What `fit` takes, and `--strict`.

    Returns:
        What was found, the folder for it, and whether it was asked to be strict.

    Raises:
        InputError: As `audit`.
    """
    began = time.perf_counter()
    with collect_faults() as faults:
        cli = run(["fit", *words], Auditing)
        data = cli.datamodule
        if not isinstance(data, ImageDataModule):
            raise InputError(f"data is {type(data).__name__}: audit looks at that of an ImageDataModule")
        request, policy = data.request, data.bad.policy
        data.bad.policy = "skip"  # to find them all
        rank_zero_info(f"Audit: reading {data.source.name} ...")
        refused = _set_up(data)
    count = sum(len(split) for split in data.splits.values())
    rank_zero_info(f"Audit: decoding {count:,} images ...")
    seen = [
        compute_image_stats(name, data.splits[name], data.geometry) for name in ("test", "val", "labeled", "unlabeled")
    ]
    rank_zero_info("Audit: looking for duplicates ...")
    exact, near = find_near_duplicates(seen)
    weights = getattr(cli.config.fit.model.get("init_args"), "weights", "none")
    backbone = getattr(cli.model, "backbone", None)
    start = backbone if weights != "none" and isinstance(backbone, Backbone) else None
    rank_zero_info("Audit: judging labels ...")
    judged = label_checks.judge(seen, data, start, request.seed)
    counts = class_checks.counted(seen, data.num_classes)
    topics = {
        "refused settings": refused,
        "refused data": _of_faults(faults),
        "unreadable images": [_unreadable(data, seen, policy, faults)],
        **overlaps(exact, near, dropped(seen, request), request, data.class_names),
        "missing or uneven classes": class_checks.uneven(counts, data.class_names),
        "odd images": image_checks.oddities(seen, data.geometry),
        "odd files": _strays(data, faults),
        **({"wrong labels": [label_checks.finding(judged, data.class_names)]} if judged.is_decided else {}),
    }
    shown = {one.name: one for one in seen}
    done = Audit(
        data.source.name,
        request,
        data.class_names,
        {name: len(shown[name].images) for name in ("labeled", "unlabeled", "val", "test")},
        counts,
        image_checks.tables(seen, data.geometry),
        judged.told,
        topics,
        time.perf_counter() - began,
    )
    return done, Path(LOGS) / f"{cli.config.fit.run_name}_audit", bool(cli.config.fit.strict)


def _set_up(data: ImageDataModule) -> list[Finding]:
    """Makes the splits as they are before leaks are dropped; what a run would refuse to make is told and made less."""
    data.request = replace(data.request, on_leak="keep")
    refused = []
    for less in ({"num_labels": None, "labels_per_class": None}, {"val_size": 0.0, "test_size": 0.0}, None):
        try:
            data.setup("fit")
            break
        except InputError as error:
            if less is None:
                raise
            row = Row("", data.source.name, str(error))
            refused += [row] if row not in refused else []
            data.request = replace(data.request, **less)
    return [Finding("settings that fit refuses", "Looked at without them: correct them", refused)]


def _of_faults(faults: Sequence[Fault]) -> list[Finding]:
    kinds = {STRADDLING: [], **{fault.kind: [] for fault in faults}}  # type: dict[str, list[Row]]
    for fault in faults:
        kinds[fault.kind].append(Row(fault.split, fault.name, fault.detail))
    advice = {fault.kind: f"fit stops at the first: {fault.sentence}" for fault in reversed(faults)}
    return [Finding(kind, advice.get(kind, ""), rows, kind == STRADDLING) for kind, rows in kinds.items()]


def _unreadable(data: ImageDataModule, seen: Sequence[SplitStats], policy: str, faults: Sequence[Fault]) -> Finding:
    """Files that were left out before there were splits, and those that turned out broken when decoded."""
    told = {fault.name for fault in faults}
    rows = []
    for name, part in (data.source.load() if data.bad.reasons else {}).items():
        images = part.images
        for i, known in enumerate(part.ids):
            if not isinstance(images, EncodedImages):
                break
            path = images.place(i)
            if known not in told and (said := data.bad.reasons.pop(show_path(path), None)) is not None:
                rows.append(Row(name, known, said))
            elif known in told:
                data.bad.reasons.pop(show_path(path), None)
    rows += [Row("unlabeled", name, said) for name, said in sorted(data.bad.reasons.items())]
    rows += [
        Row(one.name, one.id(i), look) for one in seen for i, look in enumerate(one.images) if isinstance(look, str)
    ]
    does = "stops at the first (on_bad_image: raise)" if policy == "raise" else "leaves them out (on_bad_image: skip)"
    return Finding("images that cannot be read", f"fit {does}: replace or remove them", rows)


def _strays(data: ImageDataModule, faults: Sequence[Fault]) -> list[Finding]:
    source = data.opened_source  # as it lies on the disk, whatever the order of its classes
    if not isinstance(source, FolderSource):
        return []
    folder = source.path
    known = {folder / fault.name for fault in faults}
    read = {path for part in source.load().values() for path in part.images.paths}  # type: ignore[attr-defined]
    return image_checks.strays(folder, known | read)


# --- what is shown


def format_audit(found: Audit) -> str:
    """The audit as text.

    Args:
        found: The audit.
    """
    lines = [f"Audit of {found.source}, splits of seed {found.request.seed}, before leaks are dropped", ""]
    lines += [*class_checks.table(found.counts, found.totals, found.names), ""]
    lines += [*image_checks.format_facts(found.facts), f"labels   {found.labels}", ""]
    if found.findings:
        lines += [f"{len(found.findings)} findings:", *(f"- {finding}" for finding in found.findings)]
    else:
        is_judged = any(topic == "wrong labels" for topic in found.topics)
        lines.append("The data is clean." if is_judged else "Nothing was found; labels were not judged.")
    clean = [topic for topic, of in found.topics.items() if not any(finding.rows for finding in of)]
    if clean:
        lines.append(f"Looked for and not found: {', '.join(clean)}.")
    if found.contaminated:
        lines.append("The test or validation split is contaminated: its figures would be too good.")
    return "\n".join(lines)


def _about(found: Audit) -> dict[str, object]:
    """The audit in types of JSON."""
    asked = {name: value for name, value in asdict(found.request).items() if name not in ("messages", "leaks")}
    return {
        "source": found.source,
        "request": asked,
        "contaminated": found.contaminated,
        "splits": found.totals,
        "messages": found.request.messages,
        "classes": {name: dict(zip(found.names, own, strict=True)) for name, own in found.counts.items()},
        "files": found.facts,
        "labels": found.labels,
        "near_duplicates": {"difference": WHOLE, "difference_of_a_field": FIELD},
        "findings": [finding.about() for finding in found.findings],
        "not_found": [finding.name for topic in found.topics.values() for finding in topic if not finding.rows],
        "seconds": round(found.seconds, 1),
    }
