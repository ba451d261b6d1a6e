"""The decoder against `transformers`' Mistral: logits, gradients, bfloat16; packing and initialisation."""

import dataclasses

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from kernels import precision
from moxin.model.checkpoint import to_hf_config
from moxin.model.decoder import Decoder, positions_in_segments
from moxin.recipe import ModelConfig

SMALL = ModelConfig(
    n_layers=2,
    d_model=48,
    n_heads=6,
    n_kv_heads=2,
    d_ff=80,
    vocab_size=97,
    max_seq_len=128,
    sliding_window=16,
)


def noisy(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights larger than an initialisation's, norms not 1: differences show."""
    model = Decoder(config)
    model.reset(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
            else:
                parameter *= 4
    return model


def as_transformers(model: Decoder, attention: str = "eager") -> MistralForCausalLM:
    config = MistralConfig(**to_hf_config(model.config), attn_implementation=attention)
    theirs = MistralForCausalLM(config).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs.to(next(model.parameters()).dtype)


CASES = {
    "gqa 3, window": {},
    "mha, no window": {"n_kv_heads": 6, "sliding_window": None},
    "mqa, window 1": {"n_kv_heads": 1, "sliding_window": 1},
    "long theta, wide window": {"rope_theta": 1e6, "sliding_window": 300},
    "tied, other eps": {"tie_embeddings": True, "norm_eps": 1e-3},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_logits_and_gradients_are_those_of_transformers(changes: dict) -> None:
    model = noisy(dataclasses.replace(SMALL, **changes))
    theirs = as_transformers(model)
    tokens = torch.randint(97, (2, 75))
    targets = torch.randint(97, (2, 75))
    targets[0, 10:20] = -100
    logits = model(tokens)
    hf_logits = theirs(tokens).logits
    torch.testing.assert_close(logits, hf_logits, rtol=1e-5, atol=1e-5)
    nll = model(tokens, targets_BT=targets)
    hf_nll = torch.nn.functional.cross_entropy(hf_logits.flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(nll, hf_nll.view(2, 75), rtol=1e-5, atol=1e-5)
    weights = torch.rand(2, 75)
    (nll * weights).sum().backward()
    (hf_nll.view(2, 75) * weights).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("multiply_in", ["float32", "bfloat16"])
def test_bfloat16_is_as_near_as_two_runs_of_transformers(
    multiply_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our distance to the float32 result is at most that of the worse of transformers' two bfloat16 attentions."""
    monkeypatch.setenv("MOXIN_MATMUL_DTYPE", multiply_in)
    model = noisy(SMALL).bfloat16()
    exact = as_transformers(noisy(SMALL).bfloat16().float())
    tokens = torch.randint(97, (4, 64))
    with torch.no_grad():
        right = exact(tokens).logits
        theirs = [
            (as_transformers(model, attention)(tokens).logits.float() - right).square().mean().sqrt()
            for attention in ("eager", "sdpa")
        ]
        ours = (model(tokens).float() - right).square().mean().sqrt()
    assert ours <= 1.1 * max(theirs)


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


@pytest.mark.parametrize("window", [None, 7])
def test_packed_documents_are_as_if_alone(window: int | None) -> None:
    """Losses and gradients of three documents in one padded row are those of the documents one by one."""
    model = noisy(dataclasses.replace(SMALL, sliding_window=window))
    documents = [torch.randint(97, (n,)) for n in (1, 13, 20)]
    pad = 6
    tokens = torch.cat([*documents, torch.zeros(pad, dtype=torch.int64)]).unsqueeze(0)
    segments = torch.cat(
        [torch.full((len(d),), i) for i, d in enumerate(documents)] + [torch.full((pad,), -1)]
    )
    targets = torch.cat(
        [torch.cat([d[1:], torch.tensor([-100])]) for d in documents] + [torch.full((pad,), -100)]
    )
    packed = model(tokens, segments.int().unsqueeze(0), targets.unsqueeze(0))[0]
    assert not packed[-pad:].any()
    packed_grads = torch.autograd.grad(packed.sum(), list(model.parameters()))
    alone = [model(d[:-1].unsqueeze(0), targets_BT=d[1:].unsqueeze(0))[0] for d in documents[1:]]
    alone_grads = torch.autograd.grad(sum(nll.sum() for nll in alone), list(model.parameters()))
    torch.testing.assert_close(packed[1:13], alone[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[14:33], alone[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed_grads, alone_grads, rtol=1e-4, atol=1e-4)


def test_positions_start_again_in_every_document() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1, 2], [5, -1, -1, -1, -1, -1]])
    assert positions_in_segments(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 2, 3, 4]]


def test_reset_is_a_function_of_the_seed_alone() -> None:
    first, second = Decoder(SMALL), Decoder(SMALL).bfloat16()
    first.reset(7)
    second.reset(7)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter.bfloat16(), second.get_parameter(name))
    weight = first.model.layers[0].mlp.gate_proj.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert first.model.norm.weight.eq(1).all()
    second.reset(8)
    assert not torch.equal(weight.bfloat16(), second.model.layers[0].mlp.gate_proj.weight)


def test_parameters_are_counted_as_published() -> None:
    """Mistral-7B-v0.1 has 7,241,732,096 (its model card's safetensors metadata)."""
    mistral = ModelConfig(32, 4096, 32, 8, 14336, 32000, 32768, 4096)
    with torch.device("meta"):
        model = Decoder(mistral)
    assert model.n_parameters() == 7_241_732_096
    assert model.n_parameters(embeddings=False) == 7_241_732_096 - 2 * 32000 * 4096
    with torch.device("meta"):
        tied = Decoder(dataclasses.replace(SMALL, tie_embeddings=True))
        untied = Decoder(SMALL)
    assert tied.n_parameters(embeddings=False) == untied.n_parameters(embeddings=False)
    assert untied.n_parameters() - tied.n_parameters() == 97 * 48
