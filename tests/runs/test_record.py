"""All that a run has recorded is read in one place, and a damaged file is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sft_lightning.data.issues import Finding
from sft_lightning.runs.lineage import format_lineage
from sft_lightning.runs.record import LINEAGE, PROVENANCE, SPLIT, RunRecord, read_leaks
from sft_lightning.utils.errors import InputError

OLD = Path(__file__).parent / "version_0_1" / "lightning_logs" / "old" / "fine_tune" / "version_0"


def test_record_of_an_earlier_version_is_complete() -> None:
    record = RunRecord(OLD)
    assert record.read_settings("model")["backbone"] == "mlp"
    assert record.split_header["source"] == "data"
    assert record.data_digest == record.chain[-1]["data_sha256"] == record.provenance["data_sha256"]


def test_empty_folder_gives_empty_values(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    assert (record.read_settings("data"), record.class_names, record.data_digest, record.provenance) == (
        {},
        None,
        None,
        {},
    )
    assert record.chain == [{"run": str(tmp_path)}]


def test_leaks_are_read_as_findings_and_from_sentences_of_earlier_versions(tmp_path: Path) -> None:
    leak = Finding("leak", "2 of 7 test images are known", ["a.png", "b.png"])
    (tmp_path / LINEAGE).write_text(json.dumps([{"run": "x", "leaks": [leak.to_json(), "1 more is not known"]}]))
    chain = RunRecord(tmp_path).chain
    assert read_leaks(chain[-1]) == [leak, Finding("leak", "1 more is not known")]
    assert read_leaks({"run": "x"}) == []
    assert format_lineage(chain).splitlines()[1:] == ["   2 of 7 test images are known", "   1 more is not known"]


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '[{"run": 3}]', '[{"run": "x", "leaks": [{"kind": "leak"}]}]', "\x00", "[" * 100_000]
)
@pytest.mark.parametrize(
    ("name", "attribute"), [(SPLIT, "data_digest"), (LINEAGE, "chain"), (PROVENANCE, "provenance")]
)
def test_damaged_file_is_named_with_a_remedy(name: str, attribute: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}' .*: remove it"):
        getattr(RunRecord(tmp_path), attribute)


def test_record_is_read_without_torch() -> None:
    code = "import sys; from sft_lightning.runs.record import RunRecord; print({'torch', 'lightning'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_settings_of_a_damaged_config_are_empty(tmp_path: Path) -> None:
    for text in ("model: [", "model: 3", json.dumps({"model": {"init_args": []}}), "\xff"):
        (tmp_path / "fit.yaml").write_text(text, encoding="latin-1")
        assert RunRecord(tmp_path).read_settings("model") == {}
