"""How curation did against the known truth of the planted dirt. The labels are read here and nowhere else."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

KINDS = ("near_duplicate", "exact_duplicate", "gibberish", "foreign", "personal", "leak")
DUPLICATE_REASONS = ("near_duplicate", "exact_duplicate")


def planted(
    labels: Sequence[Mapping[str, Any]],
    reasons: Mapping[str, str],
    kept_texts: Mapping[str, str],
    originals: Collection[str],
) -> dict[str, Any]:
    """`{kind: {planted, found}, originals, originals_removed}`.

    `labels` are rows of planted.jsonl, `reasons` why each removed id was removed, `kept_texts` the text of the kept
    `personal` documents, `originals` the ids of the source in question, planted ones included or not. Of a document and its
    copies any one may be the one that stays: a copy is found where it, or else its original, was removed as a duplicate
    while one of them is kept; an original counts as removed only where none of them is kept.
    """
    found = {kind: [0, 0] for kind in KINDS}
    groups: dict[str, list[str]] = {}
    for label in labels:
        if label["of"] is not None:
            groups.setdefault(label["of"], [label["of"]]).append(label["id"])
    survives = {
        original: any(member not in reasons for member in group) for original, group in groups.items()
    }
    credit = {original for original in groups if reasons.get(original) in DUPLICATE_REASONS}
    for label in labels:
        counts = found[label["kind"]]
        counts[0] += 1
        counts[1] += _is_found(label, reasons, kept_texts, survives, credit)
    dirty = {label["id"] for label in labels}
    clean = [id_ for id_ in originals if id_ not in dirty]
    lost = [id_ for id_ in clean if id_ in reasons and not survives.get(id_, False)]
    return {
        **{kind: {"planted": n, "found": n_found} for kind, (n, n_found) in found.items()},
        "originals": len(clean),
        "originals_removed": len(lost),
    }


def _is_found(
    label: Mapping[str, Any],
    reasons: Mapping[str, str],
    kept_texts: Mapping[str, str],
    survives: Mapping[str, bool],
    credit: set[str],
) -> bool:
    id_, original = label["id"], label["of"]
    if label["kind"] == "personal":
        fragments = label.get("fragments") or [label["text_fragment"]]
        return not any(fragment in kept_texts.get(id_, "") for fragment in fragments)
    if original is None:
        return id_ in reasons
    if not survives[original]:
        return False
    if reasons.get(id_) in DUPLICATE_REASONS:
        return True
    if original in credit:  # the original went in place of one copy
        credit.remove(original)
        return True
    return False
