from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.errors import EsnacError
from esnac.graphs.masks import attach_masks, effective_weights, mask_of, masks_of_zeros


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def test_masked_weights_are_zero_after_every_step_with_momentum_and_decay() -> None:
    model = network()
    keep = torch.rand(4, 1, 3, 3) > 0.5
    attach_masks(model, {"0.weight": keep})
    free = model[3].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 1, 4, 4)).square().mean().backward()
        optimizer.step()
        assert (model[0].weight[~keep] == 0).all()
        assert (model[0].weight[keep] != 0).all()
    assert not torch.equal(free, model[3].weight)


def test_a_second_mask_replaces_the_first() -> None:
    model = network()
    before = model[3].weight.detach().clone()
    first, second = torch.rand(3, 16) > 0.5, torch.rand(3, 16) > 0.5
    attach_masks(model, {"3.weight": first})
    attach_masks(model, {"3.weight": second})
    mask = mask_of(model, "3.weight")
    assert mask is not None
    assert torch.equal(mask.keep, second)
    assert torch.equal(model[3].weight, before * second)
    assert mask_of(model, "0.weight") is None


def test_masks_are_read_from_zeros() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[0] = 0
    found = masks_of_zeros(model)  # norms and biases, of one dimension, are no matter
    assert list(found) == ["0.weight"]
    assert found["0.weight"].sum() == 27
    attach_masks(model, found)
    assert torch.equal(masks_of_zeros(model)["0.weight"], found["0.weight"])


def test_effective_weights_have_the_names_of_the_plain_network() -> None:
    model = network()
    names = [name for name, _ in model.named_parameters()]
    attach_masks(model, {"0.weight": torch.zeros(4, 1, 3, 3)})
    found = effective_weights(model)
    assert sorted(found) == sorted(names)
    assert not found["0.weight"].any()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [("4.weight", (1,), "No weight '4.weight'"), ("3.weight", (3, 15), r"\(3, 15\).*\(3, 16\)")],
)
def test_masks_that_do_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(EsnacError, match=message):
        attach_masks(network(), {name: torch.ones(shape)})
