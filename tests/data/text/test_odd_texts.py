"""Odd tables and folders of texts: what is meant is read, and what would be read wrongly is refused or reported."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_lightning import TextDataModule
from sft_lightning.data.text.datamodule import get_texts
from sft_lightning.utils.errors import InputError

GOOD = {"pos/1.txt": "good film", "pos/2.txt": "very good", "neg/1.txt": "bad film", "neg/2.txt": "so bad"}


def read(path: Path, **settings: object) -> TextDataModule:
    data = TextDataModule(str(path), **{"val_size": 0, "test_size": 0, **settings})  # type: ignore[arg-type]
    data.setup("fit")
    return data


def list_texts(data: TextDataModule) -> list[tuple[str, str]]:
    split = data.splits["labeled"]
    return sorted(zip(get_texts(split), (data.class_names[y] for y in split.labels.tolist()), strict=True))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        'text,label\n"a, b",x\nc d,y\n',
        '"text","label"\n"a, b","x"\n"c d","y"\n',
        'id, text, label\n1, "a, b", x\n2, "c d", y\n',
        "sep=;\ntext;label\na, b;x\nc d;y\n",
        "\n\ntext;label\na, b;x\nc d;y\n",
        '# of the shop\ntext,label\n"a, b",x\nc d,y\n',
        '#,text,label\n1,"a, b",x\n2,c d,y\n',
        '"n; o; p",text,label\n1,"a, b",x\n2,c d,y\n',
        'text,label\n"a, b",x,\nc d,y,\n',
        'text,label,\n"a, b",x,\nc d,y,\n',
        'text,label\r"a, b",x\rc d,y\r',
        "\u200btext\tlabel\na, b\tx\nc d\ty\n",
        'text,label\n"a, b",x\n"\u200b\ufeff",x\n\u00ad,y\n"c d",y\n',  # texts that nobody can see
    ],
)
def test_headers_spaces_and_comments_are_read_as_meant(content: str, tmp_path: Path) -> None:
    data = read(write(tmp_path / "a.csv", content))
    assert list_texts(data) == [("a, b", "x"), ("c d", "y")]


def test_a_second_header_is_not_a_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3: it repeats the header: remove the line"):
        read(write(tmp_path / "a.csv", "text,label\na b,x\ntext,label\nc d,y\n"))


@pytest.mark.parametrize("role", ["label", "split", "group", "id"])
def test_a_quote_that_takes_in_lines_is_not_a_class(role: str, tmp_path: Path) -> None:
    names = ["text", "label", *([] if role == "label" else [role])]
    rows = [["a", "x", "train"][: len(names)], ["b", "y", "train"][: len(names)]]
    lines = [",".join(row) for row in (names, *rows)]
    lines[1] = lines[1].replace(rows[0][-1], f'"{rows[0][-1]}')  # closed in the next line
    lines[2] += '"'
    with pytest.raises(InputError, match=f"line 2: the {role} has a line break in it"):
        read(write(tmp_path / "a.csv", "\n".join(lines)))


def test_a_label_that_nobody_can_see_is_not_a_class(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 label is '\\u200b' \(first: line 3\): leave the label blank"):
        read(write(tmp_path / "a.csv", "text,label\na,x\nb,\u200b\nc,y\n"))


def test_cells_that_were_kept_from_a_spreadsheet_are_what_they_were(tmp_path: Path) -> None:
    rows = "text,label\n'=1+2 is three,x\n'-5 degrees,y\n'tis,x\n"
    assert [text for text, _ in list_texts(read(write(tmp_path / "a.csv", rows)))] == [
        "'tis", "-5 degrees", "=1+2 is three",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text,label,fold\na,x,train\nb,y,test\nc,x,train\nd,y,test\n",
            r"the column 'fold' is not known, but its values \(test, train\) are splits: set split_column",
        ),
        ("text,label,is_test\na,x,0\nb,y,0\nc,x,1\nd,y,1\n", "'is_test' is not known, but seems to say which examples"),
        (
            "text,label,patient_id\na,x,p\nb,y,p\nc,x,q\nd,y,q\n",
            "its values repeat like groups: set group_column to keep the examples of a group in one split",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ""])
def test_what_would_leak_or_become_a_class_is_refused(content: str, message: str, suffix: str, tmp_path: Path) -> None:
    names, *rows = [line.split(",") for line in content.splitlines()]
    path = tmp_path / f"a{suffix}"
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
    if suffix == ".csv":
        write(path, content)
    elif suffix == ".jsonl":
        write(path, "\n".join(json.dumps(row) for row in table.to_pylist()))
    else:
        file = path if suffix else path / "data" / "train.parquet"  # of a data set of Hugging Face
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)
    with pytest.raises(InputError, match=message):
        read(path)
    TextDataModule("sample-texts", predict_source=str(path)).open_predicted()  # where splits and groups decide nothing


def test_other_columns_are_listed_with_what_they_may_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        read(write(tmp_path / "a.csv", "text,kind,author,note\na,x,ann,n\nb,y,ann,m\n"), label_column="kind")
    assert "the column 'author' is ignored; if it holds the group of each example, name it with" in caplog.text
    assert "the column is ignored: 'note' (known are text, kind, split, group)" in caplog.text


JAPANESE = "これは本です。とても良い、買います。"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (JAPANESE, "shift-jis"), ("ア。", "shift-jis"), (JAPANESE, "euc-jp"), ("Это очень хорошая книга", "cp1251"),
        ("Αυτό είναι ένα καλό βιβλίο", "cp1253"), ("这本书非常好", "gbk"), ("هذا كتاب جيد جدا", "cp1256"),
        ("이 책은 매우 좋습니다", "euc-kr"),
    ],
)  # fmt: skip
def test_other_encodings_are_refused_not_read_as_wrong_letters(text: str, encoding: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"text,label\n{text},x\nc d,y\n".encode(encoding))
    with pytest.raises(InputError, match=r"is neither UTF-8 nor Windows-1252 \(line 2\): convert it from the encoding"):
        read(path)
    write(tmp_path / "b/x/1.txt", text.encode(encoding))
    write(tmp_path / "b/y/1.txt", "c d")
    with pytest.raises(InputError, match=r"'.*b/x/1\.txt' is neither UTF-8 nor Windows-1252"):
        read(tmp_path / "b")


@pytest.mark.parametrize(
    "text",
    [
        "Größe über Maß, ähnlich wie früher",
        "une année créée, où ça naît déjà",
        "a informação não está na mão",
        "Chapter one ———————— café",
    ],
)
def test_western_texts_are_read_as_windows_1252_and_reported(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.tsv", f"text\tlabel\n{text}\tx\nc d\ty\n".encode("cp1252"))
    write(tmp_path / "b/x/1.txt", text.encode("cp1252"))
    write(tmp_path / "b/y/1.txt", "c d")
    with caplog.at_level("INFO"):
        assert list_texts(read(path)) == list_texts(read(tmp_path / "b")) == sorted([(text, "x"), ("c d", "y")])
    assert "is not UTF-8 (line 2), and is read as Windows-1252" in caplog.text
    assert "1 file is not UTF-8, and read as Windows-1252 (x/1.txt)" in caplog.text


def test_a_damaged_line_does_not_change_the_encoding_of_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nüber,x\nnaïve,y\n".encode() + b"caf\xe9,y\n")
    with pytest.raises(InputError, match=r"is UTF-8 text that is damaged in line 4 \('é'\): correct that line"):
        read(path)


def test_json_lines_without_end_or_with_half_a_character(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(InputError, match="line 1: it is not JSON"):
        read(write(tmp_path / "a.jsonl", deep))
    rows = '{"text": "cut \\ud83d", "label": "x"}\n{"text": "whole \\ud83d\\ude00", "label": "y"}\n'
    with caplog.at_level("INFO"):
        assert list_texts(read(write(tmp_path / "a.jsonl", rows))) == [("cut \ufffd", "x"), ("whole 😀", "y")]
    assert "1 text has halves of characters, read as \ufffd (line 1)" in caplog.text
    with pytest.raises(InputError, match=r"line 1: the column 'label' holds half of a character \('\\ud83d'\)"):
        read(write(tmp_path / "a.jsonl", '{"text": "a", "label": "\\ud83d"}\n'))


# --- folders


def layout(root: Path, **files: str | bytes) -> Path:
    for name, content in {**GOOD, **files}.items():
        write(root / name, content)
    return root


def test_folders_are_read_as_those_of_other_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files: dict[str, str | bytes] = {
        "pos/3.TXT": "upper", "pos/4.txt": "größer".encode("utf-16"), "pos/5.md": "no", "pos/6.txt": b"",
        "pos/.ipynb_checkpoints/1.txt": "good film", "__MACOSX/pos/._1.txt": b"\0\5", "pos/._1.txt": b"\0\5",
    }  # fmt: skip
    with caplog.at_level("INFO"):
        data = read(layout(tmp_path / "a", **files))
    more = {("upper", "pos"), ("größer", "pos")}
    assert {*list_texts(data)} == {(text, name.split("/")[0]) for name, text in GOOD.items()} | more
    assert "that is not a text: 1 .md" in caplog.text
    assert "1 text is blank and left out (pos/6.txt)" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": "todo"}, r"text '.*notes\.txt' lies beside the class folders: move it"),
        ({"pos/3.txt": b"a\0b"}, r"3\.txt' has a NUL byte, so that it is not text in UTF-8"),
        ({"Pos/1.txt": "other"}, "has the classes 'Pos' and 'pos', which look alike"),
        ({"eval/pos/1.txt": "other"}, "'.*eval' may mean validation or test: rename it"),
    ],
)
def test_what_would_become_an_example_or_a_class_is_refused(
    files: dict[str, str | bytes], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read(layout(tmp_path / "a", **files))


def test_a_pipe_among_the_texts_is_not_waited_for(tmp_path: Path) -> None:
    root = layout(tmp_path / "a")
    os.mkfifo(root / "pos/pipe.txt")
    with pytest.raises(InputError, match=r"pipe\.txt' is not a file with a text"):
        read(root)


def test_predicting_takes_all_texts_of_a_folder_or_a_single_one(tmp_path: Path) -> None:
    root = layout(tmp_path / "a", **{"notes.txt": "todo", "eval/x/y/7.txt": "deep"})
    data = TextDataModule("sample-texts", predict_source=str(root))
    assert {*data.open_predicted().ids} == {*GOOD, "notes.txt", "eval/x/y/7.txt"}
    data = TextDataModule("sample-texts", predict_source=str(root / "pos/1.txt"))
    assert get_texts(data.open_predicted()) == ["good film"]
