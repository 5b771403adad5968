from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esnac import networks
from esnac.deployment import onnx_session
from esnac.deployment.onnx_export import export
from esnac.errors import EsnacError
from esnac.graphs.masks import attach_masks
from esnac.graphs.network import StudentNetwork
from esnac.graphs.space import Space
from esnac.graphs.trace import trace
from esnac.pruning.importance import at_random
from esnac.pruning.removal import removable, remove
from esnac.pruning.slimming import choose

pytestmark = pytest.mark.usefixtures("onnx_extra")


@pytest.mark.slow
def test_resnet20_is_the_same_in_onnx(
    resnet20: StudentNetwork, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Norms folded away, one file, no notes of the exporter, nothing printed."""
    path = tmp_path / "new" / "student.onnx"
    difference = export(resnet20, path, (3, 32, 32))
    assert capfd.readouterr() == ("", "")
    print(f"resnet20: {difference:.2g} to torch, {path.stat().st_size} bytes")
    assert difference <= 1e-4
    found = onnx_session.operators(path)
    assert (found["Conv"], found["BatchNormalization"]) == (21, 0)
    assert 1_090_000 < path.stat().st_size < 1_105_000
    assert [file.name for file in path.parent.iterdir()] == ["student.onnx"]


def test_any_batch(pre_activation: StudentNetwork, tmp_path: Path) -> None:
    export(pre_activation, tmp_path / "a.onnx", (1, 8, 8))
    session = onnx_session.open_session(tmp_path / "a.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    inputs = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for count in (1, 3, 7):
        with torch.no_grad():
            expected = pre_activation(inputs[:count]).numpy()
        assert np.abs(onnx_session.run(session, inputs[:count].numpy()) - expected).max() < 1e-5


def test_pre_activation_norms_become_convolutions(
    pre_activation: StudentNetwork, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in pre_activation.state_dict().items()}
    assert export(pre_activation, tmp_path / "a.onnx", (1, 8, 8)) <= 1e-4
    found = onnx_session.operators(tmp_path / "a.onnx")
    assert (found["Conv"], found["BatchNormalization"], found["Gather"]) == (5, 0, 0)
    after = pre_activation.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet38", "densenet40", "shufflenet"])
def test_slimmed_networks_need_no_gather(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = StudentNetwork(trace(networks.build(name, 10), (3, 32, 32)))
    space = Space(network.graph, tie="dependency")
    scores = at_random(space.groups, torch.Generator().manual_seed(0))
    small = remove(network, space, choose(space, scores, 0.5, removable(space, by_scales=False)))
    assert export(small.eval(), tmp_path / "a.onnx", (3, 32, 32)) <= 1e-4
    found = onnx_session.operators(tmp_path / "a.onnx")
    assert found["Gather"] == found["GatherElements"] == found["GatherND"] == 0


def test_slices_and_shuffles_need_no_gather(
    small_shuffle: Callable[[], StudentNetwork], tmp_path: Path
) -> None:
    assert export(small_shuffle(), tmp_path / "a.onnx", (1, 8, 8)) <= 1e-4
    found = onnx_session.operators(tmp_path / "a.onnx")
    assert (found["Gather"], found["GatherElements"], found["Slice"]) == (0, 0, 2)


def test_parametrizations_are_baked(pre_activation: StudentNetwork, tmp_path: Path) -> None:
    """Masked weights are plain weights with zeros in the file; the network keeps its mask."""
    import onnx
    from onnx import numpy_helper

    keep = torch.zeros_like(pre_activation.conv2.weight, dtype=torch.bool)
    keep[:, :3] = True
    attach_masks(pre_activation, {"conv2.weight": keep})
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before = pre_activation(x)
    pre_activation.train()
    assert export(pre_activation, tmp_path / "a.onnx", (1, 8, 8)) <= 1e-4
    assert pre_activation.training
    assert torch.equal(pre_activation.eval()(x), before)
    held = {t.name: t for t in onnx.load(tmp_path / "a.onnx").graph.initializer}
    weight = numpy_helper.to_array(held["conv2.weight"])
    assert np.array_equal(weight != 0, keep.numpy())


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.slow
@pytest.mark.parametrize("odd", [Bessel, Branch])
def test_a_layer_without_a_form_in_onnx_is_named(
    odd: type[nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), odd()), nn.Flatten())
    with pytest.raises(EsnacError, match=rf"Layer '1\.1' \({odd.__name__}\) has no form in ONNX"):
        export(module, tmp_path / "a.onnx", (1, 8, 8))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_another_function_is_refused(
    pre_activation: StudentNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_session, "run", lambda _session, x: np.zeros((len(x), 10)))
    with pytest.raises(EsnacError, match="differs from torch"):
        export(pre_activation, tmp_path / "a.onnx", (1, 8, 8))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(pre_activation: StudentNetwork, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(EsnacError, match="Cannot write"):
        export(pre_activation, tmp_path / "taken" / "a.onnx", (1, 8, 8))


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(EsnacError, match="cannot run"):
        onnx_session.open_session(tmp_path / "a.onnx")
