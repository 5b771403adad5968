"""What a run needs before it starts: its settings, put together from layers, and its teacher."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esnac import data as data_room
from esnac import networks, search_spaces, teachers
from esnac.data import DataSet, DataSettings
from esnac.data.settings import content
from esnac.data.vision import torchvision
from esnac.errors import EsnacError, SettingsError, WeightsError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.masks import effective_weights
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.trace import trace
from esnac.report.epochs import EpochProgress
from esnac.runs import compare, describe
from esnac.runtime import derive_seed, seeded
from esnac.search.presets import preset
from esnac.search.settings import RunSettings
from esnac.settings import build, load_toml, merge, parse_assignments, to_plain
from esnac.stages.notation import parse
from esnac.stages.pipeline import resolve
from esnac.stages.teacher import TeacherJob, train_teacher
from esnac.training import accuracy


@dataclass(frozen=True)
class Folders:
    """Absolute paths. Teachers are looked for in `teachers` in order, new ones made elsewhere."""

    runs: Path
    new_teachers: Path
    teachers: list[Path] = field(default_factory=list)
    search_spaces: Path | None = None
    data: Path | None = None


@dataclass(frozen=True)
class Choices:
    """What a user asked for: names, and layers of settings from weak to strong."""

    network: str
    dataset: str
    seed: int | None = None
    preset: str | None = None
    file: Path | None = None
    assignments: Sequence[str] = ()


@dataclass(frozen=True)
class Teacher:
    """A trained network with its graph; `weights` by layer name, on the CPU."""

    module: nn.Module
    graph: ArchGraph
    weights: Mapping[str, Tensor]
    accuracy: float
    validation_accuracy: float
    #: The user's file it came from, if it did.
    file: Path | None = None


def built(plain: Mapping[str, Any], where: str = "settings") -> RunSettings:
    """Settings whose chain of stages is checked and filled in as well. Raises SettingsError."""
    return _with_chain(build(RunSettings, plain, where=where))


def _with_chain(settings: RunSettings) -> RunSettings:
    return replace(settings, stages=resolve(settings.stages))


def chain_read(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, with `stages` as tables where they were text."""
    text = plain.get("stages")
    return dict(plain) | ({"stages": parse(text)} if isinstance(text, str) else {})


def resolve_settings(choices: Choices, folders: Folders) -> RunSettings:
    """Defaults < preset < search space and recipe < file < assignments < flags, checked.

    The preset follows the size of the training split; names and keys are checked before the data.
    """
    family = networks.family(choices.network)
    explicit = explicit_settings(choices)
    named: dict[str, Any] = {"network": choices.network, "dataset": choices.dataset}
    if choices.seed is not None:
        named["seed"] = choices.seed
    named["preset"] = choices.preset or explicit.get("preset", "quick")
    layers = [
        (
            f"The recipe of {choices.network} on {choices.dataset}",
            {"teacher": teachers.recipe(folders.teachers, choices.network, choices.dataset)},
        ),
        (
            f"The search space of {choices.network}",
            {"space": search_spaces.load(folders.search_spaces, choices.network, family)},
        ),
        (_source(choices), explicit),
    ]
    checked = _with_chain(_built(preset(named["preset"], 50_000), layers, named))
    images = data_room.count_training_images(checked.dataset, folders.data, checked.data)
    return _with_chain(_built(preset(named["preset"], images), layers, named))


def _built(
    start: dict[str, Any], layers: Sequence[tuple[str, dict[str, Any]]], named: dict[str, Any]
) -> RunSettings:
    """Settings from layers, each checked on those before, so that errors name their source."""
    plain = merge(start, named)
    settings = build(RunSettings, plain)
    for where, layer in layers:
        plain = merge(plain, layer, named)
        settings = build(RunSettings, plain, where=where)
    return settings


def explicit_settings(choices: Choices) -> dict[str, Any]:
    """What the user set by file and assignments."""
    file = load_toml(choices.file) if choices.file else {}
    explicit = chain_read(merge(file, parse_assignments(list(choices.assignments))))
    for key in ("network", "dataset"):
        if explicit.get(key, getattr(choices, key)) != getattr(choices, key):
            raise SettingsError(f"The {key} is chosen by --{key}, not by a setting.")
    return explicit


def _source(choices: Choices) -> str:
    return f"{choices.file} and --set" if choices.file else "--set"


