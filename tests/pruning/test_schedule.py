from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esnac import networks
from esnac.errors import SettingsError
from esnac.pruning.schedule import Schedule, check, firings, load, penalty, to_toml
from tests.pruning.conftest import plain

TEXT = """
epochs = 12

[[pruners]]
layers = ["0"]
sparsity = 0.3
end = 6
frequency = 2

[[pruners]]
method = "magnitude"
exclude = ["0"]
sparsity = 0.5
start = 3

[[quantizers]]
weights = 4
activations = 4
exclude = ["0"]
start = 8

[[regularizers]]
strength = 0.001
end = 2

[[learning_rate]]
factor = 0.9
start = 9
"""


def read(tmp_path: Path, text: str) -> Schedule:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return load(path)


def test_the_dry_run_tells_what_fires_when(tmp_path: Path) -> None:
    schedule = read(tmp_path, TEXT)
    _, *rows = firings(plain(), schedule)
    assert [row[:4] for row in rows] == [
        ("0", "prune agp", "0.0500", "1"),
        ("0", "penalty scales", "0.001", "4"),
        ("1", "penalty scales", "0.001", "4"),
        ("2", "prune agp", "0.2687", "1"),  # 0.3 - 0.25 / 8
        ("3", "prune magnitude", "0.5000", "4"),
        ("4", "prune agp", "0.3000", "1"),
        ("8", "quantize lsq", "4/4 bit", "4"),
        ("9", "learning rate", "x 0.9", ""),
        ("10", "learning rate", "x 0.81", ""),
        ("11", "learning rate", "x 0.729", ""),
    ]
    assert schedule.settled == 8
    assert rows[4][4] == "3.weight, 6.weight, 9.weight, ..."


def test_a_schedule_as_a_file_reads_back(tmp_path: Path) -> None:
    text = TEXT.replace("strength = 0.001", 'strength = 1e-5\nlayers = ["a \\"b\\" \U0001f600"]')
    schedule = read(tmp_path, text)
    assert schedule.regularizers[0].layers == ('a "b" \U0001f600',)
    assert read(tmp_path, to_toml(schedule)) == schedule


def test_the_rate_of_the_published_schedule() -> None:
    """Constant for 20 epochs, then times 0.9 in each."""
    from esnac.pruning.schedule import RateEntry

    schedule = Schedule(40, learning_rate=(RateEntry(0.9, start=20),))
    assert [schedule.rate(e) for e in (0, 19, 20, 39)] == pytest.approx([1, 1, 0.9, 0.9**20])


def test_penalties_act_in_their_windows(tmp_path: Path) -> None:
    network = plain()
    text = """
    epochs = 4
    [[regularizers]]
    strength = 0.1
    end = 3
    frequency = 2
    [[regularizers]]
    kind = "filters"
    layers = ["14"]
    strength = 0.01
    start = 2
    """
    value = penalty(network, read(tmp_path, text))
    assert value is not None
    scales = 0.1 * 0.5 * (32 + 32 + 64 + 64)
    filters = 0.01 * network[14].weight.norm(dim=1).sum().item()  # type: ignore[operator, union-attr]
    met = [value(epoch).item() for epoch in range(4)]
    assert met == pytest.approx([scales, 0, scales + filters, filters], rel=1e-5)
    value(2).backward()
    assert torch.equal(network[1].weight.grad, torch.full((32,), 0.1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3", "The schedule is empty"),
        ("epochs = 3\n[[pruner]]\n", "unknown key 'pruner'.*Did you mean 'pruners'"),
        ("epochs = 4\n[[pruners]]\nend = 9\n", r"pruners\[0\] fires last at epoch 8"),
        ("epochs = 4\n[[pruners]]\nstart = 9\n", "nothing ever fires"),
        ("epochs = 4\n[[pruners]]\nsparsity = 1.0\n", r"sparsity must be in \[0, 1\)"),
        ("epochs = 4\n[[regularizers]]\nstart = 4\nstrength = 0.1", "nothing ever fires"),
        ("epochs = 4\n[[quantizers]]\nstart = 4", r"quantizers\[0\] fires last at epoch 4"),
        ("epochs = 4\n[[quantizers]]\nweights = 9", "weights must be 1 to 8 bits"),
        ("epochs = 4\n[[learning_rate]]\nfactor = 0.0", "factor must be greater than 0"),
    ],
)
def test_schedules_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[pruners]]\nend = 2\nlayers = ["01"]', "'01' matches nothing"),
        ('[[pruners]]\nend = 2\n[[pruners]]\nend = 2\nlayers = ["0"]', "named twice"),
        ("[[regularizers]]\nstrength = 1.0\n" * 2, "named twice, by two scales penalties"),
        ('[[quantizers]]\n[[quantizers]]\nlayers = ["3"]', r"3\.weight is named twice"),
        ('[[regularizers]]\nstrength = 1\nlayers = ["3"]', "'3' matches nothing"),
    ],
)
def test_schedules_that_do_not_fit_the_network(text: str, message: str, tmp_path: Path) -> None:
    schedule = read(tmp_path, f"epochs = 4\n{text}")
    with pytest.raises(SettingsError, match=message):
        check(plain(), schedule)


def test_the_schedule_of_the_documentation(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "stages.md").read_text()
    (example,) = (part for part in text.split("```toml\n")[1:] if part.startswith("epochs"))
    (tmp_path / "plan.toml").write_text(example.split("```")[0])
    with torch.device("meta"):
        network = networks.build("resnet20", 10)
    rows = firings(network, load(tmp_path / "plan.toml"))
    assert ("8", "quantize lsq", "4/4 bit") in [row[:3] for row in rows]
