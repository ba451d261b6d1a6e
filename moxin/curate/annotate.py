"""The first pass over a unit: its documents are read, judged, hashed, and written with what was found.

Every row that was read is written, those that a rule removed with the beginning of their text only. What is counted, and
what the report shows of rules, goes into `counts.json`, which is written last.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kernels import spans
from moxin import storage
from moxin.arrow import utf8_buffers
from moxin.curate import repeats, urls
from moxin.curate.documents import stable_hash
from moxin.curate.judge import Counts, Judge, annotate
from moxin.curate.profiles import Profile
from moxin.curate.reading import read
from moxin.curate.work import Work

COUNTS = "counts.json"
PIECES = "line"
"""Normal form in which paragraphs and lines are compared, C4's (`moxin.curate.repeats`)."""


def annotate_unit(work: Work, number: int) -> dict[str, Any]:
    """The first pass over one unit; what it counted. A unit that is finished is not read again."""
    done = work.file(number, COUNTS)
    if storage.exists(done):
        return storage.read_json(done)  # type: ignore[no-any-return]
    unit = work.units[number]
    judge = Judge(work, unit.source)
    profile = judge.profile
    counts = Counts(examples=number in work.examples)
    quarantine: list[dict[str, Any]] = []
    keys: dict[str, list[tuple[Any, Any]]] = {"exact": [], "urls": [], "ids": [], "pieces": []}
    with (
        storage.open_atomic(work.file(number, "annotated.parquet")) as handle,
        pq.ParquetWriter(handle, judge.schema, compression="lz4") as writer,
    ):
        first = 0
        for batch in read(unit, work.sources[unit.source], quarantine):
            if (share := work.samples[unit.source] if work.samples else 1.0) < 1:
                batch = batch.filter(pa.array(_sampled(batch["id"], share)))
            annotated = annotate(batch, judge, counts)
            writer.write_table(annotated)
            alive = pc.equal(annotated["reason"], "")
            left = annotated if pc.all(alive).as_py() else annotated.filter(alive)
            first += _hash(left, profile, first, keys)
    for kind, parts in keys.items():
        if parts:
            both = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
            repeats.write_hashes(work.key_file(kind, number), both[0], both[1], work.n_ranges)
        elif kind in kinds(profile):
            none = np.zeros((0, 2), np.uint64), np.zeros(0, np.int64)
            repeats.write_hashes(work.key_file(kind, number), *none, work.n_ranges)
    storage.write_jsonl(work.file(number, "quarantine.jsonl"), quarantine)
    value = counts.to_json(unit.source, sum(row.get("count", 1) for row in quarantine))
    storage.write_json(done, value)
    return value


def _sampled(ids: pa.ChunkedArray, share: float) -> NDArray[np.bool_]:
    return np.array([stable_hash(id_) < share * 2**64 for id_ in ids.to_pylist()], bool)


def kinds(profile: Profile) -> list[str]:
    """Kinds of keys that are written of a source's documents."""
    wanted = {
        "ids": True,
        "exact": profile.exact != "off",
        "pieces": profile.exact in ("paragraph", "line"),
        "urls": profile.urls,
    }
    return [kind for kind, is_wanted in wanted.items() if is_wanted]


def _hash(alive: pa.Table, profile: Profile, first: int, keys: dict[str, list[tuple[Any, Any]]]) -> int:
    """Adds the keys of a batch's alive documents, which begin at number `first`; returns how many documents there are."""
    n = len(alive)
    places = (np.arange(n) + first) << 32
    wanted = kinds(profile)
    data, offsets = utf8_buffers(alive["text"])
    if "exact" in wanted:
        found = repeats.find(data, offsets, "document", "words", 1)
        keys["exact"].append((found.keys[found.counts], found.places(first)[found.counts]))
    if "pieces" in wanted:
        found = repeats.find(data, offsets, profile.exact, PIECES)
        keys["pieces"].append((found.keys[found.counts], found.places(first)[found.counts]))
    if "urls" in wanted:
        hashes, has = urls.keys(alive["url"])
        keys["urls"].append((hashes[has], places[has]))
    named, starts = utf8_buffers(alive["id"])
    keys["ids"].append((spans.hashes(named, starts[:-1], starts[1:], spans.RAW)[0], places))
    return n
