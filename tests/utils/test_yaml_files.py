import os
import time
from pathlib import Path

import pytest

from sft_lightning.__main__ import main
from sft_lightning.utils.errors import InputError
from sft_lightning.utils.yaml_files import check_text, read_yaml
from tests.conftest import CONFIGS

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")

_TEN = ",".join("x" * 10)
BOMB = f"a0: &a0 [{_TEN}]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
INLINE = "[&a0 [x], " + ", ".join(f"&a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)) + "]"
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
STRICT = [
    (BOMB, "its aliases (*NAME) stand for more than 10,000 values: write out"),
    (INLINE, "its aliases (*NAME) stand for more than 10,000 values: write out"),
    (MERGED, "its aliases (*NAME) stand for more than 10,000 values: write out"),
    ("a:\n  - &a [1, *a]\n", "an alias is inside of its own value (line 2): write it out"),
    (
        "a: !!python/object/apply:os.system ['x']\n",
        "line 1 has the tag '!!python/object/apply:os.system', which is not",
    ),
    ("a: 1\nb: !mine 1\n", "line 2 has the tag '!mine', which is not allowed: write plain values"),
    ("a: 1\nb: 2\na: 3\n", "line 3 repeats 'a' of line 1: keep one of the two"),
    ("a: {x: 1, x: 2}\n", "line 1 repeats 'x'"),
]
FAULTY = [
    *STRICT,
    ("a:\n\tb: 1\n", "line 2 is indented with a tab: indent with spaces"),
    ("a: 1\n---\nb: 2\n", "line 2 begins a second YAML document (---): put it into its own file"),
    ("a: *x\n", "line 1 has an alias (*NAME) without its anchor (&NAME)"),
    ("- " * 5000, "line 1 is nested too deeply"),
    ("a: \0\n", "it has characters that are not text: save it as UTF-8"),
    ("a: [1\n", "a YAML file cannot be read (line 2): check its indentation and quotes"),
    ("a: !!float x\n", "a YAML file cannot be read: check its indentation and quotes"),
]


@pytest.mark.parametrize(("text", "words"), FAULTY)
def test_faulty_files_are_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert time.monotonic() - began < 1
    assert str(caught.value).startswith(f"config {str(path)!r}: {words}")


@pytest.mark.parametrize(("text", "words"), STRICT)
def test_text_that_the_parser_reads_is_checked_as_strictly(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_text(text)
    assert str(caught.value).startswith(f"config: {words}")


def test_what_is_allowed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    names = [f"class {i}" for i in range(20_000)]  # many values are fine, where they are written out
    path.write_text(f"\ufeffx: &a 1\ny: *a\nz: {{<<: {{q: 1}}, q: 2}}\n1: a\n'1': b\nn: {names}\n", encoding="utf-8")
    assert read_yaml(path) == {"x": 1, "y": 1, "z": {"q": 2}, 1: "a", "1": "b", "n": names}
    path.write_text("")
    assert read_yaml(path) is None
    for value in ("!x", "*x*", "a: b", "{a: 1}"):
        check_text(value)


def test_encoding_and_permissions_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("a: ä\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_yaml(path)
    if os.geteuid():
        path.chmod(0)
        with pytest.raises(InputError, match="Permission denied"):
            read_yaml(path)


@pytest.mark.parametrize(
    ("files", "args", "words"),
    [
        ({"a.yaml": BOMB}, ["fit", "--config", "a.yaml"], "config 'a.yaml': its aliases"),
        ({"a.yaml": BOMB}, ["fit", "--config=a.yaml"], "config 'a.yaml': its aliases"),
        ({"a.yaml": "model: i/b.yaml\n", "i/b.yaml": "a: 1\na: 2\n"}, ["fit", "--config", "a.yaml"], "'i/b.yaml': l"),
        ({"b.yaml": "a: 1\na: 2\n"}, ["fit", "--model", "b.yaml"], "config 'b.yaml': line 2 repeats 'a'"),
        ({"b.yaml": "a: 1\na: 2\n"}, ["study", "--config", "b.yaml"], "config 'b.yaml': line 2 repeats 'a'"),
        ({"a.yaml": "x: [{config: [b.yaml]}]\n", "b.yaml": BOMB}, ["study", "--config=a.yaml"], "'b.yaml': its"),
        (
            {"r/fit.yaml": "a: !!python/name:x.y ''\n", "r/checkpoints/last.ckpt": "x"},
            ["test", "r/checkpoints/last.ckpt"],
            "config 'r/fit.yaml': line 1 has the tag '!!python/name:x.y'",
        ),
        (
            {"r/fit.yaml": "a: !!python/name:x.y ''\n", "r/checkpoints/last.ckpt": "x"},
            ["report", "r/checkpoints/last.ckpt"],
            "config 'r/fit.yaml': line 1 has the tag '!!python/name:x.y'",
        ),
    ],
)  # fmt: skip
def test_every_config_of_a_command_is_read_strictly_before_torch_is_imported(
    files: dict[str, str], args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    assert main(args) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("names", "value"), [("[no, yes]", "False"), ("[cat, null]", "None"), ("[cat, 1]", "1")])
def test_names_that_yaml_takes_for_another_type_want_quotes(
    names: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", FINE_TUNE, f"--data.init_args.class_names={names}"]) == 2
    assert f"data.class_names is '{value}': give text, in quotes where it looks like" in capsys.readouterr().err
