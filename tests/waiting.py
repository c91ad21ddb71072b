"""Finds what makes the processor wait for a device, on "meta", which has no numbers to read."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def _place() -> str:
    """The line of the package that is at work."""
    own = [frame for frame in traceback.extract_stack() if "spiro_diffusion" in frame.filename]
    return f"{own[-1].name}: {own[-1].line}" if own else "outside the package"


class _Copies(TorchDispatchMode):
    """Notes copies between devices."""

    def __init__(self, noted: list[str]) -> None:
        super().__init__()
        self.noted = noted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        if func.name() in ("aten::_to_copy", "aten::copy_") and len(devices) > 1:
            self.noted.append(_place())
        return out


class _Constants(TorchFunctionMode):
    """Notes tensors that are made of Python's numbers, not on the CPU."""

    def __init__(self, noted: list[str]) -> None:
        super().__init__()
        self.noted = noted

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if made and out.device.type != "cpu":
            self.noted.append(_place())
        return out


@contextlib.contextmanager
def noted_waits() -> Iterator[list[str]]:
    """A list that copies to and from the meta device are noted in; reading from it is an error."""
    noted: list[str] = []
    with _Constants(noted), _Copies(noted):
        yield noted
