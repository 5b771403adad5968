from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from esnac.errors import EsnacError, SettingsError, TrainingError
from esnac.graphs.masks import attach_masks
from esnac.quantization.attach import Plan, attach, masters, weight_codes
from esnac.quantization.codes import decode
from esnac.quantization.points import (
    CodebookSettings,
    CodebookWeight,
    PointSettings,
    codebooks,
    fit_points,
)


def test_by_hand() -> None:
    """Weights 0 .. 8 in two buckets: (0, 1, 3, 4) is (0, 1/4, 3/4, 1) of 4; (4, 6, 8) of 4 from 4
    is (0, 1/2, 1). Points 0.1 and 0.9: the middle 0.5 goes up."""
    weight = torch.tensor([0.0, 1, 3, 4, 4, 6, 8])
    quantizer = CodebookSettings(2, rows=4, normalise=False).build(weight)
    with torch.no_grad():
        quantizer.points.copy_(torch.tensor([0.9, 0.1]))  # in any order
    value = quantizer(weight)
    expected = [0.4, 0.4, 3.6, 3.6, 4.4, 7.6, 7.6]
    assert value.tolist() == pytest.approx(expected)
    assert decode(quantizer.codes(weight)).tolist() == pytest.approx(expected)
    # dL/dp = sum of scale dL/dq over its weights, here with dL/dq = 1 .. 7.
    value.backward(torch.arange(1.0, 8))
    assert quantizer.points.grad is not None
    assert quantizer.points.grad.tolist() == [4 * (3 + 4 + 6 + 7), 4 * (1 + 2 + 5)]
    quantizer.sort()
    assert quantizer.points.tolist() == pytest.approx([0.1, 0.9])
    assert torch.equal(quantizer(weight), value)


def test_the_gradient_is_divided_by_the_root_of_the_number_of_weights() -> None:
    weight = torch.randn(25)
    found = []
    for normalise in (False, True):
        quantizer = CodebookSettings(4, normalise=normalise).build(weight)
        quantizer(weight).sum().backward()
        found.append(quantizer.points.grad)
    torch.testing.assert_close(found[0], 5 * found[1])


@pytest.mark.parametrize("rows", ["tensor", 128])
@pytest.mark.parametrize("levels", [2, 3, 4, 16])
def test_the_gradient_of_points_is_that_of_differences(levels: int, rows: int) -> None:
    torch.manual_seed(0)
    weight, g = torch.randn(7, 60, dtype=torch.float64), torch.randn(7, 60, dtype=torch.float64)
    quantizer = CodebookSettings(levels, rows, normalise=False).build(weight).double()
    loss = (quantizer.quantize(weight.double()).double() * g).sum()
    loss.backward()
    gradient, step = quantizer.points.grad, 1e-5
    assert gradient is not None
    before = quantizer.codes(weight).codes
    for j in range(levels):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                quantizer.points[j] += sign * step
                sides.append((quantizer.quantize(weight) * g).sum().item())
                assert torch.equal(quantizer.codes(weight).codes, before)
                quantizer.points[j] -= sign * step
        difference = (sides[0] - sides[1]) / (2 * step)
        assert difference == pytest.approx(gradient[j].item(), rel=1e-6)


def test_codes_are_to_the_bit_what_the_network_computes_with() -> None:
    network = made()
    attach_masks(network, {"3.weight": torch.rand(2, 8) > 0.5})
    attach(network, PLAN)
    for name, codes in weight_codes(network).items():
        weight = network.get_submodule(name[0]).weight
        assert torch.equal(decode(codes), weight)  # type: ignore[arg-type]
    assert (network[3].weight == 0).any()


PLAN = Plan({"0.weight": CodebookSettings(4, rows=8), "3.weight": CodebookSettings(3, rows=8)})


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def squares(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = batch
    loss: Tensor = (network(inputs) - targets).square().mean()
    return loss


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    whole = made().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return [(x, whole(x)) for x in torch.randn(count, 64, 4, generator=generator)]


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.01), ("sgd", 0.1)])
def test_only_points_and_statistics_change(optimizer: str, rate: float) -> None:
    network = made().eval()
    attach(network, PLAN)
    network[0].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    data = batches(60)
    start = sum(squares(network.train(), batch).item() for batch in data[-20:]) / 20
    network.load_state_dict(before)
    network.eval()
    settings = PointSettings(rate, optimizer)  # type: ignore[arg-type]
    mean = fit_points(network, iter(data), squares, steps=60, settings=settings)
    end = sum(squares(network.train(), batch).item() for batch in data[-20:]) / 20
    assert end < 0.7 * start
    assert mean < start
    changed = {
        n for n, tensor in network.state_dict().items() if not torch.equal(before[n], tensor)
    }
    points = {f"{n}.parametrizations.weight.0.points" for n in "03"}
    assert changed == points | {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for codebook in codebooks(network).values():
        assert (codebook.points.diff() > 0).all()
        assert codebook.points.isfinite().all()
    assert not network[0].bias.requires_grad
    assert all(master.requires_grad for master in masters(network).values())


def test_the_mode_comes_back() -> None:
    network = made()
    attach(network, PLAN)
    network.eval()
    fit_points(network, batches(2), squares, steps=2)
    assert not any(module.training for module in network.modules())


def test_what_goes_wrong() -> None:
    network = made()
    with pytest.raises(EsnacError, match="no points to train"):
        fit_points(network, batches(1), squares, steps=1)
    attach(network, PLAN)
    with pytest.raises(EsnacError, match="3 steps need as many batches; there were 2"):
        fit_points(network, batches(2), squares, steps=3)
    nan = [(inputs * float("nan"), targets) for inputs, targets in batches(1)]
    with pytest.raises(TrainingError, match="not finite at step 0"):
        fit_points(network, nan, squares, steps=1)


@pytest.mark.parametrize(
    "values", [{"levels": 1}, {"levels": 257}, {"rows": 0}, {"start": "means"}]
)
def test_wrong_settings(values: dict[str, object]) -> None:
    with pytest.raises(EsnacError, match=next(iter(values))):
        CodebookSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf")])
def test_wrong_learning_rates(rate: float) -> None:
    with pytest.raises(SettingsError, match="learning_rate"):
        PointSettings(rate)


def test_one_codebook_is_a_quantizer_of_weights() -> None:
    assert isinstance(CodebookSettings().build(torch.randn(3)), CodebookWeight)
