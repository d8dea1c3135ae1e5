"""Files that would run code, or make the program write elsewhere, run nothing and are refused with one sentence."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from PIL import Image
from safetensors.torch import save_file

from sft_lightning import FineTuneClassifier
from sft_lightning.__main__ import main
from sft_lightning.data.table_paths import check_inside
from sft_lightning.networks.weights import read_metadata, read_weights
from sft_lightning.paradigms.calibration import FILE as CALIBRATION
from sft_lightning.study.plan import Stage, plan
from sft_lightning.training.callbacks.checkpoint import AtomicCheckpointIO
from sft_lightning.utils.errors import InputError
from tests.conftest import CONFIGS, ROOT
from tests.study.test_study import METHODS, written

FINE_TUNE = str(CONFIGS / "quickstart" / "fine_tune.yaml")
RANK = str(CONFIGS / "reuse" / "rank.yaml")
RUN = Path("lightning_logs/run/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
FIT = ["fit", "--config", FINE_TUNE, "--data.init_args.steps_per_epoch=2", "--run_name=run", "--trainer.max_epochs=1"]
FIT += ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


class Payload:
    """Leaves a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, whose predictions were calibrated, and its exported model."""
    place = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(place)
    try:
        assert main(FIT) == 0
        Image.new("L", (28, 28)).save("new.png")
        assert main(["predict", str(RUN), "new.png"]) == 0
        assert main(["export", str(RUN), "--out=model.safetensors", "--measure_on=0"]) == 0
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def place(trained: Path, workdir: Path) -> Path:
    """A copy of it, to be damaged, with a module in it that leaves a file when it is imported."""
    shutil.copytree(trained, workdir, dirs_exist_ok=True)
    Path("evil.py").write_text("open('ran', 'w')\nclass Evil:\n    pass\n")
    return workdir


def slow(value: Any) -> Any:
    """One case more of what another one proves in the ordinary suite."""
    return pytest.param(value, marks=pytest.mark.slow)


def refused(cli_error: Callable[..., str], words: list[str], file: Path | str) -> str:
    """Return the one sentence, which names the file; nothing has run."""
    said = cli_error(*words)
    assert repr(str(file)) in said
    assert not Path("ran").exists(), words
    return said


def hostile(file: Path, where: str) -> None:
    """A checkpoint that runs code when it is loaded as torch did for years."""
    content = torch.load(LAST, weights_only=True)
    if where == "state":
        content["state_dict"]["head.weight"] = Payload()
    elif where == "settings":
        content["hyper_parameters"]["class_names"] = Payload()
    elif where == "callbacks":
        content["callbacks"]["RunCheckpoint"]["best_model_path"] = Payload()
    if where == "bare pickle":
        file.write_bytes(pickle.dumps(Payload()))
    else:
        torch.save(
            content if where != "old format" else Payload(), file, _use_new_zipfile_serialization=where[0] != "o"
        )


PLACES = ["state", "settings", "callbacks", "old format", "bare pickle"]


def test_the_payload_is_real(place: Path) -> None:
    for where in PLACES:
        hostile(Path("bad.ckpt"), where)
        with suppress(RuntimeError):  # the bare one ran before torch found that it is no checkpoint
            torch.load("bad.ckpt", weights_only=False)
        assert Path("ran").exists()
        Path("ran").unlink()
        with pytest.raises(InputError, match="could run code"):
            read_weights(Path("bad.ckpt"))
        with pytest.raises(pickle.UnpicklingError):  # behind the check of the command line, should it be passed by
            AtomicCheckpointIO().load_checkpoint("bad.ckpt", weights_only=False)
        assert not Path("ran").exists()


READERS: dict[str, Callable[[str], list[str]]] = {
    "resumed": lambda file: [*FIT, "--trainer.max_epochs=2", "--ckpt_path", file],
    "tested": lambda file: ["test", "--config", FINE_TUNE, "--ckpt_path", file],
    "validated": lambda file: ["validate", "--config", FINE_TUNE, "--ckpt_path", file],
    "predicted": lambda file: [
        "predict",
        "--config",
        FINE_TUNE,
        "--ckpt_path",
        file,
        "--data.init_args.predict_source=new.png",
    ],
    "weights": lambda file: [*FIT, "--model.init_args.weights", file],
    "head_weights": lambda file: [*FIT, "--model.init_args.head_weights", file],
    "exported": lambda file: ["export", file],
    "reported": lambda file: ["report", file],
    "ranked": lambda file: ["rank", "--config", RANK, f"--candidates=[{file}]"],
    "found a rate": lambda file: ["find-lr", "--config", FINE_TUNE, "--model.init_args.weights", file],
}


@pytest.mark.parametrize(
    "reader", [slow(r) if r in ("validated", "found a rate", "head_weights") else r for r in READERS]
)
def test_pickles_are_refused_wherever_they_are_read(
    reader: str, place: Path, cli_error: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for where in ("settings",) if reader != "resumed" else PLACES:
        file = RUN / "checkpoints" / "bad.ckpt" if reader == "reported" else Path("bad.ckpt")
        hostile(file, where)
        assert "could run code" in refused(cli_error, READERS[reader](str(file)), file)


@pytest.mark.parametrize("command", ["test", "report", "fit", *map(slow, ["predict", "export", "rank"])])
def test_and_in_the_folder_of_a_run(command: str, place: Path, cli_error: Callable[..., str]) -> None:
    hostile(LAST, "callbacks")
    words = {
        "predict": ["predict", str(RUN), "new.png"],
        "rank": READERS["ranked"](str(RUN)),
        "fit": [*FIT, "--trainer.max_epochs=2", "--ckpt_path=last"],
    }
    assert "could run code" in refused(cli_error, words.get(command, [command, str(RUN)]), LAST)


def test_unsafe_loading_cannot_be_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile(LAST, "callbacks")
    capsys.readouterr()
    assert main(["test", str(RUN), "--weights_only=false"]) == 2
    assert "weights_only is False, with which a checkpoint could run code: leave it out" in capsys.readouterr().err


CALL = {"class_path": "os.system", "init_args": {"command": "touch ran"}}


@pytest.mark.parametrize(
    "settings",
    [
        {"_class_path": "evil.Evil", "_instantiator": "os.system", "optimizer": CALL, "lr_scheduler": CALL},
        slow({"_instantiator": "evil.Evil", "regularizer": {"class_path": "evil.Evil"}, "strategy": CALL}),
        slow({"_class_path": "evil.Evil", "_instantiator": "lightning.pytorch.cli.instantiate_module"}),
    ],
    ids=lambda settings: settings["_instantiator"],
)
def test_class_paths_in_a_checkpoint_are_never_followed(settings: dict[str, Any], place: Path) -> None:
    """Whether what is left of it can be used or not, in the command line and in Python."""
    good = torch.load(LAST, weights_only=True)
    bad = {**good, "hyper_parameters": {**good["hyper_parameters"], **settings}}
    torch.save(bad, LAST)
    assert main(["test", str(RUN)]) == 0
    assert main(["export", str(RUN), "--measure_on=0"]) == 0
    assert main(["predict", str(RUN), "new.png"]) == 0
    with pytest.raises(ValueError, match="blocked to prevent arbitrary code execution"):
        FineTuneClassifier.load_from_checkpoint(LAST, weights_only=True)
    assert main([*FIT, "--trainer.max_epochs=2", f"--ckpt_path={LAST}"]) == 0
    assert not Path("ran").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("changed", "readers"),
    [
        ({"hyper_parameters": "os.system"}, ["exported", "reported", "ranked", "predicted"]),
        pytest.param(
            {"hyper_parameters": {"backbone": {"class_path": "os.system"}}},
            ["exported", "ranked"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"hyper_parameters": {"backbone": "mlp", "image_shape": ["touch ran"] * 3}},
            ["exported", "predicted"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"hyper_parameters": {"backbone": "mlp", "image_shape": [1, 10**12, 28]}},
            ["exported", "ranked"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"hyper_parameters": {"backbone": "mlp", "image_shape": [1, 28, 28], "class_names": [1]}},
            ["exported"],
            marks=pytest.mark.slow,
        ),
        pytest.param({"hyper_parameters": {"backbone": "mlp"}}, ["exported", "ranked"], marks=pytest.mark.slow),
        pytest.param({"global_step": "touch ran"}, ["exported", "tested", "resumed"], marks=pytest.mark.slow),
        pytest.param(
            {"state_dict": {"head.weight": torch.ones(1)}},
            ["exported", "tested", "resumed", "weights"],
            marks=pytest.mark.slow,
        ),
        pytest.param({"loops": None}, ["tested", "resumed"], marks=pytest.mark.slow),
        pytest.param({"loops": {}}, ["resumed"], marks=pytest.mark.slow),
        pytest.param({"optimizer_states": [{"state": {}, "param_groups": []}]}, ["resumed"], marks=pytest.mark.slow),
        pytest.param({"lr_schedulers": [{"last_epoch": []}]}, ["resumed"], marks=pytest.mark.slow),
        ({"callbacks": {"RunCheckpoint": 3}}, ["resumed"]),
        pytest.param({"callbacks": {"RunCheckpoint": {"best_model_path": 3}}}, ["resumed"], marks=pytest.mark.slow),
        pytest.param({"callbacks": []}, ["resumed", "tested"], marks=pytest.mark.slow),
        pytest.param({"epoch": None}, ["resumed", "tested"], marks=pytest.mark.slow),
        pytest.param({"pytorch-lightning_version": 3}, ["resumed", "tested"], marks=pytest.mark.slow),
    ],
)
def test_safe_types_with_impossible_values(
    changed: dict[str, Any], readers: list[str], place: Path, cli_error: Callable[..., str]
) -> None:
    file = RUN / "checkpoints" / "bad.ckpt"
    torch.save({**torch.load(LAST, weights_only=True), **changed}, file)
    for reader in readers:
        refused(cli_error, READERS[reader](str(file)), file)


@pytest.mark.parametrize(
    "name", ["best_k_models", *map(slow, ["kth_best_model_path", "best_model_path", "last_model_path"])]
)
def test_a_checkpoint_removes_no_file_but_those_beside_it(
    name: str, place: Path, cli_error: Callable[..., str]
) -> None:
    victim = Path("thesis.txt")
    victim.write_text("years of work")
    content = torch.load(LAST, weights_only=True)
    state = content["callbacks"]["RunCheckpoint"]
    away = f"{state['dirpath']}/../../../../thesis.txt"
    assert Path(away).exists()
    bad = RUN / "checkpoints" / "bad.ckpt"
    worst = torch.tensor(-1.0)
    value = {away: worst} if name == "best_k_models" else away
    again = {**state, name: value, "kth_value": worst, "best_model_score": worst}
    torch.save({**content, "callbacks": {**content["callbacks"], "RunCheckpoint": again}}, bad)
    assert "is elsewhere" in refused(cli_error, READERS["resumed"](str(bad)), bad)
    assert victim.read_text() == "years of work"


# --- safetensors


def header(text: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: str = "[2]", offsets: str = "[0, 8]", name: str = '"a"') -> bytes:
    return f'{{{name}: {{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}}}'.encode()


BROKEN = {
    "a header of exabytes": header(b"{}", length=2**63 - 1),
    "a header longer than the file": header(b"{}", length=10_000),
    "garbage": header(os.urandom(64)),
    "a list": header(b"[]"),
    "offsets beyond the file": header(tensor("[1000000]", "[0, 4000000]"), bytes(8)),
    "offsets that do not fit the shape": header(tensor("[3]"), bytes(8)),
    "offsets below zero": header(tensor(offsets="[-8, 0]"), bytes(8)),
    "offsets that leave a hole": header(tensor(offsets="[4, 12]"), bytes(12)),
    "a shape that overflows": header(tensor(f"[{2**62}, 8]"), bytes(8)),
    "a pickle": pickle.dumps(Payload()),
    "nothing": b"",
}


@pytest.mark.parametrize("what", BROKEN)
def test_safetensors_that_are_none(what: str, place: Path, cli_error: Callable[..., str]) -> None:
    file = Path("bad.safetensors")
    file.write_bytes(BROKEN[what])
    with pytest.raises(InputError, match="cannot be read"):
        read_weights(file)
    for reader in ("weights", "head_weights", "ranked") if what == "a pickle" else ():
        refused(cli_error, READERS[reader](str(file)), file)


DESCRIBED: list[Any] = [
    [1, 2],
    {"backbone": {"class_path": "os.system", "init_args": {"command": "touch ran"}}},
    {"backbone": "mlp", "image_shape": "touch ran"},
    {"backbone": "mlp", "image_shape": [1, 28, 28], "class_names": {"class_path": "evil.Evil"}},
    {"backbone": "mlp", "image_shape": [1, 28, 28], "chain": [3]},
    {"backbone": "mlp", "image_shape": [1, 28, 28], "chain": [{"file": "x", "sha256": 3}]},
    {"backbone": "evil.Evil", "image_shape": [1, 28, 28]},
    {"backbone": "os.system", "image_shape": [1, 28, 28]},
]


@pytest.mark.parametrize("about", [DESCRIBED[1], DESCRIBED[-1], *map(slow, DESCRIBED[:1] + DESCRIBED[2:-1])], ids=str)
def test_a_part_with_a_hostile_description(about: Any, place: Path, cli_error: Callable[..., str]) -> None:
    file = Path("bad.safetensors")
    save_file(read_weights(Path("model.safetensors"))[0], file, {"sft_lightning": json.dumps(about)})
    named = "os.system" if about == DESCRIBED[-1] else "evil.Evil" if about == DESCRIBED[-2] else file
    refused(cli_error, READERS["weights"](str(file)), file)
    refused(cli_error, READERS["ranked"](str(file)), named)
    assert "evil" not in sys.modules


def test_a_deep_description_and_the_file_beside_a_part(place: Path, cli_error: Callable[..., str]) -> None:
    tensors = read_weights(Path("model.safetensors"))[0]
    deep = "[" * 100_000 + "]" * 100_000
    save_file(tensors, "deep.safetensors", {"sft_lightning": deep})
    refused(cli_error, READERS["weights"]("deep.safetensors"), "deep.safetensors")
    # The JSON beside a part is for people: nothing reads it back.
    Path("model.json").write_text('{"backbone": {"class_path": "evil.Evil"}, "image_shape": "touch ran"}')
    assert main(READERS["weights"]("model.safetensors")) == 0
    assert "evil" not in sys.modules


# --- what lies in the folder of a run, and caches


@pytest.mark.parametrize(
    ("name", "text", "commands"),
    [
        ("lineage.json", "{", ["lineage", "report", "export"]),
        ("lineage.json", '[{"run": ["touch ran"]}]', ["lineage", "export"]),
        ("lineage.json", '[{"file": "x"}]', ["lineage"]),
        ("lineage.json", '[{"run": "x", "machine": {"class_path": "evil.Evil"}}]', ["lineage", "report"]),
        ("lineage.json", "[" * 100_000, ["lineage"]),
        ("split.csv", "# [1]\nid,split,label\n", ["export"]),
        ("split.csv", "# {\n", ["export", "report"]),
        ("loggers.json", '{"WandbLogger": {"class_path": "evil.Evil"}}', ["test"]),
        ("loggers.json", "[]", ["test"]),
        ("run.json", "[" * 100_000, ["repeat", "report"]),
    ],
)
def test_records_of_a_run(
    name: str, text: str, commands: list[str], place: Path, cli_error: Callable[..., str]
) -> None:
    (RUN / name).write_text(text)
    for command in commands:
        refused(cli_error, [command, str(RUN)], RUN / name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command", "touch ran"),
        ("command", [["touch", "ran"]]),
        ("threads", "touch ran"),
        ("threads", 0),
        ("machine", "evil.Evil"),
        ("versions", ["evil.Evil"]),
        ("seed", {"class_path": "evil.Evil"}),
        ("code", "evil.Evil"),
        ("code", {"commit": "0", "dirty": "no"}),
        ("code", {"commit": "0", "dirty": True}),
    ],
)
def test_a_record_with_other_types(field: str, value: Any, place: Path, cli_error: Callable[..., str]) -> None:
    record = json.loads((RUN / "run.json").read_text())
    (RUN / "run.json").write_text(json.dumps({**record, field: value}))
    refused(cli_error, ["repeat", str(RUN)], RUN / "run.json")


def test_a_report_takes_nothing_from_logs_that_are_none(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (RUN / "metrics.csv").write_text("step,metric,value\n1,train/loss,__import__('os').system('touch ran')\n")
    link = {"run": "<script>ran()</script>", "model": "<img src=x onerror=ran()>", "data": "<b>"}
    (RUN / "lineage.json").write_text(json.dumps([link]))
    words, code = ["fit", "<script>ran()</script>", "$(touch ran)"], {"commit": "<img src=x>", "dirty": False}
    record = json.loads((RUN / "run.json").read_text())
    (RUN / "run.json").write_text(json.dumps({**record, "command": words, "code": code}))
    for events in RUN.glob("events.out.tfevents.*"):
        events.write_bytes(header(os.urandom(200)))
    assert main(["report", str(RUN)]) == 0
    page = (RUN / "report.html").read_text()
    assert "<script>ran" not in page
    assert "<img src=x" not in page
    assert not Path("ran").exists()


def test_a_run_does_not_go_on_with_a_damaged_log(place: Path, cli_error: Callable[..., str]) -> None:
    (RUN / "metrics.csv").write_text("step,metric,value\ntouch ran,x,1\n")
    refused(cli_error, [*FIT, "--trainer.max_epochs=2", f"--ckpt_path={LAST}"], RUN / "metrics.csv")


def test_a_config_with_tags_of_python(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RUN / "fit.yaml"
    config.write_text("run_name: !!python/object/apply:os.system ['touch ran']\n" + config.read_text())
    for command in ("test", "export", "report"):
        assert main([command, str(RUN)]) == 2
        assert not Path("ran").exists()
    assert "sft-lightning: " in capsys.readouterr().err


@pytest.mark.parametrize("first", [True, slow(False)])
def test_a_calibration_that_is_none_is_told_and_found_out_anew(first: bool, place: Path) -> None:
    path = RUN / CALIBRATION
    mapped, about = read_weights(path)
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}  # the file below them is written anew
    expected = (RUN / "predictions.csv").read_text()
    bad: list[tuple[dict[str, torch.Tensor], dict[str, Any]] | bytes] = [
        pickle.dumps(Payload()),
        header(b"{}", length=2**62),
        (tensors, {**about, "temperature": "touch ran"}),
        (tensors, {**about, "temperature": -1.0}),
        (tensors, {**about, "because": {"class_path": "evil.Evil"}}),
        (tensors, {**about, "of": "evil.Evil"}),
        ({**tensors, "bank": torch.ones(3, 2)}, about),
        ({"bank": tensors["bank"]}, about),
    ]
    for content in bad[:3] if first else bad[3:]:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content[0], path, {"sft_lightning": json.dumps(content[1])})
        with pytest.warns(UserWarning, match=f"The saved calibration is not used and is fitted again: .*{CALIBRATION}"):
            assert main(["predict", str(RUN), "new.png"]) == 0
        assert (RUN / "predictions.csv").read_text() == expected
        assert read_metadata(path) == about
    assert not Path("ran").exists()


def test_features_that_are_none_are_told_and_computed_anew(place: Path) -> None:
    words = [*FIT, "--model.init_args.tune=head", "--data.init_args.steps_per_epoch=10"]
    assert main(words) == 0
    files = sorted(Path("lightning_logs/features").iterdir())
    good = [file.read_bytes() for file in files]
    for bad in (pickle.dumps(Payload()), header(tensor("[2]"), bytes(8))):
        for file in files:
            file.write_bytes(bad)
        with pytest.warns(UserWarning, match=f"Cached features are not used and are computed again: .*{files[0].name}"):
            assert main(words) == 0
        assert [file.read_bytes() for file in files] == good
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "result",
    [
        "os.system",
        {"folder": ["touch ran"]},
        {"folder": "../../elsewhere"},
        {"folder": "/elsewhere"},
        {"folder": "x", "test_last": "touch ran"},
        {"folder": "x", "test_last": True},
        {"folder": "x", "logistic": {"pixels": "evil.Evil"}},
        {"folder": "x", "graph": {"pixels": "evil.Evil"}},
        {"folder": "x", "graph": "evil.Evil"},
        {"failed": {"class_path": "evil.Evil"}},
    ],
    ids=str,
)
def test_a_study_with_a_hostile_summary(result: Any, workdir: Path, cli_error: Callable[..., str]) -> None:
    config = written(workdir, budgets=[20], seeds=[0], methods={"labels_only": METHODS["labels_only"]})
    path = Path("lightning_logs/study/small/study.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"0" * 64: result}))
    assert "remove it to train all runs again" in refused(cli_error, ["study", config], path)


def test_the_jobs_of_a_study_are_known_without_unpickling(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    from sft_lightning.study import slurm

    monkeypatch.setattr(slurm, "list_queue", lambda: {"1", "2"})
    monkeypatch.setattr("shutil.which", lambda name: name)
    config = yaml.safe_load(Path(written(workdir).partition("=")[2]).read_text())
    (one,) = plan({"a": [Stage(config=[])]}, [20], [0], config["data"], {})
    asked = (
        slurm.SlurmJob(),
        one,
        "lightning_logs/" + "f" * 64,
        "folder",
        (Path("slurm") / f"{one.key}.json").absolute(),
    )
    submitit.core.utils.DelayedSubmission(*asked).dump("1_submitted.pkl")
    Path("2_submitted.pkl").write_bytes(pickle.dumps(Payload()))
    assert slurm.find_queued_jobs(Path()) == {one.key: "1"}
    assert not Path("ran").exists()


# --- paths


@pytest.mark.parametrize("kind", ["csv", slow("parquet")])
def test_a_table_names_files_in_its_folder_or_in_root_alone(
    kind: str, place: Path, write_folder: Callable[..., Path], cli_error: Callable[..., str]
) -> None:
    write_folder(Path("mine/images"), {"train": 4}, classes=2)
    write_folder(Path("mine-too"), {"train": 1}, classes=1)  # a name that begins alike
    own = [f"images/train/{path.parent.name}/{path.name}" for path in sorted(Path("mine/images/train").glob("*/*.png"))]
    outside = next(Path("mine-too").glob("train/*/*.png"))
    table = Path("mine") / f"table.{kind}"
    new = [*FIT, "--data.init_args.num_labels=null", f"--data.init_args.source={table}", "--data.init_args.channels=1"]
    new += ["--data.init_args.image_size=28", "--data.init_args.num_workers=0", "--data.init_args.test_size=0"]

    def listed(*paths: str) -> None:
        if kind == "csv":
            table.write_text("path,label\n" + "".join(f"{path},{i % 2}\n" for i, path in enumerate(paths)))
        else:
            import pyarrow
            import pyarrow.parquet

            columns = {"path": list(paths), "label": [str(i % 2) for i in range(len(paths))]}
            pyarrow.parquet.write_table(pyarrow.table(columns), table)

    wrong = [f"../{outside}", f"images/../../{outside}", str(outside.absolute()), "/etc/hostname", "../mine-too/x.png"]
    for path in wrong:
        with pytest.raises(InputError, match="leads out of the folder 'mine'"):
            check_inside(table, 1, path, "data")
    listed(*own, wrong[0])
    said = refused(cli_error, new, table)
    assert f"line {len(own) + (2 if kind == 'csv' else 1)}: path {wrong[0]!r} leads out of the folder 'mine'" in said
    assert "leads out of the folder 'mine'" in refused(cli_error, ["predict", str(RUN), str(table)], table)
    # Below root it may lie, and so may what is written in a roundabout way, absolutely, or behind a link.
    Path("mine/link").symlink_to(Path("mine-too").absolute())
    listed(
        *own[:-2],
        f"images/../{own[-2]}",
        str(Path("mine", own[-1]).absolute()),
        "link/" + str(outside).partition("/")[2],
    )
    assert main([*new, "--trainer.max_epochs=0"]) == 0
    listed(*own, f"../{outside}")
    assert main([*new, "--trainer.max_epochs=0", "--data.init_args.root=mine-too"]) == 0
    assert main(["predict", str(RUN), str(table), "--data.init_args.root=mine-too"]) == 0


@pytest.mark.parametrize("name", ["a/../../out", slow("../out"), slow("ABSOLUTE")])
def test_a_name_leads_nowhere_but_below_the_logs(name: str, workdir: Path, cli_error: Callable[..., str]) -> None:
    name = str(workdir / "out") if name == "ABSOLUTE" else name
    for command in ("fit", "find-lr", "audit", "preview", "degree"):
        words = ["--config", str(CONFIGS / "reuse" / "degree.yaml")] if command == "degree" else []
        words = [command, "--config", FINE_TUNE, *words, f"--run_name={name}"]
        assert "leads out of lightning_logs/" in refused(cli_error, words, name)
    assert "leads out of lightning_logs/" in refused(cli_error, ["study", written(workdir, name=name)], name)
    assert [path.name for path in workdir.iterdir()] == ["study.yaml"]


def test_names_in_a_study_are_no_paths(workdir: Path) -> None:
    stages = [Stage(config=[], name="/etc/x"), Stage(config=[], name="../..")]
    runs = plan({"../../a": stages}, [20], [0], None, {})
    assert [run.label for run in runs] == ["20_labels/_a_etc_x/seed_0", "20_labels/_a/seed_0"]


def test_pickled_data_sets_must_be_the_published_ones(workdir: Path, cli_error: Callable[..., str]) -> None:
    """Of CIFAR: torchvision asks for their checksum before it unpickles them."""
    for base, names in (
        ("cifar-10-batches-py", ["batches.meta", "test_batch", *(f"data_batch_{k}" for k in range(1, 6))]),
        ("cifar-100-python", ["train", "test", "meta"]),
    ):
        Path("data", base).mkdir(parents=True)
        for name in names:
            Path("data", base, name).write_bytes(pickle.dumps(Payload()))
    Path("data/meta.bin").write_bytes(pickle.dumps(Payload()))
    for name in ("CIFAR10", "CIFAR100", "ImageNet"):
        refused(cli_error, [*FIT, f"--data.init_args.source={name}"], name)


# --- the rule


def lint(text: str, name: str) -> str:
    words = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "--stdin-filename", name, "-"]
    return subprocess.run(words, input=text, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("import torch\n\ntorch.load('x')\n", "TID251"),
        ("import torch\n\ntorch.load('x', weights_only=True)\n", "TID251"),
        ("from torch import load\n\nload('x')\n", "TID251"),
        ("import numpy as np\n\nnp.load('x', allow_pickle=True)\n", "TID251"),
        ("import pickle\n\npickle.loads(b'')\n", "S301"),
        ("import joblib\n\njoblib.load('x')\n", "TID251"),
        ("import yaml\n\nyaml.load('x', yaml.Loader)\n", "S506"),
        ("eval('1')\n", "S307"),
        ("import subprocess\n\nsubprocess.run('ls', shell=True)\n", "S602"),
        ("import tarfile\n\ntarfile.open('x').extractall()\n", "S202"),
    ],
)
def test_what_could_run_a_file_fails_the_lint(line: str, rule: str) -> None:
    for name in ("sft_lightning/data/planted.py", "sft_lightning/networks/weights.py", "scripts/bench/planted.py"):
        assert f" {rule} " in lint(f'"""Planted."""\n\n{line}', name)
