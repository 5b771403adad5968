"""Every spelling of a supported operation, and a clear error for everything else."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esnac.errors import EsnacError, UnsupportedLayerError
from esnac.graphs.arch_graph import INPUT, ArchGraph
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.trace import trace
from esnac.networks import NETWORKS, build

IMAGE = (8, 6, 6)


class Net(nn.Module):
    """Runs a function of (net, x); `modules` become its attributes."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def description(graph: ArchGraph) -> list[tuple]:
    """Everything but names and sources."""
    return [(x.kind, x.inputs, x.in_shape, x.out_shape, x.attributes) for x in graph.layers]


def check(net: nn.Module, size: tuple[int, ...] = IMAGE) -> ArchGraph:
    """Traces, and requires that the student's outputs and its own trace are the same."""
    torch.manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.2, 1.0)
    graph = trace(net, size)
    student = StudentNetwork(graph, teacher_weights(graph, net.state_dict())).eval()
    net.eval()
    x = torch.randn(3, *size)
    with torch.no_grad():
        # A copy, because the network may work in place.
        assert torch.equal(student(x), net(x.clone()))
    assert description(trace(student, size)) == description(graph)
    return graph


def kinds(graph: ArchGraph) -> list[str]:
    return [layer.kind for layer in graph.layers]


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 60), ("resnet34", 108), ("vgg19", 55), ("shufflenet", 159)]
)
def test_published_node_counts(name: str, count: int) -> None:
    graph = trace(build(name, 100), (3, 32, 32))
    assert len(graph) == count
    assert graph.num_classes == 100


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_registered_networks_in_both_modes(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, 7)
    graph = check(net, (3, 16, 16))
    student = StudentNetwork(graph, teacher_weights(graph, net.state_dict()))
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(student.train()(x), net.train()(x))
    # The statistics of batch norm moved in the same way.
    assert torch.equal(student.eval()(x), net.eval()(x))


def test_a_residual_addition_is_no_layer() -> None:
    net = Net(lambda n, x: n.relu(n.bn(n.conv(x)) + x), conv=nn.Conv2d(8, 8, 1))
    net.bn, net.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
    graph = check(net)
    assert kinds(graph) == ["conv", "batch_norm", "relu"]
    assert graph.layers[2].inputs == (1, INPUT)
    assert [layer.source for layer in graph.layers] == ["conv", "bn", None]


def test_a_sum_with_two_readers_stays() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = net.a(x) + x
        return torch.cat([torch.sigmoid(y), torch.tanh(y)], 1)

    graph = check(Net(forward, a=nn.Conv2d(8, 8, 1)))
    assert kinds(graph) == ["conv", "identity", "sigmoid", "tanh", "concat"]
    assert graph.layers[1].inputs == (0, INPUT)


def test_a_sum_read_by_a_concat_or_the_output_stays() -> None:
    assert kinds(check(Net(lambda n, x: x + torch.relu(x)))) == ["relu", "identity"]
    graph = check(Net(lambda n, x: torch.cat([x + torch.relu(x), x], 1)))
    assert kinds(graph) == ["relu", "identity", "concat"]


@pytest.mark.parametrize(
    "add",
    [
        lambda x, y, z: x + y + z,
        lambda x, y, z: sum([x, y, z]),
        lambda x, y, z: torch.add(x, y).add(z),
        lambda x, y, z: operator.iadd(torch.add(x, other=y), z),
    ],
)
def test_sums_from_left_to_right(add: Callable[..., Tensor]) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(add(torch.tanh(x), torch.sigmoid(x), x))

    graph = check(Net(forward))
    assert graph.layers[-1].inputs == (0, 1, INPUT)


def test_a_bracketed_sum_keeps_its_rounding() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(torch.tanh(x) + (torch.sigmoid(x) + x))

    graph = check(Net(forward))
    assert kinds(graph) == ["tanh", "sigmoid", "identity", "relu"]
    assert graph.layers[3].inputs == (0, 2)


