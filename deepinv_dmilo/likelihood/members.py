"""A physics as a module whose tensors can be swapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepinv.physics import Physics
from torch import nn

from deepinv_dmilo.likelihood.measurements import operators


class Members(nn.Module):
    """A physics with those that a stack hides in a list, as a module, to swap their tensors."""

    def __init__(self, physics: Physics) -> None:
        super().__init__()
        self.members = nn.ModuleList(operators(physics))

    @property
    def physics(self) -> Any:
        """The physics itself."""
        return self.members[0]

    def own_tensors(self) -> None:
        """Tensors of its own, for a physics that may write into them."""
        for module in self.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()
