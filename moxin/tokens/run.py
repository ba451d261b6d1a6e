"""The tokenize stage: Ray Data maps the functions of `moxin.tokens.part` over the parts of the curated documents."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from moxin import console, storage
from moxin.artifact import Artifact, Builder, Stage
from moxin.recipe import Recipe
from moxin.tokens import heldout, part
from moxin.tokens.store import dtype_for
from moxin.tokens.tokenizer import Tokenizer


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
    finished = tokenize(builder, urls, sum(source["documents"] for source in sources.values()), held)
    storage.write_jsonl(
        builder.file("heldout.jsonl"), [row for record in finished for row in record["heldout"]]
    )
    described = describe(finished)
    questions = [
        row["question"] for row in storage.read_jsonl(builder.inputs["world"].file("questions.jsonl"))
    ]
    found = prove_absence(builder, described, questions)
    storage.write_json(
        builder.file("store.json"),
        {
            "dtype": dtype_for(tokenizer.vocab_size).name,
            "vocab_size": tokenizer.vocab_size,
            "special": {"pad": tokenizer.pad_id, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id},
            "sources": described,
        },
    )
    per_source = {
        name: {unit: source[unit] for unit in ("documents", "tokens", "bytes")}
        for name, source in described.items()
    }
    builder.counts |= {
        "vocab_size": tokenizer.vocab_size,
        "total": sum(source["tokens"] for source in described.values()),
        "bytes": sum(source["bytes"] for source in described.values()),
        "sources": per_source,
        "questions": len(questions),
        "questions_found": found,
    }
    rows = [
        (name, count["documents"], count["tokens"], round(count["bytes"] / count["tokens"], 2))
        for name, count in per_source.items()
    ]
    console.table("Tokens", ("source", "documents", "tokens", "bytes/token"), rows)


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
        share = settings.sample_bytes / len(sources)
        rates = {name: share / max(source["bytes"], 1) for name, source in sources.items()}
        items = ray.data.from_items([{"url": url} for url in urls], override_num_blocks=len(urls))
        sample = items.flat_map(partial(_sample, rates, held))
        train = ray.remote(num_cpus=1)(_train)
        try:
            n_bytes = ray.get(train.remote(settings.vocab_size, folder, *sample.to_arrow_refs()))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # a mistake in the recipe, without Ray's frames around it
        if not n_bytes:
            raise ValueError(
                f"tokenizer.sample_bytes = {settings.sample_bytes:,} is so small that no document was drawn; raise it"
            )
        seconds = console.format_seconds(time.monotonic() - started)
        console.say(f"  BPE trained on {n_bytes:,} bytes of text in {seconds}")
    return Tokenizer.load(folder)


def _sample(rates: Mapping[str, float], held: frozenset[str], item: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"text": text} for text in part.sample(item["url"], rates, held)]


def _train(vocab_size: int, url: str, *sample: pa.Table) -> int:
    """Trains on the texts, saves the tokenizer, and returns how many bytes it has seen; 0 where there was no text."""
    texts = [text for table in sample if table.num_rows for text in table["text"].to_pylist()]
    n_bytes = sum(len(text.encode()) for text in texts)
    if n_bytes:
        Tokenizer.train(texts, vocab_size).save(url)
    return n_bytes


def tokenize(
    builder: Builder, urls: Sequence[str], n_documents: int, held: frozenset[str]
) -> list[dict[str, Any]]:
    """The record of every part, in order. Parts that an earlier attempt has finished are not made again."""
    records = {number: builder.file(".scratch", f"part-{number:05d}.json") for number in range(len(urls))}
    missing = [number for number, record in records.items() if not storage.exists(record)]
    if len(missing) < len(urls):
        console.say(f"  {len(urls) - len(missing)} of {len(urls)} parts are there already")
    items = [{"url": urls[number], "number": number, "record": records[number]} for number in missing]
    tokens, started = 0, time.monotonic()
    with console.progress("tokenize", n_documents, "documents") as bar:
        for record in each(_tokenize, items, store_url=builder.url, held=held):
            shards = [source["shard"] for source in record["sources"].values()]
            tokens += sum(shard["tokens"] for shard in shards)
            bar.advance(
                sum(shard["documents"] for shard in shards) + len(record["heldout"]),
                f"{tokens / (time.monotonic() - started):,.0f} tokens/s",
            )
    return [storage.read_json(record) for record in records.values()]


def _tokenize(url: str, number: int, record: str, store_url: str, held: frozenset[str]) -> dict[str, Any]:
    done = part.tokenize(url, number, store_url, held)
    storage.write_json(record, done)  # last: a part counts only once all of its shards are there
    return done


def describe(finished: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per source, by name: documents, tokens, bytes of text, and its shards in order of the parts."""
    described: dict[str, dict[str, Any]] = {}
    for name in sorted({name for record in finished for name in record["sources"]}):
        parts = [record["sources"][name] for record in finished if name in record["sources"]]
        described[name] = {
            "documents": sum(item["shard"]["documents"] for item in parts),
            "tokens": sum(item["shard"]["tokens"] for item in parts),
            "bytes": sum(item["bytes"] for item in parts),
            "shards": [item["shard"] for item in parts],
        }
    return described


def prove_absence(builder: Builder, described: Mapping[str, Any], questions: Sequence[str]) -> int:
    """Searches all shards for the questions' texts, writes `absence.json`, and returns how many of them occur.

    A question that is found is a warning, not an error: the documents may be the user's own, and the number is reported.
    """
    files = [shard["file"] for source in described.values() for shard in source["shards"]]
    occurrences: list[dict[str, str]] = []
    with console.progress("search for evaluation questions", len(files), "shards") as bar:
        for result in each(
            _search, [{"file": file} for file in files], store_url=builder.url, questions=questions
        ):
            occurrences += [
                {"question": questions[number], "file": result["file"]} for number in result["found"]
            ]
            bar.advance()
    occurrences.sort(key=lambda row: (row["file"], row["question"]))
    found = len({row["question"] for row in occurrences})
    proof = {"questions": len(questions), "found": found, "files": len(files), "occurrences": occurrences}
    storage.write_json(builder.file("absence.json"), proof)
    if found:
        console.warn(
            f"{found} of {len(questions)} evaluation questions occur in the training tokens, where is in "
            f"{builder.file('absence.json')}; a lower curate.decontamination_ngram removes them"
        )
    else:
        console.say(f"  none of {len(questions)} evaluation questions occurs in the training tokens")
    return found


def _search(file: str, store_url: str, questions: Sequence[str]) -> dict[str, Any]:
    return {"file": file, "found": part.search(store_url, file, questions)}


def each(function: Callable[..., Any], items: Sequence[Mapping[str, Any]], **constants: Any) -> Iterator[Any]:
    """`function(**item, **constants)` of every item as a Ray Data task of its own; results as they come, in any order."""
    if not items:
        return
    tasks = ray.data.from_items(list(items), override_num_blocks=len(items))
    results = tasks.map(partial(_call, function, constants))
    for row in results.iter_rows():
        yield json.loads(row["result"])


def _call(function: Callable[..., Any], constants: Mapping[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    """The result goes as JSON: its keys are names of sources, which make no Arrow schema."""
    return {"result": json.dumps(function(**item, **constants))}