SPELLINGS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "relu": [
        F.relu,
        torch.relu,
        lambda x: x.relu(),
        lambda x: x.relu_(),
        lambda x: F.relu(x, inplace=True),
        nn.ReLU(),
        nn.ReLU(True),
    ],
    "relu6": [F.relu6, nn.ReLU6()],
    "leaky_relu": [lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.3)],
    "elu": [lambda x: F.elu(x, alpha=0.5), nn.ELU(0.5)],
    "gelu": [F.gelu, lambda x: F.gelu(x, approximate="tanh"), nn.GELU("tanh")],
    "silu": [F.silu, nn.SiLU(inplace=True)],
    "hardswish": [F.hardswish, nn.Hardswish()],
    "hardsigmoid": [F.hardsigmoid, nn.Hardsigmoid()],
    "sigmoid": [F.sigmoid, torch.sigmoid, lambda x: x.sigmoid(), nn.Sigmoid()],
    "tanh": [F.tanh, torch.tanh, lambda x: x.tanh(), nn.Tanh()],
    "softplus": [F.softplus, nn.Softplus()],
    "mish": [F.mish, nn.Mish()],
    "max_pool": [
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: F.max_pool2d(x, (3, 2), ceil_mode=True),
        nn.MaxPool2d(2, dilation=2, stride=1),
    ],
    "avg_pool": [
        lambda x: F.avg_pool2d(x, x.shape[2]),
        lambda x: F.avg_pool2d(x, x.size()[2:]),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    ],
    "adaptive_avg_pool": [
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: x.mean([2, 3], keepdim=True),
        lambda x: torch.mean(x, dim=(-1, -2), keepdim=True),
        nn.AdaptiveAvgPool2d((3, None)),
    ],
    "adaptive_max_pool": [lambda x: F.adaptive_max_pool2d(x, (2, 3)), nn.AdaptiveMaxPool2d(2)],
    "flatten": [
        lambda x: x.flatten(1),
        lambda x: torch.flatten(x, start_dim=1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(-1, 8 * 6 * 6),
        lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]),
        lambda x: torch.reshape(x, (len(IMAGE) and x.size()[0], -1)),
        nn.Flatten(),
    ],
    "dropout": [lambda x: F.dropout(x, 0.3, training=False), nn.Dropout(0.2, inplace=True)],
    "dropout2d": [nn.Dropout2d(0.2)],
    "batch_norm": [nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8, momentum=None)],
    "group_norm": [nn.GroupNorm(4, 8), nn.GroupNorm(1, 8, affine=False)],
    "conv": [
        nn.Conv2d(8, 4, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Conv2d(8, 12, 3, dilation=2, groups=4, padding=(2, 1)),
        nn.Conv2d(8, 4, (3, 5), padding="same"),
        nn.Conv2d(8, 4, 2, padding="valid"),
    ],
    "slice": [
        lambda x: x[:, 2:5],
        lambda x: x[:, -3:, :, :],
        lambda x: x[:, : x.size(1) // 2],
        lambda x: x.narrow(1, 1, 3),
        lambda x: x.chunk(3, dim=1)[2],
        lambda x: torch.split(x, [1, 7], dim=1)[-1],
    ],
    "channel_shuffle": [
        nn.ChannelShuffle(4),
        lambda x: F.channel_shuffle(x, 2),
        lambda x: (
            x.view(x.size(0), 2, 4, 6, 6).transpose(1, 2).contiguous().view(x.size(0), 8, 6, 6)
        ),
        lambda x: x.reshape(-1, 4, 2, 6, 6).permute(0, 2, 1, 3, 4).flatten(1, 2),
        lambda x: torch.transpose(x.view(x.shape[0], 2, 4, 36), 1, 2).reshape(x.shape),
    ],
}


@pytest.mark.parametrize(
    ("kind", "spelling"), [(kind, i) for kind, all_ in SPELLINGS.items() for i in range(len(all_))]
)
def test_spellings(kind: str, spelling: int) -> None:
    function = SPELLINGS[kind][spelling]
    if isinstance(function, nn.Module):
        net = Net(lambda n, x: n.layer(n.first(x)), layer=function)
    else:
        net = Net(lambda n, x: function(n.first(x)))
    net.first = nn.Conv2d(8, 8, 1)
    graph = check(net)
    assert kinds(graph) == ["conv", kind]
    assert graph.layers[1].in_shape == IMAGE


@pytest.mark.parametrize(
    "squash",
    [
        lambda x: x.mean([2, 3]),
        lambda x: x.mean((-2, -1), keepdim=True).flatten(1),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
        lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0],
    ],
)
def test_global_pool_and_head(squash: Callable[..., Tensor]) -> None:
    graph = check(Net(lambda n, x: n.fc(n.flat(squash(x))), fc=nn.Linear(8, 3), flat=nn.Flatten()))
    assert kinds(graph) == ["adaptive_avg_pool", "flatten", "linear"]
    assert [layer.out_shape for layer in graph.layers] == [(8, 1, 1), (8,), (3,)]


