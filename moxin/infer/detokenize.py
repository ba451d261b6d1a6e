"""From tokens to text as they come: never half a UTF-8 character, nothing that may yet turn out to be a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]
"""`Tokenizer.decode`: ids to text, with U+FFFD for bytes that are no character."""

MOST_PENDING = 3
"""Tokens that may be waiting for the rest of a character: it has 4 bytes at most, and a token at least one of them."""


class Detokenizer:
    """The text of one answer. `push` gives what can be shown, `finish` the rest; `stopped` is the stop string that came.

    With `include_stop` the text ends behind the stop string, else before it. All pieces together are what `decode` makes of
    all tokens, up to there; bytes that are no UTF-8 come as U+FFFD, at most three tokens late.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = (), include_stop: bool = False) -> None:
        self.decode, self.stop, self.include_stop = decode, tuple(stop), include_stop
        self.stopped: str | None = None
        self._ids: list[int] = []
        # Text is the difference of two decodings that share a left context: some decoders strip or join at the border.
        self._context, self._done = 0, 0
        self._held = ""

    def push(self, token: int, look: bool = True) -> str:
        """The text that this token completes, "" while it must be held back. After a stop string always "".

        Without `look` stop strings that end in this token are text like any other.
        """
        self._ids.append(token)
        return self._emit(self._decoded(final=False), final=False, look=look)

    def finish(self) -> str:
        """What was held back; half a character comes as U+FFFD."""
        return self._emit(self._decoded(final=True), final=True)

    def _decoded(self, final: bool) -> str:
        text = ""
        while True:
            before = self.decode(self._ids[self._context : self._done])
            now = self.decode(self._ids[self._context :])
            if len(now) <= len(before):
                return text
            if final or not now.endswith("\ufffd"):
                end = len(self._ids)
            elif len(self._ids) - self._done > MOST_PENDING:
                # No character can begin in the oldest token and still be unfinished: what it has now is all it will be.
                end = self._done + 1
                now = self.decode(self._ids[self._context : end])
            else:
                return text
            text += now[len(before) :]
            # The context may begin anew where the decoding falls into two there: not within a character's remains.
            if before + self.decode(self._ids[self._done : end]) == now or end == len(self._ids):
                self._context = self._done
            self._done = end
            if end == len(self._ids):
                return text

    def _emit(self, new: str, final: bool, look: bool = True) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + new
        if not look:
            self._held = ""
            return text
        found = [(at, stop) for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found)
            self._held = ""
            return text[: at + len(self.stopped)] if self.include_stop else text[:at]
        hold = 0 if final else max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
