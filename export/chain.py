"""A system's graphs one behind the other: what PyTorch float32 answers in the end, and what the exported files answer.

A graph's own outputs say little about what a caller notices: embeddings may turn by a degree and leave every answer as
it was, or by a tenth of one and swap two close categories.  So a file is judged by its own outputs and by all that
comes out behind it, through the graphs that follow (in PyTorch, as long as they have no file) and behind the files that
were taken already, whose deviations count with its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .onnx_graphs import GraphSpec
from .parity import OutputParity, compare, run_onnx, run_torch, worst

Values = dict[str, Tensor]


class Chain:
    """Real inputs on their way through a system, twice: as PyTorch float32 answers, and as the files taken so far do.

    Args:
        graphs: in the order in which they depend on each other.
        inputs: batches of real inputs [N, …] by name, of all graphs.
    """

    def __init__(self, graphs: Sequence[GraphSpec], inputs: Sequence[Mapping[str, Tensor]]) -> None:
        self.graphs = graphs
        self.expected: list[Values] = [dict(batch) for batch in inputs]
        for batch in self.expected:
            for graph in graphs:
                batch |= _tensors(run_torch(graph, batch))
        # As in float32 until a file is taken: what does not come from a file deviates by nothing.
        self.served: list[Values] = [dict(batch) for batch in self.expected]

    def inputs(self, graph: GraphSpec) -> list[Values]:
        """What a graph is given in float32, batch by batch."""
        return [{name: batch[name] for name in graph.inputs} for batch in self.expected]

    def compare(self, graph: GraphSpec, path: Path, *, exact: bool = False) -> list[OutputParity]:
        """A comparison for each output of the file of `graph`, and for each behind it.

        Args:
            graph: one of the chain's.
            path: its file.
            exact: run every node as it stands in the file; see `export.parity.run_onnx`.
        """
        comparisons = []
        for expected, served in zip(self.expected, self.served, strict=True):
            found = run_onnx(path, {name: served[name] for name in graph.inputs}, list(graph.outputs), exact=exact)
            values = served | _tensors(found)
            changed = set(graph.outputs)
            for later in self.graphs[self.graphs.index(graph) + 1 :]:
                if changed & set(later.inputs):
                    answers = run_torch(later, values)
                    found |= answers
                    values |= _tensors(answers)
                    changed |= set(later.outputs)
            choices = {name for other in self.graphs for name in other.choices}
            comparisons.append(
                [compare(name, expected[name].numpy(), found[name], choice=name in choices) for name in found]
            )
        return worst(comparisons)

    def take(self, graph: GraphSpec, path: Path, *, exact: bool = False) -> None:
        """From here on `graph` answers as its file does; `exact` as in `compare`."""
        for batch in self.served:
            found = run_onnx(path, {name: batch[name] for name in graph.inputs}, list(graph.outputs), exact=exact)
            batch |= _tensors(found)


def _tensors(arrays: Mapping[str, np.ndarray]) -> Values:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
