"""`sft-lightning audit`: check the data of a config before training."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

from sft_lightning.audit import class_checks, label_checks
from sft_lightning.audit.findings import CheckResult, CheckRow, format_findings_csv
from sft_lightning.audit.modality_checks import ModalityChecks
from sft_lightning.audit.overlap import find_dropped, find_overlaps
from sft_lightning.cli.lightning_cli import DryRunCLI, run
from sft_lightning.data.few_label_datamodule import FewLabelDataModule
from sft_lightning.data.issues import STRADDLING, Fault, collect_faults
from sft_lightning.data.splits import SplitConfig
from sft_lightning.modalities import get_modality, load
from sft_lightning.networks.encoder import Encoder
from sft_lightning.runs.paths import LOGS
from sft_lightning.utils.atomic import write_json, write_text
from sft_lightning.utils.errors import InputError, IssuesFound


@dataclass
class Audit:
    """Result of an audit.

    Attributes:
        source: Name of the data source.
        request: Split settings of the run; its seed makes the splits.
        names: Class names.
        totals: Number of examples of each split.
        counts: Number of examples, or pixels, of each class, by split.
        cells: The same as people read it.
        counts_note: Meaning of the cells; empty where they are numbers of examples.
        facts: Sizes and kinds of the examples.
        summary: The same as lines of text.
        sets: Number of classes of an example, by split; empty where each has one.
        bounds: Differences up to which examples are near-duplicates.
        labels: Sentence on how labels were checked.
        topics: Results of the checks by topic, including those without rows.
        seconds: Duration of the audit in seconds.
    """

    source: str
    request: SplitConfig
    names: list[str]
    totals: dict[str, int]
    counts: class_checks.Counts
    cells: dict[str, list[str]]
    counts_note: str
    facts: dict[str, object]
    summary: list[str]
    sets: class_checks.SetSizes
    bounds: dict[str, float]
    labels: str
    topics: dict[str, list[CheckResult]]
    seconds: float

    @property
    def failed(self) -> list[CheckResult]:
        """Results of the checks that report at least one item."""
        return [result for topic in self.topics.values() for result in topic if result.rows]

    @property
    def contaminated(self) -> bool:
        """Whether metrics on the test or validation split cannot be trusted."""
        return any(result.contaminates for result in self.failed)


class AuditCLI(DryRunCLI):
    """Command line of `fit` with the option `--strict`."""

    command = "audit"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--strict`."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--strict", action="store_true", help="Exit code 1 where test or validation leaks.")


def audit(argv: Sequence[str]) -> str:
    """Check the data of a config and write `audit.json` and `findings.csv`.

    Args:
        argv: Arguments of `fit`, and `--strict`.

    Returns:
        The report as text.

    Raises:
        InputError: The input is wrong in a way that an audit does not check.
        IssuesFound: With `--strict`, the test or validation split is contaminated; the message is the report.
    """
    result, folder, strict = run_audit(argv)
    write_text(folder / "findings.csv", format_findings_csv(result.failed))
    write_json(folder / "audit.json", _to_json(result))
    text = f"{format_audit(result)}\nWritten: {folder / 'audit.json'} and {folder / 'findings.csv'}"
    if strict and result.contaminated:
        raise IssuesFound(text)
    return text


def run_audit(argv: Sequence[str]) -> tuple[Audit, Path, bool]:
    """Run the audit without writing files.

    Args:
        argv: Arguments of `fit`, and `--strict`.

    Returns:
        The result, the folder for its files, and whether `--strict` was given.

    Raises:
        InputError: The input is wrong in a way that an audit does not check.
    """
    began = time.perf_counter()
    with collect_faults() as faults:
        cli = run(["fit", *argv], AuditCLI)
        data = cli.datamodule
        if not isinstance(data, FewLabelDataModule):
            raise InputError(f"data is {type(data).__name__}: audit needs a FewLabelDataModule, such as TextDataModule")
        if data.target == "defect":
            data.require_classes("audit")
        request, policy = data.request, data.bad.policy
        data.bad.policy = "skip"  # to find them all
        rank_zero_info(f"Audit: reading {data.source.name} ...")
        refused = _set_up_splits(data)
    spec = data.input_spec
    checks: ModalityChecks = load(_find_checks(data))(data)
    count = sum(len(split) for split in data.splits.values())
    rank_zero_info(f"Audit: {checks.action} {spec.count(count)} ...")
    stats = [checks.measure(name) for name in ("test", "val", "labeled", "unlabeled")]
    rank_zero_info("Audit: looking for duplicates ...")
    exact, near = checks.find_duplicates(stats)
    weights = getattr(cli.config.fit.model.get("init_args"), "weights", "none")
    backbone = getattr(cli.model, "backbone", None)
    start = backbone if weights != "none" and isinstance(backbone, Encoder) else None
    rank_zero_info("Audit: judging labels ...")
    if data.target == "class":
        judged = label_checks.check_labels(stats, checks, start, request.seed)
    else:
        judged = label_checks.skip_labels(data.num_classes, data.target)
    counts = checks.count_classes(stats)
    names = data.class_names
    topics = {
        "refused settings": refused,
        "refused data": _list_faults(faults),
        f"unreadable {spec.plural}": [checks.find_unreadable(stats, policy, faults)],
        **find_overlaps(exact, near, find_dropped(stats, request), request, data.source.label_names, spec.plural),
        "missing or uneven classes": class_checks.find_uneven_classes(
            counts, names, spec.noun, *checks.describe_metric()
        ),
        **checks.check_targets(policy),
        f"odd {spec.plural}": checks.find_odd(stats),
        "odd files": checks.find_strays(faults),
        **({"wrong labels": [label_checks.make_result(judged, names)]} if judged.is_decided else {}),
    }
    shown = {one.name: one for one in stats}
    facts = checks.summarize(stats)
    done = Audit(
        data.source.name,
        request,
        names,
        {name: len(shown[name]) for name in ("labeled", "unlabeled", "val", "test")},
        counts,
        checks.format_counts(counts),
        checks.counts_note,
        facts,
        checks.format_summary(facts),
        class_checks.measure_sets(stats, data),
        checks.bounds,
        judged.summary,
        topics,
        time.perf_counter() - began,
    )
    return done, Path(LOGS) / f"{cli.config.fit.run_name}_audit", bool(cli.config.fit.strict)


def _find_checks(data: FewLabelDataModule) -> str:
    """Return the path of the class of checks for the modality and for the kind of its targets."""
    modality = get_modality(data.input_spec.modality)
    return {"mask": modality.mask_checks, "boxes": modality.box_checks}.get(data.target, modality.checks)


def _set_up_splits(data: FewLabelDataModule) -> list[CheckResult]:
    """Make the splits before leaks are dropped; where `fit` would refuse, report why and make smaller ones."""
    data.request = replace(data.request, on_leak="keep")
    refused = []
    for less in ({"num_labels": None, "labels_per_class": None}, {"val_size": 0.0, "test_size": 0.0}, None):
        try:
            data.setup("fit")
            break
        except InputError as error:
            if less is None:
                raise
            row = CheckRow("", data.source.name, str(error))
            refused += [row] if row not in refused else []
            data.request = replace(data.request, **less)
    return [CheckResult("refused", "settings that fit refuses", "Looked at without them: correct them", refused)]


def _list_faults(faults: Sequence[Fault]) -> list[CheckResult]:
    """Group faults of the data by their title, one result each."""
    rows: dict[str, list[CheckRow]] = {STRADDLING: [], **{fault.title: [] for fault in faults}}
    for fault in faults:
        rows[fault.title].append(CheckRow(fault.split, fault.name, fault.detail))
    advice = {fault.title: f"fit stops at the first: {fault.sentence}" for fault in reversed(faults)}
    return [
        CheckResult("leak", title, advice.get(title, ""), own, contaminates=True)
        if title == STRADDLING
        else CheckResult("refused", title, advice[title], own)
        for title, own in rows.items()
    ]


# --- what is shown


def format_audit(result: Audit) -> str:
    """Format an audit as text.

    Args:
        result: Audit to format.
    """
    lines = [f"Audit of {result.source}, splits of seed {result.request.seed}, before leaks are dropped", ""]
    lines += class_checks.format_class_counts(result.counts, result.totals, result.names, result.cells)
    lines += [*([result.counts_note] if result.counts_note else []), ""]
    lines += [*result.summary, *class_checks.format_set_sizes(result.sets), f"labels   {result.labels}", ""]
    if result.failed:
        lines += [
            "1 finding:" if len(result.failed) == 1 else f"{len(result.failed)} findings:",
            *(f"- {one.finding}." for one in result.failed),
        ]
    else:
        is_judged = any(topic == "wrong labels" for topic in result.topics)
        lines.append("The data is clean." if is_judged else "Nothing was found; labels were not judged.")
    clean = [topic for topic, of in result.topics.items() if not any(one.rows for one in of)]
    if clean:
        lines.append(f"Looked for and not found: {', '.join(clean)}.")
    if result.contaminated:
        lines.append("The test or validation split is contaminated: its figures would be too good.")
    return "\n".join(lines)


def _to_json(result: Audit) -> dict[str, object]:
    """Convert an audit to JSON types."""
    asked = {name: value for name, value in asdict(result.request).items() if name not in ("findings", "leaks")}
    findings = result.request.findings
    findings_of_data = [*findings, *(leak for leak in result.request.leaks if leak not in findings)]
    return {
        "source": result.source,
        "request": asked,
        "contaminated": result.contaminated,
        "splits": result.totals,
        "messages": [finding.message for finding in findings],
        "data_findings": [finding.to_json() for finding in findings_of_data],
        "classes": {name: dict(zip(result.names, own, strict=True)) for name, own in result.counts.items()},
        **({"classes_of_an_example": result.sets} if result.sets else {}),
        "files": result.facts,
        "labels": result.labels,
        "near_duplicates": result.bounds,
        "findings": [one.to_json() for one in result.failed],
        "not_found": [one.name for topic in result.topics.values() for one in topic if not one.rows],
        "seconds": round(result.seconds, 1),
    }
