"""Speed of evaluating one student with distillation: our loop against the published recipe.

Teacher: ResNet-18 at 32x32, 10 classes. Student: the same with all widths scaled so that 90 % of
the parameters are gone. Adam, mean squared error of logits, crop with padding 4 and flip, batch
128. Random images. Ours: `esnac.training.fit` with `TeacherTargets`. Plain: float32, NCHW, PIL
transforms in a torch DataLoader (on a GPU with as many workers as threads, else none), teacher
forward for every batch. Both use the same threads and take turns; figures are medians over the
rounds. Validation is left out of both.

Prints one JSON object on its last line; the machine goes to standard error.

    ratio               ours / plain, images per second, the teacher's targets computed once per run
                        and shared by the 160 trials of the published search
    ratio_single        the same with the full cost of the targets within this one evaluation
    images_per_s        ours, as in `ratio`
    plain_images_per_s  the published recipe
    images_per_s_single         ours, as in `ratio_single`
    targets_images_per_s        the teacher's targets alone
    compression         fraction of the teacher's parameters that the student lacks
    images, rounds, threads, device, dtype      what was measured
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from _machine import print_machine

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from esnac.data import DataSet
    from esnac.distillation.targets import TeacherTargets

TRIALS = 160  # of the published search: 20 steps of 8
BATCH = 128
BLOCKS, WIDTHS = (2, 2, 2, 2), (64, 128, 256, 512)
COMPRESSION = 0.9


@dataclass(frozen=True)
class Setting:
    """What both sides share."""

    teacher: nn.Module
    student: nn.Module
    data: DataSet
    device: torch.device
    workers: int


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    import torch

    from esnac.runtime import mean_width, resolve_device, resolve_precision

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = resolve_device(args.device)
    images, rounds = (BATCH, 3) if args.quick else (4 * BATCH, 5)
    images, rounds = args.images or images, args.rounds or rounds
    teacher, student = networks()
    workers = args.threads if device.type == "cuda" else 0
    setting = Setting(
        teacher.to(device).eval(), student.to(device), make_data(images, device), device, workers
    )
    print_machine(args.threads, "torch")
    figures = measure(setting, rounds)
    numerics = resolve_precision("auto", device, mean_width(student, (3, 32, 32), device))
    figures |= {"compression": round(1 - params(student) / params(teacher), 4)}
    figures |= {"images": images, "rounds": rounds, "threads": args.threads, "quick": args.quick}
    figures |= {"device": str(device), "dtype": str(numerics.dtype).removeprefix("torch.")}
    print(json.dumps(figures))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one batch, 3 rounds: under a minute")
    parser.add_argument("--threads", type=int, default=1, help="threads of both (default 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--images", type=int, help="training images per round")
    parser.add_argument("--rounds", type=int, help="turns of each side")
    return parser.parse_args(argv)


def networks() -> tuple[nn.Module, nn.Module]:
    """The teacher, and the student as the search builds it: a network that runs a graph."""
    from esnac.graphs.network import StudentNetwork
    from esnac.graphs.trace import trace
    from esnac.networks.resnet import ResNet

    teacher = ResNet(BLOCKS, WIDTHS, num_classes=10, in_channels=3)
    wanted = (1 - COMPRESSION) * params(teacher)
    for first in range(WIDTHS[0], 0, -1):
        widths = [width * first // WIDTHS[0] for width in WIDTHS]
        student = ResNet(BLOCKS, widths, num_classes=10, in_channels=3)
        if params(student) <= wanted:
            return teacher, StudentNetwork(trace(student, (3, 32, 32)))
    raise RuntimeError("No width leaves so few parameters.")


def params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def make_data(images: int, device: torch.device) -> DataSet:
    """Random images: `images` to train on and the few validation images that `fit` asks for."""
    import torch

    from esnac.data import DataSet, ImageSet

    pixels = torch.randint(256, (images + 2, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (images + 2,))
    train, few = ImageSet(pixels[2:], labels[2:]), ImageSet(pixels[:2], labels[:2])
    names = tuple(map(str, range(10)))
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    return DataSet("random", train, few, few, 10, names, mean, std, padding=4, flip=True).to(device)


def measure(setting: Setting, rounds: int) -> dict[str, Any]:
    """Rounds of plain, targets and ours in turn, after one that is not counted."""
    plain = plain_recipe(setting)
    seconds: dict[str, list[float]] = {"plain": [], "targets": [], "ours": []}
    for turn in range(rounds + 1):
        took = {"plain": next(plain)}
        targets, took["targets"] = timed_targets(setting, turn)
        took["ours"] = ours(setting, targets, turn)
        if turn:
            for name, value in took.items():
                seconds[name].append(value)
    images = len(setting.data.train)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    shared = images / (median["ours"] + median["targets"] / TRIALS)
    single = images / (median["ours"] + median["targets"])
    baseline = images / median["plain"]
    return {
        "ratio": round(shared / baseline, 2),
        "ratio_single": round(single / baseline, 2),
        "images_per_s": round(shared, 1),
        "plain_images_per_s": round(baseline, 1),
        "images_per_s_single": round(single, 1),
        "targets_images_per_s": round(images / median["targets"], 1),
    }


def timed_targets(setting: Setting, turn: int) -> tuple[TeacherTargets, float]:
    from esnac.distillation.targets import TeacherTargets

    targets = TeacherTargets(setting.teacher, setting.data, seed=turn, device=setting.device)
    synchronise(setting.device)
    start = time.perf_counter()
    targets.epoch(0)
    synchronise(setting.device)
    return targets, time.perf_counter() - start


def ours(setting: Setting, targets: TeacherTargets, turn: int) -> float:
    """Seconds of one epoch of training steps; the targets are there already."""
    from esnac.distillation.losses import make_loss
    from esnac.training import TrainingSettings, fit

    settings = TrainingSettings(
        epochs=1,
        batch_size=BATCH,
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=5e-4,
        distillation="logit_mse",
        label_weight=0.0,
    )
    result = fit(
        setting.student,
        setting.data,
        settings,
        loss=make_loss(settings),
        seed=turn,
        augmentation_seed=turn,
        targets=targets,
        device=setting.device,
    )
    return len(setting.data.train) / result.history[0].images_per_s


def plain_recipe(setting: Setting) -> Iterator[float]:
    """Seconds of one epoch of the published recipe, again and again."""
    import copy

    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader

    student = copy.deepcopy(setting.student)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, weight_decay=5e-4)
    loader: DataLoader[Any] = DataLoader(
        PlainImages(setting.data),  # type: ignore[arg-type]
        BATCH,
        shuffle=True,
        num_workers=setting.workers,
        persistent_workers=setting.workers > 0,
    )
    for _ in itertools.count():
        start = time.perf_counter()
        student.train()
        for inputs, _labels in loader:
            inputs = inputs.to(setting.device)
            with torch.no_grad():
                wanted = setting.teacher(inputs)
            loss = F.mse_loss(student(inputs), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        synchronise(setting.device)
        yield time.perf_counter() - start


class PlainImages:
    """A map-style data set of PIL images with torchvision's transforms."""

    def __init__(self, data: DataSet) -> None:
        from PIL import Image

        from esnac.data.vision import torchvision

        transforms = torchvision().transforms
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )
        pixels = data.train.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self._images = [Image.fromarray(image) for image in pixels]
        self._labels = data.train.labels.tolist()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def synchronise(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
