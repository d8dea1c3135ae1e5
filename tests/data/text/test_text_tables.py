"""Tables and folders of texts: what is read, what is refused, and what is reported."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sft_lightning import TextDataModule
from sft_lightning.data.text.datamodule import get_texts
from sft_lightning.utils.errors import InputError

ROWS = [
    ("The cat, asleep.", "animal", "train"),
    ('She said "no"\nand left.', "people", "train"),
    ("Ein Wort mit Umlaut: über", "people", "train"),
    ("A dog barks", "animal", "train"),
    ("nobody knows", "", ""),
    ("A bird", "animal", "val"),
    ("A singer", "people", "test"),
]


def quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def write_csv(path: Path, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    lines = [delimiter.join(("text", "label", "split"))]
    lines += [delimiter.join((quote(text), label, split)) for text, label, split in ROWS]
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def read(path: Path, **settings: object) -> TextDataModule:
    data = TextDataModule(str(path), **{"val_size": 0, "test_size": 0, **settings})  # type: ignore[arg-type]
    data.setup("fit")
    return data


def list_rows(data: TextDataModule) -> set[tuple[str, str]]:
    labeled = [(text, label) for name in ("labeled", "val", "test") for text, label in zip(
        get_texts(data.splits[name]), (data.class_names[y] for y in data.splits[name].labels.tolist()), strict=True
    )]  # fmt: skip
    return {*labeled, *((text, "") for text in get_texts(data.splits["unlabeled"]))}


EXPECTED = {(text, label) for text, label, _ in ROWS}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".csv", "|"), (".tsv", "\t")])
def test_tables_are_read_in_any_usual_encoding(
    tmp_path: Path, encoding: str, suffix: str, delimiter: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_csv(tmp_path / f"texts{suffix}", delimiter, encoding)
    with caplog.at_level("INFO"):
        assert list_rows(read(path)) == EXPECTED
    assert ("is not UTF-8 (line 5), and is read as Windows-1252, with 'ü' there" in caplog.text) is (
        encoding == "cp1252"
    )


def test_json_lines_and_parquet_hold_the_same(tmp_path: Path) -> None:
    lines = [json.dumps({"Text": text, "label": label or None, "split": split}) for text, label, split in ROWS]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n\n")
    assert list_rows(read(tmp_path / "texts.jsonl")) == EXPECTED
    columns = zip(*ROWS, strict=True)
    pq.write_table(pa.table(dict(zip(("text", "label", "split"), columns, strict=True))), tmp_path / "texts.parquet")
    assert list_rows(read(tmp_path / "texts.parquet")) == EXPECTED


def test_folders_hold_the_same(tmp_path: Path) -> None:
    for i, (text, label, split) in enumerate(ROWS):
        path = tmp_path.joinpath(*filter(None, (split or "unlabeled", label)), f"{i}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    data = read(tmp_path)
    assert list_rows(data) == EXPECTED
    assert data.splits["val"].ids == ["val/animal/5.txt"]


def test_columns_have_other_names_and_second_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "id,Question,answer,kind,who\nq1,Why?,Because,x,ann\nq2,How?,So,y,bob\nq3,When?,Now,x,\n"
    )
    data = read(
        tmp_path / "a.csv", text_column="question", text_2_column="answer", label_column="kind", group_column="who"
    )
    assert set(get_texts(data.splits["labeled"])) == {"Why?\nBecause", "How?\nSo", "When?\nNow"}
    assert set(data.splits["labeled"].ids) == {"q1", "q2", "q3"}
    assert data.splits["labeled"].part.groups is not None


def test_pairs_are_equal_only_if_both_texts_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,answer,label,split\nab,c,x,train\nd,e,y,train\na,bc,x,test\nd,e,y,test\n")
    data = read(tmp_path / "a.csv", text_2_column="answer")
    assert data.splits["labeled"].ids == ["line 2"]


def test_blank_texts_are_left_out_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("text,label\nred,x\n,x\n   ,y\nblue,y\n")
    with caplog.at_level("INFO"):
        data = read(tmp_path / "a.csv")
    assert sorted(data.splits["labeled"].ids) == ["line 2", "line 5"]
    assert "2 texts are blank and left out (line 3, line 4)" in caplog.text


def test_equal_texts_do_not_train_and_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("text,label,split\nred,x,train\nblue,y,train\nred,x,test\ngreen,y,test\n")
    with caplog.at_level("INFO"):
        data = read(tmp_path / "a.csv")
    assert data.splits["labeled"].ids == ["line 3"]
    assert "line 2" in caplog.text


def test_long_texts_are_cut_off_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("text,label\na b c d e f,x\na b,y\nc d,x\ne f,y\n")
    with caplog.at_level("INFO"):
        data = read(tmp_path / "a.csv", max_length=4)
    assert "1 of 4 texts are longer than 4 tokens and are cut off there (max_length)" in caplog.text
    assert data.input_spec.shape == (4,)


def test_texts_of_similar_length_come_together_if_they_are_to(tmp_path: Path) -> None:
    rows = [f"{' '.join(f'w{i}x{k}' for k in range(1 + 7 * i % 60))},{'xy'[i % 2]},train" for i in range(400)]
    (tmp_path / "a.csv").write_text("text,label,split\n" + "\n".join(rows) + "\nnew words,x,test")

    def count_padding(group: int) -> float:
        data = read(tmp_path / "a.csv", batch_size=20, group_by_length=group)
        batches = [data.on_after_batch_transfer(batch, 0)["labeled"] for batch in data.train_dataloader()]
        assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(400))
        mask = [batch.x["attention_mask"] for batch in batches]
        return float(1 - torch.cat([m.flatten() for m in mask]).double().mean())

    assert count_padding(0) > 0.4
    assert count_padding(20) < 0.1
    with pytest.raises(InputError, match="group_by_length"):
        read(tmp_path / "a.csv", group_by_length=-1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "txt,label\na,x\n",
            r"lacks the column 'text' \(did you mean 'txt'\?\).* name the right one with text_column",
        ),
        ("text,labell\na,x\n", r"lacks the column 'label' \(did you mean 'labell'\?\)"),
        ("text,text,label\na,b,x\n", "has the column 'text' twice"),
        ("text,label\na, b,x\n", "line 2: it has 3 cells and the header has 2: put quotes around a text with ','"),
        ('text,label\n"a,x\nb,y\n', "it is not readable as CSV"),
        ("text,label\na\0,x\n", "line 2: it has a NUL byte"),
        ("text,label,split\na,x,trainn\nb,y,train\n", r"line 2: split 'trainn' is none of .*did you mean 'train'"),
        ("text,label,split\na,x,train\nb,,test\n", "line 3: split 'test' needs a label"),
        ("text,label,split\na,x,train\nb,y,train\nc,z,test\n", "line 4: no training example has the class 'z'"),
        ("text,label,split,group\na,x,train,g\nb,y,train,h\nc,y,test,g\n", "group 'g' is in train .line 2. and test"),
        ("text,label,id\na,x,1\nb,y,1\n", "the id '1' is on 2 lines"),
        ("text,label\na,cat\nb,Cat\n", "look alike"),
        ("text,label\na,\nb,\n", "has no labels"),
        ("text,label\n", "has no text"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read(path)


def test_json_lines_may_lack_keys_that_others_have(tmp_path: Path) -> None:
    rows = [{"text": "red"}, {"text": "blue", "label": "x"}, {"text": "green", "label": "y", "split": "test"}]
    rows += [{"text": "gray", "label": "y"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = read(tmp_path / "a.jsonl")
    counts = {name: data.splits[name].ids for name in ("labeled", "unlabeled", "test")}
    assert counts == {"labeled": ["line 2", "line 4"], "unlabeled": ["line 1"], "test": ["line 3"]}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("content", [bytes(range(128, 256)) * 9, b"\xff\xfea", b""])
def test_files_that_are_no_text_are_one_sentence(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(InputError):
        read(tmp_path / f"a{suffix}")


def test_other_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x"}\n["b"]\n')
    with pytest.raises(InputError, match="line 2: it is not an object in braces"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": {"x": 1}}\n')
    with pytest.raises(InputError, match="line 1: the column 'label' holds a dict"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(InputError, match="is not a readable Parquet file"):
        read(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"'b\.csv' does not exist"):
        read(Path("b.csv"))
    with pytest.raises(InputError, match=r"give a folder of texts, a table that ends with .*, or sample-texts"):
        read(Path("sample"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no text: expected CLASS/text\.txt"):
        read(tmp_path / "empty")
