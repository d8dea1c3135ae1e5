"""Finds what would wait for a device, on a machine that has none: reads of values that were computed from its tensors.

The parameters, the buffers and the pictures and labels of batches are taken to be on a device, and so is all that is
computed from them; what is drawn on the CPU (the order of a batch, the parameters of its views) may be read any time.
`torch.profiler` cannot tell the two apart on the CPU: it also counts the reads of draws, and those inside kernels that
only the CPU has (each step of fused Adam reads one number for each parameter).
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

_READ = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.bincount.default,
}
_METHODS = ("tolist", "numpy", "cpu")  # which no operator is called for on the CPU
_ONLY_ON_THE_CPU = "one_hot("  # checks the labels there


class Reads(TorchDispatchMode):
    """Counts reads by the line that asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._there: Any = WeakIdKeyDictionary()
        self._methods = {name: getattr(Tensor, name) for name in _METHODS}

    def __enter__(self) -> "Reads":
        for name, method in self._methods.items():
            setattr(Tensor, name, self._counting(method))
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for name, method in self._methods.items():
            setattr(Tensor, name, method)

    def _counting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if tensor not in self._there:
                return method(tensor, *args, **kwargs)
            self._count()
            if method is not self._methods["cpu"]:
                return method(tensor, *args, **kwargs)
            copy = tensor.detach().clone()  # which is no longer there
            self._there.pop(copy, None)
            return copy

        return counted

    def on_device(self, tensors: Iterable[Any]) -> None:
        """From here on these are taken to be there."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._there[tensor] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x in self._there for x in given):
            indices = args[1] if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default) else ()
            masked = any(x is not None and x.dtype == torch.bool and x in self._there for x in indices)
            if func in _READ or masked:
                self._count()
            self.on_device(tree_leaves(result))
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written = [x for x in tree_leaves(value) if isinstance(x, Tensor)]
                    self.on_device([*written, *(x._base for x in written)])  # a part written is the whole written
        return result

    def _count(self) -> None:
        """By the last line of the project that led here."""
        for frame in reversed(traceback.extract_stack()):
            if "/sft_lightning/" in frame.filename:
                line = f"{frame.filename.rpartition('/sft_lightning/')[2]}: {frame.line}"
                break
        else:
            line = "elsewhere"
        if _ONLY_ON_THE_CPU not in line:
            self.found[line] += 1
