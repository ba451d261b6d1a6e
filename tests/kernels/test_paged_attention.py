"""Attention over pages against attention over the same keys in one piece, in float64; every back-end."""

import pytest
import torch

from kernels.alibi import alibi_slopes
from kernels.attention import Mask, attention
from kernels.paged_attention import Pages, Queries, paged_attention, quantised

PAGE, D = 16, 24
SEQUENCES = [(0, 1), (15, 1), (16, 1), (90, 1), (0, 20), (37, 5), (64, 33)]
"""(first query's position, number of queries): prompts, chunks and single steps, at borders of pages and between."""


class Case:
    """Sequences whose keys and values lie in pages in no order, and the same in one piece."""

    def __init__(self, n_heads: int, n_kv: int, window: int | None, sequences: list[tuple[int, int]]) -> None:
        draw = torch.Generator().manual_seed(n_heads + (window or 0))
        n_columns = 8 if window is None else -(-(window + 40) // PAGE) + 1
        n_pages = 1 + n_columns * len(sequences)
        order = (1 + torch.randperm(n_pages - 1, generator=draw)).tolist()
        self.window = window
        self.k, self.v = (torch.zeros(n_pages, PAGE, n_kv, D) for _ in range(2))
        tables = torch.zeros(len(sequences), n_columns, dtype=torch.int32)
        rows, positions, spans, queries, self.expected_of = [], [], [], [], []
        for row, (start, n) in enumerate(sequences):
            length = start + n
            k, v = (torch.randn(length, n_kv, D, generator=draw) for _ in range(2))
            first = 0 if window is None else max(0, start - window + 1) // PAGE
            for index in range(first, -(-length // PAGE)):
                page = tables[row, index % n_columns] = order.pop()
                part = slice(index * PAGE, min(length, (index + 1) * PAGE))
                self.k[page, : part.stop - part.start], self.v[page, : part.stop - part.start] = (
                    k[part],
                    v[part],
                )
            q = torch.randn(n, n_heads, D, generator=draw)
            spans.append((len(rows), n))
            rows += [row] * n
            positions += range(start, length)
            queries.append(q)
            self.expected_of.append((q, k, v, start))
        self.q = torch.cat(queries)
        self.queries = Queries(
            tables, torch.tensor(rows), torch.tensor(positions), tuple(spans), max(positions) + 1
        )

    def expected(self, slopes: torch.Tensor | None) -> torch.Tensor:
        found = []
        for q, k, v, start in self.expected_of:
            index = torch.arange(len(k))[None]
            mask = Mask(index[:, start:], index, self.window)
            parts = [x[None].double() for x in (q, k, v)]
            wide = None if slopes is None else slopes.double()
            found.append(attention(*parts, mask, alibi_slopes_H=wide, backend="reference")[0])
        return torch.cat(found)


@pytest.mark.parametrize("backend", ["reference", "torch", "numba", "triton"])
@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("window", [None, 1, 16, 21])
@pytest.mark.parametrize(("n_heads", "n_kv"), [(6, 2), (3, 3), (5, 1)])
def test_pages_are_as_one_piece(
    n_heads: int, n_kv: int, window: int | None, alibi: bool, backend: str
) -> None:
    sequences = [(0, 1), (90, 1), (37, 5), (64, 20)] if backend == "triton" else SEQUENCES
    case = Case(n_heads, n_kv, window, sequences)
    slopes = alibi_slopes(n_heads, 8.0, torch.device("cpu")) if alibi else None
    found = paged_attention(case.q, Pages(case.k, case.v), case.queries, window, slopes, backend)
    torch.testing.assert_close(found.double(), case.expected(slopes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 600])
@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_single_queries_over_long_contexts(window: int | None, backend: str) -> None:
    """In Triton the keys are cut into splits."""
    case = Case(4, 1, window, [(1400, 1), (3, 1), (700, 1)]) if window else LONG
    slopes = alibi_slopes(4, 8.0, torch.device("cpu"))
    found = paged_attention(case.q, Pages(case.k, case.v), case.queries, window, slopes, backend)
    torch.testing.assert_close(found.double(), case.expected(slopes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "numba", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_narrow_pages(dtype: torch.dtype, backend: str) -> None:
    """Against the very numbers that the pages stand for."""
    case = Case(6, 2, 21, [(0, 1), (90, 1), (37, 5)])
    pages = _narrow(case, dtype)
    entries = torch.arange(case.k.shape[0] * PAGE)
    wide = Pages(*(x.view_as(case.k) for x in pages.gathered(entries, torch.float32)))
    expected = paged_attention(case.q, wide, case.queries, 21, None, "reference")
    found = paged_attention(case.q, pages, case.queries, 21, None, backend)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found.double() - case.expected(None)).abs().max() < 0.05


def _narrow(case: Case, dtype: torch.dtype) -> Pages:
    pages = Pages(torch.zeros_like(case.k, dtype=dtype), torch.zeros_like(case.v, dtype=dtype))
    if dtype == torch.int8:
        pages = Pages(pages.k, pages.v, (torch.zeros(case.k.shape[:3]), torch.zeros(case.k.shape[:3])))
    pages.write(torch.arange(case.k.shape[0] * PAGE), case.k.flatten(0, 1), case.v.flatten(0, 1))
    return pages


def test_int8_heads_are_off_by_half_a_step_at_most() -> None:
    x = torch.randn(50, 3, D) * torch.logspace(-4, 4, 50).view(-1, 1, 1)
    values, scale = quantised(x)
    error = (values * scale.unsqueeze(-1) - x).abs()
    assert (error <= x.abs().amax(-1, keepdim=True) / 127 * 0.5001).all()
    assert not quantised(torch.zeros(1, 1, D))[0].any()


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_query_has_the_same_bits_in_any_company(backend: str) -> None:
    case = Case(6, 2, 21, SEQUENCES)
    pages = Pages(case.k, case.v)
    together = paged_attention(case.q, pages, case.queries, 21, None, backend)
    for first, n in case.queries.spans:
        part = slice(first, first + n)
        of = case.queries
        alone = Queries(of.tables_RC, of.rows_N[part], of.positions_N[part], ((0, n),), of.longest)
        assert torch.equal(paged_attention(case.q[part], pages, alone, 21, None, backend), together[part])


def test_nan_is_not_hidden() -> None:
    case = Case(2, 2, None, [(20, 1)])
    case.q[0, 1, 3] = float("nan")
    found = paged_attention(case.q, Pages(case.k, case.v), case.queries, None, None, "numba")
    assert found[0, 1].isnan().all()
    assert not found[0, 0].isnan().any()


def _long() -> Case:
    case = Case.__new__(Case)
    draw = torch.Generator().manual_seed(1)
    lengths, n_columns = (1400, 4, 700), 88
    case.window = None
    case.k, case.v = (torch.randn(1 + 3 * n_columns, PAGE, 1, D, generator=draw) for _ in range(2))
    tables = (1 + torch.randperm(3 * n_columns, generator=draw)).view(3, n_columns).int()
    case.q = torch.randn(3, 4, D, generator=draw)
    case.expected_of = []
    for row, length in enumerate(lengths):
        k, v = (x[tables[row].long()].flatten(0, 1)[:length] for x in (case.k, case.v))
        case.expected_of.append((case.q[row : row + 1], k, v, length - 1))
    positions = torch.tensor(lengths) - 1
    case.queries = Queries(tables, torch.arange(3), positions, ((0, 1), (1, 1), (2, 1)), 1400)
    return case


LONG = _long()
