"""The command `moxin plan`: what a recipe takes, before anything is paid for.

moxin plan --recipe moxin_7b --accelerator H100-80GB --gpus 64,128,256
moxin plan --recipe mpt_7b --cluster cluster/a100.yaml                  # on what a cluster file allows, at list prices
moxin plan --recipe moxin_7b --simulate --out curve.html                # to thousands of GPUs, with failures
moxin plan --published                                                  # the planner against runs whose bill is known
"""

import argparse
from typing import Any

from moxin import console, hardware, recipes, storage
from moxin.config import override, parse_override
from moxin.plan import advice, cluster, cost, published, tables
from moxin.plan.cluster import Offer
from moxin.plan.simulate import Point, Reliability, curve
from moxin.recipe import Recipe

MOST_SIMULATED = 4096


def add_to(areas: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command to those of `moxin`."""
    parser = areas.add_parser(
        "plan",
        help="parameters, memory, hours and dollars of a recipe, and how it scales",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", default="demo", help=f"one of: {', '.join(recipes.RECIPES)} (demo)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting, as for a job"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--cluster", default="", metavar="FILE", help="a `ray up` file: its GPUs and limits")
    where.add_argument(
        "--accelerator", default="", metavar="NAME", help=f"one of: {', '.join(hardware.GPUS)} (the recipe's)"
    )
    parser.add_argument("--gpus", default="", metavar="N,N,...", help="GPU counts to compare (1, 8, 16, ...)")
    parser.add_argument(
        "--price", default=0.0, type=float, metavar="DOLLARS", help="of a GPU hour (list price)"
    )
    parser.add_argument(
        "--simulate", action="store_true", help="failures, checkpoints, and scaling to thousands of GPUs"
    )
    parser.add_argument(
        "--mtbf-hours",
        default=Reliability.gpu_hours,
        type=float,
        metavar="HOURS",
        help=f"with --simulate: GPU hours between failures ({Reliability.gpu_hours:,.0f}, Llama 3)",
    )
    parser.add_argument("--out", default="", metavar="FILE", help="with --simulate: the curve as a page")
    parser.add_argument("--published", action="store_true", help="the planner against published runs")
    parser.set_defaults(work=_plan)


def _plan(options: argparse.Namespace) -> None:
    if options.published:
        _published()
        return
    if options.out and not options.simulate:
        raise ValueError("--out has no effect without --simulate")
    if options.price < 0 or options.mtbf_hours <= 0:
        raise ValueError(
            f"--price {options.price:g} must be at least 0, --mtbf-hours {options.mtbf_hours:g} above 0"
        )
    recipe = recipes.load(options.recipe)
    for text in options.set:
        recipe = override(recipe, *parse_override(text))
    recipe.validate()
    offers = _offers(recipe, options)
    console.table(f"{recipe.name}: what follows", ("quantity", "value", "formula"), tables.rows(recipe))
    tables.show_memory(recipe, offers[0] if offers else None)
    if not offers:
        if options.gpus or options.simulate or options.price:
            raise ValueError(
                f"--gpus, --price and --simulate need a GPU: --accelerator NAME or --cluster FILE ({recipe.name} names none)"
            )
        console.say("\n  Hours and dollars: --accelerator NAME, or --cluster FILE.", "dim")
    counts = _counts(options.gpus)
    for offer in offers:
        _as_it_is(recipe, offer)
    if offers:
        _compare(recipe, offers, counts)
    if options.simulate:
        _simulate(recipe, offers[0], counts, Reliability(gpu_hours=options.mtbf_hours), options.out)
    for warning in advice.warnings(recipe):
        console.warn(warning)


def _offers(recipe: Recipe, options: argparse.Namespace) -> list[Offer]:
    if options.cluster:
        return cluster.of_file(options.cluster, options.price)
    accelerator = options.accelerator or recipe.scaling.accelerator
    if not accelerator:
        return []
    own = recipe.scaling.dollars_per_hour if accelerator == recipe.scaling.accelerator else 0.0
    return [cluster.of_accelerator(accelerator, options.price or own)]


def _counts(text: str) -> list[int]:
    if not text:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"--gpus {text}: whole numbers from 1 on with commas between, as 8,64,512")
    return sorted({int(part) for part in parts})


def _as_it_is(recipe: Recipe, offer: Offer) -> None:
    """The recipe's own number of workers and settings."""
    n_gpus = recipe.scaling.n_workers
    if offer.most_gpus and n_gpus > offer.most_gpus:
        console.say(f"\n  {offer.name} has {offer.most_gpus} GPUs, scaling.n_workers = {n_gpus}.")
        return
    found = cost.run_cost(recipe, offer, n_gpus)
    if found is None:
        console.say(f"\n  The recipe's own settings do not fit {n_gpus} × {offer.machine.gpu}.")
        return
    tables.show_run(found)


def _compare(recipe: Recipe, offers: list[Offer], counts: list[int]) -> None:
    rows = min(recipe.pretrain.global_batch // phase.context for phase in recipe.pretrain.phases)
    found = []
    for offer in offers:
        found += cost.options(recipe, [offer], counts or cluster.gpu_counts(offer, min(rows, 1024)))
    if not found:
        raise ValueError(
            "no GPU count, ZeRO stage and recomputation fits: a step has too few rows (pretrain.global_batch) for so many "
            "GPUs, or their memory is too small; see the largest micro-batch above"
        )
    found.sort(key=lambda each: (not each.dollars, each.dollars, each.gpu_hours))
    tables.show_options(found)
    if left_out := sorted(set(counts) - {each.n_gpus for each in found}):
        console.say(
            f"\n  left out: {', '.join(f'{n:,}' for n in left_out)} GPUs; nothing fits, or a step has fewer rows ({rows:,})",
            "dim",
        )
    best = found[0]
    console.say(
        f"\n  cheapest: {best.n_gpus:,} × {best.offer.name}, {' '.join(_settings(recipe, best))}", "bold"
    )


def _settings(recipe: Recipe, best: cost.RunCost) -> list[str]:
    """The `--set` options that turn the recipe into the cheapest one."""
    scaling = best.scaling
    wanted = {
        "scaling.use_gpu": ("true", recipe.scaling.use_gpu),
        "scaling.accelerator": (scaling.accelerator, recipe.scaling.accelerator == scaling.accelerator),
        "scaling.n_workers": (best.n_gpus, recipe.scaling.n_workers == best.n_gpus),
        "scaling.zero_stage": (scaling.zero_stage, recipe.scaling.zero_stage == scaling.zero_stage),
        "scaling.recompute": (scaling.recompute, recipe.scaling.recompute == scaling.recompute),
        "pretrain.micro_batch": ("auto", recipe.pretrain.micro_batch == "auto"),
    }
    return [f"--set {key}={value}" for key, (value, already) in wanted.items() if not already] or ["as it is"]


def _simulate(recipe: Recipe, offer: Offer, counts: list[int], reliability: Reliability, out: str) -> None:
    if not counts:
        n, counts = offer.machine.n_gpus, []
        while n <= MOST_SIMULATED:
            counts.append(n)
            n *= 2
    with console.progress("simulate", len(counts), "counts") as bar:
        points: list[Point] = []
        for n_gpus in counts:
            points += curve(recipe, offer, [n_gpus], reliability)
            bar.advance(1)
    if not points:
        raise ValueError(f"nothing to simulate: no count of {offer.name} fits; see the table above")
    lines = [_point_line(point) for point in points]
    columns = (
        "GPUs",
        "batch",
        "days",
        "5-95 %",
        "kept",
        "on products",
        "failure every",
        "checkpoint",
        "dollars",
    )
    console.table(
        f"Scaling on {offer.name}, a failure every {reliability.gpu_hours:,.0f} GPU hours, restarts of "
        f"{reliability.restart_seconds / 60:.0f} minutes",
        columns,
        lines,
        right=columns,
    )
    console.say(
        "\n  kept: share of the time in steps whose result stays; on products: share of a step that does not wait for\n"
        "  the network; checkpoint: seconds to write one, steps between two (Daly; pretrain.checkpoint_every)",
        "dim",
    )
    if any(point.batch_factor > 1 for point in points):
        console.warn(
            "with a larger batch (×2 and more) each GPU has a row to work on, but it is another training run"
        )
    if out:
        from moxin.report.scaling import page

        storage.write_text(out, page(recipe.name, offer, points, reliability))
        console.say(f"wrote {out}")


def _point_line(point: Point) -> list[str]:
    day = 86_400
    return [
        f"{point.n_gpus:,}",
        f"×{point.batch_factor}" if point.batch_factor > 1 else "",
        f"{point.expected / day:,.1f}",
        f"{point.low / day:,.1f}-{point.high / day:,.1f}",
        f"{point.goodput:.1%}",
        f"{point.computing:.0%}",
        _span(point.between_failures),
        f"{point.checkpoint_seconds:.0f} s / {point.steps_between_checkpoints:,} steps",
        f"${point.dollars:,.0f}" if point.dollars else "-",
    ]


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _published() -> None:
    lines = []
    for run in published.RUNS:
        found = published.planned(run, recipes.load(run.recipe))
        for quantity, said, planned in (
            ("days", run.days, found.hours / 24),
            ("dollars", run.dollars, found.dollars),
        ):
            if said:
                lines.append((run.recipe, quantity, said, planned, f"{planned / said - 1:+.0%}", run.source))
    console.table(
        "The planner against published runs", ("run", "", "published", "planned", "off", "source"), lines
    )
    for run in published.RUNS:
        console.say(f"\n  {run.recipe}: {run.n_gpus} × {run.machine}. Assumed: {run.assumed}.", "dim")
