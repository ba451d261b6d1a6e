"""What the decoder promises beyond `transformers`: every setting against plain float64, packing, recomputation, fresh
weights, and what it refuses."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from small import noisy
from torch import Tensor

from kernels import attention as attention_module
from kernels.attention import attention_backend
from moxin.model.decoder import Decoder, init_std_of, positions_in_segments
from moxin.recipe import ModelConfig, padded_vocab

MISTRAL = ModelConfig(
    n_layers=3,
    d_model=48,
    n_heads=6,
    n_kv_heads=2,
    d_ff=80,
    vocab_size=97,
    max_seq_len=128,
    sliding_window=16,
)
MPT = dataclasses.replace(
    MISTRAL,
    n_kv_heads=6,
    d_ff=192,
    sliding_window=None,
    norm="layer",
    activation="gelu",
    position="alibi",
    tie_embeddings=True,
    init="kaiming",
)
VARIANTS = {
    "mistral": MISTRAL,
    "mpt": MPT,
    "windows by layer": dataclasses.replace(MISTRAL, sliding_window=None, layer_windows=(5, 0)),
    "learned positions": dataclasses.replace(MISTRAL, position="learned"),
    "no positions": dataclasses.replace(MISTRAL, position="none"),
    "qk_norm, rope": dataclasses.replace(MISTRAL, qk_norm=True),
    "qk_norm, layer norm, clipped": dataclasses.replace(MPT, qk_norm=True, clip_qkv=1.0, n_kv_heads=3),
    "alibi, grouped, windowed, steep": dataclasses.replace(
        MPT, n_kv_heads=2, sliding_window=7, alibi_bias_max=4.0
    ),
    "layer norm, swiglu, rope": dataclasses.replace(MISTRAL, norm="layer", d_ff=64),
    "rms, gelu, odd heads of alibi": dataclasses.replace(MPT, norm="rms", n_heads=3, n_kv_heads=3, d_ff=50),
}
TOKENS = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(3))
each_family = pytest.mark.parametrize("config", [MISTRAL, MPT], ids=["mistral", "mpt"])


def plain(model: Decoder, tokens_T: Tensor) -> Tensor:
    """The logits of one row in float64, head by head, from the formulas of the papers."""
    c, t = model.config, len(tokens_T)
    p = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    distance = torch.arange(t).view(t, 1) - torch.arange(t)

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if c.norm == "layer" else x
        return p[f"{name}.weight"] * x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt()

    def rotate(x_TD: Tensor) -> Tensor:
        half = c.head_dim // 2
        angle = torch.arange(t).view(t, 1) * c.rope_theta ** (-torch.arange(half) * 2.0 / c.head_dim).double()
        turned = torch.complex(x_TD[:, :half], x_TD[:, half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], 1)

    def attend(x: Tensor, at: str, window: int | None) -> Tensor:
        qkv = x @ p[f"{at}.qkv.weight"].T
        if c.clip_qkv:
            qkv = qkv.clip(-c.clip_qkv, c.clip_qkv)
        kv_width = c.n_kv_heads * c.head_dim
        q, k, v = qkv[:, : c.d_model], qkv[:, c.d_model : c.d_model + kv_width], qkv[:, -kv_width:]
        if c.qk_norm:
            q, k = norm(q, f"{at}.q_norm"), norm(k, f"{at}.k_norm")
        seen = (distance >= 0) & (distance < (window or t))
        n = 2 ** math.ceil(math.log2(c.n_heads))
        slopes = [2.0 ** (-c.alibi_bias_max * i / n) for i in range(1, n + 1)]
        slopes = slopes if n == c.n_heads else slopes[1::2] + slopes[::2]
        heads = []
        for h in range(c.n_heads):
            of_q, g = slice(h * c.head_dim, (h + 1) * c.head_dim), h // (c.n_heads // c.n_kv_heads)
            of_kv = slice(g * c.head_dim, (g + 1) * c.head_dim)
            turn = rotate if c.position == "rope" else lambda x: x
            scores = turn(q[:, of_q]) @ turn(k[:, of_kv]).T / math.sqrt(c.head_dim)
            if c.position == "alibi":
                scores = scores - slopes[h] * distance
            heads.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ v[:, of_kv])
        return torch.cat(heads, 1) @ p[f"{at}.out.weight"].T

    def feed_forward(x: Tensor, at: str) -> Tensor:
        up = x @ p[f"{at}.up.weight"].T
        if c.activation == "swiglu":
            gate, up = up[:, : c.d_ff], up[:, c.d_ff :]
            return (gate / (1 + (-gate).exp()) * up) @ p[f"{at}.down.weight"].T
        return (up / 2 * (1 + torch.erf(up / math.sqrt(2)))) @ p[f"{at}.down.weight"].T

    x = p["embedding.weight"][tokens_T]
    if c.position == "learned":
        x = x + p["position.weight"][:t]
    for i, window in enumerate(c.windows):
        x = x + attend(norm(x, f"blocks.{i}.attention_norm"), f"blocks.{i}.attention", window)
        x = x + feed_forward(norm(x, f"blocks.{i}.mlp_norm"), f"blocks.{i}.mlp")
    return norm(x, "norm") @ p["head.weight"].T


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_setting_computes_its_formula(config: ModelConfig) -> None:
    model = noisy(config)
    with torch.no_grad():
        expected = torch.stack([plain(model, row) for row in TOKENS])
        torch.testing.assert_close(model(TOKENS).double(), expected, rtol=2e-5, atol=2e-5)
        in_double = model.double()(TOKENS)
    # angles and slopes are float32 even so, as the published models have them
    torch.testing.assert_close(in_double, expected, rtol=1e-6, atol=1e-6)


def test_windows_by_layer_are_those_of_the_window() -> None:
    one = noisy(dataclasses.replace(MISTRAL, sliding_window=5))
    for windows in ((5,), (5, 5), (5, 5, 5, 5)):
        other = noisy(dataclasses.replace(MISTRAL, sliding_window=None, layer_windows=windows))
        assert torch.equal(one(TOKENS), other(TOKENS))
    assert dataclasses.replace(MISTRAL, sliding_window=None, layer_windows=(5, 0)).windows == (5, None, 5)


def rows_of_documents(padding: int = 6) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Documents, and one padded row that holds them: tokens, segments, targets."""
    documents = [torch.arange(n) * 7 % 97 for n in (1, 13, 20)]
    tokens = torch.cat([*documents, torch.zeros(padding, dtype=torch.int64)])
    segments = torch.cat(
        [torch.full((len(d),), i) for i, d in enumerate(documents)] + [torch.full((padding,), -1)]
    )
    targets = torch.cat(
        [torch.cat([d[1:], torch.tensor([-100])]) for d in documents] + [torch.full((padding,), -100)]
    )
    return documents, tokens[None], segments.int()[None], targets[None]


