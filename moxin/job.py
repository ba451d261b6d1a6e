"""The command line that all jobs share, and how a job ends: one message, one exit code.

Exit codes: 0 done, 1 failed, 2 a mistake in the command or the data, 130 interrupted. After 1 and 130 the same command goes
on where it was.
"""

import argparse
import errno
import fcntl
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from moxin import console, recipes, storage
from moxin.config import from_jsonable, override, parse_override, to_jsonable
from moxin.recipe import Recipe, Selection, SourceConfig

INTERRUPTED = 130
OWN_KINDS = ("prose", "code", "folder", "tree")
"""Kinds of sources in whose place `--sources` puts the user's documents."""
RECIPE = "recipe.json"
"""In the folder of a run: the recipe of the last job."""


@dataclass(frozen=True)
class Job:
    """What every job is told: the recipe with its overrides, where the run lies, and whether to only print the plan."""

    recipe: Recipe
    run_url: str
    dry_run: bool
    options: argparse.Namespace


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all jobs take."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument(
        "--recipe", default="demo", help=f"one of: {', '.join(recipes.RECIPES)} (default: demo)"
    )
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, e.g. sft.epochs=2 or pretrain.phases.phase1.tokens=2e6; may be given many times",
    )
    options.add_argument(
        "--run", default="", metavar="URL", help="folder or s3:// URL of the run (runs/RECIPE)"
    )
    options.add_argument(
        "--sources",
        default="",
        metavar="FOLDER",
        help="your own .txt .md .jsonl(.gz|.zst) .parquet documents, in place of this machine's prose and code",
    )
    options.add_argument(
        "--dry-run", action="store_true", help="print the recipe and all that follows, then exit"
    )
    return options


def resolve(
    options: argparse.Namespace, change: Callable[[Recipe, argparse.Namespace], Recipe] | None = None
) -> Job:
    """The job that the options describe. Raises `ValueError` for an unknown recipe or key, or a value that cannot be."""
    recipe = recipes.load(options.recipe)
    if change is not None:
        recipe = change(recipe, options)
    for text in options.set:
        recipe = override(recipe, *parse_override(text))
    if options.sources:
        recipe = with_own_sources(recipe, options.sources)
    recipe.validate()
    return Job(recipe, storage.absolute(options.run or f"runs/{recipe.name}"), options.dry_run, options)


def recipe_of(run_url: str) -> Recipe:
    """The recipe of a run. Raises `ValueError` where there is none."""
    url = storage.join(run_url, RECIPE)
    if not storage.exists(url):
        raise ValueError(
            f"{run_url}: no run there ({RECIPE} is missing); give the folder that a job was given with --run"
        )
    recipe: Recipe = from_jsonable(Recipe, storage.read_json(url))
    return recipe


def with_own_sources(recipe: Recipe, folder: str) -> Recipe:
    """The recipe with a folder of documents in place of its prose and code; their shares of every phase become its share.

    The tinyworld stays: what SFT and DPO teach and what the evaluation asks is about it.
    """
    url = storage.absolute(folder)
    if not storage.files_under(url):
        raise ValueError(f"--sources {folder}: no such folder, or no file in it ({url})")
    replaced = [source.name for source in recipe.sources if source.kind in OWN_KINDS]
    kept = tuple(source for source in recipe.sources if source.name not in replaced)
    phases = []
    for phase in recipe.pretrain.phases:
        own = {key: Selection.parse(key).source in replaced for key in phase.mix}
        mix = {key: weight for key, weight in phase.mix.items() if not own[key]}
        share = sum(weight for key, weight in phase.mix.items() if own[key])
        phases.append(replace(phase, mix={**mix, "own": share} if share else mix))
    return replace(
        recipe,
        sources=(SourceConfig("own", "folder", path=url), *kept),
        pretrain=replace(recipe.pretrain, phases=tuple(phases)),
    )


def main(description: str, work: Callable[[Job], None], argv: Sequence[str] | None = None) -> int:
    """Runs one job and returns its exit code."""
    return main_with(parser(description), work, argv)


def main_with(
    options: argparse.ArgumentParser,
    work: Callable[[Job], None],
    argv: Sequence[str] | None = None,
    *,
    change: Callable[[Recipe, argparse.Namespace], Recipe] | None = None,
    show: Callable[[Job], None] | None = None,
) -> int:
    """`main` for a job with options of its own: `change` puts them into the recipe, `show` adds to what --dry-run prints."""
    # A shell that starts a job in the background makes it ignore Ctrl-C; a job is always to be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    parsed = options.parse_args(argv)
    try:
        job = resolve(parsed, change)
        if job.dry_run:
            from moxin import plan

            plan.show(job.recipe, job.run_url)
            if show is not None:
                show(job)
            return 0
        _look_at(job.recipe)
        with locked(job.run_url):
            # What the run's artifacts were made for, so that they can be found without the command line.
            storage.write_json(storage.join(job.run_url, RECIPE), to_jsonable(job.recipe))
            work(job)
    except KeyboardInterrupt:
        console.warn("interrupted; the same command goes on from here")
        return INTERRUPTED
    except Exception as error:
        return report_failure(error)
    return 0


def _look_at(recipe: Recipe) -> None:
    """Refuses what would fail on the workers and says what is unusual, before anything starts."""
    from moxin import plan

    plan.refuse(recipe)
    for warning in plan.warnings(recipe):
        console.warn(warning)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def report_failure(error: Exception) -> int:
    """Prints one message for an exception and returns the exit code: 2 for the user's mistakes, 1 for the rest."""
    if trouble := storage_trouble(error):
        console.fail(trouble)
        return 1
    if isinstance(error, ValueError):
        console.fail(str(error))
        return 2
    console.fail(f"{type(error).__name__}: {error}")
    if os.environ.get("MOXIN_TRACE"):
        traceback.print_exception(error, file=sys.stderr)
    else:
        console.say("  MOXIN_TRACE=1 shows where. The same command goes on from what is finished.")
    if log := _ray_logs():
        console.say(f"  Ray's logs: {log}")
    return 1


def storage_trouble(error: BaseException) -> str:
    """What to tell a person whose disk is full or not writable; empty where that is not the cause."""
    hints = {
        errno.ENOSPC: "no space left on the device; free some, or put the run elsewhere with --run",
        errno.EDQUOT: "the disk quota is used up; free some space, or put the run elsewhere with --run",
        errno.EROFS: "the file system is read-only; put the run elsewhere with --run",
        errno.EACCES: "not permitted to write there; change its owner or put the run elsewhere with --run",
        errno.EPERM: "not permitted to write there; change its owner or put the run elsewhere with --run",
    }
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in hints:
            where = f" ({seen.filename})" if seen.filename else ""
            return f"{hints[seen.errno]}{where}. What is finished is kept: the same command goes on."
        seen = getattr(seen, "cause", None) or seen.__cause__ or seen.__context__
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # an exception that crossed processes as text
        if os.strerror(code) in str(error):
            return f"{hints[code]}. What is finished is kept: the same command goes on."
    return ""


def _ray_logs() -> str:
    if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
        return ""
    from moxin import session

    return session.log_folder()


@contextmanager
def locked(run_url: str) -> Iterator[None]:
    """Keeps two jobs out of one run folder; on an object store there is no lock and artifacts guard themselves.

    Raises `ValueError` where another process works in the folder.
    """
    if not storage.is_local(run_url):
        yield
        return
    folder = storage.local_path(run_url)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{run_url}: another job works on this run; wait for it, or use another folder with --run"
            ) from None
        yield