def test_hand_written_shuffle_with_size_arithmetic() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        left, right = torch.relu(x).chunk(2, dim=1)
        x = torch.cat((left, net.conv(right)), dim=1)
        x = x.view(n, 2, c // 2, h, w)
        return torch.transpose(x, 1, 2).contiguous().view(n, -1, h, w)

    graph = check(Net(forward, conv=nn.Conv2d(4, 4, 1)))
    assert kinds(graph) == ["relu", "slice", "slice", "conv", "concat", "channel_shuffle"]
    assert [dict(x.attributes) for x in graph.layers if x.kind == "slice"] == [
        {"start": 0, "stop": 4},
        {"start": 4, "stop": 8},
    ]


@pytest.mark.parametrize("expand", [True, False])
def test_squeeze_excite_with_linear_layers(expand: bool) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        n, c, _, _ = x.size()
        weights = net.fc(F.adaptive_avg_pool2d(x, 1).view(n, c)).sigmoid().view(n, c, 1, 1)
        return x * (weights.expand_as(x) if expand else weights)

    graph = check(Net(forward, fc=nn.Linear(8, 8)))
    assert kinds(graph) == ["adaptive_avg_pool", "flatten", "linear", "sigmoid", "multiply"]
    assert graph.layers[-1].inputs == (INPUT, 3)
    assert graph.layers[-1].out_shape == IMAGE


def test_products() -> None:
    net = Net(lambda n, x: torch.mul(n.gate(x.mean((2, 3), keepdim=True)), x).mul(n.mask(x)))
    net.gate, net.mask = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 1)
    assert kinds(check(net)) == ["adaptive_avg_pool", "conv", "multiply", "conv", "multiply"]


@pytest.mark.parametrize("cat", [torch.cat, torch.concat, torch.concatenate])
def test_concat_has_its_output_shape_as_input_shape(cat: Callable[..., Tensor]) -> None:
    graph = check(Net(lambda n, x: cat([x, torch.relu(x), x], dim=-3)))
    assert graph.layers[-1].inputs == (INPUT, 0, INPUT)
    assert graph.layers[-1].in_shape == graph.layers[-1].out_shape == (24, 6, 6)


