"""How long a training step takes on GPUs: a model with seven numbers that were fitted, and not one efficiency per row.

The time of a step on one worker is the sum of

- products: FLOPs of the matrices / (peak x `matmul`);
- attention: FLOPs of FlashAttention, causal and window counted, 3.5 forwards for forward and backward because the backward
  pass makes the scores again (arXiv 2205.14135, section 3.1) / (peak x `attention`);
- element-wise work: bytes that norms, rotations, activations, residuals and the loss read and write, `passes` times what
  fully fused kernels would / bandwidth of the GPU's memory;
- the optimizer's update: bytes of weights, gradients and state / the same bandwidth;
- the network: the time that ZeRO's traffic takes at the links' full rate (`moxin.plan.network`) x `cost`.

Fitted on the 1B and 7B rows of llm-foundry's published tables and held against all others (`benchmarks/plan_speed.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moxin.hardware import Gpu, Machine
from moxin.plan import counts, network
from moxin.recipe import ModelConfig


@dataclass(frozen=True)
class Efficiency:
    """Shares of a GPU's peak that its kernels reach on large shapes."""

    matmul: float
    attention: float


@dataclass(frozen=True)
class Calibration:
    """The fitted numbers; `gpus` by architecture (`Gpu.family`)."""

    gpus: Mapping[str, Efficiency]
    passes: float
    network: network.Fitted


CALIBRATION = Calibration(
    gpus={"ampere": Efficiency(0.925, 0.326), "hopper": Efficiency(0.820, 0.182)},
    passes=3.45,
    network=network.Fitted(cost=2.25, hop_seconds=7.5e-7),
)
"""Printed by `benchmarks/plan_speed.py`; a test fits again and compares."""
STANDS_IN = {"ada": "ampere", "blackwell": "hopper"}
"""Architectures without published rows are planned with the efficiencies of another: an estimate, and said to be one."""


@dataclass(frozen=True)
class Setup:
    """What decides the time of a step."""

    model: ModelConfig
    gpu: Gpu
    machine: Machine
    n_workers: int
    zero_stage: int
    recompute: str
    context: int
    micro_batch: float
    """Tokens that a worker puts through the model at once, on average."""
    accumulation: int
    """Micro-batches of a step."""
    precision: str = "bf16"
    optimizer: str = "adamw"
    offload_optimizer: str = "none"

    @property
    def tokens(self) -> float:
        """Of a step, all workers."""
        return self.micro_batch * self.accumulation * self.n_workers

    @property
    def peak_flops(self) -> float:
        return self.gpu.bf16_flops if self.precision == "bf16" else self.gpu.fp32_flops


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they are spent on; `traffic` is what the network would take at its full rate, alone."""

    matmul: float
    attention: float
    elementwise: float
    update: float
    network: float
    traffic: float = field(repr=False)

    @property
    def total(self) -> float:
        return self.matmul + self.attention + self.elementwise + self.update + self.network


OPTIMIZER_BYTES = {"adamw": 8, "lion": 4, "muon": 4}
"""Moments of a parameter, float32; Muon's is that of matrices."""
HOST_BYTES_PER_SECOND = 20e9
"""What a GPU exchanges with its host in one direction, PCIe 4.0 x16 as measured by most."""
HOST_ADAM_PARAMETERS_PER_SECOND = 0.5e9
"""AdamW on the host, parameters a second for each GPU's share of its cores (arXiv 2101.06840, table 4: 1B in 0.26 s to 1.9 s
by the number of cores)."""


def step_time(setup: Setup, by: Calibration = CALIBRATION) -> StepTime:
    """Seconds of an optimizer step."""
    model, gpu = setup.model, setup.gpu
    efficiency = by.gpus[gpu.family if gpu.family in by.gpus else STANDS_IN[gpu.family]]
    tokens = setup.micro_batch * setup.accumulation
    products = 6.0 * counts.in_matrices(model) + products_again(model, setup.recompute)
    attention = counts.attention_flops(model, setup.context) * (4.5 if setup.recompute == "full" else 3.5)
    width = 2 if setup.precision == "bf16" else 4
    touched = width * elements_touched(model, setup.recompute)
    shared = counts.parameters(model)["total"] / (setup.n_workers if setup.zero_stage else 1)
    # Weights and their float32 masters, gradients and moments: read and written.
    update = shared * 2 * (width + width + 4 + OPTIMIZER_BYTES[setup.optimizer]) / gpu.hbm_bytes_per_second
    if setup.offload_optimizer != "none":
        update = shared * (2 * width / HOST_BYTES_PER_SECOND + 1 / HOST_ADAM_PARAMETERS_PER_SECOND)
    moved = network.seconds(
        model,
        setup.zero_stage,
        setup.n_workers,
        setup.accumulation,
        gpu.link_bytes_per_second,
        setup.machine,
        width,
        by.network.hop_seconds,
    )
    return StepTime(
        matmul=tokens * products / (setup.peak_flops * efficiency.matmul),
        attention=tokens * attention / (setup.peak_flops * efficiency.attention),
        elementwise=tokens * touched * by.passes / gpu.hbm_bytes_per_second,
        update=update,
        network=moved * by.network.cost,
        traffic=moved,
    )


def products_again(model: ModelConfig, recompute: str) -> float:
    """FLOPs of a token's products that are made again on the way back."""
    if recompute == "none":
        return 0.0
    again = counts.feed_forward(model) if recompute == "selective" else counts.block_parameters(model)
    return 2.0 * model.n_layers * again


def elements_touched(model: ModelConfig, recompute: str) -> float:
    """Numbers that a token's element-wise operations read and write in training, where every kernel is fully fused."""
    heads = (model.n_heads + 2 * model.n_kv_heads) * model.head_dim
    norms = 2 * 4 * model.d_model  # stream and answer in, sum and norm out
    rotation = 2 * heads
    activation = (3 if model.activation == "swiglu" else 2) * model.d_ff
    layer = 3.0 * (norms + rotation + activation)  # backward reads and writes about twice as much as forward
    if recompute == "full":
        layer += norms + rotation + activation
    elif recompute == "selective":
        layer += activation
    logits = 6.0 * model.vocab_size  # written, read twice, their gradient written and read twice
    return model.n_layers * layer + logits


def tokens_per_second_per_gpu(setup: Setup, by: Calibration = CALIBRATION) -> float:
    return setup.tokens / setup.n_workers / step_time(setup, by).total


def mfu(setup: Setup, tokens_per_second: float, *, window_counted: bool) -> float:
    """Model FLOPs utilisation at `tokens_per_second` of one GPU; the convention is that of `counts.flops_per_token`."""
    trained = counts.flops_per_token(setup.model, setup.context, window_counted=window_counted)[1]
    return trained * tokens_per_second / setup.peak_flops


def hfu(setup: Setup, tokens_per_second: float, *, window_counted: bool) -> float:
    """Hardware FLOPs utilisation: `mfu` with what is recomputed (arXiv 2205.05198)."""
    trained = counts.flops_per_token(setup.model, setup.context, window_counted=window_counted)[1]
    again = counts.recomputed_flops(
        setup.model, setup.context, setup.recompute, window_counted=window_counted
    )
    return (trained + again) * tokens_per_second / setup.peak_flops
