"""Data sets of Hugging Face in a folder, written as its library writes them, and the sample of texts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from sft_lightning.data.open_data import find_modality
from sft_lightning.data.text.source import SAMPLE
from sft_lightning.utils.errors import InputError
from tests.data.text.test_text_tables import list_rows, read

NAMES = ["people", "animal"]
FEATURES = {"sentence": {"dtype": "string", "_type": "Value"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
SPLITS = {
    "train": [
        ("A dog barks", 1),
        ("The cat, asleep.\nStill", 1),
        ("She left", 0),
        ("He came", 0),
        ("nobody knows", -1),
    ],
    "validation": [("A bird", 1), ("A singer", 0)],
    "test": [("A fish", 1), ("A king", 0), ("hidden", -1)],
    "unsupervised": [("who?", -1)],
}
EXPECTED = {(text, NAMES[label]) for rows in SPLITS.values() for text, label in rows if label >= 0}
EXPECTED |= {("nobody knows", ""), ("who?", "")}


def make_table(rows: list[tuple[str, int]]) -> pa.Table:
    table = pa.table({"sentence": [text for text, _ in rows], "label": [label for _, label in rows]})
    info = {"info": {"features": FEATURES}}
    return table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()})


def write_arrow(folder: Path, name: str, rows: list[tuple[str, int]]) -> None:
    """Write a split in two files, as `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    files = []
    for k, part in enumerate((rows[:2], rows[2:])):
        table = make_table(part)
        files.append({"filename": f"data-0000{k}-of-00002.arrow"})
        with pa.OSFile(str(folder / files[-1]["filename"]), "wb") as sink, ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    state: dict[str, Any] = {"_data_files": files, "_split": name, "_fingerprint": "x", "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES, "dataset_name": "x"}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A data set of four splits."""
    for name, rows in SPLITS.items():
        write_arrow(tmp_path / "saved" / name, name, rows)
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": [*SPLITS]}))
    return tmp_path / "saved"


def test_a_data_set_that_was_saved_to_disk(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        data = read(saved, text_column="sentence")
    assert list_rows(data) == EXPECTED
    assert data.splits["val"].ids == ["val/0", "val/1"]
    assert {name: len(split) for name, split in data.splits.items()} == {
        "labeled": 4, "unlabeled": 2, "val": 2, "test": 2,
    }  # fmt: skip
    assert "1 texts of the split 'test' have no label and are left out" in caplog.text
    assert find_modality(str(saved)) == "text"
    one = read(saved / "train", text_column="sentence")
    assert (len(one.splits["labeled"]), len(one.splits["unlabeled"])) == (4, 1)


@pytest.mark.parametrize("layout", ["data/{}-00000-of-00001.parquet", "{}.parquet", "{}/0000.PARQUET"])
def test_a_folder_of_parquet_files(tmp_path: Path, layout: str) -> None:
    for name, rows in SPLITS.items():
        path = tmp_path / layout.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(make_table(rows), path)
    assert list_rows(read(tmp_path, text_column="sentence")) == EXPECTED
    assert find_modality(str(tmp_path)) == "text"


def test_damaged_folders_are_one_sentence(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data set .* lacks the column 'text'; its columns are 'sentence', 'label'"):
        read(saved)
    state = json.loads((saved / "train" / "state.json").read_text())

    def refuse(file: str, content: str, message: str) -> None:
        before = (saved / file).read_bytes()
        (saved / file).write_text(content)
        with pytest.raises(InputError, match=message):
            read(saved, text_column="sentence")
        (saved / file).write_bytes(before)

    refuse("dataset_dict.json", "{", r"dataset_dict\.json cannot be read")
    refuse("dataset_dict.json", '{"splits": ["../train"]}', "which is a path")
    (saved / "eval").symlink_to(saved / "test")
    refuse("dataset_dict.json", '{"splits": ["train", "eval"]}', "has the split 'eval', which is none of train")
    refuse("train/state.json", "{}", r"state\.json lists no files")
    refuse("train/state.json", json.dumps(state | {"_indices_data_files": [{}]}), r"call flatten_indices\(\)")
    refuse("train/state.json", json.dumps(state | {"_data_files": [{"filename": "../x"}]}), "lists no files")
    refuse("train/data-00000-of-00002.arrow", "no", r"data-00000-of-00002\.arrow cannot be read")
    rows = make_table([("A", 7)])
    with (
        pa.OSFile(str(saved / "train" / "data-00000-of-00002.arrow"), "wb") as sink,
        ipc.new_stream(sink, rows.schema) as writer,
    ):
        writer.write_table(rows)
    with pytest.raises(InputError, match="label 7 is none of its 2 classes"):
        read(saved, text_column="sentence")


def test_the_sample_of_texts() -> None:
    data = read(Path("sample-texts"))
    counts = {name: Counter(split.labels.tolist()) for name, split in data.splits.items()}
    assert data.num_classes == 6
    assert set(counts["labeled"].values()) == {100}
    assert set(counts["test"].values()) == {60}
    assert len(data.splits["unlabeled"]) == 840
    assert SAMPLE.stat().st_size < 200_000
    assert find_modality("sample-texts") == "text"
    with pytest.raises(InputError, match="did you mean 'sample-texts'"):
        read(Path("sample-text"))
