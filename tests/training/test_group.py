"""Two and three processes that train together, against one.

This file is also the program of each rank: it runs every job below and saves what came out.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from esnac.data import DataSet, DataSettings, from_tensors
from esnac.data.batches import batch_sizes, training_batches
from esnac.distillation.losses import make_loss
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError
from esnac.group import ALONE, Group
from esnac.quantization._base import ActivationSettings
from esnac.quantization.attach import INPUT, Plan, attach
from esnac.quantization.lsq import LSQActivationSettings
from esnac.quantization.minmax import MinMaxActivationSettings
from esnac.quantization.pact import PACTSettings
from esnac.training import TrainingResult, TrainingSettings, accuracy, fit
from esnac.training.together import joined

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(
    epochs=4, batch_size=16, learning_rate=0.05, schedule="one_cycle", precision="float32"
)
#: One step of plain descent on all images: the weights move by the gradient.
ONE_STEP = dataclasses.replace(
    SETTINGS, epochs=1, batch_size=500, learning_rate=1.0, momentum=0.0, weight_decay=0.0,
    schedule="constant", select="last",
)  # fmt: skip


def make_data(count: int) -> DataSet:
    """Three classes, each a bright spot somewhere else; `count` images to train on."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 3
    images = torch.randint(120, (200, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for label in range(3):
        images[labels == label, :, 2 * label + 1, 2:6] += 100
    data = from_tensors((images, labels), None, DataSettings(padding=1, flip=True))
    return dataclasses.replace(data, train=data.train.subset(torch.arange(count)))


def make_model(seed: int = 0, norm: bool = False, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(8 * 64, 3),
        )


def run(
    model: nn.Module,
    data: DataSet,
    settings: TrainingSettings,
    group: Group,
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
    **more: Any,
) -> TrainingResult:
    targets = None
    if settings.distills:
        targets = TeacherTargets(make_model(9, norm=True), data, 2, CPU, group=group)
    return fit(
        model,
        data,
        settings,
        loss=loss or make_loss(settings),
        seed=1,
        augmentation_seed=2,
        targets=targets,
        device=CPU,
        group=group,
        **more,
    )


def gradient(group: Group, count: int, norm: bool = False, **changes: Any) -> Tensor:
    """Of the mean loss of `count` images, by what one step moves."""
    model = make_model(norm=norm)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    run(model, make_data(count), dataclasses.replace(ONE_STEP, **changes), group)
    return before - nn.utils.parameters_to_vector(model.parameters()).detach()


GRADIENTS: dict[str, dict[str, Any]] = {
    "even": {"count": 60},
    "uneven": {"count": 61},
    "one row each at the most": {"count": 2},
    "norms": {"count": 61, "norm": True},
    "norms of few rows": {"count": 3, "norm": True},
    "distilled": {"count": 61, "distillation": "soft_targets"},
    "clipped": {"count": 61, "clip_norm": 0.01},
}


def trained(group: Group, **more: Any) -> dict[str, Any]:
    """Four epochs of 7 steps, with whatever a rank could do differently."""
    model = make_model(seed=group.rank, norm=True, dropout=0.2)
    data = make_data(99)
    result = run(model, data, SETTINGS, group, **more)
    here = accuracy(model, data.validation, data)
    history = [dataclasses.replace(r, seconds=0, images_per_s=0) for r in result.history]
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "accuracy": result.accuracy,
        "measured": here,
        "history": [dataclasses.asdict(record) for record in history],
    }


def plain(group: Group) -> dict[str, Any]:
    """The same without dropout, as one process would train it; 8 images in the last batch."""
    model = make_model(norm=True)
    result = run(model, make_data(104), SETTINGS, group)
    return {
        "weights": model.state_dict(),
        "accuracy": result.accuracy,
        "loss": [record.loss for record in result.history],
    }


class Stop(Exception):
    pass


def resumed(group: Group, folder: Path) -> dict[str, Any]:
    """Stopped after the second epoch and started again; only rank 0 sees the checkpoint."""
    epochs: list[int] = []

    def stop(record: Any) -> None:
        epochs.append(record.epoch)
        if len(epochs) == 2:
            raise Stop

    checkpoint = folder / f"seen by {group.rank}"
    for _ in range(2):
        try:
            found = trained(group, checkpoint=checkpoint, on_epoch=stop)
        except Stop:
            continue
    return {**found, "epochs": epochs, "files": checkpoint.exists()}


#: Quantisers of inputs that learn from what they see.
OBSERVERS: dict[str, ActivationSettings] = {
    "lsq": LSQActivationSettings(),
    "pact": PACTSettings(),
    "minmax": MinMaxActivationSettings(),
}


def observed(group: Group, settings: ActivationSettings) -> tuple[dict[str, Tensor], Tensor]:
    """What a quantiser of inputs starts from, and what it makes of them afterwards.

    The first rows, which are those of rank 0, have no value above 0; the last ones none below.
    """
    inputs = torch.arange(-9.0, 13.0).reshape(11, 2)
    layer = nn.Linear(2, 1)
    attach(nn.Sequential(layer), Plan({}, {"0": settings}))
    with joined(layer, group) as model:
        model(inputs[group.rows(11)])
        quantizer = layer.get_submodule(INPUT)
        state = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.eval()
    return state, quantizer(inputs).detach()


def failure(work: Callable[[], object]) -> str:
    try:
        work()
    except EsnacError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def not_finite(group: Group) -> str:
    """One bad loss, on the last rank."""
    calls = 0

    def loss(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        value = F.cross_entropy(logits, labels)
        return value * torch.nan if calls == 5 and group.rank == group.size - 1 else value

    return failure(lambda: run(make_model(), make_data(99), SETTINGS, group, loss))


def no_room(group: Group, folder: Path) -> str:
    """A checkpoint that rank 0 cannot write."""
    (folder / "file").touch()
    place = folder / "file" / "checkpoint"
    return failure(lambda: trained(group, checkpoint=place if not group.rank else folder / "ok"))


def job(folder: Path, rank: int, size: int) -> None:
    store = distributed.FileStore(str(folder / "store"), size)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    group = Group.joined()
    found = {
        "gradients": {name: gradient(group, **kind) for name, kind in GRADIENTS.items()},
        "plain": plain(group),
        "trained": trained(group),
        "resumed": resumed(group, folder),
        "observed": {name: observed(group, kind) for name, kind in OBSERVERS.items()},
        "not finite": not_finite(group),
        "no room": no_room(group, folder),
    }
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each of two, then of three processes found."""
    size: int = request.param
    folder = tmp_path_factory.mktemp(f"ranks{size}")
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank), str(size)], env=environment
        )
        for rank in range(size)
    ]
    try:
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * size
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gradient_is_that_of_the_whole_batch(name: str, ranks: Ranks) -> None:
    expected = gradient(ALONE, **GRADIENTS[name])
    assert expected.abs().max() > 1e-3
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"][name], expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_many_steps_are_those_of_one_process(ranks: Ranks) -> None:
    expected = plain(ALONE)
    for rank in ranks:
        found = rank["plain"]
        for name, tensor in expected["weights"].items():
            torch.testing.assert_close(found["weights"][name], tensor, rtol=1e-4, atol=1e-4)
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert found["accuracy"] == expected["accuracy"]


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["history"] == other["history"]
    assert one["accuracy"] == other["accuracy"]
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("name", OBSERVERS)
def test_what_is_observed_is_what_all_ranks_meet(name: str, ranks: Ranks) -> None:
    expected = observed(ALONE, OBSERVERS[name])
    for rank in ranks:
        torch.testing.assert_close(rank["observed"][name], expected)


@pytest.mark.slow
def test_all_ranks_end_with_the_same_model_and_figures(ranks: Ranks) -> None:
    first = ranks[0]["trained"]
    assert first["accuracy"] > 0.9
    assert first["measured"] == first["accuracy"]
    for rank in ranks[1:]:
        same(rank["trained"], first)


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_end(ranks: Ranks) -> None:
    for number, rank in enumerate(ranks):
        same(rank["resumed"], ranks[0]["trained"])
        assert rank["resumed"]["epochs"] == [0, 1, 2, 3], "no epoch twice"
        assert rank["resumed"]["files"] == (number == 0)


@pytest.mark.slow
def test_what_goes_wrong_on_one_rank_ends_all(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["not finite"].startswith("TrainingError: The loss is not finite in epoch 0")
        assert rank["not finite"].endswith("step 4. Lower the learning rate, or set clip_norm.")
        assert rank["no room"].startswith("RunError: Cannot write a checkpoint")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 100])
def test_rows_are_shared_out_evenly(count: int, size: int) -> None:
    parts = [range(count)[Group(rank, size).rows(count)] for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("count", "sizes"), [(32, [16, 16]), (33, [16, 17]), (34, [16, 16, 2])])
def test_ranks_share_each_batch(count: int, sizes: list[int]) -> None:
    data = make_data(count)

    def batches(group: Group) -> list[tuple[Tensor, Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(3)
        return list(
            training_batches(
                data, 16, order_generator=generator, augmentation_seed=4, epoch=0, group=group
            )
        )

    assert batch_sizes(count, 16) == sizes
    whole = batches(ALONE)
    parts = [batches(Group(rank, 3)) for rank in range(3)]
    for number, size in enumerate(sizes):
        for field in range(3):
            found = [part[number][field] for part in parts]
            expected = whole[number][field]
            if size < 6:  # some layers cannot do with one row
                assert all(torch.equal(rows, expected) for rows in found)
            else:
                assert torch.equal(torch.cat(found), expected)


if __name__ == "__main__":
    job(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
