"""The training loop: batches made on the device, best weights kept, resumable after every epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol

import torch
from torch import Tensor, nn

from esnac.data.batches import batch_sizes, training_batches
from esnac.data.sets import DataSet
from esnac.errors import DataError, TrainingError
from esnac.group import ALONE, Group
from esnac.runtime import (
    Numerics,
    derive_seed,
    mean_width,
    resolve_precision,
    seeded,
    torch_generator,
    without_known_faults,
)
from esnac.settings import to_plain
from esnac.training import checkpoints
from esnac.training.checkpoints import Checkpoint
from esnac.training.evaluate import accuracy
from esnac.training.hooks import NO_HOOKS, Hooks
from esnac.training.schedules import learning_rate
from esnac.training.settings import TrainingSettings
from esnac.training.together import joined

P = ParamSpec("P")

#: loss(logits B x classes float32, labels B, targets B x classes or None) -> scalar
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]

#: Steps between two looks at the loss; on a GPU each look waits for the work queued before it.
CHECK_EVERY = {"cpu": 1, "cuda": 50}


#: The teacher's N x classes logits for the training images, or what gives those of a batch of
#: inputs (B x C x H x W), B x classes.
EpochTargets = Tensor | Callable[[Tensor], Tensor]


class Targets(Protocol):
    """Gives the teacher's logits for the training images, augmented as in `epoch`."""

    def epoch(self, epoch: int) -> EpochTargets: ...


@dataclass(frozen=True)
class EpochRecord:
    """`epoch` from 0; mean training `loss`; validation `accuracy` in [0, 1]; `learning_rate` of its
    last step; `seconds` of all of it; `images_per_s` of its training steps alone."""

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    images_per_s: float


@dataclass(frozen=True)
class TrainingResult:
    """`accuracy` (validation) and `epoch` are those of the kept weights; `seconds` and `images` of
    all epochs, those before a resume included."""

    accuracy: float
    epoch: int
    history: list[EpochRecord]
    seconds: float
    images: int


