"""`report.html`: one page, nothing loaded from anywhere, no script. Jinja escapes every text that comes from a run."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from moxin.console import format_seconds
from moxin.report import charts
from moxin.report.charts import Curve, both

FOLDER = Path(__file__).parent
SAMPLES = 4
"""Right and wrong answers shown of the last evaluation."""
PLANTED = {
    "near_duplicate": "near-duplicates",
    "exact_duplicate": "exact duplicates",
    "gibberish": "gibberish",
    "foreign": "other languages",
    "personal": "personal data",
    "leak": "evaluation leaks",
}
Rows = Sequence[Mapping[str, Any]]


def page(
    results: Mapping[str, Any],
    metrics: Mapping[str, Rows],
    samples: Mapping[str, Rows],
    hashes: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> str:
    """The page as text. `results` is what `results.collect` gives; `metrics` the training rows by stage, `samples` the
    evaluation rows and `hashes` the files of the manifests, all as far as the run went."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": charts.short, "seconds": format_seconds, "size": size}
    checkpoints = evaluations(results)
    return environment.get_template("page.jinja").render(
        r=results,
        css=Markup((FOLDER / "page.css").read_text()),
        tiles=tiles(results, checkpoints),
        road=road(results, dict(checkpoints)),
        times=times(results),
        funnel=funnel(results),
        planted=planted(results),
        phases=phases(results),
        curves=curves(results, metrics),
        outline=charts.silhouette(
            [row["loss"] for name in metrics if name.startswith("pretrain-") for row in metrics[name]]
        ),
        checkpoints=checkpoints,
        evaluation=evaluation_charts(checkpoints),
        samples=chosen_samples(checkpoints, samples),
        hashes=hashes,
        recipe=json.dumps(results["recipe"], indent=2, ensure_ascii=False),
    )


def size(n_bytes: float) -> str:
    """`1536` as `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024 or unit == "GiB":
            break
        n_bytes /= 1024
    return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"


def evaluations(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What was evaluated with its scores, in the order of the road."""
    found = results.get("evaluation", {})
    return [(phase["name"], phase) for phase in found.get("phases", ())] + [
        (name, found[name]) for name in ("sft", "dpo") if name in found
    ]


