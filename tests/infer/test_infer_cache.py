"""Pages: never lost, never in two hands; what a sequence holds is bounded by its windows; the arithmetic of memory."""

import dataclasses
import random

import pytest
import torch

from moxin.infer.cache import PAGE_SIZE, PagedCache
from moxin.infer.memory import cache_bytes_per_token, fit, n_parameters, rows, sequence_bytes, weight_bytes
from moxin.infer.pages import PagePool, page_key
from moxin.model.decoder import Decoder
from moxin.model.presets import PRESETS

MOXIN, MPT_30B = PRESETS["moxin_7b"], PRESETS["mpt_30b"]
GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize("seed", range(3))
def test_a_page_is_free_or_held_and_never_both(seed: int) -> None:
    draw = random.Random(seed)
    pool, held = PagePool(12), []
    for step in range(600):
        if pool.n_free and draw.random() < 0.5:
            key = page_key(b"", [draw.randrange(9)])
            if (page := pool.find(key)) is not None and draw.random() < 0.7:
                pool.share(page)
            else:
                page = pool.take()
                if draw.random() < 0.7:
                    pool.remember(page, key)
            held.append(page)
        elif held:
            pool.release(held.pop(draw.randrange(len(held))))
        assert pool.n_free == 12 - len(set(held)), step
        assert all(not pool.is_free(page) for page in held)
        assert pool.n_remembered <= 12
    while held:
        pool.release(held.pop())
    assert sorted(pool.take() for _ in range(12)) == list(range(1, 13))
    assert pool.n_remembered == 0


def test_the_longest_unused_page_is_forgotten_first() -> None:
    pool = PagePool(3)
    keys = [page_key(b"", [i]) for i in range(3)]
    pages = [pool.take() for _ in keys]
    for page, key in zip(pages, keys, strict=True):
        pool.remember(page, key)
    for page in (pages[1], pages[0], pages[2]):
        pool.release(page)
    pool.take()
    assert [pool.find(key) is not None for key in keys] == [True, False, True]


def test_a_key_stands_for_the_whole_text_before() -> None:
    assert page_key(page_key(b"", [1, 2]), [3]) != page_key(page_key(b"", [1, 9]), [3])
    assert page_key(b"salt", [1]) != page_key(b"", [1])


def test_a_sequence_of_32k_holds_its_window() -> None:
    """Moxin's real layer at two layers: measured pages, times 18 for its 36 layers."""
    config = dataclasses.replace(MOXIN, n_layers=2)
    chunk = 256
    cache = PagedCache(config, 1, 32_768, torch.bfloat16, "meta", chunk=chunk)
    held = cache.open([], 0)
    most = at_rest = 0
    for start in range(0, 32_768, chunk):
        assert cache.extend(held, start + chunk)
        most = max(most, cache.n_held(held)[0])
        cache.commit(held, [], start + chunk)
        at_rest = max(at_rest, cache.n_held(held)[0])
    page = PAGE_SIZE * cache_bytes_per_token(MOXIN, "bfloat16")
    assert at_rest * page <= 576 * MIB + page
    assert most * page <= 576 * MIB + (chunk // PAGE_SIZE + 1) * page
    assert cache.n_bytes / 2 * 36 <= 576 * MIB + (chunk // PAGE_SIZE + 3) * page
    unbounded = dataclasses.replace(config, sliding_window=None)
    whole = PagedCache(unbounded, 1, 32_768, torch.bfloat16, "meta", chunk=chunk)
    assert (whole.n_bytes / 2 * 36 - page) == pytest.approx(4.5 * GIB)
    cache.close(held)
    assert cache.groups[0].pool.n_free == cache.groups[0].pool.n_pages


def test_every_layer_has_its_own_window() -> None:
    """A narrow layer holds little, whatever the wide ones hold."""
    config = dataclasses.replace(MOXIN, n_layers=4, sliding_window=None, layer_windows=(64, 64, 64, 0))
    cache = PagedCache(config, 1, 4096, torch.bfloat16, "meta", chunk=64)
    held = cache.open([], 0)
    for start in range(0, 4096, 64):
        assert cache.extend(held, start + 64)
        cache.commit(held, [], start + 64)
    assert [group.window for group in cache.groups] == [64, None]
    assert cache.n_held(held)[0] <= 64 // PAGE_SIZE + 1
    assert cache.n_held(held)[1] == 4096 // PAGE_SIZE
    expected = sequence_bytes(config, 4096, "bfloat16", 64)
    page = PAGE_SIZE * cache_bytes_per_token(config, "bfloat16") // 4
    assert cache.n_bytes == expected + 4 * page  # and the page of each layer that nobody holds


def test_published_sizes() -> None:
    assert cache_bytes_per_token(MOXIN, "float16") == 144 * 1024
    assert cache_bytes_per_token(MPT_30B, "float16") / MIB == pytest.approx(1.3125)
    assert weight_bytes(MPT_30B, "int8") / GIB == pytest.approx(27.9, abs=0.05)
    assert sequence_bytes(MOXIN, 32_768, "float16") <= 576 * MIB + PAGE_SIZE * 144 * 1024
    for name in ("moxin_7b", "mpt_30b", "60m", "mpt_7b"):
        with torch.device("meta"):
            assert n_parameters(PRESETS[name]) == Decoder(PRESETS[name]).n_parameters()
    found = fit(MPT_30B, "int8", "float16", 40 * GIB)
    assert 7_000 < found.n_tokens < 8_500
    assert fit(MPT_30B, "int8", "int8", 40 * GIB).n_tokens > 1.9 * found.n_tokens
    assert {row[0]: row[1] for row in rows(MPT_30B, found, "int8", "float16")}["weights"] == "27.9 GiB"
    assert found.weights + found.n_tokens * found.per_token <= found.usable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("bfloat16", "float16", 40 * GIB),
            r"bfloat16 weights take 55\.8 GiB .* no token fits\. Take int8 weights",
        ),
        (("int8", "float16", 24 * GIB), "Take int4 weights"),
        (("int7", "float16", 40 * GIB), "weights = 'int7'"),
        (("int8", "float8", 40 * GIB), "cache = 'float8'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_arithmetic(
    arguments: tuple[str, str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(MPT_30B, *arguments)
