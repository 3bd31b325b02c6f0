"""The gradients of single micro-batches, of which ZeRO keeps none: their squares, taken while autograd hands them out.

A hook of a parameter gets the gradient of one micro-batch of this process, whole, before it is added to that of other
micro-batches, averaged over processes or divided among them, whatever the ZeRO stage.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ttt_dist.parallel.mesh import Mesh


class MicroBatchNorms:
    """Weighted squares of the gradients of a step's micro-batches, where a step asks for them; else the hooks do nothing.

    Where parts of one gradient are added up between processes after the backward pass (Ulysses; the tied embedding of a
    pipeline) their squares say nothing: `check_run` refuses these.
    """

    def __init__(self, module: nn.Module, mesh: Mesh) -> None:
        # What is whole on all tensor-parallel processes is counted by the first alone, as in the norm of the whole batch.
        own = [
            parameter
            for parameter in module.parameters()
            if parameter.requires_grad and (getattr(parameter, "tensor_model_parallel", False) or mesh.tensor_rank == 0)
        ]
        self._weights: Sequence[float] = ()
        self._num_seen = [0] * len(own)
        self._norms: list[Tensor] = []
        self._of_norms: list[float] = []
        for index, parameter in enumerate(own):
            parameter.register_hook(partial(self._note, index))

    def begin(self, weights: Sequence[float]) -> None:
        """Before a step: by what the square of each of its micro-batches is multiplied."""
        self._weights, self._num_seen = weights, [0] * len(self._num_seen)
        self._norms, self._of_norms = [], []

    def end(self, device: torch.device) -> Tensor:
        """After a step: the sum of the weighted squares over micro-batches and this process's slices of weights, fp64 [1]."""
        # A pipeline's stage may have a parameter that nothing uses (`unused_parameter`).
        assert set(self._num_seen) <= {0, len(self._weights)}, "a parameter took part in some micro-batches only"
        weights = torch.tensor(self._of_norms, dtype=torch.float64, device=device)
        norms = torch.stack(self._norms).double() if self._norms else weights
        self.begin(())
        return (norms**2 * weights).sum().reshape(1)

    def _note(self, index: int, gradient: Tensor) -> None:
        """Once per micro-batch, in their order, even where a pipeline runs forward passes of others in between."""
        if not self._weights:
            return
        weight = self._weights[self._num_seen[index]]
        self._num_seen[index] += 1
        if weight:
            self._norms.append(torch.linalg.vector_norm(gradient, dtype=torch.float32))
            self._of_norms.append(weight)
