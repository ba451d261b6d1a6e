"""Which replica a request goes to: the one that has read the beginning of its prompt, unless others have much less to do.

An engine keeps the keys and values of prompts (`moxin.infer.cache`), so a chat's next turn costs only what is new in it
where the last one was answered.
"""

import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

BLOCK = 64
"""Tokens by which prompts are compared: few enough that a system prompt counts."""
MAX_BLOCKS = 64
MAX_KNOWN = 50_000
"""Beginnings that are remembered, the longest unused forgotten first."""
GENERATE, CHANNEL = "generate", "channel"
"""Methods of `EngineReplica`. The second argument of the one names beginnings, the first of the other its replica."""
IMBALANCE = 4
"""Requests that a replica may have more than the least busy one and still be chosen for what it remembers."""


def prefix_of(tokens: Sequence[int], salt: str = "") -> tuple[str, ...]:
    """A name for every beginning of a prompt that is a multiple of `BLOCK` tokens, the longest last."""
    names, hashed = [], xxhash.xxh3_128(salt.encode())
    for start in range(0, min(len(tokens) // BLOCK, MAX_BLOCKS) * BLOCK, BLOCK):
        hashed.update(np.asarray(tokens[start : start + BLOCK], np.uint32).tobytes())
        names.append(hashed.hexdigest())
    return tuple(names)


class Affinity:
    """Who has read what. Names are those of `prefix_of`."""

    def __init__(self, max_known: int = MAX_KNOWN) -> None:
        self.max_known = max_known
        self._reader: OrderedDict[str, str] = OrderedDict()

    def best(self, names: Sequence[str], loads: dict[str, int]) -> str | None:
        """The replica that has read the longest beginning, of those that `loads` names with the requests they have; None
        where none has, or where it has too much to do."""
        least = min(loads.values(), default=0)
        for name in reversed(names):
            replica = self._reader.get(name)
            if replica in loads:
                self._reader.move_to_end(name)
                return replica if loads[replica] <= least + IMBALANCE else None
        return None

    def read(self, names: Sequence[str], replica: str) -> None:
        for name in names:
            self._reader[name] = replica
            self._reader.move_to_end(name)
        while len(self._reader) > self.max_known:
            self._reader.popitem(last=False)


class PrefixRouter(RequestRouter):
    """Ray Serve's router for engines. Without a known beginning: the less busy of two replicas drawn at random."""

    def initialize_state(self, **settings: Any) -> None:
        self.affinity = Affinity()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if not candidate_replicas:
            return []
        drawn = random.sample(candidate_replicas, min(2, len(candidate_replicas)))
        if pending_request is not None and pending_request.metadata.call_method == CHANNEL:
            wanted = pending_request.args[0]
            return [[one for one in candidate_replicas if one.replica_id.unique_id == wanted] or drawn]
        if len(candidate_replicas) == 1 or pending_request is None:
            return [drawn]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {
            name: self.replica_queue_len_cache.get(replica.replica_id) or 0
            for name, replica in by_name.items()
        }
        best = self.affinity.best(_names(pending_request), loads)
        return [drawn] if best is None else [[by_name[best]], drawn]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self.affinity.read(_names(pending_request), replica_id.unique_id)


def _names(request: PendingRequest) -> Sequence[str]:
    """The second argument of `EngineReplica.generate`."""
    return request.args[1] if request.metadata.call_method == GENERATE else ()
