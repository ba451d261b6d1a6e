"""The model card: what the model is, what it was made from and how, what it can do, and under which licences."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
from huggingface_hub import EvalResult, ModelCardData

from moxin import __version__, storage
from moxin.model.layouts import family
from moxin.recipe import ModelConfig, Recipe

TEMPLATE = Path(__file__).parent / "card.jinja"
SHOWN_LICENSES = 6
"""Licences named per source; the rest are counted."""


def licenses_by_source(documents_url: str) -> dict[str, Counter[str]]:
    """How many curated documents each source has under each licence."""
    found: dict[str, Counter[str]] = {}
    for name in storage.files_under(documents_url):
        with storage.open_read(storage.join(documents_url, name)) as handle:
            table = pq.read_table(handle, columns=["source", "license"])
        for row in table.group_by(["source", "license"]).aggregate([([], "count_all")]).to_pylist():
            counter = found.setdefault(row["source"], Counter())
            counter[row["license"] or "not stated"] += row["count_all"]
    return found


def _named(counts: Counter[str]) -> str:
    shown = counts.most_common(SHOWN_LICENSES)
    rest = len(counts) - len(shown)
    names = [f"{name} ({n:,})" for name, n in shown]
    return "; ".join([*names, f"{rest} more licences"] if rest else names)


def architecture(model: ModelConfig, dtype: str) -> list[tuple[str, str]]:
    """Rows of the table of the architecture."""
    window = f"{model.sliding_window} tokens" if model.sliding_window else "none (full causal attention)"
    shared = "GQA" if model.n_kv_heads < model.n_heads else "as many as heads"
    positions = f"RoPE, θ {model.rope_theta:,.0f}"
    if model.position == "alibi":
        positions = f"ALiBi, slopes down to 2^-{model.alibi_bias_max:g}"
    return [
        ("layers", f"{model.n_layers}"),
        ("width", f"{model.d_model}"),
        (
            "attention",
            f"{model.n_heads} heads of {model.head_dim}, {model.n_kv_heads} key/value heads ({shared})",
        ),
        ("sliding window", window),
        ("feed-forward", f"{'SwiGLU' if model.activation == 'swiglu' else 'GELU'}, {model.d_ff}"),
        ("positions", f"{positions}, trained up to {model.max_seq_len} tokens"),
        (
            "normalisation",
            f"{'RMSNorm' if model.norm == 'rms' else 'LayerNorm without bias'}, ε {model.norm_eps}",
        ),
        ("vocabulary", f"{model.vocab_size:,}{', tied embeddings' if model.tie_embeddings else ''}"),
        ("weights", dtype),
    ]


def front_matter(name: str, kind: str, scores: Mapping[str, Any]) -> str:
    """The YAML block that the Hugging Face Hub reads, with the results of the released model; `kind` is its `model_type`."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="tinyworld",
            dataset_name="tinyworld",
            metric_type="accuracy",
            metric_name=form,
            metric_value=scores[task],
        )
        for task, form in (("tinyworld_mc", "multiple choice"), ("tinyworld_gen", "generation"))
    ]
    data = ModelCardData(
        model_name=name,
        license="apache-2.0",
        language="en",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["moxin", kind, "conversational"],
        eval_results=results,
    )
    return data.to_yaml().strip()


def card(
    recipe: Recipe,
    *,
    dtype: str,
    n_parameters: int,
    licenses: Mapping[str, Counter[str]],
    tokens: Mapping[str, Any],
    curated: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    verification: Mapping[str, Any],
    question: str,
    provenance: Sequence[tuple[str, str]],
) -> str:
    """The card as Markdown. `tokens` and `curated` are the counts of those artifacts; `evaluations` holds results.json
    by what was evaluated, in the order of training, the released model last."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals |= {"count": "{:,}".format, "score": "{:.3f}".format}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    results = [{"name": name, **scores} for name, scores in evaluations.items()]
    last = results[-1]
    name = f"moxin-{recipe.name.replace('_', '-')}"
    return template.render(
        name=name,
        recipe=recipe,
        version=__version__,
        front_matter=front_matter(name, family(recipe.model), last),
        parameters=n_parameters,
        pretraining_tokens=sum(phase.tokens for phase in recipe.pretrain.phases),
        question=question,
        architecture=architecture(recipe.model, dtype),
        verification=verification,
        data=[
            {
                "source": source,
                "documents": sum(counts.values()),
                "tokens": tokens["sources"][source]["tokens"],
                "licenses": _named(counts),
            }
            for source, counts in sorted(licenses.items())
        ],
        all_licenses="; ".join(sorted(set().union(*licenses.values()))),
        documents_in=curated["documents_in"],
        documents_out=curated["documents_out"],
        tokens=tokens,
        phases=[
            {
                "name": phase.name,
                "tokens": phase.tokens,
                "context": phase.context,
                "mix": ", ".join(f"{name} {weight:g}" for name, weight in phase.mix.items()),
            }
            for phase in recipe.pretrain.phases
        ],
        sources=sorted(last["bits_per_byte"]),
        results=results,
        n_questions=last["n_questions"],
        chance=last["chance"],
        provenance=provenance,
    )
