"""The tokenize stage: Ray Data maps the functions of `moxin.tokens.part` over the parts of the curated documents."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import ray

from moxin import console, session, storage
from moxin.artifact import Artifact, Builder, Stage
from moxin.recipe import PhaseConfig, Recipe, Selection
from moxin.tokens import fertility, heldout, packing, part
from moxin.tokens.store import Shard, Store, write_description
from moxin.tokens.tokenizer import Tokenizer

COMPARED_BYTES = 4_000_000
"""Text on which tokenizers are compared."""


def stage(recipe: Recipe, curated: Artifact, world: Artifact) -> Stage:
    """Trains or takes the tokenizer and writes the token store.

    `world` is read only to prove that no evaluation question is in the tokens. A given tokenizer goes into the key by its
    content. Raises `ValueError` where it cannot be used, or has more tokens than the model has embeddings.
    """
    settings: Any = recipe.tokenizer
    if settings.path:
        given = Tokenizer.load(settings.path)
        if given.vocab_size > recipe.model.vocab_size:
            raise ValueError(
                f"{settings.path} has {given.vocab_size:,} tokens, model.vocab_size = {recipe.model.vocab_size:,} has no "
                f"room for them: set model.vocab_size to at least {given.vocab_size}"
            )
        settings = given.fingerprint
    config = {"tokenizer": settings, "heldout_bytes": recipe.evaluate.perplexity_bytes}
    return Stage("tokenize", config, {"curate": curated, "world": world}, partial(make, recipe))


def make(recipe: Recipe, builder: Builder) -> None:
    """Makes the artifact. Raises `ValueError` for settings that no tokenizer can be trained with, or without documents."""
    documents = builder.inputs["curate"].file("documents")
    urls = [
        storage.join(documents, name) for name in storage.files_under(documents) if name.endswith(".parquet")
    ]
    sources, held = survey(urls, recipe.evaluate.perplexity_bytes)
    if not sources:
        raise ValueError(
            f"{documents}: curation left no document; loosen the rules under curate, or add sources"
        )
    tokenizer = make_tokenizer(recipe, builder, urls, sources, held)
    questions = [
        row["question"] for row in storage.read_jsonl(builder.inputs["world"].file("questions.jsonl"))
    ]
    n_bytes = sum(source["bytes"] for source in sources.values())
    finished = tokenize(builder, urls, n_bytes, recipe.tokenizer.backend, held, questions)
    storage.write_jsonl(
        builder.file("heldout.jsonl"), [row for record in finished for row in record["heldout"]]
    )
    described = describe(finished)
    special = {"pad": tokenizer.pad_id, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    write_description(builder.url, tokenizer.vocab_size, tokenizer.fingerprint, special, described)
    for source in described.values():
        for shard in source["shards"]:
            builder.known |= {shard.file: shard.sha256, shard.index: shard.index_sha256}
    builder.counts |= {
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "total": sum(source["tokens"] for source in described.values()),
        "bytes": sum(source["bytes"] for source in described.values()),
        "backends": sorted({record["backend"] for record in finished if record["backend"]}),
        "sources": {
            name: {unit: source[unit] for unit in ("documents", "tokens", "bytes", "languages")}
            for name, source in described.items()
        },
        "questions": len(questions),
        "questions_found": report_absence(builder, finished, questions),
        "bytes_per_token": report_fertility(recipe, tokenizer, urls, sources, described),
    }


def survey(urls: Sequence[str], heldout_bytes: int) -> tuple[dict[str, dict[str, int]], frozenset[str]]:
    """Documents and bytes per source, and the ids to hold out."""
    sources: dict[str, dict[str, int]] = {}
    candidates: dict[str, list[heldout.Candidate]] = {}
    for found in each(part.survey, [{"url": url} for url in urls], heldout_bytes=heldout_bytes):
        for name, source in found.items():
            total = sources.setdefault(name, {"documents": 0, "bytes": 0})
            total["documents"] += source["documents"]
            total["bytes"] += source["bytes"]
            candidates.setdefault(name, []).extend(heldout.Candidate(*row) for row in source["candidates"])
    held = [
        id
        for name, source in sources.items()
        for id in heldout.choose(candidates[name], source["bytes"], heldout_bytes)
    ]
    return sources, frozenset(held)


def make_tokenizer(
    recipe: Recipe,
    builder: Builder,
    urls: Sequence[str],
    sources: Mapping[str, Mapping[str, int]],
    held: frozenset[str],
) -> Tokenizer:
    """The tokenizer in `tokenizer/`: the recipe's own, one that an earlier attempt has trained, or trained now."""
    folder, settings = builder.file("tokenizer"), recipe.tokenizer
    if settings.path:
        Tokenizer.load(settings.path).save(folder)
    elif not storage.exists(storage.join(folder, "tokenizer_config.json")):  # what `save` writes last
        started = time.monotonic()
        blocks = draw(urls, sources, held, settings.sample_bytes).to_arrow_refs()
        train = ray.remote(num_cpus=1)(_train)
        try:
            n_bytes = ray.get(train.remote(settings.vocab_size, settings.kind, folder, *blocks))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # a mistake in the recipe, without Ray's frames around it
        if not n_bytes:
            raise ValueError(
                f"tokenizer.sample_bytes = {settings.sample_bytes:,} is so small that no document was drawn; raise it"
            )
        seconds = console.format_seconds(time.monotonic() - started)
        console.say(f"  {settings.kind} trained on {n_bytes:,} bytes of text in {seconds}")
    return Tokenizer.load(folder)


