"""What a near-duplicate search will take, before it is started: disk and memory of every step, with the formulas."""

from moxin.curate.fuzzy_candidates import SUBSETS
from moxin.curate.fuzzy_decide import Summary
from moxin.curate.fuzzy_keys import SLOTS
from moxin.curate.fuzzy_shingles import Params
from moxin.curate.fuzzy_verify import BUDGET

BYTES_PER_WORD = 6
"""UTF-8 of English prose, the space included."""
FILE_BYTES = 64 + 16 * (SLOTS + 1)
"""Header and index of a file of keys."""


def rows(
    n_documents: int,
    n_bytes: int,
    params: Params,
    n_ranges: int,
    n_units: int,
    *,
    candidates: float = 0.5,
    pairs: float = 4.0,
    lasting: bool = False,
) -> list[tuple[str, str, str]]:
    """Quantity, value, formula. `n_bytes` of text; `candidates` is the share of documents that share a band with another and
    `pairs` how many pairs there are per document: both are guesses until `Summary` says."""
    bands = params.bands
    keys = 16 * n_documents * bands + n_units * FILE_BYTES
    shingles = n_bytes if params.unit == "characters" else n_bytes / BYTES_PER_WORD
    share = 1.0 if lasting else candidates
    sets = 8 * shingles * share + 16 * n_documents
    n_pairs = pairs * n_documents
    unit_documents = n_documents / max(n_units, 1)
    per_byte = "text bytes" if params.unit == "characters" else f"text bytes / {BYTES_PER_WORD}"
    deeper = bands * (bands - 1) // 2 + SUBSETS
    worst = n_documents * (bands * (params.window + 2) + deeper * (params.window_at(2) + 2))
    return [
        (
            "band",
            f"{bands} x {params.rows}",
            f"J = {params.threshold:g} caught {params.catch(params.threshold):.1%}",
        ),
        ("disk: keys", size(keys), f"16 B × documents × bands + {FILE_BYTES:,} B × units"),
        (
            "disk: pairs, members",
            size(24 * n_pairs * 2),
            f"24 B × pairs × 2 ranges, {pairs:g} pairs per document",
        ),
        (
            "disk: pairs at most",
            size(16 * worst),
            f"16 B × documents × (bands × (window + 2) + {deeper} × (window / 4 + 2)): all is one template",
        ),
        ("disk: sets", size(sets), f"8 B × {per_byte} × {share:g} of the documents + 16 B × documents"),
        ("disk: alike, verdicts", size(24 * n_pairs + 16 * n_documents), "24 B × pairs + 16 B × documents"),
        (
            "memory: keys of a unit",
            size(32 * unit_documents * bands),
            "2 × 16 B × documents of a unit × bands",
        ),
        (
            "memory: a range",
            size(64 * n_documents * bands / n_ranges + 16 * n_pairs / n_ranges),
            "64 B × documents × bands / ranges + 16 B × pairs / ranges",
        ),
        (
            "memory: sets of a unit",
            size(16 * shingles * share / max(n_units, 1)),
            "2 × 8 B × shingles of a unit",
        ),
        (
            "memory: verify",
            size(2 * BUDGET + 24 * n_pairs / max(n_units, 1)),
            "2 × budget + 24 B × pairs of a unit",
        ),
        (
            "memory: decide",
            size(24 * n_documents + 24 * n_pairs / max(n_units, 1)),
            "24 B × documents + 24 B × pairs of a unit",
        ),
        ("requests per range", f"{4 * n_units:,}", "4 × units: size, header, index, slice"),
    ]


def found(summary: Summary) -> list[tuple[str, str, str]]:
    """What a search found, as such rows."""
    return [
        ("removed", f"{summary.removed:,} of {summary.documents:,}", "true Jaccard with a kept document"),
        ("pairs alike", f"{summary.alike:,}", "candidates that reach the threshold"),
        ("components", f"{summary.components:,}", "of two documents or more"),
        (
            "largest component",
            f"{summary.largest_documents:,} documents, {summary.largest_pairs:,} pairs",
            "few pairs for its size: a chain of templated text",
        ),
        ("not compared", f"{summary.unseen:,}", "pairs in buckets of four bands, beyond the window"),
    ]


def size(n_bytes: float) -> str:
    """`1,500,000` as `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000:
            return f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} PB"