def test_weights_of_functions_keep_their_module() -> None:
    class Scaled(nn.Conv2d):
        """A subclass is traced into, so that what it adds is not lost."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(F.conv2d(x, self.weight, self.bias, self.stride, self.padding))

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        bn = net.bn
        x = F.batch_norm(net.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias)
        x = F.group_norm(x, 2, net.gn.weight, net.gn.bias)
        return F.linear(x.flatten(1), net.fc.weight)

    net = Net(forward, conv=Scaled(8, 8, 3, padding=1), bn=nn.BatchNorm2d(8))
    net.gn, net.fc = nn.GroupNorm(2, 8), nn.Linear(288, 3, bias=False)
    graph = check(net)
    assert [layer.source for layer in graph.layers] == ["conv", None, "bn", "gn", None, "fc"]


def test_a_network_on_features() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Identity(), nn.ReLU())
    graph = check(nn.Sequential(net, nn.Linear(4, 2)), (5,))
    assert kinds(graph) == ["linear", "batch_norm", "relu", "linear"]
    assert graph.num_classes == 2


def test_in_place_change_reaches_later_readers() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = net.conv(x)
        z = net.relu(y)  # in place: y is z from here on
        return torch.tanh(z) + y

    graph = check(Net(forward, conv=nn.Conv2d(8, 8, 1), relu=nn.ReLU(inplace=True)))
    assert graph.layers[-1].inputs == (2, 1)


def test_in_place_change_of_a_view_is_refused() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        return torch.cat([x[:, :4].relu_(), x], 1)

    with pytest.raises(UnsupportedLayerError, match=r"relu_ \(Tensor.relu_\).*in place"):
        trace(Net(forward), IMAGE)


def test_the_module_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU(inplace=True))
    net[0].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    trace(net, IMAGE)
    assert [m.training for m in net.modules()] == [True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_dead_branches_and_awkward_names() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        net.training_head(x)
        return net.graph(net.half(x)).relu()

    net = Net(forward, training_head=nn.Conv2d(8, 2, 1))
    net.add_module("graph", nn.Conv2d(8, 8, 1))
    net._modules["half"] = nn.Conv2d(8, 8, 1)
    net.__dict__["half"] = net._modules["half"]
    graph = trace(net, IMAGE)
    assert [layer.name for layer in graph.layers] == ["half_", "graph_", "relu"]
    weights = teacher_weights(graph, net.state_dict(), ignore_unused=True)
    assert torch.equal(
        StudentNetwork(graph, weights)(x := torch.randn(2, *IMAGE)), net.graph(net.half(x)).relu()
    )


def line_of(function: Callable[..., object], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if text in line)


def test_an_unknown_layer_names_node_type_and_line() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return net.up(x)

    line = line_of(forward, "net.up")
    with pytest.raises(UnsupportedLayerError) as error:
        trace(Net(forward, up=nn.ConvTranspose2d(8, 8, 2)), IMAGE)
    assert str(error.value) == (
        f"line {line} of test_trace.py: up (ConvTranspose2d at up) is not supported: "
        "the graph has no such layer."
    )


def test_control_flow_on_data_names_the_line() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return torch.relu(x)

    line = line_of(forward, "if x.sum")
    with pytest.raises(UnsupportedLayerError, match=f"^line {line} of test_trace.py: torch.fx"):
        trace(Net(forward), IMAGE)


REFUSED: dict[str, tuple[Callable[..., object], str]] = {
    "softmax": (lambda n, x: F.log_softmax(x.flatten(1), 1), "return logits"),
    "shared weights": (lambda n, x: n.conv(n.conv(x)), "shares its weights with conv"),
    "constant factor": (lambda n, x: x * 0.5, "multiplied"),
    "constant term": (lambda n, x: x + 1, "added"),
    "broadcast sum": (lambda n, x: x + x.mean((2, 3), keepdim=True), "shapes must agree"),
    "parameter": (lambda n, x: x * n.fc.bias, "only tensors of layers"),
    "subtraction": (lambda n, x: x - torch.relu(x), "additions and products"),
    "cat of rows": (lambda n, x: torch.cat([x, x]), "axis 0"),
    "cat of width": (lambda n, x: torch.cat([x, x], 3), "axis 3"),
    "spatial slice": (lambda n, x: x[:, :, 1:], "only channels"),
    "strided slice": (lambda n, x: x[:, ::2], "step 1"),
    "transposed": (lambda n, x: x.transpose(2, 3), "channel shuffle"),
    "half a shuffle": (lambda n, x: x.view(-1, 2, 4, 6, 6).transpose(1, 2).flatten(1), "shuffle"),
    "reshaped": (lambda n, x: torch.relu(x.view(-1, 4, 2, 6, 6)), "reshaped to 4 x 2 x 6 x 6"),
    "linear on images": (lambda n, x: n.fc(x), "8 x 6 x 6 per image"),
    "dropout": (lambda n, x: F.dropout(x, 0.5), "self.training"),
    "same, even": (lambda n, x: n.even(x), "even kernel"),
    "reflect": (lambda n, x: n.reflect(x), "padding_mode='reflect'"),
    "hooks": (lambda n, x: n.normed(x), "hooks"),
    "softplus": (lambda n, x: F.softplus(x, beta=2), "beta=2"),
    "indices": (lambda n, x: F.max_pool2d(x, 2, return_indices=True)[0], "not supported"),
    "mean": (lambda n, x: x.mean(1), "mean over the image"),
    "two outputs": (lambda n, x: (x, torch.relu(x)), "one tensor"),
    "no layer": (lambda n, x: x, "no layers"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refused(case: str) -> None:
    function, reason = REFUSED[case]
    net = Net(function, conv=nn.Conv2d(8, 8, 1), fc=nn.Linear(6, 6))
    net.even = nn.Conv2d(8, 8, 2, padding="same")
    net.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    net.normed = nn.utils.weight_norm(nn.Conv2d(8, 8, 1))
    with pytest.raises(UnsupportedLayerError) as error:
        trace(net, IMAGE)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_tied_tensors_of_two_modules_are_shared_weights() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    net[1].weight = net[0].weight
    with pytest.raises(UnsupportedLayerError, match="shares its weights"):
        trace(net, IMAGE)


def test_a_reused_layer_without_weights_is_two_layers() -> None:
    net = Net(lambda n, x: n.relu(n.conv(n.relu(x))), conv=nn.Conv2d(8, 8, 1), relu=nn.ReLU())
    assert kinds(check(net)) == ["relu", "conv", "relu"]


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(UnsupportedLayerError, match="one tensor, but takes: x, y"):
        trace(Two(), IMAGE)


def test_an_unused_optional_input_is_no_input() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return torch.relu(x)

    assert kinds(trace(Optional(), IMAGE)) == ["relu"]


def test_a_wrong_input_size_is_an_error() -> None:
    with pytest.raises(EsnacError, match="does not run on an input of 3 x 6 x 6"):
        trace(nn.Sequential(nn.Conv2d(8, 8, 1)), (3, 6, 6))
