"""CUDA graphs of rounds: work captured once and replayed, all of them from one pool of memory.

Knows nothing of what is captured.  Graphs of a pool share what they need in between, since one
replays at a time; what each leaves stays its own.
"""

import torch

from specdec.graph_round import Work
from specdec.static_round import Decoded


class CudaGraphs:
    """Captures on a stream of its own (`specdec.graph_round.Capture`).

    RuntimeError where that fails, after which the process is of no more use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, work: Work) -> Work:
        current = torch.cuda.current_stream(self._device)
        # kernels are compiled and libraries make their workspaces outside of a capture
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
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
            # torch is in no state to go on after that: a server that starts must not hide it
            raise RuntimeError(
                f"a round could not be captured as a CUDA graph, kernels 'torch' need none: {error}"
            ) from error

        def replay() -> Decoded:
            graph.replay()
            return decoded

        return replay

    def bytes_held(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free
