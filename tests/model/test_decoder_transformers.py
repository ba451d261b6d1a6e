"""The decoder against `transformers`' Mistral and MPT: logits, losses, gradients, bfloat16."""

import dataclasses

import pytest
import torch
from small import as_transformers, by_their_names, noisy
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from kernels import precision
from kernels.alibi import alibi_slopes
from moxin.model.decoder import Decoder
from moxin.recipe import ModelConfig

MISTRAL = ModelConfig(
    n_layers=2,
    d_model=48,
    n_heads=6,
    n_kv_heads=2,
    d_ff=80,
    vocab_size=97,
    max_seq_len=128,
    sliding_window=16,
)
MPT = ModelConfig(
    n_layers=2,
    d_model=96,
    n_heads=12,
    n_kv_heads=12,
    d_ff=384,
    vocab_size=97,
    max_seq_len=128,
    norm="layer",
    activation="gelu",
    position="alibi",
    tie_embeddings=True,
    init="kaiming",
)
CASES = {
    "gqa 3, window": MISTRAL,
    "mha, no window": dataclasses.replace(MISTRAL, n_kv_heads=6, sliding_window=None),
    "mqa, window 1": dataclasses.replace(MISTRAL, n_kv_heads=1, sliding_window=1),
    "gqa 4, two heads": dataclasses.replace(MISTRAL, n_heads=8, n_kv_heads=2),
    "long theta, wide window": dataclasses.replace(MISTRAL, rope_theta=1e6, sliding_window=300),
    "tied, other eps": dataclasses.replace(MISTRAL, tie_embeddings=True, norm_eps=1e-3),
    "mpt, 12 heads": MPT,
    "mpt, 8 heads, clipped": dataclasses.replace(MPT, n_heads=8, n_kv_heads=8, clip_qkv=0.5),
    "mpt, 64 heads, clipped": dataclasses.replace(
        MPT, d_model=128, n_heads=64, n_kv_heads=64, d_ff=512, clip_qkv=1.0
    ),
    "mpt, untied, other eps": dataclasses.replace(MPT, tie_embeddings=False, norm_eps=1e-3),
    "mpt, Mistral's init": dataclasses.replace(MPT, init="normal"),
}
TOKENS = torch.randint(97, (2, 75), generator=torch.Generator().manual_seed(1))


def targets() -> Tensor:
    """The next tokens, with a gap that is not in the loss."""
    found = TOKENS.roll(-1, 1)
    found[0, 10:20] = -100
    return found


@pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())
def test_logits_losses_and_gradients_are_those_of_transformers(config: ModelConfig) -> None:
    model = noisy(config)
    theirs = as_transformers(model)
    logits = theirs(TOKENS).logits
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), logits, rtol=1e-5, atol=1e-5)
    nll = model(TOKENS, targets_BT=targets())
    expected = F.cross_entropy(logits.flatten(0, 1), targets().flatten(), reduction="none").view(2, 75)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)
    assert not nll[0, 10:20].any()
    weights = torch.rand(2, 75, generator=torch.Generator().manual_seed(2))
    (nll * weights).sum().backward()
    (expected * weights).sum().backward()
    ours = by_their_names(model, of_gradients=True)
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert ours.keys() == wanted.keys()
    for name, grad in ours.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["mpt, 8 heads, clipped", "mpt, 64 heads, clipped"])
def test_the_clipping_of_these_cases_clips(name: str) -> None:
    model = noisy(CASES[name])
    seen = []
    model.blocks[1].attention.qkv.register_forward_hook(lambda module, given, out: seen.append(out.abs()))
    with torch.no_grad():
        clipped = model(TOKENS)
        model.blocks[0].attention.config = dataclasses.replace(CASES[name], clip_qkv=None)
        unclipped = model(TOKENS)
    share = (seen[0] > CASES[name].clip_qkv).float().mean().item()
    assert 0.05 < share < 0.95
    assert (clipped - unclipped).abs().max() > 0.1


@pytest.mark.parametrize("config", [MISTRAL, MPT], ids=["mistral", "mpt"])
@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_the_sum_is_the_sum_of_the_tokens(config: ModelConfig, z_loss: float) -> None:
    model = noisy(config)
    logits = model(TOKENS)
    counted = targets() != -100
    nll = F.cross_entropy(logits.flatten(0, 1), targets().flatten(), reduction="none")
    expected = nll.sum() + z_loss * logits.logsumexp(-1)[counted].square().sum()
    loss, reported = model(TOKENS, targets_BT=targets(), reduction="sum", z_loss=z_loss)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(reported, model(TOKENS, targets_BT=targets()).detach(), rtol=1e-5, atol=1e-6)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, parameters), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("multiply_in", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["gqa 3, window", "mha, no window", "mpt, 12 heads", "mpt, 8 heads, clipped"]
)
def test_bfloat16_is_as_near_as_transformers(
    name: str, multiply_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The distance to the float32 result is that of the worse of transformers' bfloat16 runs or less, but for the tenth by
    which it differs between processors."""
    monkeypatch.setenv("MOXIN_MATMUL_DTYPE", multiply_in)
    model = noisy(CASES[name]).bfloat16()
    exact = as_transformers(noisy(CASES[name]).bfloat16().float())
    runs = ("eager", "sdpa") if CASES[name].norm == "rms" else ("eager",)
    with torch.no_grad():
        right = exact(TOKENS).logits
        theirs = [_distance(as_transformers(model, attention)(TOKENS).logits, right) for attention in runs]
        ours = _distance(model(TOKENS), right)
    assert ours <= 1.1 * max(theirs)


def _distance(logits: Tensor, right: Tensor) -> float:
    return (logits.float() - right).square().mean().sqrt().item()


@pytest.mark.parametrize("n_heads", [1, 2, 7, 8, 12, 56, 64, 100])
@pytest.mark.parametrize("bias_max", [8, 16])
def test_slopes_are_those_of_transformers_and_of_the_paper(n_heads: int, bias_max: int) -> None:
    slopes = alibi_slopes(n_heads, bias_max)
    theirs = build_mpt_alibi_tensor(n_heads, 2, bias_max)  # distances 1 and 0
    torch.testing.assert_close(slopes, -theirs[:, 0, 0], rtol=1e-6, atol=0)

    def of_power(n: int) -> list[float]:  # get_slopes of github.com/ofirpress/attention_with_linear_biases
        return [2 ** (-bias_max * i / n) for i in range(1, n + 1)]

    lower = 1 << (n_heads.bit_length() - 1)
    paper = of_power(lower) + of_power(2 * lower)[0::2][: n_heads - lower]
    torch.testing.assert_close(slopes, torch.tensor(paper), rtol=1e-6, atol=0)


def test_an_answer_and_then_a_training_step_in_one_process() -> None:
    """What is kept between calls was first made in inference mode, and must serve gradients too."""
    for config in (MISTRAL, MPT):
        model = Decoder(dataclasses.replace(config, alibi_bias_max=7.5) if config is MPT else config)
        with torch.inference_mode():
            model(TOKENS)
        model(TOKENS, targets_BT=targets()).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_products_are_widened_only_where_bfloat16_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "_cpu_multiplies_bfloat16", lambda has=has: has)
        assert precision.matmul_dtype(torch.bfloat16, cpu) == expected
        assert precision.matmul_dtype(torch.bfloat16, cuda) == torch.bfloat16
        assert precision.matmul_dtype(torch.float32, cpu) == torch.float32
    monkeypatch.setenv("MOXIN_MATMUL_DTYPE", "fp8")
    with pytest.raises(ValueError, match="'fp8'"):
        precision.matmul_dtype(torch.bfloat16, cpu)
