"""An evaluation from a bundle, as on another machine, is that of the driver."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from esnac.data import DataSettings, load
from esnac.distillation.targets import TeacherTargets
from esnac.graphs import student as students
from esnac.search.bundle import Bundle
from esnac.search.earlier import space_of
from esnac.search.evaluation import Evaluator
from esnac.search.trial import Trial
from esnac.search_spaces import SpaceSettings

SPACE = SpaceSettings(tied_by="dependency", inherit="important", shrink_limit=0.7)


@pytest.fixture
def evaluator(make_evaluator: Callable[..., Evaluator]) -> Evaluator:
    """With augmentation, so that the targets of each epoch are others."""
    plain = make_evaluator()
    teacher = plain.targets._teacher
    data = replace(plain.data, padding=1, flip=True)
    return replace(
        plain,
        space=space_of(plain.space.graph, SPACE),
        selection=SPACE.inherit,
        data=data,
        targets=TeacherTargets(teacher, data, plain.targets.seed, plain.device),
    )


@pytest.fixture
def bundle(evaluator: Evaluator) -> Bundle:
    return Bundle.of(evaluator, SPACE, {epoch: evaluator.targets.epoch(epoch) for epoch in (0, 1)})


def frozen(value: Any) -> Any:
    """The same with arrays in read-only memory, as an object store has them."""
    if isinstance(value, np.ndarray):
        return np.frombuffer(value.tobytes(), value.dtype).reshape(value.shape)
    return {key: frozen(one) for key, one in value.items()} if isinstance(value, dict) else value


def shared(bundle: Bundle) -> Bundle:
    return Bundle(**{field.name: frozen(getattr(bundle, field.name)) for field in fields(bundle)})


def test_it_evaluates_as_the_original_and_writes_to_no_array(
    evaluator: Evaluator,
    bundle: Bundle,
    make_trials: Callable[..., list[Trial]],
    device: torch.device,
    tmp_path: Path,
) -> None:
    given = shared(bundle)
    before = pickle.dumps(given)
    there = given.evaluator(device, lambda number: tmp_path / "there" / str(number))
    trials = make_trials(evaluator.space)
    for trial in trials:
        assert there(trial).accuracy == evaluator(trial).accuracy
        mine = students.load(evaluator.folder(trial.number))
        theirs = students.load(there.folder(trial.number))
        assert theirs.graph == mine.graph
        assert theirs.preparation == mine.preparation
        for name, tensor in mine.state_dict().items():
            assert torch.equal(theirs.state_dict()[name], tensor)
    assert pickle.dumps(given) == before


def test_it_is_plain_data_and_arrays(bundle: Bundle) -> None:
    """Nothing that needs a class of ours or a tensor on the other side."""

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(map(plain, value.values()))
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        return value is None or isinstance(value, (str, int, float, np.ndarray))

    assert all(plain(getattr(bundle, field.name)) for field in fields(bundle))


def test_targets_of_other_epochs_differ_and_equal_ones_travel_once(
    bundle: Bundle, make_evaluator: Callable[..., Evaluator]
) -> None:
    assert not np.array_equal(bundle.targets[0], bundle.targets[1])
    still = make_evaluator()  # without augmentation
    targets = {epoch: still.targets.epoch(epoch) for epoch in range(10)}
    once = pickle.loads(pickle.dumps(Bundle.of(still, SPACE, targets))).targets
    assert list(once) == list(range(10))
    assert len({id(logits) for logits in once.values()}) == 1


def test_of_streamed_images_a_worker_asks_the_teacher_itself(
    evaluator: Evaluator,
    make_trials: Callable[..., list[Trial]],
    device: torch.device,
    tmp_path: Path,
) -> None:
    generator = torch.Generator().manual_seed(0)
    for label in range(3):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for index in range(12):
            pixels = torch.randint(256, (8, 8), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / f"images/{label}/{index}.png")
    settings = DataSettings(size=8, stream=True, workers=0)
    data = load(f"images:{tmp_path / 'images'}", None, settings).to(device)
    targets = TeacherTargets(evaluator.targets._teacher, data, evaluator.targets.seed, device)
    streamed = replace(evaluator, data=data, targets=targets)
    bundle = Bundle.of(streamed, SPACE, {0: targets.epoch(0), 1: targets.epoch(1)})
    assert not bundle.targets
    there = shared(bundle).evaluator(device, lambda number: tmp_path / "there" / str(number))
    for trial in make_trials(evaluator.space)[:1]:
        assert there(trial).reason is None
        assert there(trial).accuracy == streamed(trial).accuracy
