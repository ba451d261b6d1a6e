"""The second pass over a unit: what repeats something earlier goes, or its repeated parts do; then the classifier decides.

Needs the repeats of all units (`find_repeats`). What passes gets its band keys for the near-duplicate search right here,
while its text is at hand. Units of one Bloom filter are one task, which goes through them in their order and now and then
saves the filter, to go on from there.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kernels import bloom as bloom_kernels
from kernels import spans
from kernels.bloom import Bloom
from moxin import storage
from moxin.arrow import utf8_buffers
from moxin.curate import fasttext, fuzzy_keys, quality_model, repeats, verdicts
from moxin.curate.annotate import COUNTS, PIECES, kinds
from moxin.curate.profiles import Profile
from moxin.curate.repeats import Pieces, Repeats
from moxin.curate.work import Work, alive_texts, edits, write_arrow

EDITED = "edited.json"
SAVE_BYTES = 4 << 30
"""Text that a filter sees between two times that it is saved."""
DROPPED = pa.schema(
    [("row", pa.int64()), ("step", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
    + [(name, pa.int64()) for name in ("bytes", "of_unit", "of_row")]
)
"""Alive documents that did not pass. `of_unit` and `of_row` name the alive document that is repeated: -1 where there is
none, -2 for one of an earlier corpus."""


def find_repeats(work: Work, kind: str, number: int) -> int:
    """The repeats among one range of hashes: a file with a slice per unit. Returns how many there are."""
    url = work.range_file(kind, number)
    if storage.exists(url):
        return 0
    files = _key_files(work, kind)
    found = repeats.first_in_range(files, number)
    repeats.write_repeats(url, found, len(files))
    return len(found.place)


def _key_files(work: Work, kind: str) -> list[str]:
    if kind == "exact":
        return work.exact_order()
    return [work.key_file(kind, number) for number in work.of(lambda profile: kind in kinds(profile))]


def units_of(work: Work, kind: str) -> NDArray[np.int64]:
    """The unit's number of every file of `_key_files`, -2 for those of earlier corpora."""
    own = work.of(lambda profile: kind in kinds(profile))
    n_earlier = len(_key_files(work, kind)) - len(own)
    return np.array([-2] * n_earlier + own, np.int64)


def repeats_of(work: Work, kind: str, number: int) -> Repeats:
    """What a unit repeats, over all ranges."""
    place = _key_files(work, kind).index(work.key_file(kind, number))
    return repeats.read_repeats([work.range_file(kind, k) for k in range(work.n_ranges)], place)


def streams(work: Work) -> list[list[int]]:
    """Units by task: those of one Bloom filter together, all others alone."""
    out: list[list[int]] = []
    filters: dict[tuple[str, int], list[int]] = {}
    for number in range(len(work.units)):
        profile = work.profile(number)
        if profile.bloom is None:
            out.append([number])
            continue
        key = (repr(profile.bloom), number % profile.bloom.streams)
        if key not in filters:
            out.append(filters.setdefault(key, []))
        filters[key].append(number)
    return out


def edit_stream(work: Work, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The second pass over the units of one task."""
    done = [work.file(number, EDITED) for number in numbers]
    if all(storage.exists(url) for url in done):
        return [storage.read_json(url) for url in done]
    settings = work.profile(numbers[0]).bloom
    if settings is None:
        return [edit_unit(work, number, None) for number in numbers]
    state = storage.join(work.scratch, "bloom", f"{numbers[0]:06d}")
    position, folder = 0, storage.join(state, "state.json")
    if storage.exists(folder):
        told = storage.read_json(folder)
        position, bloom = told["position"], repeats.load(storage.join(state, told["filter"]))
    else:
        n_words = sum(storage.read_json(work.file(number, COUNTS))["words"] for number in numbers)
        bloom = Bloom(max(n_words, 1), settings.fp_rate)
    out = [storage.read_json(url) for url in done[:position]]
    seen, previous = 0, ""
    for place in range(position, len(numbers)):
        out.append(edit_unit(work, numbers[place], bloom))
        seen += out[-1]["bytes"]
        if seen >= SAVE_BYTES and place + 1 < len(numbers):
            name = f"filter-{place + 1:06d}"
            repeats.save(bloom, storage.join(state, name))
            storage.write_json(folder, {"position": place + 1, "filter": name})
            if previous:
                storage.remove(storage.join(state, previous))
            seen, previous = 0, name
    storage.remove(state)
    return out


class _Dropped:
    """Gathers rows of `DROPPED`."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in DROPPED.names}

    def add(
        self, rows: Any, step: str, reason: str, sizes: Any, details: Sequence[str] = (), of: Any = None
    ) -> None:
        n = len(rows)
        values = (rows, [step] * n, [reason] * n, details or [""] * n, sizes, *(of or ([-1] * n, [-1] * n)))
        for column, more in zip(self.columns.values(), values, strict=True):
            column.extend(more.tolist() if isinstance(more, np.ndarray) else more)

    def table(self) -> pa.Table:
        return pa.table(self.columns, schema=DROPPED).sort_by("row")


class _Batch(NamedTuple):
    """Documents that are left of a row group: their numbers among the alive, their sizes as they came, and their text."""

    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]
    text: pa.Array

    def where(self, keep: NDArray[np.bool_]) -> "_Batch":
        if keep.all():
            return self
        return _Batch(self.rows[keep], self.sizes[keep], self.text.filter(pa.array(keep)))


