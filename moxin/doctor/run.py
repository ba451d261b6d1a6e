"""The checks on a Ray cluster: one examiner on every node, all asked at once, none waited for without end.

`examine` makes all findings, `preflight` is the short form in front of a job, `show` what `moxin doctor` prints.
"""

import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, ActorUnschedulableError, RayActorError, RayTaskError
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from moxin import console, session, storage
from moxin.doctor import bandwidth, clock, gpus, machine, ports, shared, software
from moxin.doctor.finding import Finding, count, refused
from moxin.doctor.finding import show as show_table
from moxin.doctor.need import Need

START_S = 60.0
"""For the first answer: Ray starts a process, which a loaded machine takes its time for."""
ANSWER_S = 30.0
STORAGE_S = 120.0
GROUP_S = 90.0
"""For the group that measures bandwidth, from its start to its end."""
ROUND_TRIPS = 8
PROBE_BYTES, QUICK_PROBE_BYTES = 2**26, 2**22


class Examiner:
    """What runs on a node: it answers with plain values."""

    def __init__(self) -> None:
        self.listener: ports.Listener | None = None

    def facts(self) -> dict[str, Any]:
        return {**software.collect(), **gpus.collect(), **machine.collect(), "ip": get_node_ip_address()}

    def clock(self) -> float:
        return time.time()

    def write(self, folder: str, name: str, n_bytes: int) -> dict[str, Any]:
        return shared.write(folder, name, n_bytes)

    def read(self, folder: str, name: str, sha256: str) -> dict[str, Any]:
        return shared.read(folder, name, sha256)

    def missing(self, folder: str, names: Mapping[str, str]) -> list[str]:
        return shared.missing(folder, names)

    def room(self, url: str) -> int | None:
        return shared.room_bytes(url)

    def clean(self, folder: str) -> None:
        storage.remove(folder)

    def listen(self) -> tuple[str, dict[str, int], str]:
        address = get_node_ip_address()
        self.listener = ports.Listener(address)
        return address, self.listener.ports, self.listener.token

    def reach(self, targets: Mapping[str, tuple[str, Mapping[str, int], str]]) -> dict[str, dict[str, str]]:
        return ports.reach(targets)

    def close(self) -> None:
        if self.listener is not None:
            self.listener.close()


