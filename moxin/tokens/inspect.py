"""Shows what a model was trained on: a sample with its documents, their origin and the loss mask, or a step's samples."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.text import Text

from moxin import console
from moxin.tokens.loader import PhaseData
from moxin.tokens.tokenizer import Tokenizer

OPEN, CLOSE = "⟦", "⟧"
"""Around what is only read, where the terminal has no colours."""


class Piece(NamedTuple):
    """A document's part of a sample: where it is from, where it stands in the row, and its text in two parts."""

    shard: str
    document: int
    first_token: int
    """Of the document; 0 is its beginning."""
    position: int
    length: int
    read: str
    """What is not predicted: its first token."""
    predicted: str
    """What is in the loss."""


def pieces(data: PhaseData, tokenizer: Tokenizer, i: int) -> list[Piece]:
    """The documents of sample `i`, in their order in the row."""
    batch = data.batch(i, 1)
    tokens, segments = batch.tokens_BT[0], batch.segments_BT[0]
    found = []
    for number, (shard, document, first) in enumerate(data.sample(i).documents):
        here = np.flatnonzero(segments == number)
        ids = tokens[here].tolist()
        last = int(batch.targets_BT[0, here[-1]])
        # The last target lies beyond the row where the document does.
        shown = [*ids, last] if last >= 0 else ids
        read, predicted = (
            console.visible(tokenizer.decode(part, skip_special=False)) for part in (shown[:1], shown[1:])
        )
        found.append(Piece(shard, document, first, int(here[0]), len(here), read, predicted))
    return found


def show_sample(data: PhaseData, tokenizer: Tokenizer, i: int, rows_per_step: int) -> None:
    """Prints sample `i` of the phase as the model sees it. Raises `ValueError` for one that the phase does not have."""
    if not 0 <= i < data.n_samples:
        raise ValueError(f"{data.phase.name} has the samples 0 to {data.n_samples - 1:,}, not {i:,}")
    sample, batch = data.sample(i), data.batch(i, 1)
    found = pieces(data, tokenizer, i)
    in_loss = int((batch.targets_BT >= 0).sum())
    console.heading(f"{data.phase.name}, sample {i:,} of {data.n_samples:,}")
    console.say(
        f"  step {i // rows_per_step + 1:,}, row {i % rows_per_step + 1} of {rows_per_step}; source {sample.key}, pass "
        f"{sample.epoch + 1} over it; {len(found)} documents, {in_loss:,} of {data.context:,} positions in the loss"
    )
    for number, piece in enumerate(found):
        where = f"{piece.shard}, document {piece.document:,}"
        where += f" from its token {piece.first_token:,} on" if piece.first_token else ""
        end = piece.position + piece.length
        console.console.rule(
            Text(
                f" {number + 1}: positions {piece.position:,} to {end:,} of the row; {where} ", style="cyan"
            ),
            align="left",
            style="dim",
        )
        if console.console.is_terminal:
            console.console.print(Text.assemble((piece.read, "dim reverse"), piece.predicted), soft_wrap=True)
        else:
            console.console.print(Text(f"{OPEN}{piece.read}{CLOSE}{piece.predicted}"), soft_wrap=True)
    padding = int((batch.segments_BT < 0).sum())
    if padding:
        console.console.rule(
            Text(f" {padding:,} positions of padding ", style="cyan"), align="left", style="dim"
        )
    marked = "reversed" if console.console.is_terminal else f"in {OPEN}{CLOSE}"
    console.say(f"  {marked}: read, not predicted; a document sees only itself", style="dim")


def show_step(data: PhaseData, tokenizer: Tokenizer, step: int, rows_per_step: int) -> None:
    """Prints the samples of optimizer step `step` (from 1), one in a line. Raises `ValueError` for one beyond the phase."""
    first = (step - 1) * rows_per_step
    if step < 1 or first + rows_per_step > data.n_samples:
        raise ValueError(
            f"{data.phase.name} has the steps 1 to {data.n_samples // rows_per_step:,}, not {step:,}"
        )
    rows: list[Sequence[str | int]] = []
    for i in range(first, first + rows_per_step):
        sample, found = data.sample(i), pieces(data, tokenizer, i)
        words = " ".join((found[0].read + found[0].predicted).split())
        rows.append((f"{i:,}", sample.key, sample.epoch + 1, len(found), words[:60]))
    console.table(
        f"{data.phase.name}, step {step:,}", ("sample", "source", "pass", "documents", "begins with"), rows
    )
