"""The wheel works outside of a checkout: it has the configs, the sample and the command."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from sft_lightning import __version__
from sft_lightning.cli.shipped_configs import list_shipped
from tests.conftest import CONFIGS, ROOT

TRACKED = ("configs", "sft_lightning", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
DOCUMENTS = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md")
TINY = "--trainer.max_epochs 1 --data.init_args.steps_per_epoch 1 --data.init_args.num_workers 0"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a release is built from, so that a build leaves nothing in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in (*TRACKED, *DOCUMENTS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)], out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def run(words: list[str], folder: Path) -> str:
    """Run a program outside of the checkout, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def make_environment(folder: Path, *install: str) -> Path:
    """Make an environment with this package from `install`, and with the other packages of this one."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--disable-pip-version-check"]
    packages = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    # Of a folder that a .pth file names, Python reads no .pth files: the editable install there stays out.
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *options, *install], folder)
    return folder / "bin" / "sft-lightning"


@pytest.mark.slow
def test_archives_hold_the_configs_and_the_documents(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"sft_lightning", f"sft_lightning-{__version__}.dist-info"}
    assert {f"sft_lightning/configs/{name}" for name in list_shipped()} <= names
    assert {"sft_lightning/py.typed", "sft_lightning/data/sample/LICENSES.md"} <= names
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sft_lightning").rglob("*.py")}
    assert code == {name for name in names if name.endswith(".py")}
    with tarfile.open(sdist) as archive:
        packed = set(archive.getnames())
    top = f"sft_lightning-{__version__}"
    assert {f"{top}/{name}" for name in DOCUMENTS} <= packed
    assert {f"{top}/configs/{name}" for name in list_shipped()} <= packed


@pytest.mark.slow
def test_wheel_trains_and_lists_its_configs_outside_of_a_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    command = str(make_environment(tmp_path / "environment", str(built[1])))
    work = tmp_path / "work"
    work.mkdir()
    (where,) = run(
        [str(tmp_path / "environment" / "bin" / "python"), "-c", "import sft_lightning as s; print(*s.__path__)"], work
    ).split()
    assert Path(where).is_relative_to(tmp_path)
    listed = run([command, "configs"], work)
    assert all(f"  {name} " in listed for name in list_shipped())
    run([command, *f"fit --config quickstart/fine_tune.yaml {TINY}".split()], work)
    folder = work / "lightning_logs" / "quickstart" / "fine_tune" / "version_0"
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert "test/accuracy" in run([command, "test", str(folder)], work) + (folder / "metrics.csv").read_text()
    run([command, *["configs", "copy", "study/quickstart.yaml", "--to", "mine.yaml"]], work)
    shown = run([command, *["study", "--config", "mine.yaml", "--print_config"]], work)
    assert f"{where}/configs/semi_supervised/freematch.yaml" in shown
    for name in ("audit", "study"):
        assert f"  sft-lightning {name} --config configs/" in run([command, name, "--help"], work)


@pytest.mark.slow
def test_editable_install_takes_the_configs_of_the_checkout(source: Path, tmp_path: Path) -> None:
    command = str(make_environment(tmp_path / "environment", "--editable", str(source)))
    own = source / "configs" / "quickstart" / "own.yaml"
    own.write_text("# A config that was added after the install.\n")
    try:
        listed = run([command, "configs"], tmp_path)
    finally:
        own.unlink()
    assert "A config that was added after the install." in listed
    assert all(f"  {name} " in listed for name in list_shipped())


def test_every_config_is_listed_as_package_data() -> None:
    """`package-data` has one level of folders."""
    assert {*CONFIGS.rglob("*.yaml")} == {*CONFIGS.glob("*/*.yaml")}
