"""What the server of `tests.forks` does before its first fork, so that no process after it does the same again.

The collector is off meanwhile, and leaves out what the imports left: a collection in a fork would copy all that memory.
"""

import gc
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO

import torch

from sft_lightning.__main__ import main
from tests.conftest import CONFIGS

gc.disable()
import_module("tests.promises.killed")
torch.set_num_threads(1)  # other threads would be gone after a fork
with redirect_stdout(StringIO()), suppress(SystemExit):  # reads the signatures of the classes
    main(["fit", "--config", str(CONFIGS / "quickstart" / "fine_tune.yaml"), "--print_config"])
gc.freeze()
gc.enable()
