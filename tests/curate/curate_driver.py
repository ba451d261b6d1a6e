"""Curates a folder on a local cluster of some nodes: `curate_driver.py FOLDER RUN NODES [remove]`.

With `remove` a node is killed as soon as it has finished a few units.
"""

import sys
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from test_curate_run import recipe_for  # noqa: E402

from moxin import artifact, recipes  # noqa: E402
from moxin.curate import run  # noqa: E402
from moxin.tinyworld import stage as tinyworld  # noqa: E402


def main(pages: str, url: str, n_nodes: int, remove: bool) -> None:
    run.INLINE_BYTES = 0  # every step as tasks of the cluster
    run.sources.FOLDER_UNIT_BYTES, run.repeats.BYTES_PER_HASH = 20_000, 2**22
    recipe = recipe_for(Path(pages), profile="near-only", memory_bytes=2**31)
    world = artifact.make(tinyworld.stage(recipes.load("smoke")), url)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27})
    others = [cluster.add_node(num_cpus=1, object_store_memory=2**27) for _ in range(n_nodes - 1)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, namespace="moxin", log_to_driver=False)
    assert sum(node["Alive"] for node in ray.nodes()) == n_nodes

    def kill_one() -> None:
        while len(list(Path(url).rglob("counts.json"))) < 2:
            time.sleep(0.05)
        cluster.remove_node(others[0], allow_graceful=False)
        print("removed a node", flush=True)

    if remove:
        threading.Thread(target=kill_one, daemon=True).start()
    made = artifact.make(run.stage(recipe, world), url)
    print("made:", made.url, flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), remove=sys.argv[4:] == ["remove"])
