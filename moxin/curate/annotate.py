"""One batch from raw text to annotations: cleaned, scrubbed, measured, judged, hashed.

The hashes are what deduplication needs.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kernels import minhash
from kernels import text as text_kernels
from moxin.arrow import utf8_buffers
from moxin.curate import decontaminate, language, pii, rules
from moxin.curate.clean import clean
from moxin.curate.documents import SCHEMA
from moxin.recipe import CurateConfig

SHINGLE = 5
"""Words per shingle of the near-duplicate search."""


def annotated_schema(config: CurateConfig) -> pa.Schema:
    """`SCHEMA`, the verdict (`step`, `reason`, `detail`; empty where the document goes on), and little-endian uint64s:
    `exact`, two that are a hash of the text, and `bands`, the LSH keys."""
    verdict = [pa.field(name, pa.string()) for name in ("step", "reason", "detail")]
    hashes = [pa.field("exact", pa.binary(16)), pa.field("bands", pa.binary(8 * config.minhash_bands))]
    return pa.schema([*SCHEMA, *verdict, *hashes])


@dataclass(frozen=True)
class Judge:
    """What decides about a document of one source."""

    kind: str
    """Kind of the source: `code` has rules of its own and no human language."""
    config: CurateConfig
    questions: decontaminate.Index


def annotate(batch: pa.Table, judge: Judge) -> tuple[pa.Table, Counter[str]]:
    """The batch with `annotated_schema`, rows in the same order, and how many addresses were scrubbed, by kind."""
    text, scrubbed = pii.scrub(clean(batch["text"].combine_chunks()))
    data, offsets = utf8_buffers(text)
    table = text_kernels.signals(data, offsets)
    signals = {name: table[:, column] for column, name in enumerate(text_kernels.SIGNALS)}
    if judge.kind in rules.CODE_KINDS:
        head = pc.utf8_slice_codeunits(text, 0, rules.GENERATED_CHARS)
        signals["generated"] = pc.match_substring_regex(head, rules.GENERATED).to_numpy(zero_copy_only=False)
        languages = [given or "python" for given in batch["lang"].to_pylist()]
    else:
        languages, signals["wanted_language"] = language.identify(text.to_pylist(), judge.config.languages)
    step, reason, detail = _verdicts(judge, signals, languages)
    words, starts = text_kernels.word_hashes(data, offsets, *text_kernels.unicode_tables())
    for document, question in decontaminate.hits(judge.questions, words, starts):
        if step[document] in ("", "decontamination"):
            step[document], reason[document] = "decontamination", "evaluation_question"
            detail[document] = f"{detail[document]} {judge.questions.ids[question]}".strip()
    columns = {
        **{name: batch[name] for name in SCHEMA.names},
        "text": text,
        "lang": pa.array(languages, pa.string()),
        "step": pa.array(step, pa.string()),
        "reason": pa.array(reason, pa.string()),
        "detail": pa.array(detail, pa.string()),
        "exact": exact_hashes(text),
        "bands": _bands(words, starts, judge.config),
    }
    return pa.table(columns, schema=annotated_schema(judge.config)), scrubbed


def _verdicts(
    judge: Judge, signals: dict[str, NDArray[np.float64]], languages: list[str]
) -> tuple[list[str], list[str], list[str]]:
    """Step, reason and detail by the rules; empty strings for what none of them removes."""
    listed = rules.rules_for(judge.kind, judge.config)
    step, reason, detail = ([""] * len(languages) for _ in range(3))
    first = rules.apply(listed, signals, len(languages))
    for row in np.flatnonzero(first >= 0):
        rule = listed[first[row]]
        step[row], reason[row] = rule.step, rule.name
        detail[row] = f"{rule.signal} {signals[rule.signal][row]:.4g} {rule.op} {rule.threshold:g}"
        if rule.step == "language":
            detail[row] += f", found {languages[row]}"
    return step, reason, detail


def _bands(words: NDArray[np.uint64], starts: NDArray[np.int64], config: CurateConfig) -> pa.Array:
    shingles = minhash.ngrams(words, starts, SHINGLE)
    permutations = minhash.permutations(config.minhash_bands * config.minhash_rows)
    keys = minhash.band_keys(minhash.signatures(*shingles, *permutations), config.minhash_bands)
    return pa.Array.from_buffers(
        pa.binary(keys.shape[1] * 8), len(keys), [None, pa.py_buffer(keys.astype("<u8"))]
    )


def exact_hashes(text: pa.Array) -> pa.Array:
    """128-bit hashes of the text in lower case with its white space made single spaces: equal means an exact duplicate."""
    normal = pc.utf8_trim_whitespace(pc.replace_substring_regex(pc.utf8_lower(text), r"[\s\pZ]+", " "))
    hashes = [hashlib.blake2b(value.as_buffer(), digest_size=16).digest() for value in normal]
    return pa.array(hashes, pa.binary(16))


def shingle_sets(text: pa.Array) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Every text's set of word 5-grams, hashed: what true Jaccard similarity is computed on. A ragged array."""
    words, starts = text_kernels.word_hashes(*utf8_buffers(text), *text_kernels.unicode_tables())
    return minhash.unique_sets(*minhash.ngrams(words, starts, SHINGLE))
