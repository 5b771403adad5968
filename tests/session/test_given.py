"""Networks that are given as students of this package."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import esnac
from esnac.data import DataSet
from esnac.errors import EsnacError
from esnac.graphs import student as students
from esnac.graphs.masks import attach_masks, effective_weights
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.trace import trace


@pytest.fixture
def student(model: nn.Module, shades: DataSet) -> StudentNetwork:
    graph = trace(model, shades.input_shape)
    return StudentNetwork(graph, teacher_weights(graph, model.state_dict())).eval()


def test_a_student_keeps_its_layers_and_what_its_masks_make_zero(
    student: StudentNetwork, shades: DataSet, tmp_path: Path
) -> None:
    name, weight = next((n, w) for n, w in effective_weights(student).items() if w.dim() == 2)
    attach_masks(student, {name: weight > 0})
    chain = "clear(smallest, share=0.9)"
    found = esnac.compress(student, shades, chain, runs=tmp_path, name="a", device="cpu")
    kept = students.load(found.path / "finalists" / "0")
    assert kept.graph == student.graph
    wanted = effective_weights(student)
    assert all(tensor.equal(wanted[key]) for key, tensor in kept.named_parameters())
    assert (effective_weights(kept)[name] == 0).equal(weight <= 0)


def test_a_network_for_other_data_is_refused(
    student: StudentNetwork, shades: DataSet, tmp_path: Path
) -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    for model in (small, StudentNetwork(trace(small, shades.input_shape))):
        with pytest.raises(EsnacError, match="2 outputs, the data set .* 3 classes"):
            esnac.compress(model, shades, "train", runs=tmp_path, name="a", device="cpu")
        assert not (tmp_path / "a").exists()
