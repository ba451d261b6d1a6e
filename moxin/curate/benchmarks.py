"""Evaluation sets as items for `moxin.curate.contamination`, from the files in which they are published.

JSON lines, JSON and Parquet are read, files or folders, each row by the first of `LAYOUTS` whose fields it has. An item's
question is what a leak would hold verbatim: of multiple choice the question, with the right choice as its answer; of a cloze
the context with its right ending; of a conversation every turn. A passage that a question is about is no part of it: it is
quoted from elsewhere (SQuAD's and BoolQ's from Wikipedia), and would have its source removed for it. MosaicML's gauntlet
holds whole prompts; what they put around a question (`Question:`, the choices, `Answer:`) is taken away.

    items = read(["s3://bucket/eval", "gsm8k/train.jsonl"])
    index = contamination.build(items, allowed=[("gsm8k", "train")])
"""

import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from moxin import storage
from moxin.config import digest
from moxin.curate.contamination import Item
from moxin.curate.jsonl import decoder_for, suffix

SUFFIXES = (".jsonl", ".json", ".parquet")
IDS = ("id", "task_id", "answer_id", "question_id", "qID", "unique_id", "uid", "ind", "idx")
"""Fields that name a row; one that has none of them is named by its line, counted from 1."""


class Layout(NamedTuple):
    """What the fields of a published set mean. A dot leads into an object, or by a number into a list."""

    name: str
    needs: str
    """Fields that a row of this layout has, null or not; the first layout of which it has all is taken."""
    question: str
    """Fields of the question, one after the other; a list is as many items. Empty: the rows are no questions."""
    answer: str = ""
    options: str = ""
    """The field with the choices, or one field each."""
    right: str = ""
    """Which is right, by label, letter, number or text. Where that is held back the item has no answer."""
    first: int = 0
    """The number of the first choice."""
    joined: Literal["", "after", "gap", "before"] = ""
    """The right choice or answer is one text with the question: it goes on from it, fills its `_`, or leads into it."""
    prompt: bool = False
    """The question is a rendered prompt."""


LAYOUTS = (
    Layout("HellaSwag", "ctx, endings", "ctx", "", "endings", "label", joined="after"),
    Layout(
        "WinoGrande", "sentence, option1, option2", "sentence", "", "option1, option2", "answer", 1, "gap"
    ),
    Layout("PIQA", "goal, sol1, sol2", "goal", "", "sol1, sol2", "label"),
    Layout("COPA", "premise, choice1, choice2", "premise", "", "choice1, choice2", "label"),
    Layout("SIQA", "context, answerA", "context, question", "", "answerA, answerB, answerC", "label", 1),
    Layout("gauntlet choices", "query, choices, gold", "query", "", "choices", "gold", prompt=True),
    Layout(
        "gauntlet contexts", "context_options", "continuation", "", "context_options", "gold", 0, "before"
    ),
    Layout("gauntlet cloze", "context, continuation", "context", "continuation", joined="after", prompt=True),
    Layout("OpenBookQA", "question_stem, choices", "question_stem", "", "choices", "answerKey"),
    Layout("ARC as first published", "question.stem", "question.stem", "", "question.choices", "answerKey"),
    Layout("ARC, CommonsenseQA", "question, choices, answerKey", "question", "", "choices", "answerKey"),
    Layout("MMLU", "question, choices, answer", "question", "", "choices", "answer"),
    Layout("MMLU-Pro", "question, options, answer_index", "question", "", "options", "answer_index"),
    Layout("RACE", "article, question, options", "question", "", "options", "answer"),
    Layout("AQuA", "question, options, correct", "question", "", "options", "correct"),
    Layout("SciQ", "question, correct_answer", "question", "correct_answer"),
    Layout("GPQA", "Question, Correct Answer", "Question", "Correct Answer"),
    Layout("TruthfulQA", "question, best_answer", "question", "best_answer"),
    Layout("TruthfulQA choices", "question, mc1_targets", "question", "mc1_targets.choices"),
    Layout("SQuAD", "question, answers", "question", "answers"),
    Layout("DROP", "question, answers_spans", "question", "answers_spans"),
    Layout("GSM8K, TriviaQA, BoolQ", "question, answer", "question", "answer"),
    Layout("BoolQ of SuperGLUE", "question, passage, label", "question"),
    Layout("gauntlet question", "context, answer", "context", "answer", prompt=True),
    Layout("HumanEval", "prompt, canonical_solution", "prompt", "canonical_solution"),
    Layout("MBPP", "text, code", "text", "code"),
    Layout("MBPP sanitized", "prompt, code", "prompt", "code"),
    Layout("MATH", "problem, solution", "problem", "solution"),
    Layout("AIME", "problem, answer", "problem", "answer"),
    Layout("BIG-bench", "input, target", "input", "target"),
    Layout("IFEval", "prompt, instruction_id_list", "prompt"),
    Layout("MT-Bench", "turns", "turns"),
    Layout("MT-Bench references", "choices.0.turns", "choices.0.turns"),
    Layout("MT-Bench judges", "prompt_template, system_prompt", ""),
    Layout("LAMBADA", "text", "text"),
)
ONLY = {"LAMBADA": {"text", "domain", *IDS}}
"""All fields that rows of a layout may have: a row of text and more is a document, not a question."""

