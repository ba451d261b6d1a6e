"""Judges a batch of documents by the profile of their source: cleaned, measured, judged, and what was found counted."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from moxin.arrow import utf8_buffers
from moxin.curate import (
    code,
    contamination,
    fasttext,
    fuzzy_shingles,
    pii,
    profiles,
    secrets,
    urls,
    verdicts,
)
from moxin.curate.bad_words import BadWords
from moxin.curate.clean import clean
from moxin.curate.documents import SCHEMA, stable_hash
from moxin.curate.histograms import Histogram, Nearest
from moxin.curate.profiles import Profile
from moxin.curate.work import CODE_KINDS, Work
from moxin.recipe import BlocklistConfig

EXAMPLES = 10
EXAMPLE_CHARS = 600
HITS = 100
"""Places of evaluation items that are told in full, by unit; all are counted."""
_CLASSES = np.array(
    [1 if chr(byte).isalnum() or byte == 95 else 0 if chr(byte).isspace() else 2 for byte in range(128)]
    + [0 if 0x80 <= byte < 0xC0 else 2 for byte in range(128, 256)],
    np.uint8,
)


@dataclass
class Removals:
    """Why documents of a batch go; the first reason is the one."""

    n: int
    step: list[str] = field(init=False)
    reason: list[str] = field(init=False)
    detail: list[str] = field(init=False)
    rows: NDArray[np.int64] = field(init=False)
    """Those that are left, in their order."""

    def __post_init__(self) -> None:
        self.step, self.reason, self.detail = ([""] * self.n for _ in range(3))
        self.rows = np.arange(self.n)

    def remove(
        self,
        which: NDArray[np.bool_],
        step: str | Sequence[str],
        reasons: Sequence[str],
        details: Sequence[str],
    ) -> None:
        """`which` of those that are left, bool[n_left], with a reason and a detail for each that goes, and a step or one
        step for all."""
        steps = [step] * len(reasons) if isinstance(step, str) else step
        for row, *why in zip(self.rows[which], steps, reasons, details, strict=True):
            self.step[row], self.reason[row], self.detail[row] = why
        self.rows = self.rows[~which]


@dataclass
class Counts:
    """What a unit's first pass found, and what the report shows of it."""

    examples: bool
    documents: int = 0
    n_bytes: int = 0
    words: int = 0
    """Segments of alive documents that could be words, at most: the n-grams of a Bloom filter are no more."""
    alive: int = 0
    alive_bytes: int = 0
    removed: Counter[tuple[str, str]] = field(default_factory=Counter)
    removed_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    scrubbed: Counter[str] = field(default_factory=Counter)
    histograms: dict[tuple[str, str], Histogram] = field(default_factory=dict)
    nearest: dict[tuple[str, str], Nearest] = field(default_factory=dict)
    hits: list[contamination.Hit] = field(default_factory=list)
    found: contamination.Found = field(default_factory=contamination.Found)

    def to_json(self, source: int, n_quarantined: int) -> dict[str, Any]:
        def keyed(values: dict[tuple[str, str], Any]) -> list[Any]:
            return [[*key, value.to_json()] for key, value in values.items()]

        return {
            "source": source,
            "documents": self.documents,
            "bytes": self.n_bytes,
            "words": self.words,
            "alive": self.alive,
            "alive_bytes": self.alive_bytes,
            "removed": [[*key, n, self.removed_bytes[key]] for key, n in sorted(self.removed.items())],
            "scrubbed": dict(sorted(self.scrubbed.items())),
            "histograms": keyed(self.histograms),
            "examples": keyed(self.nearest),
            "hits": [hit._asdict() for hit in self.hits[:HITS]],
            "found": self.found.to_json(),
            "quarantined": n_quarantined,
        }


class Judge:
    """What a process keeps to judge the documents of one source by."""

    def __init__(self, work: Work, source: int) -> None:
        config = work.config
        self.source, self.profile = work.sources[source], work.profiles[source]
        self.is_code = self.source.kind in CODE_KINDS
        self.removed_chars = config.removed_chars
        self.questions = _questions(work.questions) if work.questions else None
        self.report_only = config.decontamination == "report"
        lists = config.blocklists if self.profile.blocklists else BlocklistConfig()
        self.blocklists = _blocklists(lists) if lists != BlocklistConfig() else None
        bad_words = config.bad_words if self.profile.bad_words else ""
        self.bad_words = BadWords.read(bad_words) if bad_words else None
        self.signal_names = sorted({rule.signal for rule in self.rules})

    @property
    def rules(self) -> list[Any]:
        return list(self.profile.code) if self.is_code and self.profile.code else self.profile.rules

    @property
    def schema(self) -> pa.Schema:
        verdict = [pa.field(name, pa.string()) for name in ("step", "reason", "detail")]
        signals = [pa.field(name, pa.float32()) for name in self.measured]
        return pa.schema([*SCHEMA, *verdict, *signals])

    @property
    def measured(self) -> list[str]:
        """Names of the columns of signals."""
        languages = ["language_probability"] if self.profile.languages and not self.is_code else []
        folded = ["folded_chars"] if self.profile.min_folded_chars else []
        return [*self.signal_names, *languages, *folded]