def tiles(
    results: Mapping[str, Any], checkpoints: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """The headline numbers: value, unit, what it is, a note, and a share (0 to 1) where the number is one."""
    found: list[dict[str, Any]] = []
    for name, scores in [item for item in checkpoints if item[0] in ("sft", "dpo")] or checkpoints[-1:]:
        found.append(
            {
                "value": f"{100 * scores['tinyworld_mc']:.0f}",
                "unit": "%",
                "label": f"multiple choice after {name.upper() if len(name) == 3 else name}",
                "note": f"{scores['n_questions']} held-out questions, chance {scores['chance']:.0%}",
                "share": scores["tinyworld_mc"],
                "chance": scores["chance"],
            }
        )
    if trained := results.get("pretrain", {}).get("phases"):
        n_tokens, seconds = (
            sum(phase["tokens"] for phase in trained),
            sum(phase["tokens"] / phase["tokens_per_second"] for phase in trained),
        )
        note = f"{charts.short(n_tokens)} tokens in {len(trained)} phase{'s' if len(trained) > 1 else ''}"
        value = f"{n_tokens / seconds:,.0f}"
        found.append({"value": value, "unit": "tok/s", "label": "pretraining speed", "note": note})
    made = sum(stage["seconds"] for stage in results["stages"])
    reused = sum(stage["reused"] for stage in results["stages"])
    note = f"this start took {format_seconds(results['wall_seconds'])}" + (
        f", {reused} of {len(results['stages'])} were there" if reused else ""
    )
    found.append({"value": format_seconds(made), "unit": "", "label": "time of all stages", "note": note})
    note = "of this start, all processes"
    gib = f"{results['peak_rss_bytes'] / 2**30:.1f}"
    return [*found, {"value": gib, "unit": "GiB", "label": "peak memory", "note": note}]


def road(results: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The stations from documents to service: whether they were reached, how long they took, one fact each."""
    stages = {stage["name"]: stage for stage in results["stages"]}
    phase_names = [phase["name"] for phase in results["recipe"]["pretrain"]["phases"]]
    trained = {phase["name"]: phase for phase in results.get("pretrain", {}).get("phases", ())}
    facts = {}
    if "curation" in results:
        facts["curate"] = f"{results['curation']['documents_out']:,} kept"
    if "tokens" in results:
        facts["tokenize"] = f"{charts.short(results['tokens']['total'])} tokens"
    for name, counts in [*trained.items(), *((name, results.get(name)) for name in ("sft", "dpo"))]:
        if counts:
            facts[name] = f"loss {counts['loss_last']:.2f}"
    if "export" in results:
        facts["release"] = f"Δ logits {results['export']['max_abs_logit_difference']:.1g}"
    stations = []
    for name in ("world", "curate", "tokenize", *phase_names, "sft", "dpo", "release"):
        stage = stages.get(f"pretrain-{name}" if name in phase_names else name)
        score = scores.get(name)
        stations.append(
            {
                "name": name,
                "reached": stage is not None,
                "seconds": stage["seconds"] if stage else None,
                "fact": facts.get(name, ""),
                "score": f"{score['tinyworld_mc']:.0%} right" if score else "",
            }
        )
    answers = results.get("serve", {}).get("answers", [])
    fact = f"{len(answers)} answer{'s' if len(answers) != 1 else ''}"
    return [
        *stations,
        {
            "name": "serve",
            "reached": bool(answers),
            "seconds": None,
            "fact": fact if answers else "",
            "score": "",
        },
    ]


def times(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds per stage with its kind, for the strip of time."""
    kinds = {"world": "data", "curate": "data", "tokenize": "data", "sft": "align", "dpo": "align"}
    found = []
    for stage in results["stages"]:
        name = stage["name"]
        kind = {"pretrain": "train", "evaluate": "evaluate"}.get(name.partition("-")[0])
        found.append({"name": name, "seconds": stage["seconds"], "kind": kind or kinds.get(name, "release")})
    return found


def funnel(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per curation step: shares of all documents that stayed and left there, and the reasons."""
    steps = results.get("curation", {}).get("funnel", ())
    whole = max((step["in"] for step in steps), default=0) or 1
    return [
        {
            "step": step["step"].replace("_", " "),
            "out": step["out"],
            "lost": step["in"] - step["out"],
            "kept_share": step["out"] / whole,
            "lost_share": (step["in"] - step["out"]) / whole,
            "reasons": sorted(step["removed"].items(), key=lambda item: -item[1]),
        }
        for step in steps
    ]


def planted(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was hidden in the data and found again; None for a run without the tinyworld."""
    truth = results.get("curation", {}).get("planted")
    if not truth:
        return None
    rows = [
        {
            "kind": PLANTED.get(kind, kind.replace("_", " ")),
            **counts,
            "share": counts["found"] / counts["planted"],
        }
        for kind, counts in truth.items()
        if isinstance(counts, Mapping) and counts.get("planted")
    ]
    near = truth.get("near_duplicate", {"planted": 0, "found": 0})
    if not rows:
        return None
    return {
        "rows": rows,
        "near": near,
        "originals": truth["originals"],
        "originals_removed": truth["originals_removed"],
    }


def phases(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trained phases with their data mix as shares; every source keeps its colour."""
    configured = {phase["name"]: phase for phase in results["recipe"]["pretrain"]["phases"]}
    sources = [source["name"] for source in results["recipe"]["sources"]]
    rows = []
    for phase in results.get("pretrain", {}).get("phases", ()):
        mix = configured[phase["name"]]["mix"]
        whole = sum(mix.values())
        shares = [
            {"name": name, "share": mix[name] / whole, "colour": sources.index(name) + 1}
            for name in sources
            if mix.get(name)
        ]
        rows.append({**phase, "mix": shares})
    return rows


def curves(results: Mapping[str, Any], metrics: Mapping[str, Rows]) -> list[tuple[str, Markup]]:
    """Charts of the loss: pretraining in one, SFT and DPO in one each."""
    trained = {phase["name"]: phase for phase in results.get("pretrain", {}).get("phases", ())}
    found = []
    pretraining = [
        _curve(name, metrics[f"pretrain-{name}"], phase["tokens"])
        for name, phase in trained.items()
        if metrics.get(f"pretrain-{name}")
    ]
    if pretraining:
        draw = partial(charts.losses, "Pretraining: loss over tokens", pretraining, "tokens")
        found.append(("pretraining", both(draw)))
    for name in ("sft", "dpo"):
        if rows := metrics.get(name):
            curve = _curve(name.upper(), rows, len(rows))
            title = f"{name.upper()}: loss over steps"
            found.append((name.upper(), charts.losses(title, [curve], "steps", 480, 260)))
    return found


def _curve(name: str, rows: Rows, units: float) -> Curve:
    return Curve(name, [row["loss"] for row in rows], [row["lr"] for row in rows], units)


def evaluation_charts(checkpoints: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Markup]]:
    if not checkpoints:
        return []
    names = [name for name, _ in checkpoints]
    series = {
        "multiple choice": [scores["tinyworld_mc"] for _, scores in checkpoints],
        "generation": [scores["tinyworld_gen"] for _, scores in checkpoints],
    }
    chance = checkpoints[-1][1]["chance"]
    found = [("answers", both(partial(charts.scores, "Right answers", series, names, chance)))]
    sources = [
        source
        for source in checkpoints[-1][1]["bits_per_byte"]
        if all(source in scores["bits_per_byte"] for _, scores in checkpoints)
    ]
    if sources:
        bits = {source: [scores["bits_per_byte"][source] for _, scores in checkpoints] for source in sources}
        found.append(
            ("bits per byte", both(partial(charts.slopes, "Bits per byte of held-out text", bits, names)))
        )
    return found


def chosen_samples(
    checkpoints: Sequence[tuple[str, Mapping[str, Any]]], samples: Mapping[str, Rows]
) -> dict[str, Any] | None:
    """The first right and the first wrong answers of the last evaluation."""
    if not checkpoints or not samples.get(checkpoints[-1][0]):
        return None
    rows = samples[checkpoints[-1][0]]
    return {
        "of": checkpoints[-1][0],
        "right": [row for row in rows if row["reply_right"]][:SAMPLES],
        "wrong": [row for row in rows if not row["reply_right"]][:SAMPLES],
    }