def draw(
    urls: Sequence[str], sources: Mapping[str, Mapping[str, int]], held: frozenset[str], n_bytes: int
) -> ray.data.Dataset:
    """About `n_bytes` of text, evenly from all sources: rows of `source`, `language` and `text`. Their ids decide alone."""
    share = n_bytes / len(sources)
    rates = {name: share / max(source["bytes"], 1) for name, source in sources.items()}
    items = ray.data.from_items([{"url": url} for url in urls], override_num_blocks=len(urls))
    return items.flat_map(partial(_sample, rates, held))


def _sample(rates: Mapping[str, float], held: frozenset[str], item: dict[str, Any]) -> list[dict[str, Any]]:
    names = ("source", "language", "text")
    return [dict(zip(names, row, strict=True)) for row in part.sample(item["url"], rates, held)]


def _train(vocab_size: int, kind: Literal["bpe", "unigram"], url: str, *sample: pa.Table) -> int:
    """Trains on the texts, saves the tokenizer, and returns how many bytes it has seen; 0 where there was no text."""
    texts = [text for table in sample if table.num_rows for text in table["text"].to_pylist()]
    n_bytes = sum(len(text.encode()) for text in texts)
    if n_bytes:
        Tokenizer.train(texts, vocab_size, kind).save(url)
    return n_bytes


def tokenize(
    builder: Builder,
    urls: Sequence[str],
    n_bytes: int,
    backend: str,
    held: frozenset[str],
    questions: Sequence[str],
) -> list[dict[str, Any]]:
    """The record of every part, in order. Parts that an earlier attempt has finished are not made again."""
    records = {number: builder.file(".scratch", f"part-{number:05d}.json") for number in range(len(urls))}
    present = set(storage.files_under(builder.file(".scratch")))
    done = [number for number in records if f"part-{number:05d}.json" in present]
    finished = {number: storage.read_json(records[number]) for number in done}
    if done:
        console.say(f"  {len(done)} of {len(urls)} parts are there already")
    items = [
        {"url": url, "number": number, "record": records[number]}
        for number, url in enumerate(urls)
        if number not in finished
    ]
    tokens, started = 0, time.monotonic()
    before = sum(_bytes(record) for record in finished.values()) / 1e6
    constants = {"store_url": builder.url, "backend": backend, "held": held, "questions": questions}
    with console.progress("tokenize", n_bytes / 1e6, "MB", start=before) as bar:
        for record in each(_tokenize, items, **constants):
            finished[record["part"]] = record
            tokens += sum(source["shard"]["tokens"] for source in record["sources"].values())
            bar.advance(_bytes(record) / 1e6, f"{tokens / (time.monotonic() - started):,.0f} tokens/s")
    return [finished[number] for number in records]