class Training:
    """Trains `model` in place, epoch by epoch, and leaves it in eval mode with the kept weights.

    `model` and `data` lie on `device`. A function of weights, data, settings and the two seeds:
    order of the batches and dropout of epoch e depend on (seed, e), augmentation on
    (augmentation_seed, e); torch's global generators are left as they were. `targets` (made with
    the same `augmentation_seed`) are used if the settings distil. With `checkpoint` (a folder)
    every epoch is saved, and a matching one there is continued; the result is then that of a
    training without interruption. Raises TrainingError when the loss is not finite (the weights
    are then spoilt) or targets are missing, DataError without images to train or validate on.

    The ranks of a `group` train one model together, with the same batches, schedule and steps, and
    end with the same weights and the same error, if any. Rank 0 alone touches the checkpoint.
    `hooks` act in each epoch; a resumed training calls those of the epochs that are left.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        settings: TrainingSettings,
        *,
        loss: Loss,
        seed: int,
        augmentation_seed: int,
        targets: Targets | None = None,
        device: torch.device,
        checkpoint: Path | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
        group: Group = ALONE,
        hooks: Hooks = NO_HOOKS,
    ) -> None:
        _check(data, settings, targets, augmentation_seed)
        _check_hooks(hooks, settings)
        width = mean_width(model, data.input_shape, device) if settings.precision == "auto" else 0.0
        numerics = resolve_precision(settings.precision, device, width)
        numerics = without_known_faults(numerics, model, device)
        model.to(memory_format=numerics.memory_format)  # type: ignore[call-overload]
        optimizer = make_optimizer(model, settings)
        self._run = _Run(
            model, data, settings, loss, seed, augmentation_seed, device, numerics, optimizer,
            group, hooks,
        )  # fmt: skip
        self._targets = targets if settings.distills else None
        self._checkpoint = checkpoint
        self._on_epoch = on_epoch
        fingerprint = _fingerprint(self._run)
        state = None
        if checkpoint is not None:
            state = group.from_first(lambda: checkpoints.load(checkpoint, fingerprint))
        self._state = state or Checkpoint(fingerprint, 0, {}, {}, None, -1, -1.0, [])
        if self._state.next_epoch:
            model.load_state_dict(self._state.model)
            optimizer.load_state_dict(self._state.optimizer)

    def epochs(self) -> Iterator[EpochRecord]:
        """Trains one epoch for each record; stopping in between is allowed."""
        for epoch in range(self._state.next_epoch, self._run.settings.epochs):
            record = _epoch(self._run, epoch, self._targets)
            self._state = _advance(self._state, self._run, record)
            self._save()
            if self._on_epoch is not None:
                self._on_epoch(record)
            yield record

    def _save(self) -> None:
        folder, state = self._checkpoint, self._state
        if folder is not None:
            self._run.group.from_first(lambda: checkpoints.save(folder, state))

    def finish(self) -> TrainingResult:
        """Leaves the model in eval mode with the kept weights."""
        state, model = self._state, self._run.model
        if state.best is not None:
            model.load_state_dict(state.best)
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model.eval()
        history = [EpochRecord(**record) for record in state.history]
        return TrainingResult(
            accuracy=state.best_accuracy,
            epoch=state.best_epoch,
            history=history,
            seconds=sum(record.seconds for record in history),
            images=len(history) * len(self._run.data.train),
        )


def _whole(training: Callable[P, Training]) -> Callable[P, TrainingResult]:
    def fit(*args: P.args, **kwargs: P.kwargs) -> TrainingResult:
        """All epochs of a `Training`, with its arguments and errors."""
        own = training(*args, **kwargs)
        for _ in own.epochs():
            pass
        return own.finish()

    return fit


#: Called as `Training` is; typed by its list of arguments, which is written once.
fit = _whole(Training)


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """SGD or Adam (L2 penalty, not AdamW, as published) over all parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spared = [p for p in trained if settings.no_decay_norm and p.dim() < 2]
    decayed = [p for p in trained if not (settings.no_decay_norm and p.dim() < 2)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": settings.weight_decay}]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=settings.learning_rate)
    return torch.optim.SGD(
        groups,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
    )


@dataclass(frozen=True)
class _Run:
    """What stays the same in all epochs."""

    model: nn.Module
    data: DataSet
    settings: TrainingSettings
    loss: Loss
    seed: int
    augmentation_seed: int
    device: torch.device
    numerics: Numerics
    optimizer: torch.optim.Optimizer
    group: Group
    hooks: Hooks


def _epoch(run: _Run, epoch: int, targets: Targets | None) -> EpochRecord:
    start = time.perf_counter()
    if run.hooks.before_epoch is not None:
        run.hooks.before_epoch(epoch)
    wanted = None if targets is None else targets.epoch(epoch)
    trained = time.perf_counter()
    others = (run.group.rank,) if run.group.rank else ()  # dropout differs from rank to rank
    noise = derive_seed(run.seed, "noise", epoch, *others)
    # Joined anew in every epoch, so that gradients are summed as they are after a resume.
    with seeded(noise, run.device), joined(run.model, run.group) as model:
        mean_loss, rate = _train(run, model, epoch, wanted)
    speed = len(run.data.train) / (time.perf_counter() - trained)
    correct = _validate(run)
    seconds = time.perf_counter() - start
    return EpochRecord(epoch, mean_loss, correct, rate, seconds, speed)


def _validate(run: _Run) -> float:
    images, group = run.data.validation, run.group
    if group.size == 1:
        return accuracy(run.model, images, run.data)
    rows = group.rows(len(images))
    part = images.subset(torch.arange(len(images))[rows])
    right = accuracy(run.model, part, run.data) * len(part) if len(part) else 0.0
    total = group.sum(torch.tensor(right, dtype=torch.float64, device=run.device))
    return round(total.item()) / len(images)


def _train(
    run: _Run, model: nn.Module, epoch: int, targets: EpochTargets | None
) -> tuple[float, float]:
    """One pass over the training images: mean loss, and learning rate of the last step."""
    settings, count = run.settings, len(run.data.train)
    sizes = batch_sizes(count, settings.batch_size)
    steps_per_epoch = len(sizes)
    look = CHECK_EVERY.get(run.device.type, 1)
    total = torch.zeros((), device=run.device)
    rate = settings.learning_rate
    factor = 1.0 if run.hooks.rate is None else run.hooks.rate(epoch)
    model.train()
    batches = training_batches(
        run.data,
        settings.batch_size,
        order_generator=torch_generator(run.seed, "order", epoch),
        augmentation_seed=run.augmentation_seed,
        epoch=epoch,
        memory_format=run.numerics.memory_format,
        group=run.group,
    )
    windows = torch_generator(run.seed, "windows", epoch)
    for step, (size, (inputs, labels, indices)) in enumerate(zip(sizes, batches, strict=True)):
        if epoch < settings.early_epochs:
            inputs = window(inputs, settings.early_side, windows)
        rate = factor * learning_rate(settings, epoch * steps_per_epoch + step, steps_per_epoch)
        wanted = _wanted(targets, inputs, indices)
        total += _step(run, model, inputs, labels, wanted, rate, size, epoch)
        if step % look == 0:
            _require_finite(run.group.sum(total), epoch, step)
    total = run.group.sum(total)
    _require_finite(total, epoch, steps_per_epoch - 1)
    return total.item() / count, rate


def _wanted(targets: EpochTargets | None, inputs: Tensor, indices: Tensor) -> Tensor | None:
    """The teacher's logits of a batch."""
    if targets is None:
        return None
    return targets[indices].float() if isinstance(targets, Tensor) else targets(inputs)


def _step(
    run: _Run,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    rate: float,
    size: int,
    epoch: int,
) -> Tensor:
    """One step on a batch of `size` images of all ranks, of which this one has `inputs`.

    Returns what its images add to the sum of the losses of all.
    """
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    with run.numerics.autocast(run.device):
        logits = model(inputs)
    value = run.loss(logits.float(), labels, targets)
    _, part = run.group.share(size)
    run.optimizer.zero_grad()
    # Gradients become their mean over ranks: that of the mean loss of all images.
    wanted = value * (part * run.group.size)
    if run.hooks.penalty is not None:
        wanted = wanted + run.hooks.penalty(epoch)
    wanted.backward()
    if run.settings.clip_norm is not None:
        nn.utils.clip_grad_norm_(run.model.parameters(), run.settings.clip_norm)
    run.optimizer.step()
    return value.detach() * (part * size)


def window(inputs: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """The same random `side` x `side` window of all images (B x C x H x W) of a batch."""
    height, width = inputs.shape[-2:]
    y = int(torch.randint(max(height - side, 0) + 1, (), generator=generator))
    x = int(torch.randint(max(width - side, 0) + 1, (), generator=generator))
    return inputs[..., y : y + side, x : x + side]


def _require_finite(total: Tensor, epoch: int, step: int) -> None:
    if not math.isfinite(total.item()):
        raise TrainingError(
            f"The loss is not finite in epoch {epoch}, at or before step {step}. "
            "Lower the learning rate, or set clip_norm."
        )


def _advance(state: Checkpoint, run: _Run, record: EpochRecord) -> Checkpoint:
    """The state after one more epoch. The kept weights are a copy: the model goes on training."""
    # Without a checkpoint these are views of the live tensors and never read; with one they are
    # written to disk before the next step.
    after = dataclasses.replace(
        state,
        next_epoch=record.epoch + 1,
        model=run.model.state_dict(),
        optimizer=run.optimizer.state_dict(),
        history=[*state.history, dataclasses.asdict(record)],
    )
    if run.settings.select == "last":
        return dataclasses.replace(after, best_epoch=record.epoch, best_accuracy=record.accuracy)
    if record.epoch < run.hooks.settled or record.accuracy <= state.best_accuracy:
        return after
    best = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
    return dataclasses.replace(
        after, best=best, best_epoch=record.epoch, best_accuracy=record.accuracy
    )


def _check(
    data: DataSet, settings: TrainingSettings, targets: Targets | None, augmentation_seed: int
) -> None:
    if len(data.train) < 2:
        raise DataError(f"{data.name}: {len(data.train)} training images, at least 2 are needed.")
    if not len(data.validation):
        raise DataError(f"{data.name}: no validation images to judge the training by.")
    if not settings.distills:
        return
    if targets is None:
        raise TrainingError(f"distillation {settings.distillation!r} needs the teacher's targets.")
    if getattr(targets, "seed", augmentation_seed) != augmentation_seed:
        raise TrainingError("The teacher's targets were made for another augmentation seed.")


def _check_hooks(hooks: Hooks, settings: TrainingSettings) -> None:
    if hooks.settled >= settings.epochs:
        raise TrainingError(
            f"Weights may be kept from epoch {hooks.settled} on, but the training has only epochs "
            f"0 to {settings.epochs - 1}. Train longer."
        )


def _fingerprint(run: _Run) -> str:
    state = run.model.state_dict()
    acts = {"hooks": run.hooks.about} if run.hooks.about else {}
    return json.dumps(
        {
            **acts,
            "settings": to_plain(run.settings),
            "seeds": [run.seed, run.augmentation_seed],
            "data": _data_fingerprint(run.data),
            "shapes": {name: list(tensor.shape) for name, tensor in state.items()},
        }
    )


def _data_fingerprint(data: DataSet) -> dict[str, Any]:
    parts = (data.train, data.validation)
    return {
        "name": data.name,
        "labels": [hashlib.sha256(p.labels.cpu().numpy().tobytes()).hexdigest() for p in parts],
        "input_shape": data.input_shape,
        "normalised": [data.mean, data.std],
        "augmented": [data.padding, data.flip],
    }
