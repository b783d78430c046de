"""CUDA graphs of decode steps: a step's kernels are recorded once and launched together from then on."""

from collections.abc import Callable, Hashable

import torch

WARM_UP_STEPS = 2
"""Steps of each shape that run without a graph before it is recorded: libraries choose kernels and workspaces there."""


class StepGraphs:
    """One graph for each key, all in one memory pool.

    A graph repeats the recorded kernels at the same addresses: it is valid while the parameters and all tensors that
    the step reads or writes stay where they were. A step must not wait for the device.
    """

    def __init__(self):
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.warm_up_steps: dict[Hashable, int] = {}
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """Run a step once: from its graph, or as it is while its key is new."""
        if key in self.graphs:
            self.graphs[key].replay()
            return
        # Weights that autocast converts must be converted inside the graph; a cached copy would not follow an update.
        cache_enabled = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            if self.warm_up_steps.get(key, 0) < WARM_UP_STEPS:
                self.warm_up_steps[key] = self.warm_up_steps.get(key, 0) + 1
                self._run_on_side_stream(step)
                return
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                step()  # records, and computes nothing
        finally:
            torch.set_autocast_cache_enabled(cache_enabled)
        self.graphs[key] = graph
        graph.replay()

    def _run_on_side_stream(self, step: Callable[[], None]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            step()
        torch.cuda.current_stream().wait_stream(self.stream)
