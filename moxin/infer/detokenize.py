"""From tokens to text as they come: never half a UTF-8 character, nothing that may yet turn out to be a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]
"""`Tokenizer.decode`: ids to text, with U+FFFD for bytes that are no character."""


class Detokenizer:
    """The text of one answer. `push` gives what can be shown, `finish` the rest; `stopped` says that a stop string came."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self.decode, self.stop, self.stopped = decode, tuple(stop), False
        self._ids: list[int] = []
        # Text is the difference of two decodings that share a left context: some decoders strip or join at the border.
        self._context, self._done = 0, 0
        self._held = ""

    def push(self, token: int) -> str:
        """The text that this token completes, "" while it must be held back. After a stop string always ""."""
        self._ids.append(token)
        return self._emit(self._decoded(final=False), final=False)

    def finish(self) -> str:
        """What was held back; half a character comes as U+FFFD."""
        return self._emit(self._decoded(final=True), final=True)

    def _decoded(self, final: bool) -> str:
        before = self.decode(self._ids[self._context : self._done])
        now = self.decode(self._ids[self._context :])
        if len(now) <= len(before) or (now.endswith("\ufffd") and not final):
            return ""
        self._context, self._done = self._done, len(self._ids)
        return now[len(before) :]

    def _emit(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = 0 if final else max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
