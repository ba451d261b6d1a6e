"""GPUs and machines with GPUs: what they do at most, what connects them, what they cost.

Peaks are those of dense products, from NVIDIA's data sheets; bandwidths are of one direction. Prices are list prices on the
day that stands beside them: they are there so that a plan can name an order of magnitude, and a recipe or a command may set
its own (`scaling.dollars_per_hour`, `moxin plan --price`).
"""

from dataclasses import dataclass

from moxin.config import nearest

PRICE_DATE = "2025-06-05"
"""AWS's list prices, on demand, us-east-1, Linux, after the cut of that day."""


@dataclass(frozen=True)
class Gpu:
    """One accelerator. `ray_name` is what Ray calls it (`ray.util.accelerators`)."""

    name: str
    family: str
    """Architecture, by which efficiencies are looked up (`moxin.plan.speed`)."""
    ray_name: str
    memory_bytes: int
    bf16_flops: float
    """Dense bfloat16 products with float32 sums, FLOP/s."""
    fp32_flops: float
    """float32 products as PyTorch runs them unless told otherwise: without TF32."""
    hbm_bytes_per_second: float
    link_bytes_per_second: float
    """To the other GPUs of its machine, one direction: NVLink, or PCIe where there is none."""


def _gpu(
    name: str, family: str, ray_name: str, gib: float, bf16: float, fp32: float, hbm: float, link: float
) -> Gpu:
    return Gpu(name, family, ray_name, round(gib * 2**30), bf16 * 1e12, fp32 * 1e12, hbm * 1e9, link * 1e9)


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        # GiB as `torch.cuda.get_device_properties` reports them; TFLOP/s, TFLOP/s, GB/s, GB/s.
        _gpu("A100-40GB", "ampere", "A100-40G", 39.4, 312, 19.5, 1555, 300),
        _gpu("A100-80GB", "ampere", "A100-80G", 79.2, 312, 19.5, 2039, 300),
        _gpu("H100-80GB", "hopper", "H100", 79.1, 989.4, 66.9, 3350, 450),
        _gpu("H200-141GB", "hopper", "H200", 139.8, 989.4, 66.9, 4800, 450),
        _gpu("B200-180GB", "blackwell", "B200", 178.4, 2250, 75, 7700, 900),
        _gpu("L40S-48GB", "ada", "L40S", 44.4, 362, 91.6, 864, 32),
        _gpu("A10G-24GB", "ampere", "A10G", 22.1, 70, 31.2, 600, 16),
        _gpu("L4-24GB", "ada", "L4", 22.0, 121, 30.3, 300, 16),
        _gpu("RTX4090-24GB", "ada", "", 23.6, 165.2, 82.6, 1008, 32),
    )
}


@dataclass(frozen=True)
class Machine:
    """A machine with GPUs, and what leads out of it."""

    name: str
    gpu: str
    n_gpus: int
    network_bytes_per_second: float
    """To other machines, one direction, all its network cards together."""
    dollars_per_hour: float
    """Of the whole machine, on demand, on `price_date`; 0 where no list price is known."""
    price_date: str = PRICE_DATE
    memory_gib: int = 0
    """Of the host; 0 where it is not known."""


def _machine(name: str, gpu: str, n_gpus: int, gbit: float, dollars: float, memory_gib: int) -> Machine:
    return Machine(name, gpu, n_gpus, gbit * 1e9 / 8, dollars, memory_gib=memory_gib)


MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        _machine("p4d.24xlarge", "A100-40GB", 8, 400, 21.96, 1152),
        _machine("p4de.24xlarge", "A100-80GB", 8, 400, 27.45, 1152),
        _machine("p5.48xlarge", "H100-80GB", 8, 3200, 55.04, 2048),
        _machine("p5e.48xlarge", "H200-141GB", 8, 3200, 0, 2048),
        _machine("p5en.48xlarge", "H200-141GB", 8, 3200, 63.30, 2048),
        _machine("p6-b200.48xlarge", "B200-180GB", 8, 3200, 113.93, 2048),
        _machine("g6e.48xlarge", "L40S-48GB", 8, 400, 30.13, 1536),
        _machine("g5.48xlarge", "A10G-24GB", 8, 100, 16.29, 768),
        _machine("g6.48xlarge", "L4-24GB", 8, 100, 13.35, 768),
        # No cloud's: what MPT was trained on (llm-foundry's tables), and one card at home.
        _machine("mosaicml-a100-40gb", "A100-40GB", 8, 1600, 16.0, 0),
        _machine("desktop-4090", "RTX4090-24GB", 1, 10, 0, 64),
    )
}


def gpu(accelerator: str) -> Gpu:
    """The GPU of that name. Raises `ValueError` with the nearest one that is known."""
    if accelerator not in GPUS:
        raise ValueError(
            f"scaling.accelerator = {accelerator!r} is not known; {nearest(accelerator, GPUS)} "
            f"(moxin/hardware.py has: {', '.join(GPUS)})"
        )
    return GPUS[accelerator]


def machine_with(accelerator: str) -> Machine:
    """The first machine of the table with such GPUs and a list price, else the first with such GPUs."""
    wanted = gpu(accelerator).name
    found = [machine for machine in MACHINES.values() if machine.gpu == wanted]
    return next((machine for machine in found if machine.dollars_per_hour), found[0])


def peak_flops(accelerator: str, precision: str) -> float:
    """FLOP/s that one GPU makes at most with dense products of `precision` (`bf16` or `fp32`): what MFU is a share of.

    Raises `ValueError` for an accelerator or a precision that is not known.
    """
    found = gpu(accelerator)
    if precision not in ("bf16", "fp32"):
        raise ValueError(f"scaling.precision = {precision!r}: one of bf16, fp32")
    return found.bf16_flops if precision == "bf16" else found.fp32_flops


def list_price(accelerator: str) -> float:
    """Dollars an hour of one GPU, on demand; 0 where no list price is known."""
    machine = machine_with(accelerator)
    return machine.dollars_per_hour / machine.n_gpus
