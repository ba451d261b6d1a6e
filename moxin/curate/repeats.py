"""What repeats something earlier below the level of near-duplicates: documents, paragraphs, lines, runs of words.

"Earlier" is the order (unit, row, piece), where units are numbered by the priority of their source and then by name. Two
ways, and what each guarantees:

exact        `find`, `write_hashes`, `first_in_range`, `write_repeats`, `read_repeats`. The first of equal texts stays, all
             others are found, nothing else is (up to collisions of 128 bits). Ranges of hashes are independent: the
             result is the same for any number of workers, any order of work and any restart. 24 bytes of disk per piece.
stream       `Bloom.judge`. BFF's own: one process judges pieces in order, each against what stayed. Deterministic, since the
             order is; the units must be given in their order, and a restart begins from a saved filter (`save`, `load`).

With a Bloom filter a share `fp_rate` of new n-grams is taken for seen; a piece of n new n-grams is lost if more than
threshold * n of them are, which for 0.01, 0.8 and n = 1 is one in a hundred, for n = 10 one in 10^17.

BFF (mlfoundations/dclm, `old-both`): pieces are lines, of `min_words` words at least; a shorter one has no n-gram, is never
removed and adds nothing, and one shorter than `max_words` is one n-gram. A document is removed when of all its n-grams more
than `threshold` were seen, also in itself: one line six times over goes altogether. What stays is joined by its own
separators, where BFF leaves a line feed in front when the first line goes.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kernels import spans
from kernels.bloom import Bloom, Seen, decide
from moxin import storage

LEVELS = {"document": 0, "line": 1, "paragraph": 2}
"""Line feeds between pieces."""
FORMS = {"raw": spans.RAW, "words": spans.WORDS, "line": spans.LINE}
"""Normal forms, see `kernels.spans.hashes`; C4 compares by "line"."""
MIN_CHARS = 20
"""Code points of the normal form: a shorter piece ("}", "Share", a blank line) repeats by chance and is never a repeat."""
BYTES_PER_HASH = 140
"""Memory that `first_in_range` needs per key of 128 bits, at most: 128 measured where every key repeats."""


class Pieces(NamedTuple):
    """The pieces of a batch of documents; as in `kernels.spans`."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    doc_starts: NDArray[np.int64]
    keys: NDArray[np.uint64]
    """uint64[n_pieces, 2]: equal for equal normal forms."""
    counts: NDArray[np.bool_]
    """bool[n_pieces]: long enough to be a repeat."""

    def places(self, first_row: int = 0) -> NDArray[np.int64]:
        """row << 32 | piece within its document, int64[n_pieces]; `first_row` is that of the batch within its unit."""
        sizes = np.diff(self.doc_starts)
        rows = np.repeat(np.arange(len(sizes)), sizes)
        return (rows + first_row) << 32 | np.arange(len(self.starts)) - self.doc_starts[rows]


