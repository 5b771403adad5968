"""StudentNetwork: values, gradients, precision, memory; the teacher's weights."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from esnac.errors import EsnacError, WeightsError
from esnac.graphs.arch_graph import INPUT, ArchGraph, Layer
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.trace import trace
from esnac.networks import build

SIZE = (3, 8, 8)


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet20", 5).eval()


@pytest.fixture
def student(teacher: nn.Module) -> StudentNetwork:
    graph = trace(teacher, SIZE)
    return StudentNetwork(graph, teacher_weights(graph, teacher.state_dict())).eval()


def point(name: str, kind: str, *inputs: int) -> Layer:
    return Layer(name, kind, inputs, (2, 1, 1), (2, 1, 1))


def test_sums_concats_and_products_by_hand() -> None:
    layers = (
        point("a", "relu", INPUT),
        point("b", "identity", INPUT, 0),
        replace(point("c", "concat", 1, 0), in_shape=(4, 1, 1), out_shape=(4, 1, 1)),
        Layer("d", "slice", (2,), (4, 1, 1), (2, 1, 1), {"start": 1, "stop": 3}),
        point("e", "multiply", 3, INPUT),
    )
    network = StudentNetwork(ArchGraph(layers, (2, 1, 1)))
    # a = (0, 3), b = (-2, 6), c = (-2, 6, 0, 3), d = (6, 0), e = (-12, 0)
    y = network(torch.tensor([-2.0, 3.0]).reshape(1, 2, 1, 1))
    assert y.flatten().tolist() == [-12, 0]


def test_inputs_are_summed_from_left_to_right() -> None:
    layers = (
        point("a", "identity", INPUT),
        point("b", "identity", INPUT),
        point("c", "identity", 0, 1, INPUT),
    )
    network = StudentNetwork(ArchGraph(layers, (2, 1, 1)))
    network.a.forward = lambda x: x * 1e8
    network.b.forward = lambda x: x * -1e8
    assert network(torch.ones(1, 2, 1, 1)).flatten().tolist() == [1, 1]


def test_keys_are_layer_name_and_tensor(student: StudentNetwork) -> None:
    names = {layer.name for layer in student.graph.layers if layer.source is not None}
    assert {key.rpartition(".")[0] for key in student.state_dict()} == names
    assert "stages_0_0_conv1.weight" in student.state_dict()


def test_gradients_are_the_teachers(teacher: nn.Module, student: StudentNetwork) -> None:
    x = torch.randn(4, *SIZE)
    for network in (teacher.train(), student.train()):
        network(x).square().sum().backward()
    own = dict(student.named_parameters())
    for layer in student.graph.layers:
        if layer.kind == "conv":
            expected = teacher.get_submodule(layer.source).weight.grad
            assert torch.equal(own[f"{layer.name}.weight"].grad, expected)


def test_training_a_student_leaves_the_teacher(teacher: nn.Module, student: StudentNetwork) -> None:
    before = copy.deepcopy(teacher.state_dict())
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1)
    student.train()(torch.randn(4, *SIZE)).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not torch.equal(student.conv1.weight, teacher.conv1.weight)


def test_frozen_weights_become_trainable(teacher: nn.Module) -> None:
    graph = trace(teacher.requires_grad_(False), SIZE)
    student = StudentNetwork(graph, teacher_weights(graph, teacher.state_dict(keep_vars=True)))
    assert all(p.requires_grad and p.is_leaf for p in student.parameters())


def test_channels_last_and_bfloat16(student: StudentNetwork) -> None:
    x = torch.randn(4, *SIZE)
    expected = student(x)
    student.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert torch.allclose(student(x), expected, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = student.train()(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_outputs_that_nobody_reads_again_are_freed(student: StudentNetwork) -> None:
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen.append(weakref.ref(output))
        alive.append(sum(ref() is not None for ref in seen))

    for module in student.children():
        module.register_forward_hook(watch)
    gc.disable()
    try:
        with torch.no_grad():
            student(torch.randn(2, *SIZE))
    finally:
        gc.enable()
    assert len(alive) == len(student.graph)
    assert max(alive) <= 4  # the layer's input and output, and a shortcut or two


def test_without_weights_torch_initialises(student: StudentNetwork) -> None:
    torch.manual_seed(3)
    one = StudentNetwork(student.graph)
    torch.manual_seed(3)
    two = StudentNetwork(student.graph)
    assert torch.equal(one.conv1.weight, two.conv1.weight)
    assert not torch.equal(one.conv1.weight, student.conv1.weight)
    assert not any(tensor.is_meta for tensor in one.state_dict().values())


def test_a_removed_layer_survives_another_trace(student: StudentNetwork) -> None:
    graph = student.graph
    removed = replace(graph.layers[4], kind="identity", attributes={}, source=None)
    layers = (*graph.layers[:4], removed, *graph.layers[5:])
    moved = ArchGraph(layers, graph.input_shape)
    again = trace(StudentNetwork(moved), SIZE)
    assert [(x.kind, x.inputs) for x in again.layers] == [(x.kind, x.inputs) for x in moved.layers]


@pytest.mark.parametrize("name", ["forward", "a.b", "graph", "b"])
def test_bad_names(name: str) -> None:
    layers = (point("b", "relu", INPUT), point(name, "relu", 0))
    with pytest.raises(EsnacError, match="name"):
        StudentNetwork(ArchGraph(layers, (2, 1, 1)))


def test_weights_of_another_network(teacher: nn.Module, student: StudentNetwork) -> None:
    graph = student.graph
    with pytest.raises(WeightsError, match=r"missing: .*not in the network: "):
        teacher_weights(graph, build("vgg16", 5).state_dict())
    with pytest.raises(WeightsError, match=r"fc.weight is \(7, 64\) instead of \(5, 64\)"):
        teacher_weights(graph, build("resnet20", 7).state_dict())
    # A deeper network has all tensors of this one, and more.
    with pytest.raises(WeightsError, match=r"not in the network: stages.0.3.conv1.weight"):
        teacher_weights(graph, build("resnet32", 5).state_dict())
    weights = dict(student.state_dict())
    del weights["conv1.weight"]
    with pytest.raises(WeightsError, match=r"missing: conv1.weight"):
        StudentNetwork(graph, weights)


def test_unused_modules_can_be_ignored(teacher: nn.Module) -> None:
    teacher.auxiliary = nn.Linear(2, 2)
    graph = trace(teacher, SIZE)
    with pytest.raises(WeightsError, match=r"auxiliary.weight"):
        teacher_weights(graph, teacher.state_dict())
    assert len(teacher_weights(graph, teacher.state_dict(), ignore_unused=True)) > 0


def test_step_counters_may_be_missing(teacher: nn.Module) -> None:
    graph = trace(teacher, SIZE)
    old = {k: v for k, v in teacher.state_dict().items() if "num_batches" not in k}
    student = StudentNetwork(graph, teacher_weights(graph, old)).eval()
    x = torch.randn(2, *SIZE)
    assert torch.equal(student(x), teacher(x))
    assert student.bn1.num_batches_tracked == 0
