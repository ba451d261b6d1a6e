"""Bytes that a forward pass of our decoder keeps for the way back, and what the loss needs: read off
`moxin/model/decoder.py` and the kernels tensor by tensor, held against what autograd saves (`benchmarks/plan_memory.py`).

Attention keeps no T x T matrix, norms keep their input and a number or two a token, SwiGLU its input only. With ZeRO 1 to 3
bfloat16 is everywhere; at stage 0 it is autocast: a float32 residual stream between bfloat16 products, with bfloat16
copies of the weights.
"""

from dataclasses import dataclass

from moxin.plan import counts
from moxin.recipe import ModelConfig


@dataclass(frozen=True)
class Widths:
    """Bytes of a number: in products, and on the residual stream."""

    product: int
    stream: int

    @classmethod
    def of(cls, precision: str, zero_stage: int) -> "Widths":
        if precision == "fp32":
            return cls(4, 4)
        return cls(2, 2 if zero_stage else 4)

    @property
    def autocast(self) -> bool:
        return self.product != self.stream


def block(model: ModelConfig, width: Widths) -> int:
    """Bytes that one layer keeps of a token."""
    return attention_half(model, width) + feed_forward_half(model, width)


def attention_half(model: ModelConfig, width: Widths) -> int:
    """Of a layer: its two norms, attention with its projections, and the input of the feed-forward half."""
    d, heads = model.d_model, (model.n_heads + 2 * model.n_kv_heads) * model.head_dim
    statistics = 4 if model.norm == "rms" else 8
    norms = 2 * (d * width.stream + statistics)
    inputs = 2 * d * width.product  # of qkv and of up; that of out is the answer of attention
    attention = (heads + model.n_heads * model.head_dim) * width.product + 4 * model.n_heads
    if model.clip_qkv is not None:
        attention += heads * width.product
    if model.qk_norm:
        attention += heads * width.product + 2 * statistics
    return norms + inputs + attention


def feed_forward_half(model: ModelConfig, width: Widths) -> int:
    """Of a layer: the input of its activation and that of the projection down."""
    return (3 if model.activation == "swiglu" else 2) * model.d_ff * width.product


def forward(model: ModelConfig, recompute: str, width: Widths) -> int:
    """Bytes that the layers, embedding and last norm keep of a token until the way back begins."""
    statistics = 4 if model.norm == "rms" else 8
    ends = model.d_model * width.stream + statistics + 8  # last norm; ids
    if model.position == "rope":
        ends += 4 * model.head_dim  # cosines and sines, float32
    if recompute == "full":
        # A block is made again from the stream and what the block before adds; the first has nothing to add.
        return (
            model.n_layers * model.d_model * (width.stream + width.product)
            - model.d_model * width.product
            + ends
        )
    layer = attention_half(model, width)
    if recompute == "none":
        layer += feed_forward_half(model, width)
    else:  # what the feed-forward half is made from again is kept as the norm gave it
        layer += model.d_model * (width.stream - width.product)
    return model.n_layers * layer + ends


def weight_copies(model: ModelConfig, recompute: str, width: Widths) -> int:
    """Bytes of the copies of weights that autocast makes and autograd keeps."""
    if not width.autocast or recompute == "full":
        return 0
    per_layer = counts.block_parameters(model)
    if recompute == "selective":
        per_layer -= counts.feed_forward(model)
    return model.n_layers * per_layer * width.product


def backward(model: ModelConfig, recompute: str, width: Widths) -> int:
    """Bytes of a token that the way back needs at most at a time, beside what was kept: the gradients within a feed-forward
    half while its tensors are still there, and what was made again."""
    up = (2 if model.activation == "swiglu" else 1) * model.d_ff
    gradients = up * width.product + 2 * model.d_model * width.stream + model.d_model * width.product
    again = {
        "none": 0,
        "selective": feed_forward_half(model, width),
        "full": block(model, width),
    }[recompute]
    # The projection down is done with its input when the activation's gradient is made.
    return gradients + again


@dataclass(frozen=True)
class Loss:
    """Bytes of the output projection with its cross-entropy (`linear_cross_entropy_sum`), which makes its gradients on the
    way forward: while it runs, while its own way back runs, and from then until the embedding is reached."""

    forward: int
    backward: int
    held: int


def loss(model: ModelConfig, micro_batch: int, width: Widths, on_gpu: bool) -> Loss:
    """For `micro_batch` tokens. A chunk of logits is turned into its gradient in place; the gradient of the weight is summed
    over the chunks in float32 and brought to the weight's type at the end."""
    from kernels.cross_entropy import CHUNK_BYTES_CPU, CHUNK_BYTES_GPU  # torch takes 2 s to import

    table = model.vocab_size * model.d_model
    size = max(1, (CHUNK_BYTES_GPU if on_gpu else CHUNK_BYTES_CPU) // (4 * model.vocab_size))
    chunk = min(size, micro_batch)
    one, narrow = chunk == micro_batch, width.product == 2
    of_x = micro_batch * model.d_model * width.product
    of_weight = table * (width.product if one else 4)
    logits = chunk * model.vocab_size * width.product
    copy = table * width.product if width.autocast else 0  # of the weight, in the products' type
    product = 0
    if not one and narrow:  # a chunk's share, before it is added; a CPU's product is bfloat16 first
        product = table * 4 if on_gpu else table * 6
    rounded = table * 2 if narrow and not one else 0
    widened = table * 4 if width.autocast else 0
    # A shared table waits for its second gradient, that of the embedding, which comes last.
    held = table * width.stream if model.tie_embeddings else 0
    return Loss(
        forward=of_x + of_weight + logits + copy + product + 8 * micro_batch,
        backward=of_x + max(of_weight + rounded, rounded + widened),
        held=held,
    )
