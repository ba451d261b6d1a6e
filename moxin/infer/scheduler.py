"""Who is worked on in a step. Running answers come first, the earliest first; then waiting ones as long as pages are free.
Where pages run out the latest gives all of its own back and waits again, to be computed anew (arXiv 2309.06180, §4.5).

What a step does to an answer depends on that answer alone, not on its company: a prompt is cut at multiples of `chunk` from
its beginning, so the same products are computed whoever else is there.
"""

from collections import deque
from dataclasses import dataclass

from moxin.infer.cache import Held, PagedCache
from moxin.infer.sequence import AnswerSequence


@dataclass(frozen=True)
class Work:
    """Tokens of one answer to read in this step, from the first that is not computed; behind its own the `guesses`."""

    sequence: AnswerSequence
    n: int
    guesses: tuple[int, ...] = ()

    @property
    def completes(self) -> bool:
        """Whether the last of the answer's own tokens is among them, so that a new one follows."""
        return self.n - len(self.guesses) == self.sequence.n_pending


class Scheduler:
    """`budget` is the most prompt tokens a step reads, about: a chunk that was begun is not cut."""

    def __init__(self, cache: PagedCache, chunk: int, budget: int, prefix_caching: bool = True) -> None:
        self.cache, self.chunk, self.budget, self.prefix_caching = cache, chunk, budget, prefix_caching
        self.waiting: deque[AnswerSequence] = deque()
        self.running: list[AnswerSequence] = []
        self.n_preemptions = 0

    def plan(self) -> list[Work]:
        """The work of one step, for which places in the cache are taken."""
        works: list[Work] = []
        left = self.budget
        at = 0
        while at < len(self.running):
            sequence = self.running[at]
            work = self._work(sequence, left)
            if work is not None and self._make_room(sequence, work.n):
                works.append(work)
                left -= work.n if work.n > 1 + len(work.guesses) else 0
            at += 1
        works = [work for work in works if work.sequence.held is not None]  # the others were pre-empted since
        while self.waiting and left > 0:
            sequence = self.waiting[0]
            n_hit = self._hit(sequence)
            if not self.cache.fits(sequence.keys, n_hit, len(sequence.tokens) + 1, self._promised()):
                break
            self.waiting.popleft()
            self._admit(sequence, n_hit)
            work = self._work(sequence, left)
            assert work is not None
            assert self._make_room(sequence, work.n)
            works.append(work)
            left -= work.n
        return works

    def _work(self, sequence: AnswerSequence, left: int) -> Work | None:
        if sequence.n_pending == 1:
            guesses = tuple(sequence.guesses())
            return Work(sequence, 1 + len(guesses), guesses)
        if left <= 0:
            return None
        end = (sequence.n_computed // self.chunk + 1) * self.chunk
        return Work(sequence, min(end, len(sequence.tokens)) - sequence.n_computed)

    def _make_room(self, sequence: AnswerSequence, n: int) -> bool:
        """Pages for `n` more tokens, if need be those of the latest answers; False where that is this one itself."""
        while sequence.held is not None:
            if self.cache.extend(sequence.held, sequence.n_computed + n):
                return True
            self._preempt(self.running[-1])
        return False

    def reserve(self, held: Held, n_tokens: int) -> None:
        """Pages for the first `n_tokens` of what is read beside all answers; the latest of these give theirs back."""
        while not self.cache.extend(held, n_tokens):
            self._preempt(self.running[-1])

    def _preempt(self, sequence: AnswerSequence) -> None:
        assert sequence.held is not None
        self.cache.close(sequence.held)
        sequence.held, sequence.n_computed = None, 0
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)
        self.n_preemptions += 1

    def _hit(self, sequence: AnswerSequence) -> int:
        """Leading pages of a waiting answer that are remembered. A prompt whose probabilities are asked for is read."""
        if not self.prefix_caching:
            return 0
        self.cache.keys(sequence.keys, sequence.tokens, sequence.request.salt)
        if sequence.prompt_logprobs is not None:
            return 0
        return self.cache.match(sequence.keys, len(sequence.tokens))

    def _admit(self, sequence: AnswerSequence, n_hit: int) -> None:
        sequence.held = self.cache.open(sequence.keys, n_hit)
        sequence.n_computed = n_hit * self.cache.page_size
        if self.prefix_caching:
            self.cache.n_queries += len(sequence.tokens)
            self.cache.n_hits += sequence.n_computed
        self.running.append(sequence)

    def _promised(self) -> list[int]:
        """Pages that prompts in work will still take, in each group: nobody is admitted on them."""
        promised = [0] * len(self.cache.groups)
        for sequence in self.running:
            if sequence.n_pending > 1 and sequence.held is not None:
                needed = self.cache.pages_of(len(sequence.tokens) + 1)
                for g, held in enumerate(self.cache.n_held(sequence.held)):
                    promised[g] += max(0, needed[g] - held)
        return promised

    def computed(self, sequence: AnswerSequence, n_computed: int) -> None:
        """The model has read the first `n_computed` tokens, and no more of them are right."""
        assert sequence.held is not None
        sequence.n_computed = n_computed
        if self.prefix_caching:
            self.cache.keys(sequence.keys, sequence.tokens, sequence.request.salt)
        self.cache.trim(sequence.held, n_computed)
        self.cache.commit(sequence.held, sequence.keys, n_computed)

    def release(self, sequence: AnswerSequence) -> None:
        """An answer has ended or is not wanted any more."""
        if sequence.held is not None:
            self.cache.close(sequence.held)
            sequence.held = None
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
