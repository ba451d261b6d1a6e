"""The score of curation against the labels of planted dirt."""

from moxin.curate import score


def label(id_: str, kind: str, of: str | None = None, fragment: str | None = None) -> dict:
    return {"id": id_, "kind": kind, "of": of, "text_fragment": fragment}


def test_of_a_document_and_its_copy_either_may_be_the_one_that_stays():
    labels = [label("copy", "near_duplicate", "original")]
    ids = ["original", "copy", "other"]

    def scored(**reasons: str) -> tuple[int, int]:
        result = score.planted(labels, reasons, {}, ids)
        assert result["originals"] == 2
        return result["near_duplicate"]["found"], result["originals_removed"]

    assert scored(copy="near_duplicate") == (1, 0)
    assert scored(original="exact_duplicate") == (1, 0)
    assert scored() == (0, 0)
    assert scored(copy="too_short") == (0, 0)
    assert scored(original="too_short") == (0, 0)
    assert scored(original="near_duplicate", copy="near_duplicate") == (0, 1)
    assert scored(copy="near_duplicate", other="symbols") == (1, 1)


def test_one_removal_counts_for_one_copy():
    labels = [label("a", "near_duplicate", "original"), label("b", "exact_duplicate", "original")]
    for reasons, expected in (
        ({"original": "near_duplicate"}, 1),
        ({"original": "near_duplicate", "b": "exact_duplicate"}, 2),
        ({"b": "exact_duplicate"}, 1),
    ):
        result = score.planted(labels, reasons, {}, ["original", "a", "b"])
        assert result["near_duplicate"]["found"] + result["exact_duplicate"]["found"] == expected


def test_personal_data_is_found_when_no_fragment_is_left():
    labels = [
        {**label("a", "personal", fragment="x@y.z"), "fragments": ["x@y.z", "8.8.8.8"]},
        label("l", "leak"),
    ]
    for text, found in (("<EMAIL> <IP_ADDRESS>", 1), ("<EMAIL> 8.8.8.8", 0), ("x@y.z", 0)):
        result = score.planted(labels, {"l": "evaluation_question"}, {"a": text}, ["a", "l"])
        assert result["personal"] == {"planted": 1, "found": found}
        assert result["leak"] == {"planted": 1, "found": 1}
        assert (result["originals"], result["originals_removed"]) == (0, 0)
