from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.data import from_tensors
from esnac.distillation.losses import make_loss
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError, SettingsError
from esnac.graphs.masks import attach_masks
from esnac.quantization.attach import Plan, attach, weight_codes
from esnac.quantization.codes import decode
from esnac.quantization.points import (
    CodebookSettings,
    CodebookWeight,
    PointSettings,
    freeze_but_points,
)
from esnac.training import TrainingSettings, fit

CPU = torch.device("cpu")


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
    assert quantizer.codes(weight).table.tolist() == pytest.approx([0.1, 0.9])


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


def plan(first: str, last: str) -> Plan:
    return Plan({first: CodebookSettings(4, rows=8), last: CodebookSettings(3, rows=8)})


PLAN = plan("0.weight", "3.weight")


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def test_only_points_and_statistics_change() -> None:
    """Trained as the stage `quantize` trains them: by Adam, towards the network as it was."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (400, 1, 2, 2), generator=generator, dtype=torch.uint8)
    data = from_tensors((images, torch.arange(400) % 2))
    whole, network = (nn.Sequential(nn.Flatten(), *made()) for _ in range(2))
    attach(network, plan("1.weight", "4.weight"))
    freeze_but_points(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    settings = TrainingSettings(
        epochs=10, batch_size=32, optimizer="adam", learning_rate=0.01, weight_decay=0.0,
        schedule="cosine", precision="float32", distillation="logit_mse", label_weight=0.0,
    )  # fmt: skip
    result = fit(
        network,
        data,
        settings,
        loss=make_loss(settings),
        seed=0,
        augmentation_seed=0,
        targets=TeacherTargets(whole, data, 0, CPU),
        device=CPU,
    )
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    changed = {
        n for n, tensor in network.state_dict().items() if not torch.equal(before[n], tensor)
    }
    points = {f"{n}.parametrizations.weight.0.points" for n in "14"}
    assert changed == points | {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    for codes in weight_codes(network).values():
        assert (codes.table.diff() > 0).all()
        assert codes.table.isfinite().all()


def test_points_are_all_that_is_trained() -> None:
    network = made()
    with pytest.raises(EsnacError, match="no points to train"):
        freeze_but_points(network)
    attach(network, PLAN)
    freeze_but_points(network)
    trained = {name for name, tensor in network.named_parameters() if tensor.requires_grad}
    assert trained == {f"{n}.parametrizations.weight.0.points" for n in "03"}


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
