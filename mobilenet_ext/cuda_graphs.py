"""CUDA graphs of a function of one tensor: launched as one, they cost one launch.

A graph reads and writes fixed memory. So each has a buffer for its input, which every call copies
into, and each call returns a copy of what the graph has written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .checks import require

# Before a graph is captured, libraries have to allocate and to choose their algorithms.
WARM_UP_CALLS = 3


class CudaGraphs:
    """Captures `function` once for each shape and dtype of its input, and replays it afterwards.

    What the function reads besides its input is read where it was when captured. Calls may come
    from different streams: each waits for the one before. They may not come from different threads
    at the same time.
    """

    def __init__(self, function: Callable[[Tensor], Tensor | list[Tensor]]) -> None:
        self._function = function
        self._graphs: dict[tuple[torch.Size, torch.dtype, torch.device], _Graph] = {}

    def __call__(self, input: Tensor) -> Tensor | list[Tensor]:
        """Return new tensors, equal to what function(input) returns.

        While another graph is being captured, and under torch.compile, the function itself runs.

        Raises:
            ValueError: the input is not on a CUDA device, or autocast is on.
        """
        if torch.compiler.is_compiling():
            return self._function(input)
        require(input.is_cuda, "cuda_graph: input", "on a CUDA device", str(input.device))
        autocast = torch.is_autocast_enabled("cuda")
        require(not autocast, "cuda_graph: autocast", "off (cast the model instead)", "on")
        with torch.cuda.device(input.device):
            if torch.cuda.is_current_stream_capturing():
                return self._function(input)
            key = (input.shape, input.dtype, input.device)
            if key not in self._graphs:
                # Tensors made in inference mode could not be written outside of it.
                with torch.inference_mode(False), torch.no_grad():
                    self._graphs[key] = _Graph(self._function, input)
            return self._graphs[key](input)


class _Graph:
    """The graph for one shape, with its buffers."""

    def __init__(self, function: Callable[[Tensor], Tensor | list[Tensor]], like: Tensor) -> None:
        self._input = torch.zeros_like(like, memory_format=torch.channels_last)
        self._free = torch.cuda.Event()  # the buffers may be overwritten
        stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(stream)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                function(self._input)
        stream.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # torch's own stream for this is on whichever device was first to need it.
        with torch.cuda.graph(self._graph, stream=side):
            self._output = function(self._input)

    def __call__(self, input: Tensor) -> Tensor | list[Tensor]:
        stream = torch.cuda.current_stream()
        stream.wait_event(self._free)
        self._input.copy_(input)
        self._graph.replay()
        output = _copies(self._output)
        self._free.record(stream)
        return output


def _copies(output: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(output, Tensor):
        return output.clone()
    return [x.clone() for x in output]