_OPTION = r"(?:\.|\)|\.\)) "
_CHOICES = re.compile(rf"\n(?:Choices:\n)?(A{_OPTION}[^\n]*\nB{_OPTION}.*)\Z", re.S)
_AROUND = (
    (re.compile(r"\n(?:Answer|A|Output): ?\Z"), ""),
    (_CHOICES, ""),
    (re.compile(r"\A(?:Passage: .*\n(?:Question|Q): |[^\n]*\nQ: )", re.S), ""),
    (re.compile(r"(?:\A|\n)(?:Context|Question): "), "\n"),
    (re.compile(r"\A[A-Z]{4}[A-Z ]*: "), ""),  # Jeopardy's category
)
"""What a rendered prompt has around the question, and what takes its place."""
_SPLITS = {
    **dict.fromkeys(("train", "training", "auxiliary_train"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    "dev": "dev",
}
_SPLIT = "|".join(sorted(_SPLITS, key=len, reverse=True))
_UNNAMED = re.compile(
    r"|data|default|main|all|full|sanitized|plain_text|generation|multiple_choice|questions?|xs|s|m|l|xl"
    r"|debiased|judge_prompts|reference_answer.*",
    re.I,
)
"""Names of files and folders that say nothing of what is in them: the folder above is asked."""


_MISSING = object()


class _File(NamedTuple):
    url: str
    name: str
    """Below the folder that was asked for."""
    size: int


def read(urls: Sequence[str]) -> list[Item]:
    """All items of files and folders, in the order of the URLs and of the names below them; a file named twice is read once.

    The benchmark and split are those of a row's own fields `benchmark` or `dataset` and `split`, else of the file's name and
    its folders' (`gsm8k/train.jsonl`, `gsm8k_test.jsonl`); a file that names no split is the test split. Of items with the
    same benchmark, split and id, the second's id becomes `id#2`. In a folder only files named `SUFFIXES` are read, packed or
    not, and none that is hidden.

    Raises:
        ValueError: Nothing to read, an empty or broken file, or a row of no layout, named with its line and fields.
    """
    items, taken = [], set()
    for file in _files(urls):
        for item in _items(file):
            n, key = 1, item[:3]
            while key in taken:
                n += 1
                key = (*item[:2], f"{item.id}#{n}")
            taken.add(key)
            items.append(Item(*key, item.question, item.answer))
    return items


def fingerprint(urls: Sequence[str]) -> str:
    """Stands for what `read` gives in an artifact's key: the files' names and sizes and the SHA-256 of what is in them.

    Folders above those that were asked for count only as far as they name a benchmark: a copy elsewhere has the same.
    """
    files = _files(urls)
    sums = storage.in_threads(storage.sha256, [file.url for file in files])
    return digest([[*file[1:], *_named(file.url), total] for file, total in zip(files, sums, strict=True)])


def _files(urls: Sequence[str]) -> list[_File]:
    found: dict[str, _File] = {}
    for url in map(storage.absolute, urls):
        below = [
            _File(storage.join(url, name) if name else url, name or url.rpartition("/")[2], size)
            for name, size in storage.sizes_under(url).items()
            if not name or not any(part.startswith(".") for part in name.split("/"))
        ]
        readable = [file for file in below if _unpacked(file.url).endswith(SUFFIXES)]
        if not readable:
            what = f"none of its {len(below)} files is" if below else "no such file or folder with"
            raise ValueError(f"{url}: {what} {' '.join(SUFFIXES)}, packed as .gz or .zst or not")
        found |= {file.url: file for file in readable if file.url not in found}
    return list(found.values())


def _unpacked(name: str) -> str:
    return name.removesuffix(suffix(name))


def _named(url: str) -> tuple[str, str]:
    """Benchmark and split by the name of a file and of its folders."""
    *folders, name = (storage.local_path(url).as_posix() if storage.is_local(url) else url).split("/")
    stem = _unpacked(name).rpartition(".")[0]
    bare = re.sub(r"-\d{5}-of-\d{5}|-v\d+(\.\d+)*$", "", stem)
    found = re.fullmatch(rf"(?P<rest>|.*[-_.])(?P<split>{_SPLIT})", bare, re.I) or re.fullmatch(
        rf"(?P<split>{_SPLIT})(?P<rest>[-_.].*)", bare, re.I
    )
    rest, split = (found["rest"].strip("-_."), found["split"].lower()) if found else (bare, "test")
    asked = (part for part in (rest, *reversed(folders)) if not _UNNAMED.fullmatch(part))
    return next(asked, stem), _SPLITS[split]


def _items(file: _File) -> Iterator[Item]:
    benchmark, split = _named(file.url)
    n_rows = 0
    for where, number, row in _rows(file):
        n_rows += 1
        try:
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, found {type(row).__name__}")
            texts = _texts(_layout(row), row)
        except ValueError as error:
            raise ValueError(f"{file.url}, {where}: {error}") from error
        given = next((row[name] for name in IDS if isinstance(row.get(name), str | int)), number)
        named = next((row[name] for name in ("benchmark", "dataset") if _is_name(row.get(name))), benchmark)
        part = row["split"].lower() if _is_name(row.get("split")) else split
        for turn, (question, answer) in enumerate(texts, 1):
            name = str(given) if len(texts) == 1 else f"{given}/{turn}"
            yield Item(named, _SPLITS.get(part, part), name, question, answer)
    if not n_rows:
        raise ValueError(f"{file.url}: holds no rows")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _rows(file: _File) -> Iterator[tuple[str, int, Any]]:
    """Place, number from 1, and value of every row."""
    where = ""
    try:
        raw, name = _content(file), _unpacked(file.url)
        values: Any = None
        if name.endswith(".parquet"):
            values = pq.read_table(io.BytesIO(raw)).to_pylist()
        elif name.endswith(".json"):
            # Some sets have JSON lines under this name.
            with suppress(json.JSONDecodeError):
                values = _listed(json.loads(raw.decode("utf-8-sig")))
        if values is not None:
            yield from ((f"row {number}", number, row) for number, row in enumerate(values, 1))
            return
        for number, line in enumerate(raw.decode("utf-8-sig").split("\n"), 1):
            where = f", line {number}"
            if line.strip():
                yield where[2:], number, json.loads(line)
    except (ValueError, pa.ArrowException, zlib.error, zstandard.ZstdError) as error:
        raise ValueError(f"{file.url}{where}: {error}") from error


def _content(file: _File) -> bytes:
    raw = storage.read_bytes(file.url)
    kind = suffix(file.url)
    parts = [b"" if kind else raw]
    while kind and raw:  # both kinds of file may be several streams
        decoder = decoder_for(kind)
        parts.append(decoder.decompress(raw))
        if not decoder.eof:
            raise ValueError("the compressed file breaks off")
        raw = decoder.unused_data
    return b"".join(parts)


def _listed(value: Any) -> list[Any]:
    """The rows of a JSON file: a list, an object with one list of objects, or SQuAD's articles of paragraphs."""
    if isinstance(value, dict):
        lists = [
            rows for rows in value.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)
        ]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list):
        raise ValueError(f"expected a list of objects, found {type(value).__name__}")
    if value and isinstance(value[0], dict) and "paragraphs" in value[0]:
        return [row for article in value for paragraph in article["paragraphs"] for row in paragraph["qas"]]
    return value


