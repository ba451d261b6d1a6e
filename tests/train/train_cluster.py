"""Trains the small job on a local cluster to which something happens: `train_cluster.py elastic|preempted|raylet FOLDER`."""

import functools
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import ray  # noqa: E402
import train_cases  # noqa: E402
from ray import cloudpickle  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from train_cases import BreakingBatches, ElasticBatches, SlowBatches, small_job  # noqa: E402

from moxin.artifact import Builder  # noqa: E402
from moxin.train import checkpoint, run  # noqa: E402


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.05)


def main(scenario: str, folder: Path) -> None:
    cloudpickle.register_pickle_by_value(train_cases)
    run.RESIZE_S, run.ELASTIC_START_S = 2.0, 15.0
    node = {"num_cpus": 1, "object_store_memory": 2**27}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "num_cpus": 1 if scenario == "elastic" else 0}
    )
    others = [cluster.add_node(**node) for _ in range({"elastic": 1, "preempted": 3, "raylet": 3}[scenario])]
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    ray.init(address=cluster.address, namespace="moxin", log_to_driver=False)
    (folder / "found").mkdir()
    marks = folder / "found"

    saved = folder / ".scratch" / "checkpoints"

    def elastic() -> None:
        # Data is asked for ahead of the steps: what has been computed is told by the checkpoint.
        wait_for(marks / "wants-1")
        wait_for(saved / checkpoint.name_of(4) / checkpoint.METADATA)
        cluster.remove_node(others[0], allow_graceful=False)
        print("a node left", flush=True)
        wait_for(marks / "wants-2")
        wait_for(saved / checkpoint.name_of(8) / checkpoint.METADATA)
        cluster.add_node(**node)
        print("a node joined", flush=True)

    def node_beside(mark: str) -> str:
        return (marks / f"{mark}-node").read_text()

    def preempted() -> None:
        wait_for(marks / "slow")
        command = ["ray", "drain-node", "--address", cluster.address, "--node-id", node_beside("slow")]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *command[1:], *reason]
            + ["--deadline-remaining-seconds", "60"],
            check=True,
        )
        print("a node drains", flush=True)

    def raylet() -> None:
        wait_for(marks / "waits")
        there = node_beside("waits")
        (victim,) = [one for one in others if one.node_id == there]
        cluster.remove_node(victim, allow_graceful=False)
        print("a raylet was killed", flush=True)

    batches = {
        "elastic": functools.partial(ElasticBatches, str(marks)),
        "preempted": functools.partial(SlowBatches, str(marks)),
        "raylet": functools.partial(BreakingBatches, str(marks / "waits"), at=6, rank=0, kind="wait"),
    }[scenario]
    job = small_job(
        n_workers=2, zero_stage="2", batches=batches, max_failures=0 if scenario == "preempted" else 3
    )
    if scenario == "elastic":
        job = replace(job, scaling=replace(job.scaling, min_workers=1))
    happens = {"elastic": elastic, "preempted": preempted, "raylet": raylet}[scenario]
    failed = []

    def train() -> None:
        try:
            run.fit(job, Builder(str(folder), {}))
        except BaseException as error:
            failed.append(error)
            raise

    # Nodes are added from the main thread: Ray starts their processes with its signals blocked.
    training = threading.Thread(target=train, daemon=True)
    training.start()
    happens()
    training.join()
    if failed:
        sys.exit(1)
    print("trained", flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
