"""The local or remote Ray session of a job: started quietly, with token authentication, logs in files.

Only this module and the `run.py` of each room talk to Ray.
"""

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

# Read when ray is imported. Serve's controller is killed by its own shutdown, and Ray would report that as a failure.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "ServeController.graceful_shutdown failed")

import ray

TOKEN_FILE = Path.home() / ".ray" / "auth_token"
QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOGGING_CONFIG": str(Path(__file__).with_name("ray_data_logging.yaml")),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_COLOR_PREFIX": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
RESULT_BYTES = 2**20
"""Of a task of `each`, roughly. Ray expects blocks of 128 MiB, and holds tasks back for whose results it sees no room."""
ATTEMPTS = 3
"""Starts of a local Ray that are tried: on a loaded machine its head can miss its own deadline."""


def start(n_cpus: int | None = None) -> None:
    """Connects to the cluster that `RAY_ADDRESS` names or, where none does, starts Ray on this machine.

    Nothing happens where this process is connected already. `n_cpus` is the number of logical CPUs of a local Ray; the
    training group needs one per worker and one for its controller, whatever the machine has.
    """
    if ray.is_initialized():
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "moxin"}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto" if os.environ["RAY_ADDRESS"] == "auto" else None, **options)
        return
    make_token()
    for attempt in range(ATTEMPTS):
        try:
            ray.init(
                address="local",
                num_cpus=n_cpus or max(os.cpu_count() or 1, 4),
                object_store_memory=512 * 2**20,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                **options,
            )
            return
        except (RuntimeError, ConnectionError, TimeoutError) as error:
            ray.shutdown()
            if attempt == ATTEMPTS - 1:
                raise
            logging.getLogger(__name__).warning("Ray did not start (%s); trying again", error)
            time.sleep(5)


def each(call: Callable[[Any], Any], items: Sequence[Any], memory: int = 0) -> Iterator[tuple[int, Any]]:
    """`call(item)` of every item as a Ray Data task of its own; yields places and results as they are finished.

    Items and results are what JSON can hold. With `memory`, in bytes, no more tasks run on a node than it has memory for.
    """
    import ray.data

    if not len(items):
        return
    options: dict[str, Any] = {}
    if memory:
        largest = max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"])
        options["memory"] = min(memory, int(largest))
    rows = [{"place": place, "item": json.dumps(item)} for place, item in enumerate(items)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(partial(_task, call), **options)
    dataset.context.target_max_block_size = RESULT_BYTES
    for row in dataset.iter_rows():
        yield row["place"], json.loads(row["value"])


def _task(call: Callable[[Any], Any], row: dict[str, Any]) -> dict[str, Any]:
    # Ray runs as many tasks as there are cores; more threads in each would only be in each other's way.
    pa.set_cpu_count(1)
    # The result goes as JSON: its keys may be names of sources, which make no Arrow schema.
    return {"place": row["place"], "value": json.dumps(call(json.loads(row["item"])))}


def make_token() -> None:
    """A token for the Ray that this machine starts, readable by its owner only (Ray's own would be for all).

    A local `ray.init` turns token authentication on by itself. The mode must not be set here: Ray has read the environment
    when it was imported, and half of its processes would see another mode.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or TOKEN_FILE.exists():
        return
    TOKEN_FILE.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(TOKEN_FILE, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as handle:
        handle.write(secrets.token_hex(32))


def stop() -> None:
    ray.shutdown()


def dashboard_url() -> str:
    """`http://127.0.0.1:8265`, or an empty string where no dashboard runs."""
    url = (
        ray.get_runtime_context().gcs_address
        and getattr(ray._private.worker, "get_dashboard_url", lambda: "")()
    )
    return f"http://{url}" if url and "://" not in str(url) else str(url or "")


def log_folder() -> str:
    """Where Ray's own logs are; shown when something fails."""
    node = getattr(ray._private.worker, "_global_node", None)
    return str(node.get_session_dir_path()) + "/logs" if node else "/tmp/ray/session_latest/logs"