@lru_cache(maxsize=4)
def _questions(url: str) -> contamination.Index:
    return contamination.load(url)


@lru_cache(maxsize=4)
def _blocklists(lists: BlocklistConfig) -> urls.Blocklists:
    return urls.read_blocklists(**vars(lists))


def annotate(batch: pa.Table, judge: Judge, counts: Counts) -> pa.Table:
    """The batch with `judge.schema`, rows in the same order; adds to the counts."""
    profile, n = judge.profile, len(batch)
    left = Removals(n)
    columns: dict[str, NDArray[np.float32]] = {
        name: np.full(n, np.nan, np.float32) for name in judge.measured
    }
    ids = batch["id"].combine_chunks()
    cleaned = clean(batch["text"].combine_chunks())
    languages = batch["lang"].combine_chunks()
    text = _drop(cleaned, left, np.diff(utf8_buffers(cleaned)[1]) == 0, "length", "empty")
    if judge.blocklists is not None:
        found = [judge.blocklists.reason(url) for url in batch["url"].take(pa.array(left.rows)).to_pylist()]
        blocked = np.array([bool(reason) for reason, _ in found])
        left.remove(blocked, "url", *_split([one for one in found if one[0]]))
        text = _taken(cleaned, left.rows)
    if judge.is_code:
        names = [
            given or code.language_of(path)
            for given, path in zip(languages.to_pylist(), ids.to_pylist(), strict=True)
        ]
        languages = pa.array(names, pa.string())
        if profile.code:
            _judge_code(batch, text, judge, left, columns, counts)
            text = _taken(cleaned, left.rows)
    elif profile.languages:
        languages = _judge_language(text, profile, left, columns, counts, n)
        text = _taken(cleaned, left.rows)
    if profile.stages and not (judge.is_code and profile.code):
        text = _judge_stages(text, profile, left, columns, counts)
    if profile.min_folded_chars:
        text = _judge_folded(text, profile, left, columns, counts)
    if judge.bad_words is not None:
        bad = judge.bad_words.holds(text)
        text = _drop(text, left, bad, "bad words", "bad_words")
    text = _judge_personal(text, profile, left, counts)
    if judge.questions is not None:
        text = _judge_questions(text, ids, judge, left, counts)
    _count(batch, text, left, judge, counts, columns, ids)
    heads = pc.utf8_slice_codeunits(_taken(cleaned, _gone(left)), 0, judge.removed_chars)
    if profile.personal != "keep":
        heads, _ = pii.scrub(heads, phones=profile.phones != "keep")
    out = text.cast(pa.string())
    if len(heads):
        alive = np.zeros(n, bool)
        alive[left.rows] = True
        places = np.where(alive, np.cumsum(alive) - 1, len(text) + np.cumsum(~alive) - 1)
        out = pa.concat_arrays([out, heads.cast(pa.string())]).take(pa.array(places))
    made = {
        **{name: batch[name] for name in SCHEMA.names},
        "text": out,
        "lang": languages,
        "step": pa.array(left.step, pa.string()),
        "reason": pa.array(left.reason, pa.string()),
        "detail": pa.array(left.detail, pa.string()),
        **{name: pa.array(values, pa.float32(), from_pandas=True) for name, values in columns.items()},
    }
    return pa.table(made, schema=judge.schema)


def _gone(left: Removals) -> NDArray[np.int64]:
    return np.flatnonzero([bool(reason) for reason in left.reason])


def _taken(text: pa.Array, rows: NDArray[np.int64]) -> pa.Array:
    return text if len(rows) == len(text) else text.take(pa.array(rows))


