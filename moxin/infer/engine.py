"""Continuous batching: every step reads a chunk of the prompts in work and makes a token for every answer that has read its
own. Requests come and go at any step; none waits for another to end (Orca, OSDI 2022).

    engine = Engine(model, max_batch=16, decode=tokenizer.decode)
    engine.add(Request("a", tokens, SamplingParams(max_tokens=100)))
    while engine.has_work:
        for event in engine.step():
            print(event.text, end="")
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.linear import Weight
from kernels.precision import matmul_dtype
from moxin.infer.cache import PAGE_SIZE, PagedCache, columns_of
from moxin.infer.detokenize import Decode
from moxin.infer.grammar import Grammars
from moxin.infer.graphs import DecodeGraphs
from moxin.infer.memory import cache_bytes_per_token
from moxin.infer.model import InferenceModel
from moxin.infer.request import Event, Request, Stats
from moxin.infer.sampling import SamplingParams, logprobs_of
from moxin.infer.scheduler import Scheduler, Work
from moxin.infer.sequence import AnswerSequence
from moxin.infer.speculate import PromptLookup
from moxin.model.decoder import Decoder

PREFILL_CHUNK = 256
"""Most tokens of a prompt that one step reads, so that a long prompt does not hold up the others."""
PREFILL_CHUNK_GPU = 2048
FEW = 16
"""Tokens of an answer up to which it is computed together with others; a longer part fills the machine by itself."""
MOST_GUESSES = 15
FREE_SHARE = 0.85
"""Of a GPU's free memory, for the cache; the rest is for activations and CUDA graphs."""
CACHE_DTYPES = {
    "int8": torch.int8,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


class Engine:
    """Requests in, events out; one thread.

    `max_batch` is the number of answers in work at once, `max_len` bounds prompt and answer together (by default
    `max_seq_len`), `cache_tokens` the tokens of all answers that the cache has room for: by default every answer at its
    longest, on a GPU as many as fit. `cache_dtype` is "int8", a float type, or None for the type of the weights (on a CPU
    without bfloat16 products float32). `decode` gives events their text; stop strings need it. `eos_ids` end an answer
    unless it has `ignore_eos`. `grammars` serve constrained answers. `speculate` tokens are guessed ahead, 0 to 15.

    Raises `ValueError` for settings that do not fit the model or each other.
    """

    def __init__(
        self,
        model: Decoder | InferenceModel,
        *,
        max_batch: int = 8,
        max_len: int | None = None,
        cache_tokens: int | None = None,
        cache_dtype: str | None = None,
        decode: Decode | None = None,
        eos_ids: Sequence[int] = (),
        grammars: Grammars | None = None,
        speculate: int = 0,
        prefix_caching: bool = True,
        prefill_chunk: int | None = None,
        prefill_budget: int | None = None,
    ) -> None:
        self.model = InferenceModel.of(model.eval()) if isinstance(model, Decoder) else model
        config, device = self.model.config, self.model.device
        self.decode, self.grammars, self.speculate = decode, grammars, speculate
        self.eos_ids = tuple(eos_ids)
        self.max_len = config.max_seq_len if max_len is None else max_len
        chunk = prefill_chunk or (PREFILL_CHUNK_GPU if device.type == "cuda" else PREFILL_CHUNK)
        lowest = {
            "max_batch": (max_batch, 1),
            "max_len": (self.max_len, 2),
            "prefill_chunk": (chunk, FEW + 1),
        }
        for name, (value, low) in lowest.items():
            if value < low:
                raise ValueError(f"{name} = {value}: at least {low}")
        if not 0 <= speculate <= MOST_GUESSES:
            raise ValueError(f"speculate = {speculate}: 0 to {MOST_GUESSES} guessed tokens")
        if cache_dtype is not None and cache_dtype not in CACHE_DTYPES:
            raise ValueError(f"cache_dtype = {cache_dtype!r}: one of {', '.join(CACHE_DTYPES)}")
        if config.position == "learned" and self.max_len > config.max_seq_len:
            raise ValueError(
                f"max_len = {self.max_len} exceeds model.max_seq_len = {config.max_seq_len}: learned positions end"
            )
        dtype = CACHE_DTYPES[cache_dtype] if cache_dtype else self._cache_dtype()
        if cache_tokens is None and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            per_token = cache_bytes_per_token(config, cache_dtype or str(dtype).removeprefix("torch."))
            columns = max(columns_of(window, self.max_len, chunk) for window in config.windows)
            cache_tokens = min(max_batch * columns * PAGE_SIZE, int(free * FREE_SHARE) // per_token)
        self.cache = PagedCache(config, max_batch, self.max_len, dtype, device, cache_tokens, chunk)
        self.scheduler = Scheduler(self.cache, chunk, prefill_budget or chunk, prefix_caching)
        self.few_rows = self._consistent(max_batch)
        exact = all(matrix.in_digits for matrix in self._matrices)
        self.prompt_rows = min(matrix.few_rows for matrix in self._matrices) if exact else 0
        """`few_rows` for parts of prompts, which are alone in a pass: exact products are the same beside others'."""
        self.stack = self.model.stack(self.cache) if self.few_rows else None
        self._graphs = DecodeGraphs(self.model, self.cache) if device.type == "cuda" else None
        self._answers: dict[str, list[AnswerSequence]] = {}
        self._siblings: dict[str, int] = {}
        """Requests whose answers 1 to n - 1 wait for the prompt to be read by answer 0."""
        self._counts = dict.fromkeys(
            ("prompt", "generated", "stop", "length", "cancelled", "drafted", "accepted"), 0
        )

    def _cache_dtype(self) -> torch.dtype:
        stored = self.model.layers[0].qkv.values.dtype
        if self.model.device.type == "cuda":
            return self.model.dtype
        if stored in (torch.float32, torch.float16):
            return torch.float32
        return matmul_dtype(torch.bfloat16, self.model.device)

    def _consistent(self, max_batch: int) -> int:
        """Rows up to which answers that are computed together go through one and the same kind of products, so that the
        company of an answer does not change how it is rounded: those that are best for a full batch."""
        wide = self.model.layers[0].qkv.values.dtype == torch.float32
        few = min(matrix.few_rows for matrix in self._matrices)
        return 2**30 if wide or max_batch <= few else 0

    @property
    def _matrices(self) -> tuple[Weight, ...]:
        """Of one layer: of the kinds and widths of all."""
        layer = self.model.layers[0]
        return layer.qkv, layer.out, layer.up, layer.down

    @property
    def has_work(self) -> bool:
        return bool(self._answers)

    @property
    def stats(self) -> Stats:
        groups, counts = self.cache.groups, self._counts
        n_pages = tuple(group.pool.n_pages for group in groups)
        free = tuple(group.pool.n_free for group in groups)
        waiting = len(self.scheduler.waiting) + sum(self._siblings.values())
        return Stats(
            len(self.scheduler.running),
            waiting,
            free,
            n_pages,
            1 - sum(free) / sum(n_pages),
            self.cache.n_queries,
            self.cache.n_hits,
            self.scheduler.n_preemptions,
            counts["prompt"],
            counts["generated"],
            counts["stop"],
            counts["length"],
            counts["cancelled"],
            counts["drafted"],
            counts["accepted"],
        )

    def add(self, request: Request) -> None:
        """Queues a request. Raises `ValueError`, naming what is wrong, for one that cannot be answered."""
        params, vocab = request.params, self.model.config.vocab_size
        params.validate(vocab)
        if request.id in self._answers:
            raise ValueError(f"request id {request.id!r} is in use")
        if not 0 < len(request.tokens) < self.max_len:
            raise ValueError(
                f"the prompt has {len(request.tokens)} tokens; it needs at least 1 and, so that an answer fits in "
                f"max_len = {self.max_len}, at most {self.max_len - 1}"
            )
        for name, tokens in (("prompt", request.tokens), ("stop_ids", params.stop_ids)):
            for token in tokens:
                if type(token) is not int or not 0 <= token < vocab:
                    raise ValueError(f"{name} token {token!r} is outside the vocabulary of {vocab}")
        if params.stop and self.decode is None:
            raise ValueError("stop strings need text: give Engine(decode=tokenizer.decode)")
        if params.constrained and self.grammars is None:
            raise ValueError("json_schema, regex and grammar need Engine(grammars=Grammars(…))")
        leader = self._sequence(request, 0)
        self._answers[request.id] = [leader]
        if params.n > 1:
            self._siblings[request.id] = params.n - 1
        self.scheduler.waiting.append(leader)

    def warm_up(self) -> None:
        """Answers a short request to nobody, so that what is compiled at first use does not wait for the first real one."""
        prompt = [0] * min(FEW + 1, self.max_len - 1)
        self.add(Request("warm up", prompt, SamplingParams(max_tokens=2, ignore_eos=True), salt="warm up"))
        while self.has_work:
            self.step()
        self._counts = dict.fromkeys(self._counts, 0)
        self.cache.n_queries = self.cache.n_hits = 0

    def _sequence(self, request: Request, index: int) -> AnswerSequence:
        matcher = None
        if request.params.constrained and self.grammars is not None:
            matcher = self.grammars.matcher(request.params)
        lookup = PromptLookup(self.speculate) if self.speculate else None
        return AnswerSequence(request, index, self.decode, self.eos_ids, self.max_len, matcher, lookup)

    def cancel(self, id: str) -> bool:
        """Drops a request and frees its pages at once; no event follows. False where it is not known (any more)."""
        answers = self._answers.pop(id, None)
        if answers is None:
            return False
        self._siblings.pop(id, None)
        for sequence in answers:
            self.scheduler.release(sequence)
        self._counts["cancelled"] += 1
        return True

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One round; what came of it, in no particular order among answers, in that of their tokens within one."""
        works = self.scheduler.plan()
        few = [work for work in works if work.n <= FEW]
        events = self._forward(few, self.few_rows) if few else []
        for work in works:
            if work.n > FEW:
                events += self._forward([work], self.prompt_rows)
        return events

    def _forward(self, works: list[Work], few_rows: int) -> list[Event]:
        logits_RV, rows = self._logits(works, few_rows)
        greedy = logits_RV.argmax(-1).tolist() if len(logits_RV) else []
        events = []
        for work, first in zip(works, rows, strict=True):
            sequence = work.sequence
            computed = sequence.n_computed + work.n - len(work.guesses)
            if sequence.n_computed < sequence.n_prompt:
                self._counts["prompt"] += min(computed, sequence.n_prompt) - sequence.n_computed
            if sequence.prompt_logprobs is not None:
                self._read_prompt(sequence, logits_RV[first : first + work.n], computed)
                first += work.n - len(work.guesses) - 1
            if not work.completes:
                self.scheduler.computed(sequence, computed)
                continue
            events += self._advance(work, logits_RV[first:], greedy[first:], computed)
        return events

    def _logits(self, works: list[Work], few_rows: int) -> tuple[Tensor, list[int]]:
        """Logits of every position that something is drawn or reported from, and where each work's begin."""
        tokens: list[int] = []
        wanted: list[int] = []
        rows = []
        for work in works:
            sequence = work.sequence
            start = sequence.n_computed
            own = sequence.tokens[start : start + work.n - len(work.guesses)]
            rows.append(len(wanted))
            if sequence.prompt_logprobs is not None:
                wanted += range(len(tokens), len(tokens) + work.n)
            elif work.completes:
                last = len(tokens) + len(own) - 1
                wanted += range(last, last + 1 + len(work.guesses))
            tokens += [*own, *work.guesses]
        held = [
            (work.sequence.held, work.sequence.n_computed, work.n) for work in works if work.sequence.held
        ]
        assert len(held) == len(works)
        if self._graphs is not None and self._graphs.serves(held):
            return self._graphs.logits(tokens, held), rows
        queries = self.cache.queries(held)
        x_NE = self.model.hidden(
            torch.tensor(tokens, device=self.model.device),
            self.cache,
            queries,
            few_rows,
            self.stack if len(tokens) and works[0].n <= FEW and few_rows else None,
        )
        x_RE = (
            x_NE
            if len(wanted) == len(x_NE)
            else x_NE[torch.tensor(wanted, dtype=torch.int64, device=x_NE.device)]
        )
        return self.model.logits(x_RE, self.few_rows) if wanted else x_RE.new_empty(0, 0), rows

    def _read_prompt(self, sequence: AnswerSequence, logits_NV: Tensor, computed: int) -> None:
        """The log-probabilities of the prompt tokens that follow those just read."""
        n_top = sequence.request.params.prompt_logprobs
        assert n_top is not None
        assert sequence.prompt_logprobs is not None
        for logits_V, at in zip(logits_NV, range(sequence.n_computed + 1, computed + 1), strict=False):
            if len(sequence.prompt_logprobs) == at < sequence.n_prompt:
                sequence.prompt_logprobs.append(logprobs_of(logits_V, sequence.tokens[at], n_top))

    def _advance(self, work: Work, logits_RV: Tensor, greedy: list[int], computed: int) -> list[Event]:
        """The tokens that follow: one, and one more for every guess that it agrees with."""
        sequence, events = work.sequence, []
        for row in range(1 + len(work.guesses)):
            event = sequence.next(logits_RV[row], greedy[row] if sequence.simple else None)
            events.append(event)
            self._counts["generated"] += event.token is not None
            if event.finished or row == len(work.guesses) or event.token != work.guesses[row]:
                break
        n_right = len(events) - 1
        self._counts["drafted"] += len(work.guesses)
        self._counts["accepted"] += n_right
        self.scheduler.computed(sequence, computed + n_right)
        self._spawn(sequence)
        if events[-1].finished:
            self._counts[events[-1].finished] += 1
            self._end(sequence)
        return events

    def _spawn(self, leader: AnswerSequence) -> None:
        """The other answers to a request begin when its prompt is read: they find its pages."""
        request = leader.request
        if n_more := self._siblings.pop(request.id, 0):
            others = [self._sequence(request, index) for index in range(1, n_more + 1)]
            for sequence in others:
                sequence.prompt_logprobs = None
            self._answers[request.id] += others
            self.scheduler.waiting.extendleft(reversed(others))

    def _end(self, sequence: AnswerSequence) -> None:
        self.scheduler.release(sequence)
        answers = self._answers[sequence.request.id]
        answers.remove(sequence)
        if not answers:
            del self._answers[sequence.request.id]