def prepare_teacher(
    settings: RunSettings,
    data: DataSet,
    folders: Folders,
    device: torch.device,
    weights: Path | None = None,
    *,
    recipe_set: bool = False,
    may_train: bool = True,
) -> Teacher:
    """The teacher: a user's `weights`, one found in the folders, or one trained by its recipe.

    `recipe_set`: the user set the recipe, so one that was trained by another is refused.
    """
    module = new_network(settings, data)
    _check_outputs(trace(module, data.input_shape), data)
    if weights is not None:
        teachers.load_weights(weights, module)
        return replace(measured_teacher(module, data, device), file=weights.absolute())
    plain = to_plain(settings.data)
    name = teachers.folder_name(settings.network, settings.dataset, plain)
    folder = teachers.find(folders.teachers, name)
    if folder is not None:
        card = teachers.load(folder, module)
        _check_card(card, folder, settings, recipe_set)
    elif may_train:
        card = trained_teacher(settings, module, data, folders.new_teachers / name, device)
    else:
        looked = ", ".join(map(str, folders.teachers)) or "no folder"
        raise WeightsError(
            f"There is no teacher {name} (looked in {looked}): use --teachers, or train one: "
            f"{_how_to_train(settings)}"
        )
    return _teacher(*_as_network(module, data, device), card.accuracy, card.validation_accuracy)


def _how_to_train(settings: RunSettings) -> str:
    """The command, with what was set of the data."""
    names = ["--network", settings.network, "--dataset", settings.dataset]
    default = to_plain(DataSettings())
    for key, value in to_plain(settings.data).items():
        if value != default[key]:
            names += ["--set", f"data.{key}={json.dumps(value)}"]
    return shlex.join(["esnac", "teacher", *names])


def _as_network(
    module: nn.Module, data: DataSet, device: torch.device
) -> tuple[StudentNetwork, dict[str, Tensor]]:
    """`module` (not changed) as a network of this package on `device`; its weights on the CPU."""
    if isinstance(module, StudentNetwork):
        _check_outputs(module.graph, data)
        baked = module.state_dict() | effective_weights(module)
        own = StudentNetwork(module.graph).state_dict()
        weights = {key: baked[key].detach().cpu() for key in own}
        return StudentNetwork(module.graph, weights).to(device).eval(), weights
    graph = trace(module, data.input_shape)
    _check_outputs(graph, data)
    state = {key: _as_float(value.detach().cpu()) for key, value in module.state_dict().items()}
    weights = teacher_weights(graph, state, ignore_unused=True)
    return StudentNetwork(graph, weights).to(device).eval(), weights


def _teacher(
    network: StudentNetwork, weights: Mapping[str, Tensor], test: float, validation: float
) -> Teacher:
    """A teacher with its accuracies; an EsnacError for one that knows nothing."""
    if min(test, validation) == 0:
        raise EsnacError(
            "The teacher is right on no image of the validation or test split: "
            "is it trained, and for this data?"
        )
    return Teacher(network, network.graph, weights, test, validation)


def measured_teacher(module: nn.Module, data: DataSet, device: torch.device) -> Teacher:
    """A user's trained module as a teacher."""
    network, weights = _as_network(module, data, device)
    test, validation = (accuracy(network, part, data) for part in (data.test, data.validation))
    return _teacher(network, weights, test, validation)


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_outputs(graph: ArchGraph, data: DataSet) -> None:
    shape = graph.layers[-1].out_shape
    if shape != (data.num_classes,):
        size = " x ".join(map(str, shape))
        raise EsnacError(
            f"The network has {size} outputs, the data set {data.name} {data.num_classes} classes."
        )


def _check_card(card: teachers.Card, folder: Path, settings: RunSettings, recipe_set: bool) -> None:
    """Raises WeightsError unless the teacher found is the one that the settings describe."""
    found: dict[str, Any] = {"network": card.network, "dataset": card.dataset}
    found["data"] = content(card.data)
    wanted: dict[str, Any] = {
        "network": settings.network,
        "dataset": settings.dataset,
        "data": content(to_plain(settings.data)),
    }
    if recipe_set:
        found["teacher"], wanted["teacher"] = card.recipe, to_plain(settings.teacher)
    different = compare(found, wanted)
    if different:
        raise WeightsError(
            f"The teacher in {folder} is another one ({describe(different)}). Replace it by "
            "`esnac teacher --force` with these settings, or name another place: --teachers."
        )


def new_network(settings: RunSettings, data: DataSet) -> nn.Module:
    """The network with fresh weights that follow from the seed."""
    if ":" in settings.network:  # a user's own network may import torchvision
        torchvision()
    with seeded(derive_seed(settings.seed, "initial weights"), torch.device("cpu")):
        return networks.build(settings.network, data.num_classes, data.input_shape[0])


def trained_teacher(
    settings: RunSettings,
    module: nn.Module,
    data: DataSet,
    folder: Path,
    device: torch.device,
    *,
    again: bool = False,
) -> teachers.Card:
    """Trains `module` into `folder`, or fills it with what another process just trained there.

    With `again` a teacher that is there is replaced. Raises WeightsError when the other process
    trained another teacher, by another recipe for example.
    """
    with teachers.held(folder) as waited:
        if waited and not again and teachers.find([folder.parent], folder.name):
            card = teachers.load(folder, module)
            _check_card(card, folder, settings, recipe_set=True)
            return card
        plain = content(to_plain(settings.data))
        job = TeacherJob(settings.network, settings.dataset, settings.teacher, plain, settings.seed)
        with EpochProgress("teacher", settings.teacher.epochs) as progress:
            return train_teacher(module, data, job, folder, device, progress.update)
