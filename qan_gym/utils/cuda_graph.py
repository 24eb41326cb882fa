"""CUDA graphs: a function of tensors that stay in place becomes one launch instead of hundreds."""

from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch.utils._pytree import tree_map_only

Result = TypeVar("Result")

WARM_UP = 2  # calls before the capture; libraries choose their kernels in them


class CapturedGraph(Generic[Result]):
    """Calls a function, the first times as it is, then as a replay of what it launched.

    The function takes nothing, reads and writes only tensors that are never allocated anew, and does not wait for the
    device. The first calls count like any other, so nothing has to be undone before the capture.

    Attributes:
        function: what is captured.
    """

    def __init__(self, function: Callable[[], Result], generator: torch.Generator | None = None) -> None:
        """function: what to capture; see the class; generator: of the device, that it draws from."""
        self.function = function
        self._generator = generator
        self._calls = 0
        self._stream: torch.cuda.Stream | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Any = None

    def __call__(self) -> Result:
        """Run it; the returned tensors are the caller's own."""
        self._calls += 1
        if self._stream is None:
            self._stream = torch.cuda.Stream()
            _begin_autograd(self._stream.device)
        if self._calls <= WARM_UP:
            return self._on_own_stream(self._stream)
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            if self._generator is not None:
                graph.register_generator_state(self._generator)
            # The stream of the first calls: autograd's nodes belong to the stream that they were made on.
            with torch.cuda.graph(graph, stream=self._stream):
                self._result = self.function()
            self._graph = graph
        self._graph.replay()
        result: Result = tree_map_only(torch.Tensor, torch.Tensor.clone, self._result)
        return result

    @property
    def is_captured(self) -> bool:
        """Whether a call is a replay."""
        return self._graph is not None

    def _on_own_stream(self, stream: torch.cuda.Stream) -> Result:
        """As it will be captured: not on the current stream, which waits for it."""
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.function()
        torch.cuda.current_stream().wait_stream(stream)
        return result


@cache
def _begin_autograd(device: torch.device) -> None:
    """Launch a first kernel from autograd's thread of the device: PyTorch warns if that is one of cuBLAS."""
    with torch.enable_grad():
        torch.ones((), device=device, requires_grad=True).sin().backward()