def _bytes(record: Mapping[str, Any]) -> int:
    kept = sum(source["bytes"] for source in record["sources"].values())
    return kept + sum(len(row["text"].encode()) for row in record["heldout"])


def _tokenize(record: str, **work: Any) -> dict[str, Any]:
    done = part.tokenize(**work)
    storage.write_json(record, done)  # last: a part counts only once all of its shards are there
    return done


def describe(finished: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per source, by name: documents, tokens, bytes of text, the same by language, and its shards in order of the parts."""
    described: dict[str, dict[str, Any]] = {}
    for name in sorted({name for record in finished for name in record["sources"]}):
        parts = [record["sources"][name] for record in finished if name in record["sources"]]
        languages: dict[str, list[int]] = {}
        for item in parts:
            for language, count in item["languages"].items():
                before = languages.get(language, [0, 0, 0])
                languages[language] = [old + new for old, new in zip(before, count, strict=True)]
        shards = [Shard.of(item["shard"]) for item in parts]
        described[name] = {
            "documents": sum(shard.documents for shard in shards),
            "tokens": sum(shard.tokens for shard in shards),
            "bytes": sum(item["bytes"] for item in parts),
            "languages": {
                language: dict(zip(("documents", "bytes", "tokens"), count, strict=True))
                for language, count in sorted(languages.items())
            },
            "shards": shards,
        }
    return described


def report_absence(builder: Builder, finished: Sequence[Mapping[str, Any]], questions: Sequence[str]) -> int:
    """Writes `absence.json`, which questions occur in which part, and returns how many of them do.

    A question that is found is a warning, not an error: the documents may be the user's own, and the number is reported.
    """
    occurrences = [
        {"part": record["part"], "question": questions[number]}
        for record in finished
        for number in record["questions"]
    ]
    found = len({row["question"] for row in occurrences})
    proof = {"questions": len(questions), "found": found, "parts": len(finished), "occurrences": occurrences}
    storage.write_json(builder.file("absence.json"), proof)
    if found:
        console.warn(
            f"{found} of {len(questions)} evaluation questions occur in the training tokens, where is in "
            f"{builder.file('absence.json')}; a lower curate.decontamination_ngram removes them"
        )
    else:
        console.say(f"  none of {len(questions)} evaluation questions occurs in the training tokens")
    return found


def pack_stage(recipe: Recipe, index: int, tokens: Artifact) -> Stage:
    """The rows of a phase that packs documents best-fit."""
    phase = recipe.pretrain.phases[index]
    keys = sorted(key for key, weight in phase.mix.items() if weight)
    config = {"context": phase.context, "keys": keys}
    return Stage(f"pack-{phase.name}", config, {"tokens": tokens}, partial(pack, phase, keys))


def pack(phase: PhaseConfig, keys: Sequence[str], builder: Builder) -> None:
    """Packs every shard. Raises `ValueError` where no document is as long as a row."""
    tokens = builder.inputs["tokens"]
    store = Store.open(tokens.url)
    numbers = {key: range(len(store.stream(Selection.parse(key)).shards)) for key in keys}
    items = [{"key": key, "number": number} for key in keys for number in numbers[key]]
    streams: dict[str, list[dict[str, Any]]] = {key: [] for key in keys}
    with console.progress(f"pack {phase.name}", len(items), "shards") as bar:
        constants = {"store_url": tokens.url, "context": phase.context, "url": builder.url}
        for record in each(packing.pack_shard, items, **constants):
            streams[record["key"]].append(record)
            bar.advance()
    records = [record for shards in streams.values() for record in shards]
    longest = max((record["longest"] for record in records), default=0)
    if longest <= phase.context:
        raise ValueError(
            f"pretrain.phases.{phase.name}: packing = best_fit at context = {phase.context:,}, but the longest document of "
            f"its mix has {longest:,} tokens, so no context beyond that would be trained; shorten the context, set "
            "packing = split, or give it longer documents"
        )
    for shards in streams.values():
        shards.sort(key=lambda record: record["number"])
    storage.write_json(builder.file("pack.json"), {"context": phase.context, "streams": streams})
    builder.known |= {record["file"]: record["sha256"] for record in records}
    rows = []
    for key, shards in streams.items():
        total = {
            unit: sum(record[unit] for record in shards) for unit in ("documents", "cut", "rows", "positions")
        }
        total["padding"] = total["rows"] * phase.context - total["positions"]
        builder.counts[key] = total
        share = total["padding"] / max(total["rows"] * phase.context, 1)
        rows.append((key, total["documents"], total["cut"], total["rows"], f"{share:.2%}"))
    console.table("Packed rows", ("source", "documents", "cut", "rows", "padding"), rows)


def report_fertility(
    recipe: Recipe,
    tokenizer: Tokenizer,
    urls: Sequence[str],
    sources: Mapping[str, Mapping[str, int]],
    described: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, float]]:
    """Prints what the store holds and how many bytes a token stands for; by source and language (`code`, `prose/en`), on a
    sample, beside the tokenizers to compare with. Returns the latter."""
    rows = [
        (name, source["documents"], source["tokens"], round(source["bytes"] / source["tokens"], 2))
        for name, source in described.items()
    ]
    console.table("Tokens", ("source", "documents", "tokens", "bytes/token"), rows)
    n_bytes = min(recipe.tokenizer.sample_bytes, COMPARED_BYTES)
    blocks = ray.get(draw(urls, sources, frozenset(), n_bytes).to_arrow_refs())
    sample = pa.concat_tables([block for block in blocks if block.num_rows] or [pa.table({"text": []})])
    if not sample.num_rows:
        return {}
    sample = sample.sort_by([("source", "ascending"), ("text", "ascending")])
    texts = sample["text"].combine_chunks()
    report_round_trip(tokenizer, texts.to_pylist())
    compared = {"this": tokenizer, **fertility.references(recipe.tokenizer.compare)}
    for encoder in compared.values():
        encoder.choose("auto", texts.slice(0, part.GATE))
    groups = [
        f"{source}/{language}" if language else source
        for source, language in zip(sample["source"].to_pylist(), sample["language"].to_pylist(), strict=True)
    ]
    measured = fertility.measure(compared, texts, groups)
    if len(compared) > 1:
        cells = [(group, size, *(round(of[name], 2) for name in compared)) for group, size, of in measured]
        console.table("Bytes per token, on a sample", ("source", "bytes", *compared), cells)
    return {str(group): of for group, _, of in measured}


def report_round_trip(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Warns of texts that the tokenizer does not give back as they were; one that was trained here gives all back."""
    if wrong := tokenizer.round_trip(texts):
        text = texts[wrong[0]]
        back = tokenizer.decode(tokenizer.encode(text))
        at = next(
            (i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back))
        )
        console.warn(
            f"{len(wrong)} of {len(texts)} sampled documents are not given back exactly by this tokenizer; the first has "
            f"{text[at : at + 20]!r}, which comes back as {back[at : at + 20]!r}"
        )


def each(function: Callable[..., Any], items: Sequence[Mapping[str, Any]], **constants: Any) -> Iterator[Any]:
    """`function(**item, **constants)` of every item as a Ray Data task of its own; results as they come, in any order."""
    for _, result in session.each(partial(_call, function, constants), items):
        yield result


def _call(function: Callable[..., Any], constants: Mapping[str, Any], item: Mapping[str, Any]) -> Any:
    return function(**item, **constants)