@pytest.mark.parametrize(
    "config",
    [MISTRAL, dataclasses.replace(MISTRAL, sliding_window=7), MPT, VARIANTS["windows by layer"]]
    + [VARIANTS["learned positions"]],
    ids=["mistral", "narrow", "mpt", "windows by layer", "learned positions"],
)
def test_packed_documents_are_as_if_alone(config: ModelConfig) -> None:
    """Losses and gradients of three documents in one padded row are those of the documents one by one."""
    model = noisy(config)
    documents, tokens, segments, targets = rows_of_documents()
    packed = model(tokens, segments, targets)[0]
    assert not packed[-6:].any()
    packed_grads = torch.autograd.grad(packed.sum(), list(model.parameters()))
    alone = [model(d[:-1].unsqueeze(0), targets_BT=d[1:].unsqueeze(0))[0] for d in documents[1:]]
    alone_grads = torch.autograd.grad(sum(nll.sum() for nll in alone), list(model.parameters()))
    torch.testing.assert_close(packed[1:13], alone[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed[14:33], alone[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed_grads, alone_grads, rtol=1e-4, atol=1e-4)


@each_family
def test_no_document_learns_of_another(config: ModelConfig) -> None:
    """Whatever the first document says, the logits of the second are the same to the bit."""
    model = noisy(config)
    _, tokens, segments, _ = rows_of_documents()
    changed = tokens.clone()
    changed[0, :14] = (changed[0, :14] + 31) % 97
    with torch.no_grad():
        first, second = model(tokens, segments), model(changed, segments)
    assert torch.equal(first[0, 14:], second[0, 14:])
    assert not torch.equal(first[0, :14], second[0, :14])


def test_positions_start_again_in_every_document() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1, 2], [5, -1, -1, -1, -1, -1]])
    assert positions_in_segments(segments).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 1, 2, 3, 4]]


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputing_changes_no_bit(config: ModelConfig, dtype: torch.dtype) -> None:
    _, tokens, segments, targets = rows_of_documents()
    results = []
    for recompute in ("none", "selective", "full"):
        model = noisy(config, recompute=recompute).to(dtype)
        loss, _ = model(tokens, segments, targets, reduction="sum")
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    kept, *others = results
    for again in others:
        assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