def _layout(row: Mapping[str, Any]) -> Layout:
    for layout in LAYOUTS:
        has_all = all(_get(row, field) is not _MISSING for field in layout.needs.split(", "))
        if has_all and set(row) <= ONLY.get(layout.name, set(row)):
            return layout
    known = "; ".join(f"{layout.name} ({layout.needs})" for layout in LAYOUTS)
    raise ValueError(f"no evaluation set with the fields {', '.join(row)} is known. Understood are: {known}")


def _get(row: Any, path: str) -> Any:
    """The value at a path of fields, `_MISSING` where there is none."""
    for part in path.split("."):
        if isinstance(row, list) and part.isdigit():
            row = row[int(part)] if int(part) < len(row) else _MISSING
        else:
            row = row.get(part, _MISSING) if isinstance(row, dict) else _MISSING
    return row


def _text(value: Any) -> str:
    """A value as words: of several answers the first."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("value", "text", "spans", "choices") if name in value), None)
    if isinstance(value, list):
        return _text(value[0]) if value else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None or value is _MISSING else str(value)


def _texts(layout: Layout, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Question and answer of every item in the row."""
    if not layout.question:
        return []
    values = [_get(row, field) for field in layout.question.split(", ")]
    if isinstance(values[0], list):
        return [(_text(value), "") for value in values[0]]
    for field, value in zip(layout.question.split(", "), values, strict=True):
        if not isinstance(value, str):
            raise ValueError(f"{field} is {type(value).__name__}, not a string")
    question = "\n".join(values)
    answer = _right(layout, row) if layout.options else _text(_get(row, layout.answer))
    if layout.prompt:
        question, answer = _bare(question, answer)
    if layout.joined == "gap":
        return [(question.replace("_", answer) if answer else question, "")]
    if layout.joined:
        pair = (answer, question) if layout.joined == "before" else (question, answer)
        return [(" ".join(text.strip() for text in pair).strip(), "")]
    return [(question, answer)]


