"""Quantised students on disk: equal after a reload, refused as plain ones; damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from esnac.errors import EsnacError, WeightsError
from esnac.graphs import student
from esnac.graphs.masks import attach_masks, mask_of
from esnac.graphs.network import Preparation, StudentNetwork
from esnac.graphs.trace import trace
from esnac.networks import build
from esnac.quantization import store
from esnac.quantization.attach import (
    activation_quantizers,
    attach,
    masters,
    weight_codes,
    weight_quantizers,
)
from esnac.quantization.description import WEIGHTS, activation_settings, describe, weight_settings
from esnac.quantization.policy import Policy, make_plan

SIZE = (3, 8, 8)
X = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(1))
PAIRS = [("lsq", "lsq"), ("dorefa", "dorefa"), ("dorefa", "pact"), ("minmax", "minmax")]
PAIRS += [("uniform", "lsq")]


def network() -> StudentNetwork:
    torch.manual_seed(0)
    return StudentNetwork(trace(build("resnet20", 5), SIZE))


def quantized(
    weights: str = "lsq", activations: str = "lsq", masked: bool = True
) -> StudentNetwork:
    model = network()
    plan = make_plan(
        model, Policy(3, 4), weight_settings(weights), activation_settings(activations)
    )
    attach(model, plan)
    name = next(iter(plan.weights))
    shape = masters(model)[name].shape
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.5
    attach_masks(model, {name: keep, "fc.weight": torch.ones(5, 64)})
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("weights", "activations"), PAIRS)
def test_a_reload_is_equal(weights: str, activations: str, tmp_path: Path) -> None:
    model = quantized(weights, activations)
    model.preparation = Preparation((0.5,) * 3, (0.2,) * 3, tuple("abcde"))
    store.save(tmp_path, model)
    files = ["architecture.json", "quantization.json", "weights.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    state = torch.random.get_rng_state()
    again = store.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(again(X), model(X))
    assert again.preparation == model.preparation
    assert not any(module.training for module in again.modules())
    assert describe(again) == describe(model)
    for name, codes in weight_codes(model).items():
        found = weight_codes(again)[name]
        assert torch.equal(found.codes, codes.codes)
        assert (found.keep is None) == (codes.keep is None)
    store.save(tmp_path, again)
    assert torch.equal(store.load(tmp_path)(X), model(X))


def test_masks_go_last_and_come_back(tmp_path: Path) -> None:
    model = quantized()
    store.save(tmp_path, model)
    again = store.load(tmp_path)
    assert len(describe(model)["masks"]) == 2
    for name in describe(model)["masks"]:
        mask, expected = mask_of(again, name), mask_of(model, name)
        assert mask is not None
        assert expected is not None
        assert torch.equal(mask.keep, expected.keep)


def test_the_sign_is_written_as_it_was_found() -> None:
    rows = describe(quantized())["activations"]
    assert {row["signed"] for row in rows.values()} == {False}  # all inputs come from ReLUs
    plan = make_plan(network(), Policy(), None, activation_settings("lsq"))
    model = network()
    attach(model, plan)
    assert {row["signed"] for row in describe(model)["activations"].values()} == {None}


def test_a_plain_student_is_as_before(tmp_path: Path) -> None:
    model = network().eval()
    store.save(tmp_path, model)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(student.FILES)
    assert torch.equal(store.load(tmp_path)(X), model(X))
    assert torch.equal(student.load(tmp_path)(X), model(X))


def test_a_masked_student_without_quantisers_is_saved_with_zeros(tmp_path: Path) -> None:
    model = network().eval()
    keep = torch.rand(5, 64) > 0.5
    attach_masks(model, {"fc.weight": keep})
    store.save(tmp_path, model)
    again = student.load(tmp_path)
    assert not again.fc.weight[~keep].any()
    assert torch.equal(again(X), model(X))


def test_what_lay_in_the_folder_is_replaced(tmp_path: Path) -> None:
    store.save(tmp_path, quantized())
    (tmp_path / store.PACKED).write_bytes(b"old")
    store.save(tmp_path, network())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(student.FILES)


def test_a_quantised_student_is_never_taken_for_a_plain_one(tmp_path: Path) -> None:
    store.save(tmp_path, quantized())
    with pytest.raises(WeightsError, match="does not fit"):
        student.load(tmp_path)


def test_more_training_after_a_reload(tmp_path: Path) -> None:
    store.save(tmp_path, quantized())
    again = store.load(tmp_path).train()
    again(X).square().mean().backward()
    assert all(master.grad is not None for master in masters(again).values())
    assert len(weight_quantizers(again)) == len(activation_quantizers(again)) == 20


def damaged(**changes: Any) -> Any:
    return lambda content: content | changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged(format=9), "format 9, this version reads 1"),
        (damaged(weights=3), "does not describe quantisers"),
        (damaged(masks=["nowhere.weight"]), "do not fit together"),
        (damaged(weights={"fc.weight": {"method": "lsq"}}), "do not fit together"),
        (damaged(weights={"fc.weight": {"method": "lqs"}}), "Unknown way to quantise weights"),
        (damaged(weights={"fc.weight": {"method": "lsq", "bits": 33}}), "from 2 to 8; got 33"),
        (damaged(weights={"fc.weight": {"method": "lsq", "bit": 3}}), "Did you mean 'bits'"),
    ],
)
def test_damaged_descriptions(change: Any, message: str, tmp_path: Path) -> None:
    store.save(tmp_path, quantized())
    path = tmp_path / store.QUANTIZATION
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(EsnacError, match=message):
        store.load(tmp_path)


def test_no_json_at_all(tmp_path: Path) -> None:
    store.save(tmp_path, quantized())
    (tmp_path / store.QUANTIZATION).write_text("{")
    with pytest.raises(EsnacError, match="cannot be read"):
        store.load(tmp_path)


def test_settings_are_plain_data_and_back() -> None:
    for method in WEIGHTS:
        settings = weight_settings(method)
        many = {"levels": 8} if method == "codebook" else {"bits": 3}
        assert replace(settings, **many) == weight_settings(method, **many)
