import gc
import sys

# Imports fill the memory with objects that stay, and a collection on the way looks at all of them in vain. conftest.py
# turns the collector on again before the first test.
if "_pytest.config" in sys.modules:
    gc.disable()
