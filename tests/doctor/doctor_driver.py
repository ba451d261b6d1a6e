"""Examines a local cluster of three nodes, healthy and not: `doctor_driver.py FOLDER` prints the findings as JSON.

Every node is started in a working directory of its own, so that /proc/self/cwd/run is the same path on all of them and
another folder on each, as a path on local disks is.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import psutil  # noqa: E402
import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from moxin.doctor import run  # noqa: E402
from moxin.doctor.need import Need  # noqa: E402


class Skewed(run.Examiner):
    """Two minutes ahead on node b."""

    def clock(self) -> float:
        return time.time() + (120 if Path.cwd().name == "b" else 0)


class Stuck(run.Examiner):
    """Node b answers no more when it is asked to listen."""

    def listen(self):
        if Path.cwd().name == "b":
            time.sleep(600)
        return super().listen()


class Rigged(run.Examiner):
    """Nodes b and c have two GPUs each, as far as anybody can tell."""

    def facts(self):
        gpu = {
            **dict.fromkeys(run.gpus.FIELDS),
            "name": "NVIDIA H100 80GB HBM3",
            "driver": "550",
            "broken": "",
        }
        return {**super().facts(), "gpus": [gpu] * 2 if Path.cwd().name in "bc" else []}


class OnCPU(run.Rank):
    """The group of the GPUs, talking through gloo."""

    def measure(self, *given, cuda, limit_s):
        assert cuda
        assert os.environ["CUDA_VISIBLE_DEVICES"] in ("0", "1")
        return super().measure(*given, cuda=False, limit_s=limit_s)


def kill(node) -> None:
    """As if the machine had lost its power: everything at once."""
    for kind in node.all_processes.values():
        for info in kind:
            everyone = psutil.Process(info.process.pid).children(recursive=True)
            for one in [*everyone, info.process]:
                one.kill()


def main(folder: Path) -> None:
    nodes = {}
    cluster = Cluster()
    for name in "abc":
        (folder / name).mkdir()
        os.chdir(folder / name)
        # The ports of the cluster's nodes are one machine's: any will do.
        environment = {"NCCL_SOCKET_IFNAME": "eth9"} if name == "b" else {}
        nodes[name] = cluster.add_node(
            num_cpus=1, num_gpus=0 if name == "a" else 2, object_store_memory=2**27, env_vars=environment
        )
    os.chdir(folder / "a")
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, namespace="moxin", log_to_driver=False)
    told = {"names": {name: node.node_id[:6] for name, node in nodes.items()}}

    def examine(label: str, url: str, thorough: bool = False, need: Need | None = None) -> None:
        told[label] = [asdict(one) for one in run.examine(url, need or Need(), thorough=thorough)]

    run.PROBE_BYTES = 2**20
    examine("healthy", str(folder / "shared"), thorough=True)
    told["left behind"] = [str(path) for path in (folder / "shared").rglob("*")]
    run.Examiner, plain, run.Rank = Rigged, run.Examiner, OnCPU
    examine("gpus", "", thorough=True, need=Need(n_workers=4, use_gpu=True, gradient_bytes=10**9))
    run.Examiner = Skewed
    examine("local path", "/proc/self/cwd/run", need=Need(checkpoint_bytes=2**60, n_checkpoints=3))
    run.Examiner, run.ANSWER_S = Stuck, 3.0
    run.ports.CONNECT_S = 1.0
    examine("stuck", str(folder / "shared"))

    class Killing(run.Nodes):
        def ask(self, method, *given):
            if method == "write":
                kill(nodes["c"])
            return super().ask(method, *given)

    run.Nodes, run.Examiner, run.ANSWER_S = Killing, plain, 30.0
    examine("killed", str(folder / "shared"))
    print(json.dumps(told), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