def _bare(prompt: str, answer: str) -> tuple[str, str]:
    """The question of a rendered prompt, and what the letter of a choice in it stands for."""
    question = prompt
    for pattern, instead in _AROUND:
        listed = pattern.search(question) if pattern is _CHOICES and re.fullmatch("[A-Z]", answer) else None
        if listed and (right := re.search(rf"^{answer}{_OPTION}(.*)", listed[1], re.M)):
            answer = right[1]
        question = pattern.sub(instead, question)
    return question.strip("\n"), answer


def _right(layout: Layout, row: Mapping[str, Any]) -> str:
    """The right choice's text; empty where it is held back. Raises `ValueError` for a choice that is not there."""
    found = [_get(row, field) for field in layout.options.split(", ")]
    options = found if len(found) > 1 else found[0]
    labels: list[Any] = []
    if isinstance(options, dict):
        options, labels = options["text"], options["label"]
    elif options and isinstance(options[0], dict):
        options, labels = [one["text"] for one in options], [one["label"] for one in options]
    key = _get(row, layout.right)
    if key in (_MISSING, None, "", -1, "-1"):
        return ""
    if key in labels:
        return str(options[labels.index(key)])
    if key in options:
        return str(key)
    letter = isinstance(key, str) and re.fullmatch("[A-Z]", key)
    if letter or re.fullmatch(r"\d+", str(key)):
        at = ord(str(key)) - ord("A") if letter else int(key) - layout.first
        if 0 <= at < len(options):
            return str(options[at])
    raise ValueError(f"{layout.right} = {key!r} is none of the {len(options)} choices")
