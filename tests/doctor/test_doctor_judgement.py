"""What is made of the facts of a cluster, without one: versions, clocks, ports, storage, machines, bandwidth."""

import itertools
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from moxin import recipes, storage
from moxin.doctor import bandwidth, clock, finding, machine, ports, shared, software
from moxin.doctor.need import Need

MIB, GIB = 2**20, 2**30


def levels(findings):
    return [found.level for found in findings]


def only(findings):
    [found] = findings
    return found


# versions


def facts_of(**changes):
    versions = {
        "python": "3.11.7",
        "moxin": "0.1.0",
        "code": "aaaa",
        "torch": "2.13.0",
        "ray": "2.60.0",
        "deepspeed": "0.19",
    }
    return {
        "versions": {**versions, **changes.pop("versions", {})},
        "environment": changes.pop("environment", {}),
    }


def test_one_version_everywhere_is_fine():
    nodes = {name: facts_of() for name in "abc"}
    found = only(software.judge(nodes, driver=facts_of()))
    assert found.level == "ok"
    assert "torch 2.13.0" in found.result


@pytest.mark.parametrize(
    ("package", "level"), [("ray", "refuse"), ("torch", "refuse"), ("code", "refuse"), ("numpy", "warn")]
)
def test_the_node_with_another_version_is_named(package, level):
    nodes = {name: facts_of(versions={package: "1"}) for name in "abcd"}
    nodes["e"] = facts_of(versions={package: "2"})
    found = only(software.judge(nodes, driver=facts_of(versions={package: "1"})))
    assert found.level == level
    assert "1 on 5 nodes, 2 on e" in found.result
    assert found.fix


def test_a_driver_with_other_code_than_its_workers_is_refused():
    found = only(software.judge({"a": facts_of()}, driver=facts_of(versions={"code": "bbbb"})))
    assert found.level == "refuse"
    assert "bbbb on the driver" in found.result
    assert "--working-dir" in found.fix


def test_a_package_that_one_node_lacks_is_told_as_none():
    found = only(software.judge({"a": facts_of(versions={"deepspeed": ""})}, driver=facts_of()))
    assert "none on a" in found.result


def test_settings_of_nccl_that_differ_are_told():
    nodes = {"a": facts_of(environment={"NCCL_IB_DISABLE": "1"}), "b": facts_of()}
    found = software.judge(nodes, driver=facts_of())[-1]
    assert (found.check, found.level) == ("environment", "warn")
    assert "NCCL_IB_DISABLE" in found.result


