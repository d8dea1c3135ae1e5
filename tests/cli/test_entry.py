import subprocess
import sys

import pytest

from sft_lightning import __version__
from sft_lightning.__main__ import COMMANDS, main

LIGHT = "import sys; from sft_lightning.__main__ import main; code = main({args}); print('torch' in sys.modules, code)"


@pytest.mark.parametrize(("args", "code"), [([], 0), (["--help"], 0), (["fti"], 2), (["--version"], 0)])
def test_help_and_mistakes_import_no_torch(args: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT.format(args=args)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"False {code}"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert __version__ in shown


def test_misspelled_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tets"]) == 2
    assert "'tets' is no command (did you mean 'test'?)" in capsys.readouterr().err


def test_module_and_command_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "sft_lightning", "predct"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'predict'" in done.stderr


def test_command_help_lists_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code == 0
    assert "--run_name" in capsys.readouterr().out
