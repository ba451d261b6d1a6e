"""The checks on a real local cluster of three nodes, of which one has another disk, another clock, hangs, or is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moxin import cli
from moxin.doctor import run
from moxin.doctor.need import Need

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "NCCL_"))},
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": str(ROOT),
    }
    driver = Path(__file__).with_name("doctor_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path_factory.mktemp("nodes"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1, (done.stdout + done.stderr)[-3000:]
    return json.loads(lines[0])


def of(findings, check):
    return [found for found in findings if found["check"] == check]


@pytest.mark.slow
def test_a_healthy_cluster_passes_and_nothing_is_left_behind(told):
    levels = {found["check"]: found["level"] for found in told["healthy"]}
    assert set(levels) == {
        *("nodes", "versions", "environment", "GPU", "machines", "clock", "ports", "storage", "bandwidth")
    }
    assert {check for check, level in levels.items() if level != "ok"} == {"environment"}
    [environment] = of(told["healthy"], "environment")
    assert told["names"]["b"] in environment["result"]  # the one with NCCL_SOCKET_IFNAME
    assert "gloo, 3 ranks" in of(told["healthy"], "bandwidth")[0]["result"]
    assert told["left behind"] == []


@pytest.mark.slow
def test_every_gpu_is_a_rank_and_a_head_without_any_is_none(told):
    assert of(told["gpus"], "GPU")[0]["result"] == "4 x NVIDIA H100 80GB HBM3, driver 550"
    assert "2 nodes with" in of(told["gpus"], "machines")[0]["result"]
    [bandwidth] = of(told["gpus"], "bandwidth")
    assert bandwidth["result"].startswith("NCCL, 4 ranks")
    assert "of 4 workers" in bandwidth["result"]
    [storage] = of(told["gpus"], "storage")
    assert (storage["level"], storage["result"]) == ("warn", "not looked at")


@pytest.mark.slow
def test_a_path_on_local_disks_is_refused_and_the_blind_nodes_are_named(told):
    storage, room = of(told["local path"], "storage")
    assert storage["level"] == "refuse"
    assert all(told["names"][node] in storage["result"] for node in "bc")
    assert told["names"]["a"] not in storage["result"]
    assert "--run s3://bucket/path" in storage["fix"]
    assert "3 checkpoints of" in room["result"]


@pytest.mark.slow
def test_a_clock_that_is_ahead_is_told_by_node_and_seconds(told):
    [clock] = of(told["local path"], "clock")
    assert clock["level"] == "warn"
    assert told["names"]["b"] in clock["result"]
    assert "120.0 s ahead" in clock["result"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "node", "why"), [("stuck", "b", "no answer to 'listen'"), ("killed", "c", "lost")]
)
def test_a_node_that_hangs_or_dies_is_named_and_the_others_are_judged_all_the_same(told, case, node, why):
    [lost] = of(told[case], "nodes")
    assert lost["level"] == "refuse"
    assert told["names"][node] in lost["result"]
    assert why in lost["result"]
    [storage] = of(told[case], "storage")
    assert storage["level"] == "ok"
    assert "2 nodes" in storage["result"]


@pytest.mark.slow
def test_one_machine_is_looked_at_by_the_driver_itself(ray_session, tmp_path, s3, capsys):
    for url in (str(tmp_path / "run"), f"{s3.url}/run"):
        run.preflight(url, Need(n_workers=2, checkpoint_bytes=1000, n_checkpoints=3))
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(ValueError, match=r"1 thing would spoil this run\n  storage: .* need more; free some"):
        run.preflight(str(tmp_path), Need(checkpoint_bytes=2**60, n_checkpoints=1))
    with pytest.raises(ValueError, match="there is no bucket 'no-such-bucket'"):
        run.preflight("s3://no-such-bucket/run", Need())


@pytest.mark.slow
def test_the_command_prints_a_table_and_ends_with_1_where_a_run_would_be_spoilt(
    ray_session, tmp_path, capsys
):
    assert cli.main(["doctor", "--run", str(tmp_path), "--recipe", "demo", "--workers", "4"]) == 0
    told = capsys.readouterr().out
    assert all(check in told for check in ("nodes", "versions", "GPU", "machines", "storage", "what to do"))
    (tmp_path / "file").write_text("")
    assert cli.main(["doctor", "--run", str(tmp_path / "file" / "run")]) == 1
    assert "refuse" in capsys.readouterr().out
    assert cli.main(["doctor", "--recipe", "demmo"]) == 2
    assert cli.main(["doctor", "--workers", "-1"]) == 2