@each_family
def test_autocast_multiplies_in_its_type(config: ModelConfig) -> None:
    """As float32 weights are trained by DeepSpeed and by hand: near the float32 result, gradients in the weights' type."""
    model = noisy(config)
    _, tokens, segments, targets = rows_of_documents()
    with torch.autocast("cpu", torch.bfloat16):
        nll = model(tokens, segments, targets)
    torch.testing.assert_close(nll, model(tokens, segments, targets), rtol=0.05, atol=0.05)
    nll.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_reset_is_a_function_of_the_seed_alone(config: ModelConfig) -> None:
    first, second = Decoder(config, seed=7), Decoder(config).bfloat16()
    second.reset(7)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter.bfloat16(), second.get_parameter(name))
        assert parameter.ndim > 1 or parameter.eq(1).all()
    third = Decoder(config, seed=8)
    matrices = [(name, p) for name, p in first.named_parameters() if p.ndim > 1]
    assert not any(torch.equal(p, third.get_parameter(name)) for name, p in matrices)
    assert not any(a.shape == b.shape and torch.equal(a, b) for (_, a), (_, b) in pairwise(matrices))


def test_initial_spreads_are_those_of_the_families() -> None:
    wide = dataclasses.replace(
        MPT, d_model=96, n_heads=12, n_kv_heads=12, d_ff=384, n_layers=8, vocab_size=500
    )
    for config in (wide, dataclasses.replace(wide, init="normal", init_std=0.05)):
        model = Decoder(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                continue
            like = torch.nn.init.kaiming_normal_(
                torch.empty(1_000_000 // parameter.shape[1], parameter.shape[1])
            )
            expected = 0.05 if config.init == "normal" else like.std().item()
            if config.init == "kaiming" and name.endswith(("attention.out.weight", "mlp.down.weight")):
                expected /= math.sqrt(2 * 8)  # llm-foundry's init_div_is_residual
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 4 * expected / math.sqrt(parameter.numel()), name
            assert init_std_of(config, name, parameter.shape[1]) == pytest.approx(expected, rel=0.01), name


def test_without_a_seed_or_on_the_meta_device_nothing_is_drawn() -> None:
    state = torch.get_rng_state()
    with torch.device("meta"):
        assert Decoder(MPT).head.weight.is_meta
    Decoder(MISTRAL, seed=None)
    Decoder(MISTRAL, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@each_family
def test_parameters_are_counted_with_and_without_tables(config: ModelConfig) -> None:
    tied = Decoder(dataclasses.replace(config, tie_embeddings=True))
    untied = Decoder(dataclasses.replace(config, tie_embeddings=False))
    assert tied.n_parameters(embeddings=False) == untied.n_parameters(embeddings=False)
    assert untied.n_parameters() - tied.n_parameters() == 97 * 48
    assert tied.n_parameters() == sum(p.numel() for p in tied.parameters())
    assert tied.n_parameters() - tied.n_parameters(embeddings=False) == 97 * 48
    tied.bfloat16().double()
    assert tied.head.weight is tied.embedding.weight


def test_a_vocabulary_is_padded_to_whole_tiles() -> None:
    assert padded_vocab(50_277, 128) == 50_304
    assert [padded_vocab(n) for n in (1, 128, 129)] == [128, 128, 256]


BAD = [
    ({"n_kv_heads": 4}, r"model\.n_heads = 6 is not a multiple of model\.n_kv_heads = 4"),
    ({"n_heads": 5}, r"model\.d_model = 48 is not a multiple of model\.n_heads = 5"),
    ({"n_heads": 16, "n_kv_heads": 8}, r"model\.d_model / model\.n_heads = 3: RoPE rotates pairs"),
    ({"sliding_window": 0}, r"model\.sliding_window = 0: at least 1, or none"),
    ({"layer_windows": (4, 0)}, r"layer_windows = \[4, 0\] replaces model\.sliding_window = 16"),
    ({"sliding_window": None, "layer_windows": (4, -1)}, r"layer_windows = \[4, -1\]: at least 1, or 0"),
    ({"clip_qkv": 0.0}, r"model\.clip_qkv = 0\.0: must be above 0, or none"),
    ({"n_kv_heads": 0}, r"model\.n_kv_heads = 0: must be at least 1"),
    ({"norm_eps": 0.0}, r"model\.norm_eps = 0\.0: must be above 0"),
    ({"rope_theta": math.nan}, r"model\.rope_theta = nan: must be above 0"),
    ({"alibi_bias_max": 4.0}, r"model\.alibi_bias_max = 4\.0 has no effect with model\.position = rope"),
    ({"position": "alibi", "rope_theta": 5e5}, r"rope_theta = 500000\.0 has no effect with model\.position"),
    ({"init": "kaiming", "init_std": 0.1}, r"init_std = 0\.1 has no effect with model\.init = kaiming"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_shapes_that_cannot_be_are_refused_before_anything_is_made(changes: dict, message: str) -> None:
    config = dataclasses.replace(MISTRAL, **changes)
    with pytest.raises(ValueError, match=message):
        config.validate()
    with pytest.raises(ValueError, match=message):
        Decoder(config)


@each_family
def test_ids_outside_the_vocabulary_are_refused(config: ModelConfig) -> None:
    model = Decoder(config)
    for wrong in (97, -1):
        tokens = TOKENS.clone()
        tokens[1, 5] = wrong
        with pytest.raises(
            ValueError, match=rf"{wrong}.* where model\.vocab_size = 97: they must lie in 0 to 96"
        ):
            model(tokens)
    targets = TOKENS.clone()
    targets[0, 3] = 97
    for reduction in ("none", "sum"):
        with pytest.raises(ValueError, match="97"):
            model(TOKENS, targets_BT=targets, reduction=reduction)


def test_a_row_beyond_learned_positions_is_refused() -> None:
    model = Decoder(dataclasses.replace(MISTRAL, position="learned", max_seq_len=39))
    assert model(TOKENS[:, :39]).shape == (2, 39, 97)
    with pytest.raises(ValueError, match=r"rows of 40 tokens where model\.max_seq_len = 39"):
        model(TOKENS)
    with pytest.raises(ValueError, match=r"ids from 0 to 39 where model\.max_seq_len = 39"):
        model(TOKENS, positions_BT=torch.arange(40).expand(2, 40))
    segments = torch.arange(40).ge(20).long().expand(2, 40)
    assert model(TOKENS, segments).shape == (2, 40, 97)  # packed: no document is too long


def test_a_head_that_the_chosen_attention_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module, "runs_triton", lambda device: True)
    monkeypatch.setenv("MOXIN_ATTENTION", "triton")
    wide = Decoder(dataclasses.replace(MISTRAL, d_model=260, n_heads=1, n_kv_heads=1))
    with pytest.raises(
        ValueError, match=r"'triton' takes a head_dim up to 256, not 260; choose .*MOXIN_ATTENTION"
    ):
        wide(TOKENS)
    monkeypatch.setenv("MOXIN_ATTENTION", "flash")
    with pytest.raises(ValueError, match="'flash'"):
        wide(TOKENS)
    monkeypatch.setenv("MOXIN_ATTENTION", "fast")
    with pytest.raises(ValueError, match=r"'fast' is not one of .*MOXIN_ATTENTION"):
        attention_backend()