def edit_unit(work: Work, number: int, bloom: Bloom | None) -> dict[str, Any]:
    """`passed.arrow` (the alive that pass, their bytes, and their score), `dropped.arrow`, and `edited.arrow` where texts
    change; the band keys; last, `edited.json`."""
    profile, source = work.profile(number), work.units[number].source
    found = {kind: repeats_of(work, kind, number) for kind in kinds(profile) if kind != "ids"}
    dropped, changed = _Dropped(), edits(profile)
    rows: list[NDArray[np.int64]] = []
    sizes_left: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float32]] = []
    n_bytes = 0

    def edited() -> Iterator[pa.Array]:
        """The texts that pass, by row group; one row group is held at a time."""
        nonlocal n_bytes
        first, schema = 0, pa.schema([("text", pa.large_string())])
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with ExitStack() as stack:
            writer = None
            if changed:
                handle = stack.enter_context(storage.open_atomic(work.file(number, "edited.arrow")))
                writer = stack.enter_context(pa.ipc.new_file(handle, schema, options=options))
            for text in alive_texts(work, number):
                text = text.cast(pa.large_string())
                sizes = np.diff(utf8_buffers(text)[1])
                batch = _Batch(np.arange(len(text)) + first, sizes, text)
                n_bytes, first = n_bytes + int(sizes.sum()), first + len(text)
                for kind, reason in (("exact", "exact_duplicate"), ("urls", "same_url")):
                    if kind in found:
                        batch = _without_repeats(batch, found[kind], units_of(work, kind), reason, dropped)
                if "pieces" in found:
                    batch = _without_pieces(batch, found["pieces"], profile, dropped)
                if bloom is not None:
                    batch = _without_seen(batch, bloom, profile, dropped)
                if profile.classifier is not None:
                    batch, kept = _without_low_scores(batch, work, source, dropped)
                    scores.append(kept)
                rows.append(batch.rows)
                sizes_left.append(np.diff(utf8_buffers(batch.text)[1]))
                if writer is not None:
                    writer.write_batch(pa.record_batch([_flat(batch.text)], schema=schema))
                yield batch.text

    texts = edited()
    if profile.near is not None:
        folder = work.near_folder(profile.near)
        fuzzy_keys.write_keys(folder, work.generation, source, number, texts, profile.near)
    for _ in texts:  # nobody else wanted them
        pass
    columns = {
        "row": pa.array(np.concatenate([*rows, np.zeros(0, np.int64)])),
        "bytes": pa.array(np.concatenate([*sizes_left, np.zeros(0, np.int64)])),
    }
    if profile.classifier is not None:
        columns["quality"] = pa.array(np.concatenate([*scores, np.zeros(0, np.float32)]))
    write_arrow(work.file(number, "passed.arrow"), pa.table(columns))
    table = dropped.table()
    write_arrow(work.file(number, "dropped.arrow"), table)
    left = sum(int(sizes.sum()) for sizes in sizes_left)
    value = {
        "documents": len(columns["row"]),
        "bytes": n_bytes,
        "cut_bytes": n_bytes - left - (pc.sum(table["bytes"]).as_py() or 0),
        "groups": [len(own) for own in rows],
    }
    storage.write_json(work.file(number, EDITED), value)
    return value


