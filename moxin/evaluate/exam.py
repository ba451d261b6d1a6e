"""What an evaluation asks. Apart from the harness, because a driver that only names stages need not import lm-eval."""

from dataclasses import dataclass

TASKS = ("tinyworld_mc", "tinyworld_gen", "heldout_bits_per_byte")


@dataclass(frozen=True)
class Exam:
    """The files, and whether questions come as chats."""

    questions_url: str
    heldout_url: str
    chat: bool
