"""Finds, without a GPU, what would make the host wait for one or copy to it.

It shows in three ways: a tensor of which the host asks a value, one made of the host's numbers,
and, on PyTorch's device "meta", an operation in which tensors of two devices meet.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
ASKED = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
}
"""Operations after which the host knows a value, or a size, that the device computed."""


class OnDeviceAlone(TorchDispatchMode):
    """Inside, an operation that makes the host wait, or in which two devices meet, is an error."""

    def __torch_dispatch__(
        self, call: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        masks = call.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            tensor.dtype == torch.bool for tensor in given[1:]
        )
        assert not masks, "an index by a mask waits for the device"
        assert call.overloadpacket not in ASKED, f"{call} waits for the device"
        assert call.overloadpacket is not aten.lift_fresh, "a tensor is made of the host's numbers"
        made = call(*args, **kwargs)
        made_here = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        devices = {str(tensor.device) for tensor in [*given, *made_here]}
        assert len(devices) < 2, f"{call} has tensors on {' and '.join(sorted(devices))}"
        return made
