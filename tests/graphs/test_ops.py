"""Modules of the kinds of layer against torch's own, and the registry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esnac.errors import EsnacError, UnknownNameError
from esnac.graphs import ops
from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.network import StudentNetwork
from esnac.runtime import Numerics, without_known_faults


def layer(kind: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...], **attributes) -> Layer:
    return Layer("name", kind, (INPUT,), in_shape, out_shape, attributes)


CONV = {"kernel": (3, 1), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 1), "bias": True}


def test_conv_has_its_attributes() -> None:
    conv = ops.build(layer("conv", (8, 6, 6), (12, 3, 6), groups=4, **CONV))
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.shape == (12, 2, 3, 1)
    assert conv.bias.shape == (12,)
    assert conv(torch.zeros(2, 8, 6, 6)).shape == (2, 12, 3, 6)


def test_batch_norm_takes_features_and_images() -> None:
    attributes = {"eps": 1e-3, "momentum": None, "affine": True, "track": True}
    one = ops.build(layer("batch_norm", (5,), (5,), **attributes))
    two = ops.build(layer("batch_norm", (5, 2, 2), (5, 2, 2), **attributes))
    assert (type(one), type(two)) == (nn.BatchNorm1d, nn.BatchNorm2d)
    assert (two.eps, two.momentum) == (1e-3, None)


def test_meta_leaves_the_weights_out() -> None:
    linear = ops.build(layer("linear", (8,), (3,), bias=False), "meta")
    assert linear.weight.is_meta
    assert linear.bias is None


def test_every_activation_keeps_the_shape_and_its_input() -> None:
    extra = {
        "leaky_relu": {"slope": 0.1},
        "elu": {"alpha": 1.0},
        "gelu": {"approximate": "none"},
    }
    x = torch.linspace(-4, 4, 24).reshape(2, 3, 2, 2)
    for kind in ops.ACTIVATIONS:
        before = x.clone()
        module = ops.build(layer(kind, (3, 2, 2), (3, 2, 2), **extra.get(kind, {})))
        assert module(x).shape == x.shape
        assert torch.equal(x, before), kind


def test_all_kinds_but_two_sum_their_inputs() -> None:
    assert {k: o.join for k, o in ops.OPERATIONS.items() if o.join != "sum"} == {
        "concat": "concat",
        "multiply": "product",
    }


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_channel_shuffle_is_torchs(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 12, 3, 5).to(memory_format=memory_format)
    y = ops.ChannelShuffle(3)(x)
    assert torch.equal(y, nn.ChannelShuffle(3)(x))
    assert y[0, :, 0, 0].tolist() == x[0, [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11], 0, 0].tolist()
    assert y.is_contiguous(memory_format=memory_format)


def test_multiply_scales_channels_by_features() -> None:
    x, gate = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
    expected = x * gate[:, :, None, None]
    assert torch.equal(ops.Multiply()(x, gate), expected)
    assert torch.equal(ops.Multiply()(gate, x), expected)


def test_slice_and_concat_undo_each_other() -> None:
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(ops.Concat()(ops.Slice(0, 2)(x), ops.Slice(2, 5)(x)), x)


@pytest.mark.parametrize(("mode", "rows"), [("row", 10_000), ("batch", 1)])
def test_stochastic_depth(mode: str, rows: int) -> None:
    module = ops.StochasticDepth(0.25, mode)
    x = torch.ones(10_000, 1, 1, 1)
    assert torch.equal(module.eval()(x), x)
    torch.manual_seed(1)
    y = module.train()(x)
    torch.manual_seed(1)
    keep = torch.empty(rows, 1, 1, 1).bernoulli_(0.75)
    assert torch.equal(y, (keep / 0.75).expand_as(x))
    if mode == "row":
        assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert ops.StochasticDepth(1.0, mode)(x).sum() == 0


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'batch_norm'"):
        ops.build(layer("batchnorm", (1, 1, 1), (1, 1, 1)))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (layer("conv", (8, 6, 6), (12, 3, 6), groups=5, **CONV), "divisible by groups"),
        (layer("conv", (8, 6, 6), (12, 3, 6), kernel=(1, 1)), "no attribute 'stride'"),
        (layer("slice", (8, 6, 6), (2, 6, 6), begin=1), "begin"),
        (layer("linear", (), (2,), bias=True), "index out of range"),
    ],
)
def test_a_layer_that_cannot_be_built_is_named(broken: Layer, reason: str) -> None:
    with pytest.raises(EsnacError, match=rf"'name' \({broken.kind}\) cannot be built.*{reason}"):
        ops.build(broken)


POINTWISE = {"kernel": (1, 1), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}


@pytest.mark.parametrize(("reads", "makes", "groups"), [(16, 32, 1), (13, 29, 1), (8, 12, 4)])
def test_strided_pointwise_convolutions_train_like_torchs(
    reads: int, makes: int, groups: int
) -> None:
    shapes = (reads, 9, 9), (makes, 5, 5)
    ours = ops.build(layer("conv", *shapes, groups=groups, bias=True, **POINTWISE))
    assert isinstance(ours, nn.Conv2d)
    theirs = nn.Conv2d(reads, makes, 1, stride=2, groups=groups)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, reads, 9, 9, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        assert torch.equal(ours.train(training)(x), theirs(x))
    grads = [torch.autograd.grad(m(x).square().sum(), m.weight)[0] for m in (ours.train(), theirs)]
    torch.testing.assert_close(*grads)


def test_strided_pointwise_convolutions_train_in_channels_last() -> None:
    """Torch's own would write past its buffers here (`runtime.without_known_faults`)."""
    down = layer("conv", (5, 32, 32), (13, 16, 16), groups=1, bias=False, **POINTWISE)
    student = StudentNetwork(ArchGraph((down,), (5, 32, 32)))
    numerics = Numerics(torch.float32, channels_last=True)
    assert without_known_faults(numerics, student, torch.device("cpu")).channels_last
    x = torch.randn(8, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    student.to(memory_format=torch.channels_last)
    student(x.to(memory_format=torch.channels_last)).square().sum().backward()
    (weight,) = student.parameters()
    assert weight.grad is not None
    plain = x[:, :, ::2, ::2]
    y = torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0].detach(), plain)
    expected = 2 * torch.einsum("nohw,nihw->oi", y, plain)
    torch.testing.assert_close(weight.grad[:, :, 0, 0], expected, rtol=1e-4, atol=1e-2)
