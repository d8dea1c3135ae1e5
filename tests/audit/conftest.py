import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sft_lightning.__main__ import main
from tests.conftest import CONFIGS, Crop

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")


@pytest.fixture
def photos(workdir: Path, crop: Crop) -> Path:
    """Class folders of photographs, none like another: 8 a class for training, 3 for validation and for test."""
    folder = workdir / "photos"
    number = 0
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        for i in range(count):
            for kind in ("china", "flower"):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                crop(number).save(folder / split / kind / f"{i}.png")
                number += 1
    return folder


class Told(NamedTuple):
    """What an audit gave: exit code, text, `audit.json`, and the rows of `findings.csv` by finding."""

    code: int
    text: str
    about: dict[str, Any]
    rows: dict[str, list[tuple[str, str, str]]]


@pytest.fixture
def audited(workdir: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Runs `audit` on a source: audited("photos", "--strict")."""

    def run(source: object, *words: str) -> Told:
        given = [f"--data.init_args.source={source}", "--data.init_args.num_labels=null", "--run_name=mine"]
        given += ["--data.init_args.image_size=32", "--data.init_args.num_workers=0", *words]
        return read_audit(main(["audit", "--config", FINE_TUNE, *given]), capsys)

    return run


def read_audit(code: int, capsys: pytest.CaptureFixture[str]) -> Told:
    """Read what an audit of the run `mine` has printed and written."""
    folder = Path("lightning_logs") / "mine_audit"
    with (folder / "findings.csv").open(newline="", encoding="utf-8") as file:
        rows: dict[str, list[tuple[str, str, str]]] = {}
        for row in csv.DictReader(file):
            rows.setdefault(row["finding"], []).append((row["split"], row["id"], row["detail"]))
    about = json.loads((folder / "audit.json").read_text())
    assert {finding["finding"]: finding["count"] for finding in about["findings"]} == {
        name: len(own) for name, own in rows.items()
    }
    output = capsys.readouterr()
    if count := len(rows):
        assert f"\n{count} finding{'' if count == 1 else 's'}:\n" in output.out
    return Told(code, output.out + (output.err if code else ""), about, rows)
