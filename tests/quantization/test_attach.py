from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from esnac.errors import EsnacError
from esnac.graphs.masks import attach_masks, mask_of
from esnac.quantization.attach import (
    Plan,
    activation_quantizers,
    attach,
    calibrate,
    detach,
    masters,
    verify_fired,
    weight_codes,
    weight_quantizers,
)
from esnac.quantization.codes import decode
from esnac.quantization.lsq import LSQActivationSettings, LSQWeightSettings
from esnac.quantization.uniform_weight import UniformSettings

W, A = LSQWeightSettings(4), LSQActivationSettings(4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def batch() -> Tensor:
    return torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def quantized() -> nn.Sequential:
    model = network()
    attach(model, Plan({"0.weight": W, "4.weight": W}, {"4": A}))
    return model


def test_the_layer_computes_with_codes_and_the_optimizer_moves_masters() -> None:
    model = quantized()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        optimizer.step()
    assert len(model[4].weight.unique()) <= 16 < len(masters(model)["4.weight"].unique())
    for name, codes in weight_codes(model).items():
        assert torch.equal(decode(codes), model[int(name[0])].weight)
    assert sorted(weight_quantizers(model)) == ["0.weight", "4.weight"]
    assert list(activation_quantizers(model)) == ["4"]
    verify_fired(model)


def test_baked_weights_give_the_same_outputs() -> None:
    model = network()
    attach(model, Plan({"0.weight": W, "4.weight": W}))
    model.eval()
    expected = model(batch())
    detach(model)
    assert torch.equal(model(batch()), expected)


def test_nothing_of_the_quantisers_is_left() -> None:
    model = quantized()
    calibrate(model, [batch()])
    model.eval()
    expected, seen = model(batch()), model[4].weight.detach().clone()
    detach(model)
    assert torch.equal(model[4].weight, seen)
    assert model.state_dict().keys() == network().state_dict().keys()
    assert not torch.equal(model(batch()), expected)
    with pytest.raises(EsnacError, match="no quantisers"):
        detach(model)


def test_masters_come_back_and_masks_stay() -> None:
    model, plain = network(), network()
    keep = torch.rand(3, 16, generator=torch.Generator().manual_seed(2)) > 0.5
    attach_masks(model, {"4.weight": keep})
    attach(model, Plan({"0.weight": W, "4.weight": W}))
    assert not model[4].weight[~keep].any()
    assert torch.equal(weight_codes(model)["4.weight"].keep, keep)
    assert torch.equal(decode(weight_codes(model)["4.weight"]), model[4].weight)
    detach(model, bake=False)
    assert torch.equal(model[0].weight, plain[0].weight)
    assert torch.equal(model[4].weight, plain[4].weight * keep)
    assert mask_of(model, "4.weight") is not None


def test_a_mask_put_on_later_is_last_too() -> None:
    model = quantized()
    keep = torch.rand(3, 16) > 0.5
    attach_masks(model, {"4.weight": keep})
    assert not model[4].weight[~keep].any()
    detach(model)
    assert not model[4].weight[~keep].any()


def test_disabled_quantisers_are_identities() -> None:
    model, plain = quantized().eval(), network().eval()
    quantizers = [*weight_quantizers(model).values(), *activation_quantizers(model).values()]
    for quantizer in quantizers:
        quantizer.enabled = False
    assert torch.equal(model(batch()), plain(batch()))
    for quantizer in quantizers:
        quantizer.enabled = True
    calibrate(model, [batch()])
    assert not torch.equal(model(batch()), plain(batch()))


def test_calibration_changes_nothing_but_ranges() -> None:
    model = quantized().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    calibrate(model, [batch()])
    changed = [key for key, value in model.state_dict().items() if not value.equal(before[key])]
    assert changed == ["4.input_quantizer.raw_step"]
    assert all(module.training for module in model.modules())
    with pytest.raises(EsnacError, match="No data reached the quantisers of 4"):
        calibrate(quantized(), [])


def test_quantisers_that_never_ran_are_named() -> None:
    model = quantized()
    model.add_module("spare", nn.Linear(2, 2))
    attach(model, Plan({"spare.weight": W}))
    model.forward = lambda x: model[0](x)  # type: ignore[method-assign]
    with pytest.raises(EsnacError, match=r"weight 4.weight, weight spare.weight, input of 4\."):
        verify_fired(model, batch())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan({"0.wieght": W}), "Unknown weight '0.wieght'. Did you mean '0.weight'"),
        (Plan({}, {"5": A}), "Unknown layer '5'"),
        (Plan(), "quantises nothing"),
        (Plan({"0.weight": W, "4.weight": W}), "quantised already"),
        (Plan({}, {"4": A}), "input of '4' is quantised already"),
    ],
)
def test_plans_that_cannot_be_attached(plan: Plan, message: str) -> None:
    model = network()
    attach(model, Plan({"4.weight": W}, {"4": A}))
    before = model.state_dict().keys()
    with pytest.raises(EsnacError, match=message):
        attach(model, plan)
    assert model.state_dict().keys() == before


def test_a_quantiser_that_cannot_be_built_leaves_the_network_alone() -> None:
    model = network()
    plan = Plan({"0.weight": W, "4.weight": UniformSettings(2, scaling="absnorm")}, {"4": A})
    with pytest.raises(EsnacError, match="absnorm"):
        attach(model, plan)
    assert model.state_dict().keys() == network().state_dict().keys()


def test_shared_weights_and_indices_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    with pytest.raises(EsnacError, match="indices"):
        attach(model, Plan({}, {"0": A}))
    model[1].weight = model[0].weight
    with pytest.raises(EsnacError, match=r"1.weight is also 0.weight"):
        attach(model, Plan({"1.weight": W}))


def test_recurrent_layers_use_quantised_weights_after_updates_too() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, batch_first=True)
    names = [name for name, _ in model.named_parameters() if name.startswith("weight")]
    attach(model, Plan(dict.fromkeys(names, W), {"": A}))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    x = torch.randn(2, 5, 3)
    for _ in range(3):
        optimizer.zero_grad()
        model(x)[0].square().mean().backward()
        optimizer.step()
    assert all(master.grad is not None for master in masters(model).values())
    verify_fired(model)
    model.eval()
    expected = model(x)[0]
    plain = nn.LSTM(3, 4, batch_first=True)
    state = {name: decode(codes) for name, codes in weight_codes(model).items()}
    biases = {name: value for name, value in model.state_dict().items() if name.startswith("bias")}
    plain.load_state_dict(state | biases)
    inputs = model.input_quantizer(x)
    assert torch.equal(plain(inputs)[0], expected)
    detach(model)
    assert torch.equal(model(inputs)[0], expected)


def test_packed_sequences_and_inputs_by_keyword() -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    attach(model, Plan({}, {"": A}))
    expected = model(x)[0]
    packed, _ = model(input=pack_padded_sequence(x, [5, 5]))
    assert torch.equal(pad_packed_sequence(packed)[0], expected)


@pytest.mark.parametrize("training", [True, False])
def test_attention_quantises_its_projections_and_its_inputs_once(training: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    names = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight"]
    attach(layer, Plan(dict.fromkeys(names, W), {"self_attn": A, "linear1": A, "linear2": A}))
    x = torch.randn(2, 5, 8)
    calls = []
    layer.self_attn.input_quantizer.register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        layer(x)
        layer.train(training)
        calls.clear()
        layer(x)
    assert len(calls) == 1
    verify_fired(layer)


def test_state_dicts_keep_ranges() -> None:
    trained, fresh = quantized(), quantized()
    trained(batch())
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.eval()(batch()), trained.eval()(batch()))