class Nodes:
    """The nodes that are alive, by name. A node that dies or does not answer is named in `lost` and asked no more."""

    def __init__(self) -> None:
        alive = [node for node in ray.nodes() if node["Alive"]]
        here = ray.get_runtime_context().get_node_id()
        addresses = [node["NodeManagerAddress"] for node in alive]
        self.lost: list[Finding] = []
        self.resources: dict[str, Mapping[str, float]] = {}
        self.ids: dict[str, str] = {}
        self.home = ""
        for node in alive:
            address, key = node["NodeManagerAddress"], node["NodeID"]
            name = address if addresses.count(address) == 1 else f"{address}/{key[:6]}"
            self.ids[name] = key
            self.resources[name] = node["Resources"]
            self.home = name if key == here else self.home
        # Where there is only this machine, this process looks for itself: no process to start.
        self.alone = list(self.ids) == [self.home]
        self.examiners: dict[str, Any] = {
            name: Examiner() if self.alone else self.place(Examiner, key) for name, key in self.ids.items()
        }
        self.started = self.alone

    @staticmethod
    def place(kind: type, node_id: str, **options: Any) -> Any:
        """An actor on one node and no other."""
        where = NodeAffinitySchedulingStrategy(node_id, soft=False)
        return ray.remote(kind).options(scheduling_strategy=where, **{"num_cpus": 0, **options}).remote()  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.examiners)

    def ask(
        self, method: str, limit_s: float, arguments: Callable[[str], Sequence[Any] | None] = lambda name: ()
    ) -> dict[str, Any]:
        """The answers by node, of all that give one in `limit_s`. Nodes for which `arguments` is None are not asked."""
        calls = {name: given for name in self.examiners if (given := arguments(name)) is not None}
        if self.alone:
            return {name: getattr(self.examiners[name], method)(*given) for name, given in calls.items()}
        if not self.started:
            limit_s, self.started = max(limit_s, START_S), True
        asked = {name: getattr(self.examiners[name], method).remote(*given) for name, given in calls.items()}
        done, _ = (
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=limit_s) if asked else ([], [])
        )
        answers = {}
        for name, reference in asked.items():
            if reference not in done:
                self.lose(name, f"no answer to {method!r} in {limit_s:.0f} s")
                continue
            try:
                answers[name] = ray.get(reference)
            except (ActorUnavailableError, ActorUnschedulableError, RayActorError) as error:
                self.lose(name, f"lost while it was asked for {method!r} ({_short(error)})")
            except RayTaskError as error:
                self.lose(name, f"{method!r} failed there: {_short(error.cause or error)}")
        return answers

    def lose(self, name: str, why: str) -> None:
        ray.kill(self.examiners.pop(name))
        fix = "look at it (`ray status`, its log, its network), take it out or restart `ray start` there"
        self.lost.append(Finding("nodes", "refuse", f"{name}: {why}", fix))

    def check(self) -> None:
        """Names the nodes that Ray has lost meanwhile: their processes can outlive their raylet by a moment."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for name in [name for name in self.examiners if self.ids[name] not in alive]:
            self.lose(name, "died during the check")

    def end(self) -> None:
        if self.alone:
            self.examiners[self.home].close()
            return
        for examiner in self.examiners.values():
            ray.kill(examiner)


@contextmanager
def examined() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.end()


def examine(url: str, need: Need, *, thorough: bool) -> list[Finding]:
    """All findings of the cluster that this process is connected to. `url` is where the run shall lie, or empty.

    `thorough` also measures the bandwidth between workers, and storage with larger files.
    """
    with examined() as nodes:
        facts = nodes.ask("facts", ANSWER_S)
        for name, fact in facts.items():
            fact["ray_gpus"], fact["n_gpus"] = nodes.resources[name].get("GPU", 0), len(fact["gpus"])
        kinds = ("GPU",) if need.use_gpu else ("GPU", "CPU")
        # No worker comes to a head that has neither: it may be small.
        workers = {
            name: fact
            for name, fact in facts.items()
            if any(nodes.resources[name].get(kind) for kind in kinds) or fact["n_gpus"]
        }
        remote = bool(url) and not storage.is_local(url)
        findings = []
        if facts:
            findings += software.judge(facts, driver=software.collect())
            findings += gpus.judge(workers, need)
            findings += machine.judge(workers, need, remote=remote)
            findings += clock.judge(offsets(nodes), s3=url.startswith("s3://"))
            findings += network(nodes)
        if not len(nodes):
            return nodes.lost
        if url:
            findings += stored(nodes, url, need, PROBE_BYTES if thorough else QUICK_PROBE_BYTES)
        elif len(nodes) > 1:
            fix = "give the run's folder with --run s3://bucket/path"
            findings.append(Finding("storage", "warn", "not looked at", fix))
        if thorough:
            findings += collective(
                nodes, {name: workers[name] for name in nodes.examiners if name in workers}, need
            )
        nodes.check()
        answered = Finding("nodes", "ok", f"{count(len(nodes), 'node')} answered")
        return [*(nodes.lost or [answered]), *findings]


def offsets(nodes: Nodes) -> dict[str, tuple[float, float]]:
    samples: dict[str, list[tuple[float, float, float]]] = {}
    if nodes.alone:
        return {}
    for name in list(nodes.examiners):  # one after another: what waits in a queue would look like a long way
        for _ in range(ROUND_TRIPS):
            asked = time.time()
            answer = nodes.ask("clock", ANSWER_S, lambda other, name=name: () if other == name else None)  # type: ignore[misc]
            if name not in answer:
                break
            samples.setdefault(name, []).append((asked, answer[name], time.time()))
    return {name: clock.offset(found) for name, found in samples.items()}


def network(nodes: Nodes) -> list[Finding]:
    if len(nodes) < 2:
        return []
    targets = nodes.ask("listen", ANSWER_S)
    reached = nodes.ask("reach", ANSWER_S + len(targets) * ports.CONNECT_S, lambda name: (targets,))
    nodes.ask("close", ANSWER_S)
    return ports.judge(reached)


def stored(nodes: Nodes, url: str, need: Need, n_bytes: int) -> list[Finding]:
    folder = storage.join(url, f".doctor-{uuid.uuid4().hex[:8]}")
    names = {node: f"{number}.bin" for number, node in enumerate(nodes.examiners)}
    seen: dict[str, dict[str, Any]] = {}
    unseen: dict[str, list[str]] = {}
    home = ""
    try:
        written = nodes.ask("write", STORAGE_S, lambda node: (folder, names[node], n_bytes))
        whole = {node: found for node, found in written.items() if "error" not in found}
        if len(whole) > 1:
            home = nodes.home if nodes.home in whole else next(iter(whole))
            other = shared.others(list(whole), home)
            seen = nodes.ask(
                "read",
                STORAGE_S,
                lambda node: (
                    (folder, names[other[node]], whole[other[node]]["sha256"]) if node in whole else None
                ),
            )
            unseen = nodes.ask(
                "missing",
                ANSWER_S,
                lambda node: (folder, {one: names[one] for one in seen}) if node == home else None,
            )
        home = home or next(iter(whole), "")
        room = nodes.ask("room", ANSWER_S, lambda node: (url,) if node == home else None)
    finally:
        nodes.ask("clean", ANSWER_S, lambda node: (folder,))
    return shared.judge(
        url, written, seen, unseen.get(home, []), room.get(home), need, n_bytes=n_bytes, home=home
    )


class Rank:
    """A worker of the group that measures bandwidth."""

    def address(self) -> str:
        with socket.socket() as free:
            free.bind((get_node_ip_address(), 0))
            return "tcp://{}:{}".format(*free.getsockname())

    def measure(self, *given: Any, **options: Any) -> dict[str, Any]:
        return bandwidth.measure(*given, **options)


def collective(nodes: Nodes, facts: Mapping[str, Mapping[str, Any]], need: Need) -> list[Finding]:
    """One rank for every GPU, or one for every node where no node has any."""
    cuda = any(fact["n_gpus"] for fact in facts.values())
    homes = [
        (name, nodes.ids[name])
        for name, fact in facts.items()
        for _ in range(int(min(fact["n_gpus"], fact["ray_gpus"])) if cuda else 1)
    ]
    if len(homes) < 2:
        return [Finding("bandwidth", "ok", "one worker has nobody to talk to")] if homes else []
    names = list(dict.fromkeys(name for name, _ in homes))
    leaders = [next(rank for rank, (name, _) in enumerate(homes) if name == first) for first in names]
    ranks = [nodes.place(Rank, key, **({"num_gpus": 1} if cuda else {})) for _, key in homes]
    try:
        started = [rank.address.remote() for rank in ranks]
        _, waiting = ray.wait(started, num_returns=len(started), timeout=START_S)
        if waiting:
            result = f"not measured: {count(len(waiting), 'worker')} of {len(ranks)} did not start in {START_S:.0f} s"
            return [
                Finding("bandwidth", "warn", result, "end what uses the GPUs (`ray status`), then ask again")
            ]
        measured = ray.get(
            [
                rank.measure.remote(
                    ray.get(started[0]), number, leaders, len(ranks), cuda=cuda, limit_s=GROUP_S / 2
                )
                for number, rank in enumerate(ranks)
            ],
            timeout=GROUP_S,
        )
    except (ray.exceptions.RayError, TimeoutError) as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        fix = "see the findings about ports and network first; then GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO"
        told = f"no group of {len(ranks)} workers came about: {_short(cause or error)}"
        return [Finding("bandwidth", "refuse", told, fix)]
    finally:
        for rank in ranks:
            ray.kill(rank)
    gpu = next((str(fact["gpus"][0]["name"]) for fact in facts.values() if fact["gpus"]), "")
    apart = len({fact["ip"] for fact in facts.values()}) > 1
    link = min(fact["link"] for fact in facts.values()) if apart else 0.0
    return bandwidth.judge(names, measured, leaders, need, cuda=cuda, link=link, gpu=gpu)


def preflight(url: str, need: Need) -> None:
    """In front of a long job; seconds. Warns, and raises `ValueError` with everything that would spoil it."""
    findings = examine(url, need, thorough=False)
    for finding in findings:
        if finding.level == "warn":
            console.warn(str(finding))
    if found := refused(findings):
        raise ValueError(
            f"preflight: {count(len(found), 'thing')} would spoil this run\n"
            + "\n".join(f"  {one}" for one in found)
        )


def show(url: str, need: Need) -> int:
    """What `moxin doctor` prints, and its exit code: 1 where something would spoil a run."""
    session.start()
    cluster = os.environ.get("RAY_ADDRESS")
    console.say(
        f"Examining {cluster or 'this machine (RAY_ADDRESS names no cluster)'}"
        + (f" for {url}" if url else "")
    )
    findings = examine(url, need, thorough=True)
    show_table(findings)
    found = refused(findings)
    if found:
        console.fail(f"{count(len(found), 'thing')} would spoil a run")
    return 1 if found else 0


def _short(error: BaseException) -> str:
    """A line, also of Ray's long explanations: where an actor's first moments fail, the cause stands at their end."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    if "in its creation task" in text:
        return lines[-1][:200]
    return f"{type(error).__name__}: {lines[0].partition('. ')[0]}"[:200]
