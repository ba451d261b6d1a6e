"""The command `moxin`: what is done to models outside of a run, looks into a run, and the machines before a run.

moxin doctor --run s3://bucket/runs/moxin --recipe demo        # nodes, GPUs, storage, clocks, bandwidth, ports, versions
moxin model show moxin_7b                      # or a folder: shape, parameters by part, memory
moxin model convert SOURCE TARGET --dtype bfloat16 --max-shard 5GB
moxin model expand SOURCE TARGET --layers 36 --how zero
moxin plan --recipe moxin_7b --accelerator H100-80GB --gpus 64,128,256     # memory, hours, dollars; the cheapest way
moxin plan --recipe moxin_7b --simulate --out curve.html       # to thousands of GPUs, with failures
moxin profile fineweb --set list_ratio=0.2                     # what removes a document, rule by rule
moxin inspect tokens runs/demo --phase phase2 --step 120       # what was trained on in a step
moxin inspect tokens runs/demo --phase phase2 --sample 17      # one sample as the model sees it
moxin inspect documents runs/demo --source web --sort mean_word_chars      # what curation kept, page by page
moxin inspect documents runs/demo --removed --reason gopher_short_doc --page 2
moxin inspect documents part-00000.parquet --where "n_words>100" --where "lang=de" --n 3 --chars 300
moxin chat --url http://127.0.0.1:8000 --temperature 0.7        # with a model that jobs/deploy.py serves
"""

import argparse
import re
import sys
from collections.abc import Sequence

