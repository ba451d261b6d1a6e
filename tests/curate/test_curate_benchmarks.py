"""Evaluation sets in every layout that is understood, real ones where they are there, and what is said of others."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from moxin import storage
from moxin.curate import benchmarks
from moxin.curate.contamination import Item, build

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
LETTERS = {"text": ["clay", "sand", "silt", "loam"], "label": ["A", "B", "C", "D"]}
NUMBERED = {"text": ["clay", "sand"], "label": ["1", "2"]}
LISTED = [{"text": "clay", "label": "1"}, {"text": "sand", "label": "2"}]
ROWS = [
    ("ARC", {"question": "Which soil?", "choices": LETTERS, "answerKey": "B"}, "Which soil?", "sand"),
    ("ARC numbers", {"question": "Which?", "choices": NUMBERED, "answerKey": "2"}, "Which?", "sand"),
    ("ARC first", {"question": {"stem": "Which?", "choices": LISTED}, "answerKey": "1"}, "Which?", "clay"),
    ("OpenBookQA", {"question_stem": "Soil is", "choices": LETTERS, "answerKey": "D"}, "Soil is", "loam"),
    ("HellaSwag", {"ctx": "He runs. he", "endings": ["stops.", "flies."], "label": "1"}, "He runs. he flies.", ""),
    ("HellaSwag hidden", {"ctx": "He runs. he", "endings": ["stops."], "label": ""}, "He runs. he", ""),
    ("MMLU", {"question": "2+2?", "subject": "s", "choices": ["3", "4"], "answer": 1}, "2+2?", "4"),
    ("MMLU hidden", {"question": "2+2?", "choices": ["3", "4"], "answer": None}, "2+2?", ""),
    ("MMLU-Pro", {"question": "Q?", "options": ["a", "b"], "answer": "A", "answer_index": 0}, "Q?", "a"),
    ("PIQA", {"goal": "Cut it", "sol1": "knife", "sol2": "spoon", "label": 0}, "Cut it", "knife"),
    ("PIQA hidden", {"goal": "Cut it", "sol1": "knife", "sol2": "spoon"}, "Cut it", ""),
    (
        "WinoGrande",
        {"sentence": "Sarah beat Maria so _ won.", "option1": "Sarah", "option2": "Maria", "answer": "1"},
        "Sarah beat Maria so Sarah won.",
        "",
    ),
    ("BoolQ", {"question": "is it wet", "passage": "Water is wet.", "answer": True}, "is it wet", "yes"),
    ("BoolQ SuperGLUE", {"question": "is it wet", "passage": "W.", "idx": 3, "label": 1}, "is it wet", ""),
    ("COPA", {"premise": "It rained.", "choice1": "Dry.", "choice2": "Wet.", "label": 1}, "It rained.", "Wet."),
    (
        "SIQA",
        {"context": "A fell.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
        "A fell.\nWhy?",
        "c",
    ),
    ("GSM8K", {"question": "How many?", "answer": "2+2=4\n#### 4"}, "How many?", "2+2=4\n#### 4"),
    ("HumanEval", {"task_id": "H/0", "prompt": "def f():", "canonical_solution": " pass", "test": "t"}, "def f():", " pass"),
    ("MBPP", {"task_id": 1, "text": "Add.", "code": "a + b", "test_list": []}, "Add.", "a + b"),
    ("MBPP sanitized", {"prompt": "Add.", "code": "a + b"}, "Add.", "a + b"),
    ("MATH", {"problem": "Find $x$.", "level": "5", "solution": "$x=1$"}, "Find $x$.", "$x=1$"),
    ("TriviaQA", {"question": "Who?", "answer": {"aliases": ["Bo"], "value": "Bob"}}, "Who?", "Bob"),
    ("NQ open", {"question": "Who?", "answer": ["Bob", "Robert"]}, "Who?", "Bob"),
    ("LAMBADA", {"text": "He took off his hat"}, "He took off his hat", ""),
    ("SQuAD", {"context": "C", "question": "Who?", "answers": {"text": ["Bob"], "answer_start": [0]}}, "Who?", "Bob"),
    ("SQuAD none", {"context": "C", "question": "Who?", "answers": {"text": [], "answer_start": []}}, "Who?", ""),
    ("DROP", {"passage": "P", "question": "Who?", "answers_spans": {"spans": ["Bob"]}}, "Who?", "Bob"),
    ("RACE", {"article": "P", "question": "Who?", "options": ["Al", "Bob"], "answer": "B"}, "Who?", "Bob"),
    ("AQuA", {"question": "Sum?", "options": ["A)1", "B)2"], "correct": "B"}, "Sum?", "B)2"),
    ("SciQ", {"question": "Who?", "correct_answer": "Bob", "distractor1": "Al"}, "Who?", "Bob"),
    ("GPQA", {"Question": "Who?", "Correct Answer": "Bob"}, "Who?", "Bob"),
    ("TruthfulQA", {"question": "Who?", "best_answer": "Bob"}, "Who?", "Bob"),
    ("TruthfulQA mc", {"question": "Who?", "mc1_targets": {"choices": ["Bob", "Al"], "labels": [1, 0]}}, "Who?", "Bob"),
    ("BIG-bench", {"input": "1+1", "target": "2"}, "1+1", "2"),
    ("IFEval", {"key": 1, "prompt": "Write.", "instruction_id_list": ["x"]}, "Write.", ""),
    ("AIME", {"problem": "Find.", "answer": 7}, "Find.", "7"),
    ("gauntlet choices", {"query": "Question: Who?\n", "choices": ["Al", "Bob"], "gold": 1}, "Who?", "Bob"),
    (
        "gauntlet letters",
        {"query": "Context: A fell.\nQuestion: Who?\nChoices:\nA. Al\nB. Bob\nAnswer:", "choices": ["A", "B"], "gold": 1},
        "A fell.\nWho?",
        "Bob",
    ),
    (
        "gauntlet passage",
        {"query": "Passage: Long.\nQ: Who?\nChoices:\nA.) Al\nB.) Bob\nAnswer:", "choices": ["A", "B"], "gold": 0},
        "Who?",
        "Al",
    ),
    ("gauntlet true", {"query": "True or false?\nQ: It is so.\nA:", "choices": ["T", "F"], "gold": 1}, "It is so.", "F"),
    ("gauntlet context", {"context_options": ["Al", "Bob"], "continuation": "won.", "gold": 1}, "Bob won.", ""),
    ("gauntlet cloze", {"context": "25 - 9 =", "continuation": " 16"}, "25 - 9 = 16", ""),
    ("gauntlet jeopardy", {"context": "WORLD HISTORY: He won", "continuation": "Bob"}, "He won Bob", ""),
    ("gauntlet question", {"context": "Question: Who?\nAnswer:", "answer": "Bob", "aliases": ["B"]}, "Who?", "Bob"),
]  # fmt: skip


def write(path: Path, *rows: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "question", "answer"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_every_layout(tmp_path, row, question, answer):
    found = benchmarks.read([write(tmp_path / "some.jsonl", row)])
    name = str(next((row[key] for key in benchmarks.IDS if key in row), 1))
    assert found == [Item("some", "test", name, question, answer)]


def test_no_layout_lacks_a_row():
    named = {benchmarks._layout(row).name for _, row, *_ in ROWS}
    assert named == {layout.name for layout in benchmarks.LAYOUTS if "MT-Bench" not in layout.name}


def test_every_turn_is_an_item_and_prompts_of_judges_are_none(tmp_path):
    write(tmp_path / "mt_bench" / "question.jsonl", {"question_id": 81, "turns": ["Write.", "Rewrite."]})
    answers = {"question_id": 81, "answer_id": "x", "choices": [{"index": 0, "turns": ["Once."]}]}
    write(tmp_path / "mt_bench" / "reference_answer_gpt-4.jsonl", answers)
    write(tmp_path / "mt_bench" / "judge_prompts.jsonl", {"prompt_template": "p", "system_prompt": "s"})
    assert benchmarks.read([str(tmp_path)]) == [
        Item("mt_bench", "test", "81/1", "Write.", ""),
        Item("mt_bench", "test", "81/2", "Rewrite.", ""),
        Item("mt_bench", "test", "x", "Once.", ""),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gsm8k/train.jsonl", ("gsm8k", "train")),
        ("gsm8k_test.jsonl", ("gsm8k", "test")),
        ("x/HumanEval.jsonl.gz", ("HumanEval", "test")),
        ("gauntlet/reading_comprehension/boolq.jsonl", ("boolq", "test")),
        ("ai2_arc/ARC-Challenge/validation-00000-of-00001.parquet", ("ARC-Challenge", "validation")),
        ("ARC-Easy-Dev.jsonl", ("ARC-Easy", "dev")),
        ("gsm8k/main/test-00000-of-00001.parquet", ("gsm8k", "test")),
        ("squad/train-v1.1.json", ("squad", "train")),
        ("winogrande/train_xl.jsonl", ("winogrande", "train")),
        ("hellaswag_val.jsonl.zst", ("hellaswag", "validation")),
        ("x/contest.jsonl", ("contest", "test")),
    ],
)
def test_names_of_files_and_folders(name, expected):
    assert benchmarks._named(f"/sets/{name}") == expected
    assert benchmarks._named(f"s3://bucket/{name}") == expected


def test_a_row_says_its_own_benchmark_split_and_id(tmp_path):
    row = {"question": "Q", "answer": "A", "benchmark": "own", "split": "val", "id": 7}
    other = {**row, "benchmark": None, "dataset": "set", "split": ""}
    found = benchmarks.read([write(tmp_path / "x_train.jsonl", row, other)])
    assert [item[:3] for item in found] == [("own", "validation", "7"), ("set", "train", "7")]


def test_formats_hold_the_same_items(tmp_path, s3):
    rows = [{"question": f"Question {k} é?", "answer": f"{k}"} for k in range(5)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows).encode()
    half = len(lines) // 2
    files = {
        "a.jsonl": b"\xef\xbb\xbf" + lines.replace(b"\n\n", b"\n"),
        "b.jsonl.gz": gzip.compress(lines[:half]) + gzip.compress(lines[half:]),
        "c.jsonl.zst": zstandard.compress(lines[:half]) + zstandard.compress(lines[half:]),
        "d.json": json.dumps(rows).encode(),
        "e.json.gz": gzip.compress(json.dumps({"version": 1, "data": rows}).encode()),
        "f.json": lines,
        "README.md": b"not read",
        ".cache/g.jsonl": b"not read",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "h.parquet")
    found = benchmarks.read([str(tmp_path)])
    assert sorted(Counter(item.benchmark for item in found).items()) == [(name, 5) for name in "abcdefh"]
    assert {item[3:] for item in found} == {(row["question"], row["answer"]) for row in rows}
    storage.upload(tmp_path, s3.url)
    assert benchmarks.read([s3.url]) == found
    assert benchmarks.fingerprint([s3.url]) == benchmarks.fingerprint([str(tmp_path)])


def test_squad_as_it_was_first_published(tmp_path):
    questions = [
        {"id": "q1", "question": "Who?", "answers": [{"text": "Bob", "answer_start": 0}]},
        {"id": "q2", "question": "When?", "answers": [], "is_impossible": True},
    ]
    value = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "C", "qas": questions}]}]}
    path = tmp_path / "squad" / "dev-v2.0.json"
    path.parent.mkdir()
    path.write_text(json.dumps(value))
    assert benchmarks.read([str(path)]) == [
        Item("squad", "dev", "q1", "Who?", "Bob"),
        Item("squad", "dev", "q2", "When?", ""),
    ]


def test_items_of_the_same_name_are_told_apart_and_a_file_is_read_once(tmp_path):
    row = {"question": "Q", "answer": "A"}
    first = write(tmp_path / "a" / "gsm8k" / "test.jsonl", row, {**row, "id": "1#2"})
    second = write(tmp_path / "b" / "gsm8k.jsonl", row)
    found = benchmarks.read([first, second, str(tmp_path / "a")])
    assert [item.id for item in found] == ["1", "1#2", "1#3"]
    assert {item[:2] for item in found} == {("gsm8k", "test")}


def test_the_fingerprint_is_of_names_and_contents(tmp_path):
    row = {"question": "Q", "answer": "A"}
    base = benchmarks.fingerprint([write(tmp_path / "a" / "gsm8k" / "test.jsonl", row)])
    assert benchmarks.fingerprint([write(tmp_path / "b" / "gsm8k" / "test.jsonl", row)]) == base
    others = [
        write(tmp_path / "c" / "gsm8k" / "train.jsonl", row),
        write(tmp_path / "d" / "mmlu" / "test.jsonl", row),
        write(tmp_path / "e" / "gsm8k" / "test.jsonl", {**row, "answer": "B"}),
    ]
    assert len({base, *(benchmarks.fingerprint([url]) for url in others)}) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "Q", "answer": "A"}\n{"foo": 1, "bar": 2}\n', r"a\.jsonl, line 2: .* foo, bar .*GSM8K"),
        ("a.jsonl", b'{"id": 1, "text": "a document", "url": "u"}\n', "line 1: .* id, text, url"),
        ("a.jsonl", b'{"question": "Q", "answer": "A"}\n{"question"\n', r"a\.jsonl, line 2: "),
        ("a.jsonl", b"[1]\n", "line 1: expected an object, found list"),
        ("a.jsonl", b'{"question": null, "answer": "A"}\n', "line 1: question is NoneType"),
        ("a.jsonl", b'{"query": "Q", "choices": ["a", "b"], "gold": 2}\n', "line 1: gold = 2 is none of the 2"),
        ("a.jsonl", b"", r"a\.jsonl: holds no rows"),
        ("a.jsonl", b"\xff\xfe", r"a\.jsonl: .*utf-8"),
        ("a.json", b"[]", r"a\.json: holds no rows"),
        ("a.json", b"3", r"a\.json: expected a list"),
        ("a.jsonl.gz", gzip.compress(b'{"question": "Q", "answer": "A"}\n')[:-9], r"a\.jsonl\.gz: .*breaks off"),
        ("a.jsonl.gz", b"plain", r"a\.jsonl\.gz: "),
        ("a.jsonl.zst", b"plain", r"a\.jsonl\.zst: "),
        ("a.parquet", b"plain", r"a\.parquet: "),
        ("a.txt", b"plain", "none of its 1 files"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        benchmarks.read([str(tmp_path)])


def test_a_folder_that_is_not_there(tmp_path):
    for call in (benchmarks.read, benchmarks.fingerprint):
        with pytest.raises(ValueError, match="no such file or folder"):
            call([str(tmp_path / "none")])


def real(*names: str) -> list[Item]:
    urls = [DATA / name for name in names]
    for url in urls:
        if not url.exists():
            pytest.skip(f"{url} is not there")
    return benchmarks.read([str(url) for url in urls])


def test_the_gauntlet_and_mt_bench():
    items = real("eval")
    sizes = Counter(item[:2] for item in items)
    expected = {
        "arc_challenge": 1172,
        "boolq": 3270,
        "piqa": 1838,
        "HumanEval": 164,
        "human_eval": 164,
        "siqa": 1954,
    }
    expected |= {"gsm8k": 1319, "winogrande": 1267, "mt_bench": 2 * 80 + 2 * 30, "lambada_openai": 5153}
    assert {(name, "test"): n for name, n in expected.items()}.items() <= sizes.items()
    assert len(sizes) == 28
    assert len({item[:3] for item in items}) == len(items)
    first = {item.benchmark: item for item in reversed(items)}
    assert first["commonsense_qa"].answer == "bank"
    assert first["boolq"].question == "does ethanol take more energy make that produces?"
    assert first["arc_easy"].question.startswith("Which statement best explains why photosynthesis")
    assert first["siqa"][3:] == (
        "Tracy didn't go home that evening and resisted Riley's attacks.\nWhat does Tracy need to do before this?",
        "Find somewhere to go",
    )
    assert first["winogrande"].question.startswith(
        "Sarah was a much better surgeon than Maria so Maria always"
    )
    for item in items:
        assert item.question.strip(), item
        assert not item.question.startswith(("Question:", "Passage:", "Context:")), item
        assert not item.question.rstrip().endswith(("Answer:", "Output:")), item


def test_splits_of_gsm8k():
    items = real("align/gsm8k")
    assert Counter(item[:2] for item in items) == {("gsm8k", "train"): 7473, ("gsm8k", "test"): 1319}
    assert items[0].question.startswith("Janet’s ducks lay 16 eggs per day.")
    build(items, allowed=[("gsm8k", "train")])