class Repeats(NamedTuple):
    """Pieces that are not the first of their kind, sorted by where they are, int64[n] each."""

    unit: NDArray[np.int64]
    place: NDArray[np.int64]
    of_unit: NDArray[np.int64]
    of_place: NDArray[np.int64]
    nth: NDArray[np.int64]
    """2 for the second of its kind, and so on."""

    def find(self, places: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of these places of one unit repeat something, bool[n], and where those are in these columns."""
        at = np.searchsorted(self.place, places)
        again = np.zeros(len(places), np.bool_)
        inside = at < len(self.place)
        again[inside] = self.place[at[inside]] == places[inside]
        return again, at[again]


def find(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], level: str, form: str, min_chars: int = MIN_CHARS
) -> Pieces:
    """Cuts a batch into pieces and hashes them. A document that is empty or blank, or a short piece, does not count."""
    if level not in LEVELS or form not in FORMS:
        raise ValueError(
            f"level {level!r}, form {form!r}: set one of {list(LEVELS)} and one of {list(FORMS)}"
        )
    if min_chars < 1:
        raise ValueError(
            f"min_chars={min_chars}: set it to 1 or more, or blank lines are duplicates of each other"
        )
    starts, ends, doc_starts = spans.cut(data, offsets, LEVELS[level])
    keys, n_chars = spans.hashes(data, starts, ends, FORMS[form])
    return Pieces(starts, ends, doc_starts, keys, n_chars >= min_chars)


def ranges_for(n_keys: int, memory_bytes: int) -> int:
    """The number of ranges, a power of two, of which one of `n_keys` keys fits into the memory."""
    return 1 << max(-(-n_keys * BYTES_PER_HASH // memory_bytes) - 1, 0).bit_length()


def write_hashes(url: str, keys: NDArray[np.uint64], places: NDArray[np.int64], n_ranges: int) -> None:
    """A unit's keys, uint64[n, 1 or 2], sorted, as an Arrow file with one record batch per range of the first column."""
    if n_ranges < 1 or n_ranges & (n_ranges - 1):
        raise ValueError(f"n_ranges={n_ranges}: set a power of two")
    order = np.lexsort((places, *keys.T[::-1]))
    keys, places = keys[order], places[order]
    bounds = np.arange(1, n_ranges, dtype=np.uint64) << np.uint64(65 - n_ranges.bit_length())
    columns = {f"key{k}": keys[:, k] for k in range(keys.shape[1])} | {"place": places}
    _write_batches(url, columns, np.searchsorted(keys[:, 0], bounds))


def first_in_range(urls: Sequence[str], number: int) -> Repeats:
    """Of the files of all units, in order, those keys of one range that are not the first of their kind."""
    tables = [_read_batch(url, number) for url in urls]
    unit = np.repeat(np.arange(len(tables)), [len(table["place"]) for table in tables])
    merged = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    keys = np.stack([values for name, values in merged.items() if name != "place"], axis=1)
    # The files are sorted, and a stable sort is in order of unit among equals.
    order = np.argsort(keys[:, 0], kind="stable")
    first = _first_of_equals(keys, order)
    again = np.flatnonzero(first != np.arange(len(first)))
    again = again[np.lexsort((merged["place"][again], unit[again]))]
    place, first = merged["place"], first[again]
    by_first = np.argsort(first, kind="stable")
    runs = np.flatnonzero(np.diff(first[by_first], prepend=-1))
    nth = np.empty(len(first), np.int64)
    nth[by_first] = np.arange(len(first)) - np.repeat(runs, np.diff(np.append(runs, len(first)))) + 2
    return Repeats(unit[again], place[again], unit[first], place[first], nth)


def _first_of_equals(keys: NDArray[np.uint64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of every key the first in `order` that is equal to it, int64[n]; `order` sorts by the first column."""
    ordered = keys[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = ordered[1:, 0] != ordered[:-1, 0]
    first = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    # Alike in the first 64 bits and not in all: about n^2 / 2^65 pairs, so this loop hardly ever runs.
    seen: dict[bytes, int] = {}
    for k in np.flatnonzero((ordered != ordered[first]).any(axis=1)):
        first[k] = seen.setdefault(ordered[k].tobytes(), int(k))
    out = np.empty(len(order), np.int64)
    out[order] = order[first]
    return out


def write_repeats(url: str, repeats: Repeats, n_units: int) -> None:
    """What `first_in_range` found, with one record batch per unit."""
    _write_batches(url, dict(repeats._asdict()), np.searchsorted(repeats.unit, np.arange(1, max(n_units, 1))))


def read_repeats(urls: Sequence[str], unit: int) -> Repeats:
    """What the files of all ranges say about a unit."""
    tables = [_read_batch(url, unit) for url in urls]
    columns = [np.concatenate([table[name] for table in tables]) for name in Repeats._fields]
    order = np.lexsort((columns[3], columns[2], columns[1]))
    return Repeats(*(column[order] for column in columns))


def _write_batches(url: str, columns: dict[str, NDArray[Any]], cuts: NDArray[np.int64]) -> None:
    """The columns in len(cuts) + 1 record batches, whose place in the file Arrow's footer tells."""
    bounds = [0, *cuts.tolist(), len(next(iter(columns.values())))]
    arrays = {name: pa.array(values) for name, values in columns.items()}
    # A range that was torn or mixed up would be silently wrong, so it is hashed.
    digests = [_digest([values[a:b] for values in columns.values()]) for a, b in itertools.pairwise(bounds)]
    schema = pa.schema([(name, array.type) for name, array in arrays.items()])
    schema = schema.with_metadata({"digests": ",".join(digests)})
    table = pa.table(arrays, schema=schema)
    with storage.open_atomic(url) as handle, pa.ipc.new_file(handle, schema) as writer:
        for a, b in itertools.pairwise(bounds):
            batches = table.slice(a, b - a).to_batches()
            empty = pa.RecordBatch.from_arrays([array[:0] for array in arrays.values()], schema=schema)
            writer.write_batch(batches[0] if batches else empty)


def _read_batch(url: str, number: int) -> dict[str, NDArray[Any]]:
    """One record batch; raises `ValueError` where it is not what was written."""
    with storage.open_read(url) as handle:
        file = pa.ipc.open_file(handle)
        if number >= file.num_record_batches:
            raise ValueError(
                f"{url} has {file.num_record_batches} ranges, number {number} was asked for: the files were made "
                "with different numbers of ranges or units; delete them and write all anew"
            )
        batch = file.get_batch(number)
        digest = file.schema.metadata[b"digests"].decode().split(",")[number]
    columns = {name: batch[name].to_numpy() for name in batch.schema.names}
    if _digest(list(columns.values())) != digest:
        raise ValueError(
            f"{url}: range {number} is damaged (its hash differs); delete the file and write it anew"
        )
    return columns


def _digest(columns: list[NDArray[Any]]) -> str:
    total = hashlib.blake2b(digest_size=8)
    for values in columns:
        total.update(np.ascontiguousarray(values).data)
    return total.hexdigest()


def keep_first(
    data: NDArray[np.uint8], pieces: Pieces, again: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """A batch without the pieces that come `again`, bool[n_pieces]: new `data` and `offsets`, and the pieces that stay.

    Of a document of which only blank and short pieces would stay, nothing does.
    """
    keep = ~again
    substance = np.concatenate([[0], np.cumsum(keep & pieces.counts)])[pieces.doc_starts]
    lost = np.concatenate([[0], np.cumsum(again)])[pieces.doc_starts]
    empty = (np.diff(lost) > 0) & (np.diff(substance) == 0)
    keep &= ~np.repeat(empty, np.diff(pieces.doc_starts))
    return *spans.join(data, pieces.starts, pieces.ends, pieces.doc_starts, keep), keep


def keep_new(
    data: NDArray[np.uint8], pieces: Pieces, seen: Seen, threshold: float
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """The same for BFF: without the pieces it removes, and without documents of which more than `threshold` was seen."""
    sums = [np.concatenate([[0], np.cumsum(column)])[pieces.doc_starts] for column in seen[:2]]
    whole = decide(np.diff(sums[0]), np.diff(sums[1]), threshold).removed
    keep = ~(seen.removed | np.repeat(whole, np.diff(pieces.doc_starts)))
    return *spans.join(data, pieces.starts, pieces.ends, pieces.doc_starts, keep), keep


def save(bloom: Bloom, url: str) -> None:
    """Writes a filter to a folder of its own, a file per shard and `bloom.json` last: without that it does not count."""
    for slot, shard in enumerate(bloom.shards):
        storage.write_bytes(
            storage.join(url, f"shard-{shard:05d}.bin"), bloom.bits[slot].astype("<u8").tobytes()
        )
    names = ("n_expected", "fp_rate", "shard_bytes", "shards", "n_added")
    storage.write_json(storage.join(url, "bloom.json"), {name: getattr(bloom, name) for name in names})


def load(url: str) -> Bloom:
    """A filter that `save` wrote. Raises `ValueError` where a shard's file has the wrong size."""
    told = storage.read_json(storage.join(url, "bloom.json"))
    n_added = told.pop("n_added")
    bloom = Bloom(told.pop("n_expected"), told.pop("fp_rate"), **told)
    for slot, shard in enumerate(bloom.shards):
        name = storage.join(url, f"shard-{shard:05d}.bin")
        data = storage.read_bytes(name)
        if len(data) != bloom.bits[slot].nbytes:
            raise ValueError(
                f"{name} has {len(data)} bytes instead of {bloom.bits[slot].nbytes}: delete the folder and begin anew"
            )
        bloom.bits[slot] = np.frombuffer(data, "<u8")
    bloom.n_added = n_added
    return bloom