def test_the_code_hash_sees_a_changed_line_and_no_other_file(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    root = Path(software.__file__).resolve().parents[2]
    for package in software.OURS:
        shutil.copytree(root / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(software.util, "find_spec", lambda name: _Spec(str(copy / name)))
    hashes = []
    for change in ("", "notes.txt", "train/loop.py"):
        if change:
            with open(copy / "moxin" / change, "a") as file:
                file.write("\n")
        software.code_hash.cache_clear()
        hashes.append(software.code_hash())
    software.code_hash.cache_clear()
    assert hashes[0] == hashes[1] != hashes[2]


class _Spec:
    def __init__(self, folder):
        self.submodule_search_locations = [folder]


# clocks


@pytest.mark.parametrize("ahead", [-700.0, -0.4, 0.0, 3.0])
def test_an_offset_lies_within_its_stated_error(ahead):
    """Whatever the two ways take; the sample with the shortest round trip decides."""
    for out, back in itertools.product((0.001, 0.02, 0.5), repeat=2):
        sent = 1000.0
        samples = [(sent, sent + ahead + out, sent + out + back), (sent, sent + ahead + 4, sent + 4.5)]
        found, error = clock.offset(samples)
        assert abs(found - ahead) <= error + 1e-9
        assert error <= 0.5


@pytest.mark.parametrize(
    ("ahead", "s3", "level"),
    [(0.2, True, "ok"), (-5.0, True, "warn"), (400.0, False, "warn"), (-400.0, True, "refuse")],
)
def test_a_clock_that_is_off_is_told_by_how_far(ahead, s3, level):
    found = only(clock.judge({"a": (ahead, 0.01)}, s3=s3))
    assert found.level == level
    if level != "ok":
        assert ("ahead" if ahead > 0 else "behind") in found.result


def test_a_slow_answer_is_no_skew():
    assert only(clock.judge({"a": (2.0, 1.9)}, s3=True)).level == "ok"


# ports


def test_a_port_that_answers_is_told_from_one_that_is_shut_or_somebody_elses():
    listener = ports.Listener("127.0.0.1")
    for (first, last), port in zip(ports.ranges().values(), listener.ports.values(), strict=True):
        assert first <= port <= last
    with socket.create_server(("127.0.0.1", 0)) as shut:
        free = shut.getsockname()[1]
    name = "Ray's workers"
    told = ports.reach(
        {
            "open": ("127.0.0.1", listener.ports, listener.token),
            "shut": ("127.0.0.1", {name: free}, "x"),
            "other": ("127.0.0.1", {name: listener.ports[name]}, "another"),
        }
    )
    listener.close()
    assert set(told["open"].values()) == {""}
    assert told["shut"] == {name: "Connection refused"}
    assert told["other"] == {name: "something else answers there"}


def ways(nodes, failing):
    return {
        a: {
            b: {kind: "no answer" if (a, b, kind) in failing else "" for kind in ports.ranges()}
            for b in nodes
        }
        for a in nodes
    }


def test_a_node_behind_a_firewall_is_named_and_the_ports_too():
    high = "gloo and NCCL, high"
    found = only(ports.judge(ways("abcd", {(a, "c", high) for a in "abd"})))
    assert found.level == "refuse"
    assert found.result.startswith("c: no other node reaches it")
    assert "-".join(map(str, ports.ranges()[high])) in found.fix


def test_a_single_way_that_is_shut_is_named_with_both_ends():
    found = only(ports.judge(ways("abcd", {("a", "c", "Ray's workers")})))
    assert found.result.startswith("c: not a reaches it")
    assert only(ports.judge(ways("abc", set()))).level == "ok"
    assert ports.judge(ways("a", set())) == []


# storage


def probe(folder, nodes, private=(), home="e"):
    """What the nodes would find, of which each in `private` has a folder of its own."""

    def place(node):
        return str(folder / node) if node in private else str(folder)

    written = {node: shared.write(place(node), f"{node}.bin", 1000) for node in nodes}
    if len(nodes) == 1:
        return written, {}, []
    other = shared.others(nodes, home)
    seen = {
        node: shared.read(place(node), f"{other[node]}.bin", written[other[node]]["sha256"]) for node in nodes
    }
    return written, seen, shared.missing(place(home), {node: f"{node}.bin" for node in nodes})


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(shared, "PATIENCE_S", 0.0)


@pytest.mark.parametrize("private", ["", "a", "b", "c", "bd"], ids=lambda names: names or "none")
def test_nodes_outside_of_the_shared_folder_are_named(tmp_path, impatient, private):
    found = only(
        shared.judge(
            str(tmp_path), *probe(tmp_path, list("abcde"), private), None, Need(), n_bytes=1000, home="e"
        )
    )
    if not private:
        assert found.level == "ok"
        return
    assert found.level == "refuse"
    assert f"({', '.join(private)})" in found.result
    assert "--run s3://" in found.fix


def test_the_drivers_folder_decides_even_when_the_others_share_one(tmp_path, impatient):
    told = probe(tmp_path, list("abc"), "a", home="a")
    found = only(shared.judge(str(tmp_path), *told, None, Need(), n_bytes=1000, home="a"))
    assert "2 nodes of 3 (b, c)" in found.result


def test_a_file_that_comes_late_is_waited_for(tmp_path, monkeypatch):
    url = str(tmp_path / "late.bin")
    naps = []

    def nap(seconds):
        naps.append(seconds)
        storage.write_bytes(url, b"late")

    monkeypatch.setattr(shared.time, "sleep", nap)
    written = shared.write(str(tmp_path), "other.bin", 10)
    assert "error" in shared.read(str(tmp_path), "late.bin", written["sha256"])  # it came, with other bytes
    assert len(naps) == 1


def test_a_folder_that_cannot_be_written_is_refused_with_what_the_system_said(tmp_path, impatient):
    (tmp_path / "file").write_text("")
    written = {"a": shared.write(str(tmp_path / "file" / "run"), "a.bin", 10)}
    found = only(shared.judge("run", written, {}, [], None, Need(), n_bytes=10))
    assert found.level == "refuse"
    assert "a cannot write to run" in found.result
    assert "director" in found.result


def test_room_is_measured_by_the_checkpoints_that_lie_there_together(tmp_path):
    told = probe(tmp_path, ["a"])
    need = Need(checkpoint_bytes=10 * GIB, n_checkpoints=3)
    judge = lambda free: only(shared.judge("run", *told, free, need, n_bytes=1000)).level  # noqa: E731
    assert judge(31 * GIB) == "ok"
    assert judge(29 * GIB) == "refuse"
    usual = shutil.disk_usage(tmp_path).free
    assert shared.room_bytes(str(tmp_path / "not" / "yet")) == pytest.approx(usual, rel=0.1)
    assert shared.room_bytes("s3://bucket/run") is None


def test_a_resumed_run_may_take_the_room_of_its_old_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(shared.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    storage.write_bytes(
        str(tmp_path / "pretrain-a" / ".scratch" / "checkpoint_0000000004" / "state.pt"), bytes(300)
    )
    storage.write_bytes(str(tmp_path / "shards" / "tokens.bin"), bytes(500))
    assert shared.room_bytes(str(tmp_path)) == 1300
    assert shared.room_bytes(str(tmp_path / "none")) == 1000


def test_a_node_that_reads_slowly_is_named():
    written = {name: {"sha256": "", "seconds": 1.0} for name in "abcd"}
    seen = {name: {"seconds": 10.0 if name == "d" else 1.0} for name in "abcd"}
    findings = shared.judge("run", written, seen, [], None, Need(), n_bytes=10**8, home="a")
    assert levels(findings) == ["warn", "ok"]
    assert findings[0].result.startswith("d: read 10 MB/s, the median is 100")


def test_an_object_store_is_probed_in_the_same_way(s3):
    written = shared.write(f"{s3.url}/.doctor", "a.bin", 100_000)
    assert "seconds" in shared.read(f"{s3.url}/.doctor", "a.bin", written["sha256"])
    assert shared.read(f"{s3.url}/.doctor", "b.bin", "") == {"missing": True}
    refused = shared.write("s3://no-such-bucket/run", "a.bin", 10)
    found = only(shared.judge("s3://no-such-bucket/run", {"a": refused}, {}, [], None, Need(), n_bytes=10))
    assert "there is no bucket" in found.result
    both = {node: {"sha256": "", "seconds": 1.0} for node in "ab"}
    seen = {"a": {"seconds": 1.0}, "b": {"missing": True}}
    blind = shared.judge("s3://b/run", both, seen, [], None, Need(), n_bytes=1, home="a")
    assert "AWS_ENDPOINT_URL" in only(blind).fix


# machines


def machine_of(**changes):
    usual = {
        "cpus": 8,
        "memory": 64 * GIB,
        "available": 60 * GIB,
        "shm": 32 * GIB,
        "temporary": "/tmp",
        "disk": 100 * GIB,
    }
    usual |= {
        "open_files": 65536,
        "host": "h",
        "host_ip": "10.0.0.1",
        "link": 0.0,
        "ip": "10.0.0.1",
        "n_gpus": 0,
    }
    return {**usual, "environment": {}, **changes}


def test_this_machine_can_be_judged():
    here = {**machine.collect(), "ip": "10.0.0.1", "n_gpus": 0, "environment": {}}
    assert here["memory"] >= here["available"] > 0
    assert only(machine.judge({"here": here}, Need(), remote=False)).check


@pytest.mark.parametrize(
    ("change", "need", "remote", "level", "word"),
    [
        ({}, Need(), False, "ok", "8 CPUs"),
        ({"shm": 64 * MIB}, Need(), False, "warn", "64.0 MiB"),
        ({"shm": 64 * MIB, "n_gpus": 8}, Need(), False, "refuse", "NCCL"),
        ({"shm": None}, Need(), False, "ok", ""),
        ({"open_files": 1024}, Need(), False, "warn", "1,024"),
        ({"open_files": None}, Need(), False, "ok", ""),
        ({"available": GIB}, Need(weights_bytes=2 * GIB), False, "refuse", "gathered weights"),
        ({"disk": GIB}, Need(checkpoint_bytes=4 * GIB), True, "refuse", "its part of a checkpoint"),
        ({"disk": GIB}, Need(checkpoint_bytes=4 * GIB), False, "ok", ""),
    ],
)
def test_what_a_machine_lacks_is_told(change, need, remote, level, word):
    found = only(machine.judge({"a": machine_of(**change)}, need, remote=remote))
    assert found.level == level
    assert word in found.result
    assert bool(found.fix) == (level != "ok")


def test_a_host_name_that_leads_to_itself_spoils_gloo_between_machines():
    """Debian's /etc/hosts has `127.0.1.1 HOST`, and gloo listens where its host's name leads."""
    nodes = {"a": machine_of(), "b": machine_of(ip="10.0.0.2", host_ip="127.0.1.1")}
    found = only(machine.judge(nodes, Need(), remote=False))
    assert (found.check, found.level) == ("network", "refuse")
    assert "127.0.1.1 on b" in found.result
    assert only(machine.judge(nodes, Need(use_gpu=True), remote=False)).level == "warn"
    nodes["b"]["environment"] = {"GLOO_SOCKET_IFNAME": "eth0"}
    assert only(machine.judge(nodes, Need(), remote=False)).level == "ok"
    alone = {"b": machine_of(host_ip="127.0.1.1")}
    assert only(machine.judge(alone, Need(), remote=False)).level == "ok"


def test_the_link_is_what_the_kernel_says_of_it(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert machine.link_bytes_per_s(tmp_path) == 0
    write("net/lo/speed", "-1\n")
    write("net/eth0/speed", "10000\n")
    assert machine.link_bytes_per_s(tmp_path) == 10e9 / 8
    for port in range(4):
        write(f"infiniband/mlx5_{port}/ports/1/rate", "200 Gb/sec (4X HDR)\n")
    assert machine.link_bytes_per_s(tmp_path) == 4 * 200e9 / 8


def test_what_a_run_needs_follows_from_its_recipe():
    recipe = recipes.load("demo")
    need = Need.of_recipe(recipe)
    assert need.n_workers == recipe.scaling.n_workers
    assert need.n_checkpoints == recipe.pretrain.keep_last + 1
    n = need.weights_bytes // 4
    assert need.checkpoint_bytes == 12 * n  # tests/train holds it against what is written
    single = Need.of(recipe.model, replace(recipe.scaling, precision="fp32"), optimizer="lion")
    assert single.checkpoint_bytes == 8 * n


# bandwidth


@pytest.mark.parametrize("n", range(1, 12))
def test_rounds_hold_every_pair_once_and_nobody_twice_at_a_time(n):
    pairs = []
    for pairing in bandwidth.rounds(n):
        members = [node for pair in pairing for node in pair]
        assert len(members) == len(set(members))
        pairs += pairing
    assert sorted(pairs) == list(itertools.combinations(range(n), 2))


def group(n, seconds=0.1, slow=()):
    """Ranks on `n` nodes whose ways take `seconds`, but ten times as long for each in `slow`, a node or a pair."""

    def way(a, b):
        return seconds * (10 if {a, b} & set(slow) or tuple(sorted((a, b))) in slow else 1)

    return [
        {
            "reduce": {str(2**20): 0.002, str(2**26): 0.1},
            "pairs": {str(b): way(a, b) for b in range(n) if b != a},
        }
        for a in range(n)
    ]


def judged(n, slow=(), **options):
    nodes = [f"n{node}" for node in range(n)]
    return bandwidth.judge(nodes, group(n, slow=slow), range(n), Need(), **{"cuda": False, **options})


def test_bus_bandwidth_counts_what_a_link_carries():
    assert bandwidth.bus_bandwidth(10**9, 1.0, 2) == 1e9
    assert bandwidth.bus_bandwidth(10**9, 1.0, 8) == pytest.approx(1.75e9)
    found = only(judged(4))
    assert found.level == "ok"
    assert "1.0 GB/s bus bandwidth" in found.result  # 2 · 3/4 · 64 MiB in 0.1 s
    assert "2.0 ms" in found.result


def test_a_slow_node_is_named_once_and_not_by_each_of_its_ways():
    found = only(judged(6, slow={3}))
    assert found.level == "warn"
    assert found.result.startswith("n3 exchanges at most")


def test_a_slow_way_between_two_nodes_is_named():
    found = only(judged(6, slow={(1, 4)}))
    assert found.result.startswith("slow between n1 and n4")


def test_two_nodes_are_measured_by_their_card_and_one_by_nvlink():
    assert only(judged(2)).level == "ok"
    assert only(judged(2, cuda=True, link=100e9 / 8)).level == "warn"
    assert only(judged(2, link=100e9 / 8)).level == "ok"  # as fast as gloo comes
    slow = [{**one, "reduce": {**one["reduce"], str(2**26): 1.0}} for one in group(2)]
    assert (
        only(bandwidth.judge(["a", "b"], slow, range(2), Need(), cuda=False, link=10e9 / 8)).level == "warn"
    )
    ranks = [{**one, "pairs": {}} for one in group(8)]
    one_node = bandwidth.judge(["n0"], ranks, [0], Need(), cuda=True, gpu="NVIDIA H100 80GB HBM3")
    assert only(one_node).level == "warn"
    assert "NVLink could do 450.0 GB/s" in only(one_node).result
    assert (
        only(bandwidth.judge(["n0"], ranks, [0], Need(), cuda=True, gpu="NVIDIA A100-PCIE-40GB")).level
        == "warn"
    )


def test_the_time_for_the_models_gradients_is_told():
    need = Need(n_workers=8, gradient_bytes=16 * 10**9)
    found = only(bandwidth.judge(["a", "b"], group(2), range(2), need, cuda=False))
    bus = bandwidth.bus_bandwidth(2**26, 0.1, 2)
    assert f"take {2 * 7 / 8 * 16e9 / bus:.2g} s of 8 workers" in found.result


# what a person sees


def test_sizes_and_names_read_well():
    assert [finding.size(n) for n in (0, 1023, 1024, 1536 * 1024, 5 * GIB, 200 * GIB, 3 * 2**40)] == [
        *("0 B", "1,023 B", "1 KiB", "1.5 MiB", "5.0 GiB", "200 GiB", "3.0 TiB")
    ]
    assert finding.listed(list("abcde")) == "a, b, c and 2 more"
    assert finding.by_value({"a": "1", "b": "2", "c": "1"}) == "1 on a, c, 2 on b"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_keeps_every_word_at_any_width(capsys, monkeypatch, width):
    from rich.console import Console

    monkeypatch.setattr(finding.console, "console", Console(width=width, highlight=False, soft_wrap=True))
    findings = [finding.Finding("storage", "refuse", "word " * 40 + "end", "do " * 30 + "this")]
    finding.show(findings)
    told = capsys.readouterr().out
    assert all(len(line) <= width for line in told.splitlines())
    assert told.count("word") == 40
    assert len(re.findall(r"\bdo\b", told)) == 31  # the head of the column is one
