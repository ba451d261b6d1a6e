"""A quality classifier from two folders of documents: good ones, and ordinary ones (DCLM, arXiv 2406.11794, §4.4).

What is trained on depends on the texts alone, not on how they are spread over files: of each side every distinct text once,
in the order of its hash, as many as `max_bytes` holds. So the same documents give the same model file, byte for byte.

    model = make("s3://bucket/good", "s3://bucket/ordinary", fasttext.Training(), max_bytes=1 << 30)
    save(model, "s3://bucket/quality.bin")
    scores = fasttext.score(load("s3://bucket/quality.bin"), texts)
"""

import hashlib
import heapq
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from moxin import storage
from moxin.artifact import Artifact
from moxin.curate import fasttext, reading, sources
from moxin.recipe import SourceConfig

MAX_RATIO = 100
"""Text of one side to that of the other, beyond which a warning is given: the model hardly sees the smaller one."""


@dataclass(frozen=True)
class Side:
    """What was read of one folder, and what of it is trained on."""

    n_read: int
    """Documents."""
    n_quarantined: int
    """Documents and files that could not be read."""
    n_too_long: int
    """Documents longer than the whole sample may be, which are left out."""
    n_documents: int
    """In the sample, each text once."""
    n_bytes: int
    """In the sample."""


def make(good_url: str, ordinary_url: str, training: fasttext.Training, max_bytes: int) -> fasttext.Model:
    """Trains on at most `max_bytes` of text of each folder; `model.about` says of how much (`Side`), and its `warnings`.

    The folders are read whole, in any format of a source of kind `folder`; in memory is no more than the sample.

    Raises:
        ValueError: A folder without documents, or one that is or lies in the other; max_bytes < 1.
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes = {max_bytes}: at least 1")
    one, other = (f"{_resolved(url)}/" for url in (good_url, ordinary_url))
    if one.startswith(other) or other.startswith(one):
        raise ValueError(
            f"good documents at {good_url}, ordinary ones at {ordinary_url}: the same, or one in the other"
        )
    samples, sides = zip(*(_sample(url, max_bytes) for url in (good_url, ordinary_url)), strict=True)
    good, ordinary = samples
    warnings = []
    n_both = len(good.keys() & ordinary.keys())
    if n_both:
        warnings.append(f"{n_both:,} texts are good and ordinary at once")
    sizes = [side.n_bytes for side in sides]
    if max(sizes) > MAX_RATIO * min(sizes):
        warnings.append(
            f"{sizes[0]:,} bytes of good and {sizes[1]:,} of ordinary text: more than {MAX_RATIO} times as much on one side"
        )
    one_array, other_array = (
        pa.array([text for _, text in sorted(sample.items())], pa.large_string()) for sample in samples
    )
    model = fasttext.train(one_array, other_array, training)
    about = {
        "good": asdict(sides[0]),
        "ordinary": asdict(sides[1]),
        "max_bytes": max_bytes,
        "warnings": warnings,
    }
    return replace(model, about={**model.about, **about})


def save(model: fasttext.Model, url: str) -> None:
    """`fasttext.save` to a local path or a URL; the model appears last, so that one which is there is whole."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.bin")
        fasttext.save(model, path)
        storage.put_file(path.with_suffix(".json"), _beside(url))
        storage.put_file(path, url)


def load(url: str) -> fasttext.Model:
    """A classifier at a local path or a URL, with the .json beside it where there is one.

    Raises:
        ValueError: It is no fastText model, or knows no label `fasttext.GOOD`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = storage.local_path(url) if storage.is_local(url) else Path(folder, "model.bin")
        if not storage.is_local(url):
            storage.get_file(url, path)
            if storage.exists(_beside(url)):
                storage.get_file(_beside(url), path.with_suffix(".json"))
        model = fasttext.load(path)
    if fasttext.GOOD not in model.labels:
        raise ValueError(
            f"{url}: no quality classifier: wanted is a label {fasttext.GOOD}, it has {model.labels[:10]}"
        )
    return model


def fingerprint(url: str) -> str:
    """SHA-256 of the model's file, for the key of what is made with it. Raises `ValueError` where there is none."""
    try:
        return storage.sha256(url)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"{url}: no file; name the model that `save` wrote, or a fastText .bin") from error


def _beside(url: str) -> str:
    """Where `fasttext.save` and `fasttext.load` have the .json of a model."""
    folder, slash, name = url.rpartition("/")
    return f"{folder}{slash}{Path(name).with_suffix('.json')}"


def _resolved(url: str) -> str:
    return storage.local_path(url).resolve().as_posix() if storage.is_local(url) else url.rstrip("/")


def _sample(url: str, max_bytes: int) -> tuple[dict[bytes, str], Side]:
    """Texts by their hash: the longest beginning of all texts, in the order of their hashes, that `max_bytes` holds.

    An id would not do for a hash: that of a document which brings none tells its file and place.
    """
    source = SourceConfig("quality", "folder", path=url)
    quarantine: reading.Quarantine = []
    texts: dict[bytes, str] = {}
    heap: list[
        tuple[int, bytes, int]
    ] = []  # the largest hash first, as a negative number; with it, and the bytes of text
    bound: bytes | None = None  # hashes from here on are too many
    n_read = n_bytes = 0
    too_long = set()
    for unit in sources.units((source,), Artifact("", "", "", {})):
        for batch in reading.read(unit, source, quarantine):
            n_read += len(batch)
            for text in batch["text"].to_pylist():
                raw = text.encode()
                key = hashlib.blake2b(raw, digest_size=16).digest()
                if len(raw) > max_bytes:
                    too_long.add(key)
                    continue
                if key in texts or (bound is not None and key >= bound):
                    continue
                texts[key] = text
                heapq.heappush(heap, (-int.from_bytes(key, "big"), key, len(raw)))
                n_bytes += len(raw)
                while n_bytes > max_bytes:
                    _, bound, size = heapq.heappop(heap)
                    del texts[bound]
                    n_bytes -= size
    n_quarantined = sum(row.get("count", 1) for row in quarantine)
    if not texts:
        raise ValueError(
            f"{url}: no documents to train on: {n_read} read, {n_quarantined} unreadable, {len(too_long)} of more than "
            f"max_bytes = {max_bytes:,}"
        )
    return texts, Side(n_read, n_quarantined, len(too_long), len(texts), n_bytes)
