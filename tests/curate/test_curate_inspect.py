"""What `moxin inspect documents` shows, in which order, and how little it reads for that."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from s3 import LiveS3

from moxin import cli, recipes, storage
from moxin.artifact import Artifact
from moxin.config import to_jsonable
from moxin.curate import inspect
from moxin.curate.documents import SCHEMA
from moxin.curate.inspect import Condition, Query, shards, show


def table(first: int, n: int, **columns) -> pa.Table:
    rows = {name: [f"{name}-{i}" for i in range(first, first + n)] for name in SCHEMA.names}
    rows["source"] = ["web" if i % 2 else "code" for i in range(first, first + n)]
    return pa.table({**rows, **{name: values(first, n) for name, values in columns.items()}})


def words(first: int, n: int) -> pa.Array:
    return pa.array([None if i % 10 == 9 else i / 10 for i in range(first, first + n)], pa.float32())


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A curate artifact of 100 documents in two shards, of which the second has a signal more, and of 10 removed ones."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "removed").mkdir()
    pq.write_table(
        table(0, 50, words=words), tmp_path / "documents" / "part-00000.parquet", row_group_size=10
    )
    both = table(50, 50, words=words, symbols=lambda first, n: pa.array([1.5] * n, pa.float32()))
    pq.write_table(both, tmp_path / "documents" / "part-00001.parquet", row_group_size=10)
    gone = table(0, 10, words=words).append_column("step", pa.array(["quality"] * 10))
    gone = gone.append_column("other", pa.array([7] * 10))
    gone = gone.append_column("reason", pa.array([("short", "long")[i % 2] for i in range(10)]))
    gone = gone.append_column("detail", pa.array([f"other 7 < {i}" for i in range(10)]))
    pq.write_table(gone, tmp_path / "removed" / "part-00000.parquet")
    return str(tmp_path)


def ids(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [
        line.split()[2]
        for line in capsys.readouterr().out.splitlines()
        if line[:1] == " " and ": id-" in line
    ]


def test_a_page_shows_origin_signals_and_text(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(shards(folder), Query(n=2, page=26))
    out = capsys.readouterr().out
    assert "51: id-50" in out
    assert "source code   licence license-50   language lang-50   url url-50" in out
    assert "words 5.000   symbols 1.500" in out
    assert "\ntext-50\n" in out
    assert "documents 51 to 52; --page 27 shows more" in out


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["words>9.5"], [96, 97, 98]),
        (["words=0.1"], [1]),  # the float32 nearest to it
        (["words >= 9.5", "source=web"], [95, 97]),
        (["id=id-42"], [42]),
        (["words<0.2", "source != web"], [0]),
        (["symbols=1.5", "words<=5.1"], [50, 51]),  # the first shard has no such column
    ],
    ids=str,
)
def test_all_conditions_must_hold(
    folder: str, where: list[str], expected: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    show(shards(folder), Query([Condition.parse(text) for text in where]))
    out = capsys.readouterr().out
    assert [f"id-{i}" for i in expected] == [line.split()[1] for line in out.splitlines() if ": id-" in line]
    assert "and that is all" in out


@pytest.mark.parametrize("lowest", [False, True])
def test_sorted_pages_follow_each_other(
    folder: str, lowest: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for page in (1, 2, 3):
        show(shards(folder), Query((), "words", lowest, n=7, page=page))
        found += [line.split()[1] for line in capsys.readouterr().out.splitlines() if ": id-" in line]
    order = [i for i in range(100) if i % 10 != 9]
    assert found == [f"id-{i}" for i in (order if lowest else order[::-1])[:21]]


def test_text_is_read_of_the_row_groups_alone_that_are_shown(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[tuple[int, ...]] = []
    rows = inspect._rows

    def watched(places):
        read.extend((row_group.id,) for place in places for row_group in place.group.row_groups)
        return rows(places)

    monkeypatch.setattr(inspect, "_rows", watched)
    groups: list[ds.ParquetFileFragment] = []
    matching = inspect._Files.matching

    def counted(self, query):
        for group, found in matching(self, query):
            groups.append(group)
            assert "text" not in found.column_names
            yield group, found

    monkeypatch.setattr(inspect._Files, "matching", counted)
    show(shards(folder), Query([Condition.parse("words>9.3")], n=3))
    assert len(groups) == 1  # statistics rule nine of ten out
    assert set(read) == {(4,)}
    capsys.readouterr()


def test_removed_documents_begin_with_what_decided(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "documents", folder, "--reason", "long", "--n", "1"]) == 0
    out = capsys.readouterr().out
    assert "1: id-1 " in out
    assert "removed at quality for long: other 7 < 1" in out
    assert "other 7   words 0.100" in out


def test_texts_are_cut_and_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[31mred\x1b[0m \u202egnp.exe [bold]no markup[/bold] " + "x" * 100
    row = dict.fromkeys(SCHEMA.names, "a") | {"text": hostile, "id": "\x07bell", "url": "\u2066u"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert cli.main(["inspect", "documents", str(tmp_path / "a.parquet"), "--chars", "50"]) == 0
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e", "\u2066"} & set(out)
    assert "␛[31mred␛[0m ⟨U+202E⟩gnp.exe [bold]no markup[/bold]" in out
    assert f"… and {len(hostile) - 50} more characters" in out


def test_mistakes_are_named(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.parquet").write_text("not Parquet, by far")

    def says(*arguments: str) -> str:
        assert cli.main(["inspect", "documents", *arguments]) == 2, arguments
        output = capsys.readouterr()
        return " ".join((output.out + output.err).split())

    assert "there is no column 'wrods'; did you mean 'words'?" in says(folder, "--where", "wrods>3")
    assert "there is no column 'step' (of removed documents: --removed)" in says(folder, "--sort", "step")
    assert "no document matches words > 99 in 2 shards" in says(folder, "--where", "words > 99")
    assert "only 90 documents match, which are 9 pages of 10" in says(
        folder, "--sort", "words", "--page", "10"
    )
    assert "not a Parquet file" in says(str(tmp_path / "no.parquet"))
    assert "source is text" in says(folder, "--where", "source<3")
    assert "'many' is no number" in says(folder, "--where", "words>many")
    assert "write COLUMN OP VALUE" in says(folder, "--where", "words")
    assert "--n 0: must be at least 1" in says(folder, "--n", "0")
    assert "--lowest has no effect" in says(folder, "--lowest")
    assert "no such file or folder" in says(str(tmp_path / "nothing"))


def test_of_a_run_the_curate_artifact_is_shown(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.write_json(str(tmp_path / "run" / "recipe.json"), to_jsonable(recipes.load("smoke")))

    class Run:
        def __init__(self, recipe, url, *, only_find):
            assert (recipe.name, url, only_find) == ("smoke", str(tmp_path / "run"), True)

        def artifact(self, name):
            assert name == "curate"
            return Artifact(name, "", folder, {})

    monkeypatch.setattr("moxin.pipeline.Run", Run)
    assert cli.main(["inspect", "documents", str(tmp_path / "run"), "--id", "id-7"]) == 0
    assert "1: id-7 " in capsys.readouterr().out
    assert cli.main(["inspect", "documents", str(tmp_path / "run"), "--removed", "--id", "id-7"]) == 0
    assert "removed at quality for long" in capsys.readouterr().out


def test_shards_on_s3_are_read_in_place(folder: str, s3: LiveS3, capsys: pytest.CaptureFixture[str]) -> None:
    storage.upload(Path(folder), storage.join(s3.url, "curate"))
    assert (
        cli.main(["inspect", "documents", storage.join(s3.url, "curate"), "--sort", "words", "--n", "1"]) == 0
    )
    out = capsys.readouterr().out
    assert "1: id-98 " in out
    assert "\ntext-98\n" in out
