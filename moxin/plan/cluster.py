"""What can be rented: the GPU node types of a `ray up` file, or one kind of GPU at its list price."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from moxin import hardware, storage
from moxin.config import nearest
from moxin.hardware import Machine


@dataclass(frozen=True)
class Offer:
    """GPUs of one kind in machines of one kind."""

    name: str
    machine: Machine
    dollars_per_gpu_hour: float
    """0 where no price is known."""
    most_gpus: int = 0
    """How many there are; 0 sets no limit."""
    spot: bool = False

    @property
    def gpu(self) -> hardware.Gpu:
        return hardware.gpu(self.machine.gpu)

    def machines(self, n_gpus: int) -> int:
        """Whole machines for so many GPUs: they are what is paid for."""
        return -(-n_gpus // self.machine.n_gpus)


def of_accelerator(accelerator: str, dollars_per_gpu_hour: float = 0.0) -> Offer:
    """As many as wanted, at the list price unless another is given. Raises `ValueError` for one that is not known."""
    machine = hardware.machine_with(accelerator)
    return Offer(accelerator, machine, dollars_per_gpu_hour or hardware.list_price(accelerator))


def of_file(url: str, dollars_per_gpu_hour: float = 0.0) -> list[Offer]:
    """The node types with GPUs of a `ray up` file, up to their `max_workers` (a type with 0 is off and left out).

    Raises `ValueError` for a file that is none, names a machine that is not in `moxin/hardware.py`, or has no GPUs.
    """
    if not storage.exists(url):
        raise ValueError(f"--cluster {url}: no such file; cluster/a100.yaml is one")
    config = _read(url)
    offers = []
    for name, node in config["available_node_types"].items():
        if not node.get("resources", {}).get("GPU") or not node.get("max_workers"):
            continue
        settings = node.get("node_config", {})
        kind = settings.get("InstanceType")
        if kind not in hardware.MACHINES:
            raise ValueError(
                f"--cluster {url}: available_node_types.{name} is {kind!r}; {nearest(str(kind), hardware.MACHINES)} "
                "(add it to moxin/hardware.py)"
            )
        machine = hardware.MACHINES[kind]
        spot = settings.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        price = dollars_per_gpu_hour or machine.dollars_per_hour / machine.n_gpus
        most = min(int(node["max_workers"]), int(config.get("max_workers", node["max_workers"])))
        offers.append(Offer(name, machine, price, most * machine.n_gpus, spot))
    if not offers:
        raise ValueError(
            f"--cluster {url}: no node type has GPUs and max_workers above 0; raise one, or use --accelerator"
        )
    return offers


def _read(url: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(storage.read_text(url))
    except yaml.YAMLError as error:
        raise ValueError(f"--cluster {url}: not YAML: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("available_node_types"), dict):
        raise ValueError(f"--cluster {url}: no `available_node_types`: not a file of `ray up`")
    return config


def gpu_counts(offer: Offer, most: int) -> Sequence[int]:
    """1 and whole machines, doubling, up to `most` and what is there: the counts that a plan tries unasked."""
    most = min(most, offer.most_gpus or most)
    counts, n = [1], offer.machine.n_gpus
    while n <= most:
        counts.append(n)
        n *= 2
    if offer.most_gpus and offer.most_gpus == most:
        counts.append(most)
    return sorted(set(counts))
