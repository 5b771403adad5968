from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from esnac.data import DataSet, DataSettings, from_tensors, load
from esnac.distillation.losses import make_loss
from esnac.distillation.targets import TeacherTargets
from esnac.errors import DataError, TrainingError
from esnac.training import (
    EpochRecord,
    TrainingResult,
    TrainingSettings,
    accuracy,
    fit,
    loop,
    schedules,
)
from esnac.training.loop import Targets, make_optimizer

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(
    epochs=4, batch_size=16, learning_rate=0.05, schedule="one_cycle", precision="float32"
)


def make_data(count: int = 200) -> DataSet:
    """Three classes, each a bright spot somewhere else on a noisy 8x8 image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = torch.randint(120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for label in range(3):
        images[labels == label, :, 2 * label + 1, 2:6] += 100
    return from_tensors((images, labels), None, DataSettings(padding=1, flip=True))


@pytest.fixture(scope="module")
def data() -> DataSet:
    return make_data()


def make_model(seed: int = 0, channels: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(8 * 64, 3),
        )


def run(
    model: nn.Module,
    data: DataSet,
    settings: TrainingSettings = SETTINGS,
    *,
    seed: int = 1,
    augmentation_seed: int = 2,
    targets: Targets | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    return fit(
        model,
        data,
        settings,
        loss=make_loss(settings),
        seed=seed,
        augmentation_seed=augmentation_seed,
        targets=targets,
        device=CPU,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def untimed(records: list[EpochRecord]) -> list[EpochRecord]:
    return [dataclasses.replace(record, seconds=0, images_per_s=0) for record in records]


def test_learns(data: DataSet) -> None:
    model = make_model()
    result = run(model, data)
    assert result.accuracy > 0.9
    assert accuracy(model, data.test, data) > 0.9
    assert result.history[-1].loss < result.history[0].loss
    assert result.images == 4 * len(data.train)
    assert [record.epoch for record in result.history] == [0, 1, 2, 3]
    assert all(record.images_per_s > 0 and record.seconds > 0 for record in result.history)
    assert not model.training


def test_the_result_is_a_function_of_the_seeds(data: DataSet) -> None:
    models = [make_model() for _ in range(4)]
    torch.manual_seed(11)
    run(models[0], data)
    torch.manual_seed(12)
    run(models[1], data)
    run(models[2], data, seed=5)
    run(models[3], data, augmentation_seed=5)
    assert equal(models[0], models[1])
    assert not equal(models[0], models[2])
    assert not equal(models[0], models[3])


def test_the_global_generator_is_left_alone(data: DataSet) -> None:
    before = torch.get_rng_state()
    run(make_model(), data)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adam", "learning_rate": 1e-3, "select": "last"},
        {"nesterov": True, "schedule": "cosine", "clip_norm": 1.0, "no_decay_norm": True},
        {"precision": "bfloat16", "schedule": "step", "milestones": (2,)},
        {"distillation": "soft_targets"},
    ],
)
def test_resumed_equals_uninterrupted(
    changes: dict[str, Any], data: DataSet, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, **changes)
    targets = TeacherTargets(make_model(9), data, 2, CPU) if settings.distills else None
    whole = make_model()
    expected = run(whole, data, settings, targets=targets)

    def killer(last: int) -> Callable[[EpochRecord], None]:
        def on_epoch(record: EpochRecord) -> None:
            if record.epoch == last:
                raise KeyboardInterrupt

        return on_epoch

    for last in (0, 2):
        with pytest.raises(KeyboardInterrupt):
            run(
                make_model(),
                data,
                settings,
                targets=targets,
                checkpoint=tmp_path,
                on_epoch=killer(last),
            )
    resumed = make_model()
    seen: list[EpochRecord] = []
    result = run(
        resumed, data, settings, targets=targets, checkpoint=tmp_path, on_epoch=seen.append
    )
    assert [record.epoch for record in seen] == [3]
    assert equal(whole, resumed)
    assert (result.accuracy, result.epoch) == (expected.accuracy, expected.epoch)
    assert untimed(result.history) == untimed(expected.history)
    assert result.images == expected.images


def test_a_finished_training_is_not_repeated(data: DataSet, tmp_path: Path) -> None:
    first, second = make_model(), make_model()
    expected = run(first, data, checkpoint=tmp_path)
    seen: list[EpochRecord] = []
    assert run(second, data, checkpoint=tmp_path, on_epoch=seen.append) == expected
    assert not seen
    assert equal(first, second)


def test_a_checkpoint_of_other_settings_is_not_used(data: DataSet, tmp_path: Path) -> None:
    run(make_model(), data, checkpoint=tmp_path)
    other, expected = make_model(), make_model()
    run(expected, data, seed=5)
    seen: list[EpochRecord] = []
    run(other, data, seed=5, checkpoint=tmp_path, on_epoch=seen.append)
    assert len(seen) == SETTINGS.epochs
    assert equal(other, expected)


def test_a_checkpoint_of_other_data_is_not_used(data: DataSet, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=1)
    wrong = dataclasses.replace(data.train, labels=data.train.labels.flip(0))
    unsure = dataclasses.replace(data.validation, labels=data.validation.labels.flip(0))
    others = [
        dataclasses.replace(data, padding=0),
        dataclasses.replace(data, flip=False),
        dataclasses.replace(data, mean=(0.25,)),
        dataclasses.replace(data, std=(0.25,)),
        dataclasses.replace(data, train=wrong),
        dataclasses.replace(data, validation=unsure),
    ]
    for number, other in enumerate(others):
        folder = tmp_path / str(number)
        run(make_model(), data, settings, checkpoint=folder)
        seen: list[EpochRecord] = []
        run(make_model(), other, settings, checkpoint=folder, on_epoch=seen.append)
        assert len(seen) == 1, number


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[dict[str, Tensor]]:
    """Validation accuracies from `values`; returns the weights after each epoch, filled later."""
    states: list[dict[str, Tensor]] = []

    def fake(model: nn.Module, *_: object) -> float:
        states.append({name: t.clone() for name, t in model.state_dict().items()})
        return values[len(states) - 1]

    monkeypatch.setattr(loop, "accuracy", fake)
    return states


@pytest.mark.parametrize(("select", "epoch", "value"), [("best", 1, 0.7), ("last", 3, 0.5)])
def test_the_kept_weights_are_those_of_their_epoch(
    select: Literal["best", "last"],
    epoch: int,
    value: float,
    data: DataSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = scripted(monkeypatch, [0.2, 0.7, 0.7, 0.5])  # of equals, the earlier one
    model = make_model()
    result = run(model, data, dataclasses.replace(SETTINGS, select=select))
    assert (result.epoch, result.accuracy) == (epoch, value)
    kept = model.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in states[epoch].items())
    assert not torch.equal(states[1]["0.weight"], states[3]["0.weight"])


def test_accuracy_is_that_of_the_kept_weights(data: DataSet) -> None:
    model = make_model()
    assert run(model, data).accuracy == accuracy(model, data.validation, data)


def test_weights_end_contiguous(data: DataSet) -> None:
    model = make_model()
    run(model, data)
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


@pytest.mark.parametrize("device_checks_every", [1, 50])
def test_a_loss_that_is_not_finite_is_an_error(
    device_checks_every: int, data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.CHECK_EVERY, "cpu", device_checks_every)
    with pytest.raises(TrainingError, match="not finite"):
        run(make_model(), data, dataclasses.replace(SETTINGS, learning_rate=1e30))


def test_a_single_nan_in_the_middle_of_an_epoch_is_seen(data: DataSet) -> None:
    calls = 0

    def loss(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        value = F.cross_entropy(logits, labels)
        return value * torch.nan if calls == 5 else value

    with pytest.raises(TrainingError):
        fit(make_model(), data, SETTINGS, loss=loss, seed=0, augmentation_seed=0, device=CPU)
    assert calls == 5


@pytest.mark.parametrize("count", [17, 33])
def test_one_image_left_over(count: int) -> None:
    whole = make_data()
    train = whole.train.subset(torch.arange(count))
    data = dataclasses.replace(whole, train=train)
    result = run(make_model(), data)
    assert result.images == 4 * count
    last = SETTINGS.learning_rate * schedules.END
    assert result.history[-1].learning_rate == pytest.approx(last)


def test_without_images(data: DataSet) -> None:
    one = dataclasses.replace(data, train=data.train.subset(torch.arange(1)))
    none = dataclasses.replace(data, validation=data.validation.subset(torch.arange(0)))
    for broken in (one, none):
        with pytest.raises(DataError, match="images"):
            run(make_model(), broken)


def test_distillation_learns_the_teachers_logits_without_labels(data: DataSet) -> None:
    teacher = make_model(3)
    run(teacher, data)
    settings = dataclasses.replace(
        SETTINGS, epochs=6, distillation="logit_mse", label_weight=0.0, learning_rate=0.02
    )
    lies = dataclasses.replace(data.train, labels=torch.zeros_like(data.train.labels))
    student = make_model(4)
    blind = dataclasses.replace(data, train=lies)
    run(student, blind, settings, targets=TeacherTargets(teacher, blind, 2, CPU))
    assert accuracy(student, data.test, data) > 0.9


def test_targets_must_fit(data: DataSet) -> None:
    settings = dataclasses.replace(SETTINGS, distillation="logit_mse")
    with pytest.raises(TrainingError, match="targets"):
        run(make_model(), data, settings)
    other = TeacherTargets(make_model(3), data, 99, CPU)
    with pytest.raises(TrainingError, match="augmentation seed"):
        run(make_model(), data, settings, targets=other)


class NoTargets:
    def epoch(self, epoch: int) -> Tensor:
        raise AssertionError("not needed")


def test_targets_are_not_computed_when_nothing_is_distilled(data: DataSet) -> None:
    run(make_model(), data, dataclasses.replace(SETTINGS, epochs=1), targets=NoTargets())


def test_one_step_is_torchs(data: DataSet) -> None:
    """Epoch 0 of one batch, against SGD written out: v = g + wd w, w -= lr v."""
    settings = TrainingSettings(
        epochs=1, batch_size=500, learning_rate=0.1, weight_decay=0.01, precision="float32"
    )
    plain = dataclasses.replace(data, padding=0, flip=False)
    layer = nn.Linear(64, 3)
    model = nn.Sequential(nn.Flatten(), layer)
    weight = layer.weight.detach().clone()
    inputs = (plain.train.images.float() / 255 - plain.mean[0]) / plain.std[0]
    F.cross_entropy(model(inputs), plain.train.labels).backward()
    assert layer.weight.grad is not None
    expected = weight - 0.1 * (layer.weight.grad + 0.01 * weight)
    run(model, plain, settings)
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-4, atol=1e-6)


def test_weight_decay_on_everything_unless_norms_are_spared() -> None:
    model = make_model()
    (everything,) = make_optimizer(model, SETTINGS).param_groups
    assert len(everything["params"]) == 6
    decayed, spared = make_optimizer(
        model, dataclasses.replace(SETTINGS, no_decay_norm=True)
    ).param_groups
    assert decayed["weight_decay"] == SETTINGS.weight_decay
    assert spared["weight_decay"] == 0
    assert [len(decayed["params"]), len(spared["params"])] == [2, 4]


def test_clipping_bounds_the_step(data: DataSet) -> None:
    settings = TrainingSettings(
        epochs=1, batch_size=500, learning_rate=1.0, momentum=0, weight_decay=0, clip_norm=0.01
    )
    model = make_model()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    run(model, data, settings)
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_distils_on_the_device_of_the_tests(device: torch.device, data: DataSet) -> None:
    there = data.to(device)
    teacher = make_model(9).to(device)
    fit(
        teacher,
        there,
        SETTINGS,
        loss=make_loss(SETTINGS),
        seed=1,
        augmentation_seed=3,
        device=device,
    )
    settings = dataclasses.replace(SETTINGS, precision="auto", distillation="soft_targets")
    model = make_model().to(device)
    result = fit(
        model,
        there,
        settings,
        loss=make_loss(settings),
        seed=1,
        augmentation_seed=2,
        targets=TeacherTargets(teacher, there, 2, device),
        device=device,
    )
    assert result.accuracy == accuracy(model, there.validation, there)
    assert accuracy(model, there.test, there) > 0.9


def test_early_epochs_train_on_windows(monkeypatch: pytest.MonkeyPatch, data: DataSet) -> None:
    """Two of three epochs see 4 x 4 windows; every window lies inside the images."""
    seen = []

    class Watch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(data.input_shape[0], data.num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(tuple(x.shape[-2:]))
            return self.head(x.mean((2, 3)))

    settings = dataclasses.replace(SETTINGS, epochs=3, early_epochs=2, early_side=4)
    loss = make_loss(settings)
    fit(Watch(), data, settings, loss=loss, seed=0, augmentation_seed=0, device=CPU)
    steps = len(seen) // 3
    whole = data.input_shape[1:]
    assert seen == [(4, 4)] * (2 * steps) + [whole] * steps


def test_a_window_is_part_of_the_image() -> None:
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    corners = {int(loop.window(image, 5, generator)[0, 0, 0, 0]) for _ in range(200)}
    assert corners == {8 * y + x for y in range(4) for x in range(4)}
    assert loop.window(image, 9, generator).shape == image.shape


def test_streamed_images_train_as_those_in_memory(tmp_path: Path) -> None:
    """Bit for bit, and up to rounding with a teacher, who then sees smaller batches."""
    write_images(tmp_path)
    held, streamed = (
        load(f"images:{tmp_path}", None, DataSettings(size=8, stream=stream, workers=0))
        for stream in (False, True)
    )
    one, other = make_model(channels=3), make_model(channels=3)
    kept, found = run(one, held), run(other, streamed)
    assert [record.loss for record in kept.history] == [record.loss for record in found.history]
    assert kept.accuracy == found.accuracy
    for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert accuracy(one, held.test, held) == accuracy(other, streamed.test, streamed)

    settings = dataclasses.replace(
        SETTINGS, learning_rate=0.01, distillation="soft_targets", label_weight=0.0
    )
    losses = []
    for data in (held, streamed):
        model = make_model(channels=3)
        targets = TeacherTargets(one, data, 2, CPU, "float32")
        losses.append([r.loss for r in run(model, data, settings, targets=targets).history])
        assert (targets.stored_bytes == 0) == data.streamed
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def write_images(root: Path) -> None:
    """Three classes of coloured noise, each brighter in a channel of its own."""
    generator = torch.Generator().manual_seed(0)
    for label in range(3):
        folder = root / str(label)
        folder.mkdir()
        for index in range(25):
            pixels = torch.randint(200, (9, 9, 3), generator=generator, dtype=torch.uint8)
            pixels[..., label] += 55
            Image.fromarray(pixels.numpy()).save(
                folder / f"{index}.{'png' if index % 2 else 'jpg'}"
            )