def _split(pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _drop(
    text: pa.Array, left: Removals, which: NDArray[np.bool_], step: str, reason: str, detail: str = ""
) -> pa.Array:
    """Removes documents for one reason; the text of those that are left."""
    if not which.any():
        return text
    n = int(which.sum())
    left.remove(which, step, [reason] * n, [detail] * n)
    return text.filter(pa.array(~which))


def _judge_language(
    text: pa.Array, profile: Profile, left: Removals, columns: dict[str, Any], counts: Counts, n: int
) -> pa.Array:
    """Removes what is in no wanted language; the language of every row of the batch."""
    found = fasttext.identify(text)
    default = profile.languages.get("*", 2.0)
    least = np.array([profile.languages.get(name, default) for name in found.label])
    columns["language_probability"][left.rows] = found.probability
    labels = np.full(n, "", object)
    labels[left.rows] = found.label
    gone = found.probability < least
    wanted = least <= 1
    for name, threshold in profile.languages.items():
        of = np.array(
            [label == name or (name == "*" and label not in profile.languages) for label in found.label], bool
        )
        key = ("language", f"language: {name}")
        histogram = counts.histograms.setdefault(key, Histogram.of("<", threshold, "share"))
        histogram.add(found.probability[of], int((gone & of).sum()))
    reasons = [
        f"language: {'*' if found.label[k] not in profile.languages else found.label[k]}"
        if wanted[k]
        else "other_language"
        for k in np.flatnonzero(gone)
    ]
    details = [
        f"{found.label[k] or 'none'} {found.probability[k]:.3f}" + (f" < {least[k]:g}" if wanted[k] else "")
        for k in np.flatnonzero(gone)
    ]
    left.remove(gone, "language", reasons, details)
    return pa.array(labels.tolist(), pa.string())


def _judge_stages(
    text: pa.Array, profile: Profile, left: Removals, columns: dict[str, Any], counts: Counts
) -> pa.Array:
    """Applies the stages; the edited text of those that are left."""
    outcome = verdicts.apply(profile, *utf8_buffers(text))
    rows = left.rows
    for position, stage in enumerate(profile.stages):
        values = outcome.signals[position]
        for number, rule in enumerate(stage.rules):
            here = values[:, number]
            seen = ~np.isnan(here)
            columns[rule.signal][rows[seen]] = here[seen]
            key = (stage.name, rule.reason)
            histogram = counts.histograms.setdefault(
                key, Histogram.of(rule.op, rule.threshold, profiles.UNITS[rule.signal])
            )
            removed = (outcome.stage == position) & (outcome.rule == number)
            histogram.add(here[seen], int(removed.sum()))
    gone = outcome.stage >= 0
    which = np.flatnonzero(gone)
    rules = [profile.stages[outcome.stage[k]].rules[outcome.rule[k]] for k in which]
    details = [
        f"{rule.signal} {outcome.value[k]:.4g} {rule.op} {rule.threshold:g}"
        for k, rule in zip(which, rules, strict=True)
    ]
    steps = [profile.stages[outcome.stage[k]].name for k in which]
    left.remove(gone, steps, [rule.reason for rule in rules], details)
    return _text(outcome.data, outcome.offsets)


def _text(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> pa.Array:
    """Flat UTF-8 as a column of text."""
    return pa.LargeStringArray.from_buffers(
        len(offsets) - 1,
        pa.py_buffer(np.ascontiguousarray(offsets)),
        pa.py_buffer(np.ascontiguousarray(data)),
    )


def _judge_code(
    batch: pa.Table, text: pa.Array, judge: Judge, left: Removals, columns: dict[str, Any], counts: Counts
) -> None:
    rules = judge.profile.code
    paths = batch["id"].take(pa.array(left.rows)).to_pylist()
    licenses = batch["license"].take(pa.array(left.rows)).to_pylist()
    found = code.judge(text, paths, licenses, rules=rules)
    for rule in rules:
        values = found.signals[rule.signal]
        seen = ~np.isnan(values)
        columns[rule.signal][left.rows[seen]] = values[seen]
        unit = "share" if rule.signal in code.SHARES else ""
        histogram = counts.histograms.setdefault(
            ("code", rule.reason), Histogram.of(rule.op, rule.threshold, unit)
        )
        histogram.add(values[seen], found.reason.count(rule.reason))
    gone = np.array([bool(reason) for reason in found.reason], bool)
    left.remove(
        gone, "code", *_split([pair for pair in zip(found.reason, found.detail, strict=True) if pair[0]])
    )


def _judge_folded(
    text: pa.Array, profile: Profile, left: Removals, columns: dict[str, Any], counts: Counts
) -> pa.Array:
    step, reason, signal, op = profiles.FOLDED
    lengths = fuzzy_shingles.folded_chars(text)
    columns[signal][left.rows] = lengths
    gone = lengths < profile.min_folded_chars
    histogram = Histogram.of(op, profile.min_folded_chars, "characters")
    counts.histograms.setdefault((step, reason), histogram).add(lengths.astype(np.float64), int(gone.sum()))
    n = np.flatnonzero(gone)
    left.remove(
        gone, step, [reason] * len(n), [f"{signal} {lengths[k]} < {profile.min_folded_chars}" for k in n]
    )
    return text.filter(pa.array(~gone))


def _judge_personal(text: pa.Array, profile: Profile, left: Removals, counts: Counts) -> pa.Array:
    """Replaces addresses and secrets, or removes the documents that hold them."""
    if profile.personal != "keep":
        scrubbed, found = pii.scrub(text, phones=profile.phones != "keep")
        counts.scrubbed += found
        if profile.personal == "drop" and found:
            holds = pc.not_equal(scrubbed, text).to_numpy(zero_copy_only=False)
            text = _drop(text, left, holds, "personal data", "personal_data")
        else:
            text = scrubbed
    if profile.secrets != "keep":
        secret = secrets.scrub(text, replace=profile.secrets == "replace")
        counts.scrubbed += secret.counts
        text = secret.text
        if profile.secrets == "drop":
            text = _drop(text, left, secret.holds, "personal data", "secrets")
    return text


def _judge_questions(text: pa.Array, ids: pa.Array, judge: Judge, left: Removals, counts: Counts) -> pa.Array:
    names = ids.take(pa.array(left.rows)).to_pylist()
    assert judge.questions is not None
    report = contamination.search(judge.questions, names, text)
    counts.found.add(report.hits)
    counts.hits += report.hits[: max(HITS - len(counts.hits), 0)]
    if judge.report_only or not report.remove.any():
        return text
    items: dict[str, list[str]] = {}
    for hit in report.hits:
        if not hit.allowed:
            items.setdefault(hit.document, []).append(f"{hit.benchmark}/{hit.split}:{hit.item}")
    gone = np.flatnonzero(report.remove)
    details = [" ".join(sorted(set(items[names[k]]))[:EXAMPLES]) for k in gone]
    left.remove(report.remove, "decontamination", ["evaluation_question"] * len(gone), details)
    return text.filter(pa.array(~report.remove))


def _count(
    batch: pa.Table,
    text: pa.Array,
    left: Removals,
    judge: Judge,
    counts: Counts,
    columns: dict[str, NDArray[np.float32]],
    ids: pa.Array,
) -> None:
    sizes = pc.fill_null(pc.binary_length(batch["text"]), 0).to_numpy()
    counts.documents += len(batch)
    counts.n_bytes += int(sizes.sum())
    data, offsets = utf8_buffers(text)
    counts.alive += len(text)
    counts.alive_bytes += int(offsets[-1] - offsets[0])
    if judge.profile.bloom is not None:
        classes = _CLASSES[data[offsets[0] : offsets[-1]]]
        runs = np.count_nonzero((classes[1:] == 1) & (classes[:-1] != 1)) + len(text)
        counts.words += int(runs + np.count_nonzero(classes == 2))
    gone = _gone(left)
    for row in gone:
        key = (left.step[row], left.reason[row])
        counts.removed[key] += 1
        counts.removed_bytes[key] += int(sizes[row])
    if counts.examples:
        _examples(batch, text, left, judge, counts, columns, ids, gone)


def _examples(
    batch: pa.Table,
    text: pa.Array,
    left: Removals,
    judge: Judge,
    counts: Counts,
    columns: dict[str, NDArray[np.float32]],
    ids: pa.Array,
    gone: NDArray[np.int64],
) -> None:
    """Of every reason some that went, drawn by the hash of their ids, and those that stayed by the least."""
    names = ids.to_pylist()
    for row in gone:
        found = counts.nearest.setdefault((left.step[row], left.reason[row]), Nearest())
        found.removed(
            stable_hash(names[row]), names[row], left.detail[row], _head_of(batch["text"], int(row))
        )
    if judge.is_code and judge.profile.code:
        limits = [("code", rule.reason, rule.signal, rule.op, rule.threshold) for rule in judge.profile.code]
    else:
        stages = judge.profile.stages
        limits = [
            (at.name, rule.reason, rule.signal, rule.op, rule.threshold) for at in stages for rule in at.rules
        ]
    for step, reason, signal, op, threshold in limits:
        values = columns[signal][left.rows]
        distance = np.abs(values - threshold)
        inside = (values >= threshold) if op == "<" else (values <= threshold)
        if threshold == 0:
            inside &= distance > 0  # what has nothing of it is not near
        order = np.flatnonzero(inside)
        order = order[np.argsort(distance[order], kind="stable")][:EXAMPLES]
        for k in order:
            detail = f"{signal} {values[k]:.4g}, removed if {op} {threshold:g}"
            found = counts.nearest.setdefault((step, reason), Nearest())
            found.kept(float(distance[k]), names[left.rows[k]], detail, _head_of(text, int(k)))


def _head_of(column: pa.Array | pa.ChunkedArray, row: int) -> Callable[[], str]:
    return lambda: (column[row].as_py() or "")[:EXAMPLE_CHARS]
