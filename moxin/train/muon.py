"""Muon's orthogonalisation, and how matrices that ZeRO has cut at the borders of workers come together for it.

ZeRO 1 and 2 lay the parameters of a group end to end and give every worker an equal part. Most matrices lie whole in one
part, and their worker orthogonalises them; one that crosses a border is sent to the worker that holds its beginning, and the
result comes back. All such messages are under way together, and the arithmetic is spread as the elements are.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed

STEPS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients that drive singular values towards 1 fastest, to within about 0.7 to 1.2 (Keller Jordan, 2024)."""
RMS = 0.2
"""Root mean square of AdamW's updates, about (arXiv 2502.16982, §2.2)."""


class Matrix(NamedTuple):
    """A matrix in a flat tensor of all workers: from element `start` on; `split` as in `orthogonalised`."""

    shape: tuple[int, int]
    start: int
    split: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.shape[0] * self.shape[1]


Exchange = Callable[[Tensor, Sequence[Matrix]], Tensor]
"""`(directions, matrices) -> updates`, both this worker's part of a flat tensor."""


def orthogonalised(direction: Tensor, split: Sequence[int] = ()) -> Tensor:
    """The nearest orthogonal matrix, roughly, in the size of an update of AdamW's; float32 of the same shape.

    `split` counts the rows of the matrices that lie one below the other in it; each is done for itself.
    """
    if split:
        return torch.cat([orthogonalised(part) for part in direction.split(list(split))])
    a, b, c = QUINTIC
    wide = direction.shape[0] <= direction.shape[1]
    x = direction if wide else direction.T
    x = x / (x.norm() + 1e-7)
    if x.device.type == "cuda":
        x = x.bfloat16()
    for _ in range(STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    found = (x if wide else x.T).float()
    return found * (RMS * max(direction.shape) ** 0.5)


def between(rank: int) -> Exchange:
    """The exchange among the workers of the default group, of which this is number `rank`."""

    def exchange(directions: Tensor, matrices: Sequence[Matrix]) -> Tensor:
        size = directions.numel()
        begin = rank * size
        updates = torch.zeros_like(directions)
        mine: list[tuple[Matrix, Tensor]] = []  # those that begin here, whole
        there: list[tuple[Matrix, int]] = []  # those of which only a later piece lies here, and their owner
        messages = []
        for matrix in matrices:
            holders = range(matrix.start // size, -(-matrix.end // size))
            if rank not in holders:
                continue
            if rank == holders[0]:
                whole = directions.new_empty(matrix.end - matrix.start)
                _part(whole, matrix.start, matrix, rank, size).copy_(
                    _part(directions, begin, matrix, rank, size)
                )
                mine.append((matrix, whole))
                for other in holders[1:]:
                    part = _part(whole, matrix.start, matrix, other, size)
                    messages.append(distributed.P2POp(distributed.irecv, part, other))
            else:
                part = _part(directions, begin, matrix, rank, size)
                messages.append(distributed.P2POp(distributed.isend, part, holders[0]))
                there.append((matrix, holders[0]))
        _deliver(messages)
        messages = []
        for matrix, whole in mine:
            whole.copy_(orthogonalised(whole.view(matrix.shape), matrix.split).flatten())
            _part(updates, begin, matrix, rank, size).copy_(_part(whole, matrix.start, matrix, rank, size))
            for other in range(rank + 1, -(-matrix.end // size)):
                part = _part(whole, matrix.start, matrix, other, size)
                messages.append(distributed.P2POp(distributed.isend, part, other))
        for matrix, owner in there:
            part = _part(updates, begin, matrix, rank, size)
            messages.append(distributed.P2POp(distributed.irecv, part, owner))
        _deliver(messages)
        return updates

    return exchange


def _part(tensor: Tensor, begin: int, matrix: Matrix, rank: int, size: int) -> Tensor:
    """What a worker's part, `size` elements, has of a matrix, in a tensor whose first element is number `begin` of all."""
    first, last = max(matrix.start, rank * size), min(matrix.end, (rank + 1) * size)
    return tensor[first - begin : last - begin]


def _deliver(messages: list[distributed.P2POp]) -> None:
    for request in distributed.batch_isend_irecv(messages) if messages else ():
        request.wait()
