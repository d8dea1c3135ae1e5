"""The table of docs/benchmarks.md shows the stored results."""

import json
from typing import Any

import pytest

from tests.conftest import ROOT

KEYS = ("auroc", "auroc_local", "auroc_global", "detection_rate at 0.05", "false_alarm_rate at 0.05")


def read(name: str) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((ROOT / f"scripts/bench/results/{name}.json").read_text(encoding="utf-8"))
    return stored


def test_the_table_of_defects_shows_the_stored_results() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = text.partition("| | AUROC | local defects |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    results = {**read("anomaly"), **read("anomaly_settings")}
    assert {row[0] for row in rows} == {
        name for name, one in results.items() if isinstance(one, dict) and "runs" in one
    }
    for name, *cells in rows:
        for key, cell in zip(KEYS, cells, strict=True):
            stored = results[name]["summary"][key]
            assert [float(n) for n in cell.split(" ± ")] == pytest.approx([stored["mean"], stored["std"]], abs=0.00051)
    labels = read("anomaly_labels")["Logistic regression"]["summary"]
    for key in ("auroc", "auroc_local", "auroc_global"):
        assert f"{labels[key]['mean']:.3f} ± {labels[key]['std']:.3f}" in text
    theirs = read("anomalib_patchcore")["PatchCore"]["runs"][0]
    assert f"PatchCore has {theirs['auroc']:.3f}, ours {results['PatchCore']['runs'][0]['auroc']:.3f}" in text
