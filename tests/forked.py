"""What the server of `tests.forks` imports before its first fork.

A collection touches every object: in each forked process it would copy all the memory that the imports filled.
"""

import gc
from importlib import import_module

gc.disable()
import_module("tests.promises.killed")
gc.freeze()
gc.enable()
