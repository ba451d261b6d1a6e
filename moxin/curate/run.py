"""Stage "curate" on Ray Data: passes over units of documents, and between them tasks over ranges of hashes, through files.

    units ─▶ annotate ─▶ exact repeats (a task per range of hashes) ─▶ edit (a task per unit or Bloom filter)
          ─▶ near-duplicates (`moxin.curate.fuzzy`) ─▶ tally ─▶ shards

Every task writes whole files under names that follow from the list of units alone. So a stage that was killed goes on with
what is not finished, and the result is the same bytes for any number of workers, any order of work and any restart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from moxin import console, session, storage
from moxin.artifact import Artifact, Builder, Stage
from moxin.config import digest
from moxin.curate import (
    annotate,
    benchmarks,
    contamination,
    edit,
    fasttext,
    fuzzy,
    judge,
    near,
    quality_model,
    repeats,
    report,
    shards,
    sources,
    tally,
    work,
)
from moxin.curate.documents import SCHEMA, stable_hash
from moxin.curate.funnel import Funnel
from moxin.curate.fuzzy_shingles import Params
from moxin.curate.profiles import Profile
from moxin.curate.sources import Unit
from moxin.curate.work import Earlier, Work
from moxin.recipe import CurateConfig, Recipe, SourceConfig

SCRATCH = ".scratch"
INDEX = "index"
EXAMPLE_UNITS = 16
"""Units of each source from which the report takes examples."""
SCORED = 200_000
"""Documents on whose scores a cut-off by quantile is measured."""
INDEX_RANGES = 64
"""Ranges of hashes of a corpus that keeps its index, at least: later corpora must have as many."""
INLINE_BYTES = 64 * 2**20
"""Text up to which the steps between the passes are done by the driver: to start a task takes longer than these would."""
DOCUMENT_BYTES, LINE_BYTES = 400, 40
"""Text per key of a document, and of a line, at least: the number of ranges must be known before they are counted."""


def stage(recipe: Recipe, world: Artifact) -> Stage:
    """Stage "curate". Raises `ValueError` for settings that cannot be, a missing folder, or one without documents."""
    curate = recipe.curate
    profiles = [work.profile_of(source, curate) for source in recipe.sources]
    check(recipe, profiles)
    read = {
        "folders": [sources.fingerprint(source) for source in recipe.sources],
        "benchmarks": benchmarks.fingerprint(curate.benchmarks) if curate.benchmarks else "",
        "lists": [_list_fingerprint(url) for url in _lists(curate)],
        "classifier": _classifier_fingerprint(curate, profiles),
        "earlier": _manifest(curate.earlier)["key"] if curate.earlier else "",
    }
    config = {
        "curate": replace(
            curate, memory_bytes=CurateConfig.memory_bytes
        ),  # what it is does not show in the result
        "profiles": {
            source.name: digest(repr(each)) for source, each in zip(recipe.sources, profiles, strict=True)
        },
        "sources": recipe.sources,
        "read": read,
        "shards": recipe.shards,
    }
    return Stage("curate", config, {"world": world}, partial(make, recipe, world), SCRATCH)


def check(recipe: Recipe, profiles: Sequence[Profile]) -> None:
    """Raises `ValueError` for settings that cannot be, or that have no effect."""
    curate = recipe.curate
    for name in ("decontamination_ngram", "shard_bytes", "memory_bytes"):
        if getattr(curate, name) < 1:
            raise ValueError(f"curate.{name} = {getattr(curate, name)}: must be at least 1")
    if curate.removed_chars < 0:
        raise ValueError(f"curate.removed_chars = {curate.removed_chars}: must be at least 0")
    known = {name.removeprefix("__label__") for name in fasttext.lid176().labels} | {"*"}
    for profile in profiles:
        if unknown := sorted(set(profile.languages) - known):
            raise ValueError(
                f"profile {profile.name!r}: languages {unknown} are not known to lid.176; known: {', '.join(sorted(known))}"
            )
    for name, has in (
        ("blocklists", curate.blocklists != type(curate.blocklists)()),
        ("bad_words", bool(curate.bad_words)),
    ):
        if has and not any(getattr(profile, name) for profile in profiles):
            raise ValueError(
                f"curate.{name} has no effect: no source's profile has {name}; leave it out, or set "
                f"curate.overrides={name}=on"
            )
    if curate.allowed and not curate.benchmarks:
        raise ValueError("curate.allowed has no effect without curate.benchmarks; leave it out")
    model = curate.classifier
    given = bool(model.model) + bool(model.good or model.ordinary)
    wants = [profile.name for profile in profiles if profile.classifier is not None]
    if wants and (given != 1 or bool(model.good) != bool(model.ordinary)):
        raise ValueError(
            f"profile {wants[0]!r} ends with a quality classifier: set curate.classifier.model to a fastText model (DCLM's "
            "is openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train.bin), or curate.classifier.good and .ordinary to two "
            "folders of documents; or leave the classifier out with --set curate.overrides=classifier=off"
        )
    for profile in profiles:
        if profile.classifier is not None and profile.classifier.threshold and not model.model:
            raise ValueError(
                f"profile {profile.name!r}: classifier.threshold = {profile.classifier.threshold:g} belongs to a published "
                "model; for one that is trained here set curate.overrides=classifier.threshold=0,classifier.keep=0.1"
            )
    if given and not wants:
        raise ValueError(
            "curate.classifier has no effect: no source's profile has a classifier; leave it out"
        )


def warn_of_missing_lists(curate: CurateConfig, profiles: Sequence[Profile]) -> None:
    """Says which lists a profile would look at, if they were given."""
    for name, missing in (
        ("blocklists", curate.blocklists == type(curate.blocklists)()),
        ("bad_words", not curate.bad_words),
    ):
        if names := sorted({profile.name for profile in profiles if missing and getattr(profile, name)}):
            console.warn(
                f"profile {', '.join(names)} has {name}, but curate.{name} names no file: nothing is removed for that"
            )


def _lists(curate: CurateConfig) -> list[str]:
    named = vars(curate.blocklists).values()
    return [url for urls in named for url in urls] + ([curate.bad_words] if curate.bad_words else [])


def _list_fingerprint(url: str) -> str:
    try:
        return storage.sha256(url)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(
            f"{url}: no such file; curate.blocklists or curate.bad_words names it, give a text file with an entry per line"
        ) from error


def _classifier_fingerprint(curate: CurateConfig, profiles: Sequence[Profile]) -> Any:
    model = curate.classifier
    if all(profile.classifier is None for profile in profiles):
        return ""
    if model.model:
        return quality_model.fingerprint(model.model)
    return [
        sources.fingerprint(SourceConfig(name, "folder", path=getattr(model, name)))
        for name in ("good", "ordinary")
    ]


def _manifest(url: str) -> dict[str, Any]:
    """The manifest of an earlier curate artifact with an index. Raises `ValueError` where it is none."""
    manifest = storage.join(url, "manifest.json")
    if not storage.exists(manifest):
        raise ValueError(
            f"curate.earlier = {url}: no finished artifact there; give the folder curate-… of a run"
        )
    if not storage.exists(storage.join(url, INDEX, "index.json")):
        raise ValueError(
            f"curate.earlier = {url}: it kept no index; make it again with --set curate.keep_index=true"
        )
    return storage.read_json(manifest)  # type: ignore[no-any-return]


def make(recipe: Recipe, world: Artifact, builder: Builder) -> None:
    """Makes the artifact."""
    index = builder.file(INDEX if recipe.curate.keep_index else SCRATCH)
    task = prepare(recipe, world, builder.file(SCRATCH), index)
    result = process(task, recipe.shards, builder.url)
    if recipe.curate.keep_index:
        write_index(result.work)
    report.report(result, recipe, world, builder)


def prepare(recipe: Recipe, world: Artifact, scratch: str, index: str, sample: float = 1.0) -> Work:
    """What the tasks are told; what they read besides documents is put where they find it."""
    curate = recipe.curate
    profiles = tuple(work.profile_of(source, curate) for source in recipe.sources)
    warn_of_missing_lists(curate, profiles)
    units, of_documents = _units(recipe, world, scratch), (1.0,) * len(profiles)
    if sample < 1:
        units, of_documents = _sampled(units, len(profiles), sample)
    items = [
        contamination.Item("tinyworld", "test", str(row["id"]), row["question"], row["text"])
        for row in storage.read_jsonl(world.file("questions.jsonl"))
    ]
    items += benchmarks.read(curate.benchmarks)
    allowed = [_split_name(name) for name in curate.allowed]
    questions = storage.join(scratch, "questions")
    contamination.save(contamination.build(items, curate.decontamination_ngram, allowed), questions)
    earlier = _earlier(curate.earlier)
    task = Work(
        scratch,
        index,
        recipe.sources,
        profiles,
        curate,
        units,
        _n_ranges(curate, profiles, units, scratch),
        _example_units(units),
        of_documents,
        earlier,
        questions,
    )
    if any(profile.classifier is not None for profile in profiles):
        task = replace(task, classifier=_classifier(curate, scratch))
    for source in range(len(profiles)):  # compiles the kernels once, before many processes would
        judge.annotate(SCHEMA.empty_table(), judge.Judge(task, source), judge.Counts(examples=False))
    return task


def _units(recipe: Recipe, world: Artifact, scratch: str) -> tuple[Unit, ...]:
    """The list of units; one that an earlier attempt made is taken as it is."""
    url = storage.join(scratch, "units.json")
    if not storage.exists(url):
        storage.write_json(url, [unit.to_json() for unit in sources.units(recipe.sources, world)])
    return tuple(Unit.from_json(value) for value in storage.read_json(url))


def _sampled(
    units: tuple[Unit, ...], n_sources: int, share: float
) -> tuple[tuple[Unit, ...], tuple[float, ...]]:
    """Units with at least `share` of each source's bytes, drawn by a hash, and by source the share of their documents that
    makes it `share` of the source."""
    chosen, of_documents = set[Unit](), []
    for source in range(n_sources):
        own = [unit for unit in units if unit.source == source]
        everything, size = sum(unit.size for unit in own), 0
        for unit in sorted(own, key=lambda unit: stable_hash(unit.items[0].id + str(unit.items[0].first))):
            chosen.add(unit)
            size += unit.size
            if size >= share * everything:
                break
        of_documents.append(min(share * everything / max(size, 1), 1.0))
    return tuple(unit for unit in units if unit in chosen), tuple(of_documents)


def _split_name(name: str) -> tuple[str, str]:
    benchmark, slash, split = name.rpartition("/")
    if not slash:
        raise ValueError(f"curate.allowed names {name!r}: write benchmark/split, for example gsm8k/train")
    return benchmark, split


def _example_units(units: Sequence[Unit]) -> frozenset[int]:
    by_source: dict[int, list[int]] = {}
    for number, unit in enumerate(units):
        by_source.setdefault(unit.source, []).append(number)
    chosen = [
        sorted(own, key=lambda number: stable_hash(str(number)))[:EXAMPLE_UNITS] for own in by_source.values()
    ]
    return frozenset(number for own in chosen for number in own)


def expected_keys(profiles: Sequence[Profile], n_bytes: int) -> int:
    """Keys of the largest of the exact searches, at most."""
    in_lines = any(profile.exact in ("paragraph", "line") for profile in profiles)
    return n_bytes // (LINE_BYTES if in_lines else DOCUMENT_BYTES) + 1


def _n_ranges(curate: CurateConfig, profiles: Sequence[Profile], units: Sequence[Unit], scratch: str) -> int:
    """Ranges of hashes, of which one fits into the memory; those of an attempt, or a corpus, before this."""
    url = storage.join(scratch, "ranges.json")
    if storage.exists(url):
        return int(storage.read_json(url))
    n_bytes = sum(sources.text_bytes(item) for unit in units for item in unit.items)
    n = repeats.ranges_for(expected_keys(profiles, n_bytes), curate.memory_bytes)
    if curate.earlier:
        n = int(storage.read_json(storage.join(curate.earlier, INDEX, "index.json"))["n_ranges"])
    elif curate.keep_index:
        n = max(n, INDEX_RANGES)
    storage.write_json(url, n)
    return n


def _earlier(url: str) -> tuple[Earlier, ...]:
    """The corpora before this one, the first first."""
    if not url:
        return ()
    _manifest(url)
    told = storage.read_json(storage.join(url, INDEX, "index.json"))
    exact = tuple(storage.join(url, INDEX, "exact", name) for name in told["exact"])
    found = tuple((int(tag), storage.join(url, INDEX, folder)) for tag, folder in told["near"])
    return (*_earlier(told["earlier"]), Earlier(url, exact, found))


def write_index(task: Work) -> None:
    """Takes out what only the search itself needed, and tells what a later corpus needs to know; written last."""
    for k in range(len(task.searches)):
        for kind in ("pairs", "members", "large", "alike", "asked", "answered", "keys-2", "keys-3"):
            storage.remove(storage.join(task.index, f"near-{k}", kind))
    exact = [
        task.key_file("exact", k).rpartition("/")[2] for k in task.of(lambda profile: profile.exact != "off")
    ]
    found = [[str(params.tag()), f"near-{k}"] for k, params in enumerate(task.searches)]
    value = {"n_ranges": task.n_ranges, "exact": exact, "near": found, "earlier": task.config.earlier}
    storage.write_json(storage.join(task.index, "index.json"), value)


def _classifier(curate: CurateConfig, scratch: str) -> str:
    """The model of profiles that have one, trained now where it is to be."""
    model = curate.classifier
    if model.model:
        return model.model
    url = storage.join(scratch, "classifier.bin")
    if not storage.exists(url):
        with console.progress("train the classifier", None, "") as bar:
            made = quality_model.make(model.good, model.ordinary, fasttext.Training(), model.max_bytes)
            bar.update(1)
        for warning in made.about["warnings"]:
            console.warn(f"curate.classifier: {warning}")
        quality_model.save(made, url)
    return url


class Steps:
    """Runs tasks on Ray Data and shows how far they are."""

    def __init__(self, task: Work) -> None:
        self.work = task
        self.names = [source.name for source in task.sources]
        self.funnel = Funnel(self.names)

    def over_units(
        self,
        title: str,
        call: Callable[[Any], Any],
        items: Sequence[Any],
        sizes: Sequence[int],
        tell: Callable[[Any, int], Mapping[str, Any]] = lambda value, place: {},
    ) -> list[Any]:
        """What `call` gives for each item, in their order; the sizes, in bytes, are for the progress, and what `tell` makes
        of a result goes to the funnel."""
        out: list[Any] = [None] * len(items)
        with self.funnel.step(title, sum(sizes)):
            for place, value in session.each(call, items):
                out[place] = value
                self.funnel.add(**{"source": self.names[0], "n_bytes": sizes[place], **tell(value, place)})
        return out

    def over_ranges(self, title: str, call: Callable[[int], Any], items: Sequence[int], n_bytes: int) -> None:
        with self.funnel.step(title, n_bytes):
            self.each(n_bytes, call, items)
            self.funnel.add(self.names[0], n_bytes)

    def each(self, n_bytes: int, call: Callable[[int], Any], items: Sequence[int]) -> None:
        """Runs steps between the passes over `n_bytes` of text; the memory that each may take is asked of Ray."""
        inline = n_bytes <= INLINE_BYTES
        for _ in (
            map(call, items) if inline else session.each(call, list(items), self.work.config.memory_bytes)
        ):
            pass

    def annotated(self, value: Any, place: int) -> Mapping[str, Any]:
        removed = [tuple(row) for row in value["removed"]]
        name = self.names[value["source"]]
        return {
            "source": name,
            "documents": value["documents"],
            "text_bytes": value["bytes"],
            "removed": removed,
        }

    def decided(self, value: Any, place: int) -> Mapping[str, Any]:
        removed = [tuple(row) for row in value["removed"]]
        return {"source": self.names[self.work.units[place].source], "removed": removed}


def process(task: Work, least_shards: int, url: str) -> "report.Result":
    """All passes; with an empty `url` no shards are written."""
    steps, numbers = Steps(task), range(len(task.units))
    sizes = [sum(sources.text_bytes(item) for item in unit.items) for unit in task.units]
    counts = steps.over_units(
        "read and measure", partial(annotate.annotate_unit, task), numbers, sizes, steps.annotated
    )
    alive = [count["alive_bytes"] for count in counts]
    wanted = {kind for profile in task.profiles for kind in annotate.kinds(profile)}
    for kind in sorted(wanted):
        steps.over_ranges(
            f"repeats: {kind}", partial(edit.find_repeats, task, kind), range(task.n_ranges), sum(alive)
        )
    task = replace(task, cutoffs=_cutoffs(task, steps, alive))
    streams = edit.streams(task)
    edited: list[Any] = [None] * len(numbers)
    done = steps.over_units(
        "deduplicate exactly",
        partial(edit.edit_stream, task),
        streams,
        [sum(alive[k] for k in own) for own in streams],
    )
    for own, values in zip(streams, done, strict=True):
        for number, value in zip(own, values, strict=True):
            edited[number] = value
    searches: dict[Params, fuzzy.Search] = {}
    summaries: list[fuzzy.Summary] = []
    for params in task.searches:
        searches[params] = near.search_of(task, params, [value["documents"] for value in edited])
        with steps.funnel.step("near-duplicates", sum(alive)):
            summaries.append(
                fuzzy.run(
                    searches[params],
                    partial(near.texts, task),
                    partial(steps.each, sum(alive)),
                    lasting=task.config.keep_index,
                )
            )
    call = partial(_tally, task, {params.tag(): search for params, search in searches.items()})
    tallies = steps.over_units("decide", call, numbers, alive, steps.decided)
    written: list[dict[str, Any]] = []
    if url:
        plan = shards.plan(task, [[size for _, size in one["groups"]] for one in tallies], least_shards)
        content = [[k, [[one.unit, one.first, one.stop] for one in slices]] for k, slices in enumerate(plan)]
        kept = [
            sum(
                tallies[one.unit]["groups"][group][1]
                for one in slices
                for group in range(one.first, one.stop)
            )
            for slices in plan
        ]
        written = steps.over_units("write", partial(_write, task, url), content, kept)
    return report.Result(task, counts, edited, tallies, summaries, written, steps.funnel)


def _tally(task: Work, searches: dict[int, fuzzy.Search], number: int) -> dict[str, Any]:
    params = task.profile(number).near
    return tally.tally_unit(task, number, searches[params.tag()] if params is not None else None)


def _write(task: Work, url: str, content: Any) -> dict[str, Any]:
    shard, slices = content
    return shards.write(task, url, shard, [shards.Slice(*one) for one in slices])


def _cutoffs(task: Work, steps: Steps, alive: Sequence[int]) -> tuple[float, ...]:
    """The lowest score that stays, by source: as the profile says, or the quantile of a sample of its documents."""
    out = []
    for source, profile in enumerate(task.profiles):
        cut = profile.classifier
        if cut is None or cut.threshold:
            out.append(cut.threshold if cut else 0.0)
            continue
        own = [number for number in range(len(task.units)) if task.units[number].source == source]
        own = sorted(own, key=lambda number: stable_hash(str(number)))
        each = -(-SCORED // max(len(own), 1)) if len(own) < 64 else SCORED // 64
        chosen = own[: -(-SCORED // max(each, 1))]
        scores = steps.over_units(
            "score a sample", partial(_scores, task, each), chosen, [alive[number] for number in chosen]
        )
        flat = [score for some in scores for score in some]
        out.append(fasttext.threshold(pa.array(flat, pa.float32()).to_numpy(), cut.keep) if flat else 0.0)
    return tuple(out)


def _scores(task: Work, most: int, number: int) -> list[float]:
    return edit.sample_scores(task, number, most)
