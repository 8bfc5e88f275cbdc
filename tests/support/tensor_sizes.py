"""How large the tensors are that some code computes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LargestResult(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the most numbers that any tensor has held that was computed inside.

    Attributes:
        numbers: That many.
        beside: Shapes that do not count.
    """

    def __init__(self, beside: tuple[tuple[int, ...], ...] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.beside = beside
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, Tensor) and tuple(value.shape) not in self.beside:
                self.numbers = max(self.numbers, value.numel())
        return result