from moxin import __version__, console, job
from moxin.config import nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failed, 2 a mistake in the command or the data."""
    options = _parser().parse_args(argv)
    try:
        code = options.work(options)
    except KeyboardInterrupt:
        console.warn("interrupted")
        return job.INTERRUPTED
    except Exception as error:
        return job.report_failure(error)
    return int(code or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "moxin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"moxin {__version__}")
    areas = parser.add_subparsers(required=True, metavar="AREA")
    model = areas.add_parser("model", help="show, convert or deepen a model folder")
    commands = model.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser(
        "show", help="shape, parameters and memory of a preset or a folder", allow_abbrev=False
    )
    show.add_argument("model", help="a preset's name, or a model folder (local or s3://)")
    show.set_defaults(work=_show)

    convert = commands.add_parser(
        "convert", help="write a model folder anew in another type or other shards", allow_abbrev=False
    )
    expand = commands.add_parser("expand", help="write a deeper model", allow_abbrev=False)
    for command, work in ((convert, _convert), (expand, _expand)):
        command.add_argument("source", help="a model folder in Hugging Face's format")
        command.add_argument("target", help="the folder to write; must not exist")
        command.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
        command.add_argument(
            "--max-shard", default="5GB", type=_size, metavar="SIZE", help="largest file, e.g. 500MB (5GB)"
        )
        command.set_defaults(work=work)
    expand.add_argument("--layers", required=True, type=int, help="layers of the deeper model")
    expand.add_argument(
        "--how",
        default="zero",
        choices=("zero", "copy", "random"),
        help="added layers: copies that add nothing yet (zero), plain copies, or fresh ones (default: zero)",
    )
    expand.add_argument("--seed", default=0, type=int, help="of fresh layers (0)")

    from moxin import cli_plan

    cli_plan.add_to(areas)
    profile = areas.add_parser(
        "profile", help="print the rules of a curation profile, or list all", allow_abbrev=False
    )
    profile.add_argument("name", nargs="?", default="", help="without a name: all profiles")
    profile.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a change, e.g. list_ratio=0.2 or near=off",
    )
    profile.set_defaults(work=_profile)

    inspect = areas.add_parser("inspect", help="look into a run").add_subparsers(
        required=True, metavar="WHAT"
    )
    tokens = inspect.add_parser(
        "tokens", help="what a phase trains on, by sample or by step", allow_abbrev=False
    )
    tokens.add_argument("run", help="folder or s3:// URL of a run")
    tokens.add_argument("--phase", default="", help="of pretraining (default: the first)")
    which = tokens.add_mutually_exclusive_group(required=True)
    which.add_argument("--sample", type=int, help="number of a sample of the phase, from 0")
    which.add_argument("--step", type=int, help="number of an optimizer step of the phase, from 1")
    tokens.set_defaults(work=_inspect_tokens)
    documents = inspect.add_parser(
        "documents", help="what curation kept or removed, with its signals", allow_abbrev=False
    )
    documents.add_argument("target", help="a Parquet shard, a folder of shards, or a run (local or s3://)")
    documents.add_argument(
        "--removed",
        action="store_true",
        help="of a run: what was removed (also with --reason), not what stays",
    )
    documents.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="e.g. 'n_words>100' or 'lang=de', with < <= > >= = or !=; may be given many times, all must hold",
    )
    for name in ("source", "reason", "id"):
        documents.add_argument(f"--{name}", default="", help=f"the same as --where {name}={name.upper()}")
    documents.add_argument(
        "--sort", default="", metavar="SIGNAL", help="the documents with the highest first"
    )
    documents.add_argument("--lowest", action="store_true", help="with --sort: the lowest first")
    documents.add_argument("--n", default=10, type=int, help="documents of a page (10)")
    documents.add_argument(
        "--chars", default=1000, type=int, help="characters of a text that are shown (1000)"
    )
    documents.add_argument("--page", default=1, type=int, help="from 1")
    documents.set_defaults(work=_inspect_documents)

    doctor = areas.add_parser(
        "doctor",
        help="look at the machines of a run: ends with 1 if something would spoil it",
        allow_abbrev=False,
    )
    doctor.add_argument(
        "--run", default="", metavar="URL", help="folder or s3:// URL where the run shall lie"
    )
    doctor.add_argument("--recipe", default="", help="measure the machines by what this recipe needs")
    doctor.add_argument("--workers", default=0, type=int, metavar="N", help="training workers (the recipe's)")
    doctor.set_defaults(work=_doctor)
    chat = areas.add_parser("chat", help="talk with a served model in the terminal", allow_abbrev=False)
    chat.add_argument(
        "--url", default="http://127.0.0.1:8000", help="a server that speaks OpenAI's API (%(default)s)"
    )
    chat.add_argument("--model", default="", help="one of those it serves (default: the first)")
    chat.add_argument("--system", default="", help="what the model is told first")
    chat.add_argument("--max-tokens", default=512, type=int, help="longest answer, in tokens (512)")
    chat.add_argument("--temperature", default=0.7, type=float, help="0 is the most probable answer (0.7)")
    chat.add_argument(
        "--top-p", default=1.0, type=float, help="only the tokens that reach this probability (1)"
    )
    chat.add_argument("--seed", default=None, type=int, help="the same answers every time")
    chat.set_defaults(work=_chat)
    return parser


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500MB or 5GB")
    return int(float(match[1]) * 1000 ** " KMG".index(match[2].upper() or " "))


def _show(options: argparse.Namespace) -> None:
    from moxin import plan, storage
    from moxin.model.checkpoint import load_config
    from moxin.model.presets import PRESETS

    if options.model in PRESETS:
        config = PRESETS[options.model]
    elif storage.files_under(options.model):
        config = load_config(options.model)
    else:
        raise ValueError(
            f"{options.model!r} is no preset and no model folder; {nearest(options.model, PRESETS)}"
        )
    console.table(f"Model {options.model}", ("quantity", "value", "formula"), plan.model_rows(config))


def _convert(options: argparse.Namespace) -> None:
    from moxin.model.convert import convert

    convert(options.source, options.target, options.dtype, options.max_shard)
    console.say(f"wrote {options.target}")


def _expand(options: argparse.Namespace) -> None:
    from moxin.model.convert import expand_depth

    layers = expand_depth(
        options.source,
        options.target,
        options.layers,
        options.how,
        options.seed,
        options.dtype,
        options.max_shard,
    )
    added = ", ".join(str(number) for number, layer in enumerate(layers) if layer.added)
    console.say(f"wrote {options.target}: {len(layers)} layers, of which {added} were added ({options.how})")


def _profile(options: argparse.Namespace) -> None:
    from moxin.curate import plan, profiles

    if options.name:
        found = profiles.find_profile(options.name)
        for setting in options.set:
            found = profiles.override(found, setting)
        profiles.check(found)
        plan.show_profile(found)
        return
    rows = [
        (
            found.name,
            len(found.rules) + len(found.code),
            " ".join(f"{language} {least:g}" for language, least in found.languages.items()),
            found.exact,
            "bloom" if found.bloom else "",
            f"{found.near.bands} x {found.near.rows}, J {found.near.threshold:g}" if found.near else "",
        )
        for found in profiles.PROFILES.values()
    ]
    console.table("Profiles", ("profile", "rules", "languages", "exact dedup", "bloom", "near dedup"), rows)


def _inspect_tokens(options: argparse.Namespace) -> None:
    from moxin import storage
    from moxin.pipeline import Run
    from moxin.tokens import inspect
    from moxin.tokens.loader import Curriculum, PhaseData
    from moxin.tokens.tokenizer import Tokenizer

    url = storage.absolute(options.run)
    recipe = job.recipe_of(url)
    run = Run(recipe, url, only_find=True)
    name = options.phase or run.phases[0]
    if name not in run.phases:
        raise ValueError(f"--phase {name}: the run has no such phase; {nearest(name, run.phases)}")
    index = run.phases.index(name)
    tokens = run.artifact("tokenize")
    packed = recipe.pretrain.phases[index].packing == "best_fit"
    packs = run.artifact(f"pack-{name}").url if packed else ""
    data = PhaseData(tokens.url, Curriculum.of(recipe, index), packs)
    tokenizer = Tokenizer.load(tokens.file("tokenizer"))
    data.store.check(tokenizer.fingerprint, tokens.file("tokenizer"))
    rows = recipe.pretrain.global_batch // data.context
    if options.step is not None:
        inspect.show_step(data, tokenizer, options.step, rows)
    else:
        inspect.show_sample(data, tokenizer, options.sample, rows)


def _inspect_documents(options: argparse.Namespace) -> None:
    from moxin import storage
    from moxin.curate import inspect

    if options.lowest and not options.sort:
        raise ValueError("--lowest has no effect without --sort SIGNAL")
    url, removed = storage.absolute(options.target), options.removed or bool(options.reason)
    if storage.exists(storage.join(url, job.RECIPE)):
        from moxin.pipeline import Run

        url = Run(job.recipe_of(url), url, only_find=True).artifact("curate").url
    where = [inspect.Condition.parse(text) for text in options.where]
    where += [
        inspect.Condition(name, "=", getattr(options, name))
        for name in ("source", "reason", "id")
        if getattr(options, name)
    ]
    query = inspect.Query(where, options.sort, options.lowest, options.n, options.page, options.chars)
    inspect.show(inspect.shards(url, removed), query)


def _doctor(options: argparse.Namespace) -> int:
    from dataclasses import replace

    from moxin import recipes, storage
    from moxin.doctor import run
    from moxin.doctor.need import Need

    if options.workers < 0:
        raise ValueError(f"--workers {options.workers}: at least 1, or 0 for what the recipe says")
    need = Need.of_recipe(recipes.load(options.recipe)) if options.recipe else Need()
    if options.workers:
        need = replace(need, n_workers=options.workers)
    return run.show(storage.absolute(options.run) if options.run else "", need)


def _chat(options: argparse.Namespace) -> None:
    from moxin.chat import chat, open_talk

    settings = {name: getattr(options, name) for name in ("max_tokens", "temperature", "top_p", "seed")}
    chat(open_talk(options.url, options.model, options.system, settings))


if __name__ == "__main__":
    sys.exit(main())
