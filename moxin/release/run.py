"""The release stage: the last model as a Hugging Face folder with card, licence and the proof that it is the same model."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from moxin import console, storage
from moxin.artifact import Artifact, Builder, Stage
from moxin.recipe import Recipe

LICENSE = Path(__file__).parent / "apache-2.0.txt"
DTYPE = "float32"
MAX_SHARD_BYTES = 2 * 2**30
TEXTS_PER_SOURCE = 3


def stage(
    recipe: Recipe,
    model: Artifact,
    tokens: Artifact,
    curated: Artifact,
    world: Artifact,
    evaluations: Mapping[str, Artifact],
) -> Stage:
    """Exports the weights of `model`, verifies them with `transformers` and writes the card. `evaluations` by what was
    evaluated, in the order of training; the last one is that of `model`."""

    def make(builder: Builder) -> None:
        from moxin.model import checkpoint, huggingface
        from moxin.release.card import card, licenses_by_source
        from moxin.release.export import verify
        from moxin.tokens.tokenizer import Tokenizer

        tokenizer_url = tokens.file("tokenizer")
        decoder, tokenizer = checkpoint.load(model.file("model")), Tokenizer.load(tokenizer_url)
        interview = storage.read_jsonl(world.file("interview.jsonl"))
        texts: dict[str, list[str]] = {}
        for row in storage.read_jsonl(tokens.file("heldout.jsonl")):
            texts.setdefault(row["source"], []).append(row["text"])
        with console.progress("release", 3, "parts") as bar:
            huggingface.export(decoder, tokenizer_url, builder.url, MAX_SHARD_BYTES, DTYPE)
            bar.advance(note="exported")
            with tempfile.TemporaryDirectory() as folder:
                verification = verify(
                    storage.download(builder.url, Path(folder)),
                    decoder,
                    tokenizer,
                    [text for of_source in texts.values() for text in of_source[:TEXTS_PER_SOURCE]],
                    [[{"role": "user", "content": row["question"]}] for row in interview],
                )
            storage.write_json(builder.file("verification.json"), verification)
            bar.advance(note="verified")
            text = card(
                recipe,
                dtype=DTYPE,
                n_parameters=decoder.n_parameters(embeddings=True),
                licenses=licenses_by_source(curated.file("documents")),
                tokens=tokens.counts,
                curated=curated.counts,
                evaluations={
                    name: storage.read_json(item.file("results.json")) for name, item in evaluations.items()
                },
                verification=verification,
                question=interview[0]["question"],
                provenance=[(item.name, item.key) for item in (world, curated, tokens, model)],
            )
            storage.write_text(builder.file("README.md"), text)
            storage.write_bytes(builder.file("LICENSE"), LICENSE.read_bytes())
            bar.advance(note="described")
        builder.counts |= verification
        console.say(
            f"  {builder.url}: transformers loads it; logits differ by at most "
            f"{verification['max_abs_logit_difference']:.2g} on {verification['texts']} texts and chats"
        )

    inputs = {"model": model, "tokens": tokens, "curate": curated, "world": world}
    inputs |= {f"evaluate-{name}": item for name, item in evaluations.items()}
    config = {"recipe": recipe, "dtype": DTYPE, "max_shard_bytes": MAX_SHARD_BYTES}
    return Stage("release", config, inputs, make)
