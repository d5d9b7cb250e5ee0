"""CUDA graphs of rounds: work captured once and replayed, all of them from one pool of memory.

Knows nothing of what is captured.  Graphs of a pool share what they need in between, since one
replays at a time; what one leaves may be overwritten by the next, so it is to be used, on the same
stream, before another replays.
"""

import torch

from specdec.graph_round import Work
from specdec.round import Broken
from specdec.static_round import Decoded


class CudaGraphs:
    """Captures on a stream of its own (`specdec.graph_round.Capture`).

    `Broken` where that fails, unless for want of memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Work) -> Work:
        current = torch.cuda.current_stream(self._device)
        # kernels are compiled and libraries make their workspaces outside of a capture
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                work()
        finally:  # what was launched of it still reads its inputs
            current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                decoded = work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Broken(
                f"a round could not be captured as a CUDA graph, kernels 'torch' need none: {error}"
            ) from error

        def replay() -> Decoded:
            graph.replay()
            return decoded

        return replay

    def bytes_held(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free
