"""Students on disk: equal after a reload, in any process; damage is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from esnac.errors import EsnacError, WeightsError
from esnac.graphs import student
from esnac.graphs.network import StudentNetwork
from esnac.graphs.trace import trace
from esnac.networks import build

SIZE = (3, 8, 8)


@pytest.fixture
def network() -> StudentNetwork:
    torch.manual_seed(0)
    return StudentNetwork(trace(build("resnet20", 5), SIZE)).eval()


@pytest.fixture
def folder(network: StudentNetwork, tmp_path: Path) -> Path:
    student.save(tmp_path / "finalists" / "0", network)
    return tmp_path / "finalists" / "0"


def test_a_reload_is_equal(network: StudentNetwork, folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["architecture.json", "weights.safetensors"]
    again = student.load(folder)
    assert not again.training
    assert again.graph == network.graph
    x = torch.randn(4, *SIZE)
    assert torch.equal(again(x), network(x))
    assert all(p.requires_grad for p in again.parameters())


def test_a_channels_last_student_and_its_replacement(network: StudentNetwork, folder: Path) -> None:
    torch.nn.init.ones_(network.conv1.weight)
    student.save(folder, network.to(memory_format=torch.channels_last))
    assert torch.equal(student.load(folder).conv1.weight, network.conv1.weight)
    assert len(list(folder.iterdir())) == 2


def test_a_reload_needs_no_network_class_and_no_pickle(
    network: StudentNetwork, folder: Path
) -> None:
    x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, *SIZE)
    code = f"""
import pickle, sys, torch
torch.set_num_threads(1)
from esnac.graphs import student
def refuse(*args, **kwargs): raise AssertionError("pickle")
pickle.load = pickle.loads = pickle.Unpickler = refuse
network = student.load({str(folder)!r})
loaded = [m for m in sys.modules
          if m.split(".")[0] in ("torchvision", "botorch") or m.startswith("esnac.networks")]
assert not loaded, loaded
x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
print([v.hex() for v in network(x).flatten().tolist()])
"""
    root = Path(student.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str([v.hex() for v in network(x).flatten().tolist()])


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / student.WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=r"No student weights at .*weights.safetensors"):
        student.load(folder)
    with pytest.raises(EsnacError, match=r"architecture.json is missing. Give the folder"):
        student.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights(folder: Path, kept: int) -> None:
    path = folder / student.WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"weights.safetensors is truncated or damaged"):
        student.load(folder)


def test_weights_of_another_architecture(folder: Path, tmp_path: Path) -> None:
    student.save(tmp_path, StudentNetwork(trace(build("resnet20", 7), SIZE)))
    (tmp_path / student.WEIGHTS).replace(folder / student.WEIGHTS)
    with pytest.raises(WeightsError, match=r"does not fit .*architecture.json: .*fc.weight"):
        student.load(folder)
    weights = load_file(folder / student.WEIGHTS)
    del weights["fc.weight"]
    save_file(weights, folder / student.WEIGHTS)
    with pytest.raises(WeightsError, match=r"missing: fc.weight"):
        student.load(folder)


def test_damaged_architectures(folder: Path) -> None:
    path = folder / student.ARCHITECTURE
    text = path.read_text()
    wrong = json.loads(text)
    wrong["layers"][3]["inputs"] = ["relu"]
    for damaged in (text[:500], "[]", "", json.dumps(wrong)):
        path.write_text(damaged)
        with pytest.raises(EsnacError, match=r"architecture.json is not an architecture file"):
            student.load(folder)
    content = json.loads(text)
    content["layers"][3]["kind"] = "convolution"
    path.write_text(json.dumps(content))
    with pytest.raises(EsnacError, match=r"architecture.json: Unknown kind of layer 'convolution'"):
        student.load(folder)


def test_an_interrupted_save_leaves_the_old_student(
    network: StudentNetwork, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(tensors: object, path: Path, about: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(EsnacError, match="Cannot write a student to .*No space left"):
        student.save(folder, network)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_folder_that_cannot_be_made(network: StudentNetwork, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EsnacError, match="Cannot write a student to"):
        student.save(tmp_path / "file" / "0", network)


def test_files_travel_with_all_that_lies_beside_them(folder: Path, tmp_path: Path) -> None:
    (folder / "student.packed").write_bytes(b"packed")
    (folder / ".weights.safetensors.123").write_bytes(b"half")
    (folder / "checkpoint").mkdir()
    (folder / "link").symlink_to(folder / student.WEIGHTS)
    content = student.read_files(folder)
    assert sorted(content) == [*student.FILES[:1], "student.packed", *student.FILES[1:]]
    student.write_files(tmp_path / "there", content)
    assert student.read_files(tmp_path / "there") == content


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/b", ".hidden", "..", "", "a\\b", "a\0b"])
def test_names_that_would_lie_elsewhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(EsnacError, match="no plain file name"):
        student.write_files(tmp_path / "there", {"good": b"", name: b""})
    assert not (tmp_path / "there").exists()
