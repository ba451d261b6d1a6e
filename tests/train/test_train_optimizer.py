"""The optimizers against PyTorch's own and against their papers written out."""

import copy

import pytest
import torch
from torch import nn
from train_cases import MODEL, small_job

from moxin.model.decoder import Decoder
from moxin.train import optimizer
from moxin.train.muon import RMS, orthogonalised

STEPS = 5


def trained(kind, steps=STEPS, norm=None, bad=None):
    """A decoder after some steps with made-up gradients, and its optimizer."""
    settings = small_job(kind=kind).optimizer
    module = Decoder(MODEL, 3)
    own = optimizer.build(module, settings)
    for group in own.param_groups:
        group["lr"] = 0.01
    for step in range(steps):
        give_gradients(module, step)
        if norm is not None:
            optimizer.tell(own, torch.tensor(norm), torch.tensor(bool(bad)), settings.grad_clip)
        own.step()
    return module, own


def give_gradients(module, step):
    noise = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=noise)


def test_adamw_of_the_parts_that_are_not_muons_is_pytorchs():
    settings = small_job(kind="muon").optimizer
    module = Decoder(MODEL, 3)
    theirs = copy.deepcopy(module)
    apart = {"norm": [], "table": []}
    for name, parameter in theirs.named_parameters():
        if parameter.ndim == 1:
            apart["norm"].append(parameter)
        elif not name.startswith("blocks."):
            apart["table"].append(parameter)
    groups = [{"params": apart["table"], "weight_decay": 0.1}, {"params": apart["norm"], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=settings.betas, eps=settings.eps)
    own = optimizer.build(module, settings)
    for group in own.param_groups:
        group["lr"] = 0.01
    for step in range(STEPS):
        give_gradients(module, step)
        give_gradients(theirs, step)
        own.step()
        reference.step()
    mine = dict(module.named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.ndim == 1 or not name.startswith("blocks."):
            torch.testing.assert_close(mine[name], parameter, rtol=1e-5, atol=1e-6)


def test_lion_is_its_paper():
    module, _ = trained("lion")
    reference = Decoder(MODEL, 3)
    momenta = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    for step in range(STEPS):
        give_gradients(reference, step)
        for name, p in reference.named_parameters():
            decay = 0.1 if p.ndim == 2 else 0.0
            momentum = momenta[name]
            update = torch.sign(0.9 * momentum + 0.1 * p.grad)
            p.data -= 0.01 * (update + decay * p.data)
            momenta[name] = 0.95 * momentum + 0.05 * p.grad
    mine = dict(module.named_parameters())
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(mine[name], parameter, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (40, 40)])
def test_muon_is_pytorchs(shape):
    """`torch.optim.Muon` with the same adjustment of the rate; its arithmetic is in bfloat16."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    theirs, mine = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    group = {"params": [mine], "names": ["x"], "weight_decay": 0.1, "muon": True, "lr": 0.01}
    own = optimizer.MuonWithAdamW([group], small_job(kind="muon").optimizer, {"x": ()})
    for step in range(STEPS):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step + 2))
        theirs.grad, mine.grad = gradient.clone(), gradient.clone()
        reference.step()
        own.step()
    moved = (theirs - start).norm()
    assert (mine - theirs).norm() < 0.02 * moved


def test_an_orthogonalised_update_has_singular_values_near_one_and_the_size_of_adamws():
    update = orthogonalised(torch.randn(64, 24, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(update) / (RMS * 64**0.5)
    assert values.min() > 0.6
    assert values.max() < 1.3
    parts = torch.randn(60, 24, generator=torch.Generator().manual_seed(1))
    both = orthogonalised(parts, (40, 20))
    torch.testing.assert_close(both, torch.cat([orthogonalised(parts[:40]), orthogonalised(parts[40:])]))


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_a_bad_step_changes_nothing_at_all(kind):
    for norm, bad in ((1.0, True), (float("nan"), False), (float("inf"), False), (-1.0, False)):
        module, own = trained(kind, steps=2)
        before = copy.deepcopy((module.state_dict(), own.state_dict()["state"]))
        give_gradients(module, 9)
        next(module.parameters()).grad[0] = float("nan")
        assert optimizer.tell(own, torch.tensor(norm), torch.tensor(bad), 0.5)
        own.step()
        after = (module.state_dict(), own.state_dict()["state"])
        torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_clipping_is_pytorchs(kind):
    module, own = trained(kind, steps=0)
    clipped, reference = trained(kind, steps=0)
    for one in (module, clipped):
        give_gradients(one, 4)
    norm = nn.utils.get_total_norm([p.grad for p in module.parameters()])
    assert not optimizer.tell(own, norm, torch.tensor(False), 0.5)
    own.step()
    nn.utils.clip_grad_norm_(clipped.parameters(), 0.5)
    reference.step()
    for mine, theirs in zip(module.parameters(), clipped.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