def _flat(text: pa.Array) -> pa.Array:
    """The same texts in buffers of their own: a slice would be written with all that it was cut from."""
    return pa.concat_arrays([text]) if len(text) else pa.array([], pa.large_string())


def _without_repeats(
    batch: _Batch, found: Repeats, units: NDArray[np.int64], reason: str, dropped: _Dropped
) -> _Batch:
    """Documents whose key no earlier one has."""
    again, which = found.find(batch.rows << 32)
    of = (units[found.of_unit[which]], found.of_place[which] >> 32)
    dropped.add(batch.rows[again], "exact dedup", reason, batch.sizes[again], of=of)
    return batch.where(~again)


def _texts(batch: _Batch, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> _Batch:
    """The batch with other texts."""
    buffers = (pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(np.ascontiguousarray(data)))
    return batch._replace(text=pa.LargeStringArray.from_buffers(len(offsets) - 1, *buffers))


def _left(before: _Batch, after: _Batch, step: str, reason: str, dropped: _Dropped) -> _Batch:
    """Drops documents of which nothing is left."""
    empty = np.diff(utf8_buffers(after.text)[1]) == 0
    had = np.diff(utf8_buffers(before.text)[1]) > 0
    gone = np.flatnonzero(empty & had)
    dropped.add(before.rows[gone], step, reason, before.sizes[gone])
    return after.where(~(empty & had))


def _without_pieces(batch: _Batch, found: Repeats, profile: Profile, dropped: _Dropped) -> _Batch:
    """Texts without paragraphs or lines that an earlier document, or an earlier place in the same, has."""
    data, offsets = utf8_buffers(batch.text)
    pieces = repeats.find(data, offsets, profile.exact, PIECES)
    # Rows are numbers among the alive; documents may be missing in between.
    sizes = np.diff(pieces.doc_starts)
    within = np.arange(len(pieces.starts)) - np.repeat(pieces.doc_starts[:-1], sizes)
    again, _ = found.find(np.repeat(batch.rows, sizes) << 32 | within)
    new_data, new_offsets, _ = repeats.keep_first(data, pieces, again)
    after = _texts(batch, new_data, new_offsets)
    return _left(batch, after, "exact dedup", f"only_repeated_{profile.exact}s", dropped)


def _without_seen(batch: _Batch, bloom: Bloom, profile: Profile, dropped: _Dropped) -> _Batch:
    """BFF: texts without lines of which most was seen before."""
    settings = profile.bloom
    assert settings is not None
    data, offsets = utf8_buffers(batch.text)
    starts, ends, doc_starts = spans.cut(data, offsets, 1)
    words = verdicts.SPLITTERS["uax29"](data, offsets)
    grams, gram_starts = bloom_kernels.word_grams(
        data, (starts, ends), (words[0], words[1]), settings.min_words, settings.ngram
    )
    seen = bloom.judge(grams, gram_starts, settings.threshold)
    pieces = Pieces(
        starts, ends, doc_starts, np.zeros((len(starts), 2), np.uint64), np.ones(len(starts), np.bool_)
    )
    new_data, new_offsets, _ = repeats.keep_new(data, pieces, seen, settings.threshold)
    after = _texts(batch, new_data, new_offsets)
    return _left(batch, after, "bloom dedup", "seen_before", dropped)


@lru_cache(maxsize=2)
def _classifier(url: str) -> fasttext.Model:
    return quality_model.load(url)


def scores_of(work: Work, text: pa.Array) -> NDArray[np.float32]:
    return fasttext.score(_classifier(work.classifier), text)


def _without_low_scores(
    batch: _Batch, work: Work, source: int, dropped: _Dropped
) -> tuple[_Batch, NDArray[np.float32]]:
    scores, least = scores_of(work, batch.text), work.cutoffs[source]
    low = scores < least
    details = [f"probability {score:.6f} < {least:.6f}" for score in scores[low]]
    dropped.add(batch.rows[low], "classifier", "low_quality", batch.sizes[low], details)
    return batch.where(~low), scores[~low]


def sample_scores(work: Work, number: int, most: int) -> list[float]:
    """Scores of the first documents of a unit, for a cut-off by quantile."""
    out: list[float] = []
    for text in alive_texts(work, number):
        out += scores_of(work, text.cast(pa.large_string())[: most - len(out)]).tolist()
        if len(out) >= most:
            break
    return out
