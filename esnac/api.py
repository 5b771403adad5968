"""A whole run: settings, data and teacher, search, full training. The roof over all rooms.

The command line and `esnac.run_search` are thin callers of what is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esnac import data as data_room
from esnac import networks, search_spaces, teachers
from esnac.data import DataSet
from esnac.data.vision import torchvision
from esnac.distillation.targets import TeacherTargets
from esnac.errors import EsnacError, RunError, SettingsError, TrainingError, WeightsError
from esnac.executors import SerialExecutor
from esnac.graphs import student as students
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.cost import cost
from esnac.graphs.network import StudentNetwork, teacher_weights
from esnac.graphs.trace import trace
from esnac.objective import compression, reward
from esnac.report.epochs import EpochProgress
from esnac.report.progress import Progress
from esnac.report.summary import RunSummary, summarise
from esnac.report.tensorboard import ScalarLog
from esnac.runs import Run, compare, run_name
from esnac.runtime import derive_seed, resolve_device, seeded
from esnac.search.evaluation import Evaluator
from esnac.search.loop import restore, search_loop
from esnac.search.presets import preset
from esnac.search.searcher import Searcher
from esnac.search.settings import RunSettings
from esnac.settings import build, load_toml, merge, parse_assignments, to_plain
from esnac.stages._base import StageContext
from esnac.stages.full_training import FullTraining, clean
from esnac.stages.teacher import TeacherJob, train_teacher, versions
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


@dataclass(frozen=True)
class SearchResult:
    """What a run left behind: its folder, its figures, and the best student to use at once."""

    path: Path
    summary: RunSummary

    def best_student(self) -> nn.Module:
        """The finalist that is best on the validation images, loaded."""
        best = self.summary.best_finalist()
        if best is None or best.path is None:
            raise EsnacError(f"{self.path} has no finalist yet.")
        return students.load(self.path / best.path)


def resolve_settings(choices: Choices, folders: Folders) -> RunSettings:
    """Defaults < preset < search space and recipe < file < assignments < flags, checked.

    The preset follows the size of the training split; names and keys are checked before the data.
    """
    family = networks.family(choices.network)
    explicit = _explicit(choices)
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
    checked = _built(preset(named["preset"], 50_000), layers, named)
    images = data_room.count_training_images(checked.dataset, folders.data, checked.data)
    return _built(preset(named["preset"], images), layers, named)


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


def _explicit(choices: Choices) -> dict[str, Any]:
    """What the user set by file and assignments."""
    file = load_toml(choices.file) if choices.file else {}
    explicit = merge(file, parse_assignments(list(choices.assignments)))
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
    module = _new_network(settings, data)
    _check_outputs(trace(module, data.input_shape), data)
    if weights is not None:
        teachers.load_weights(weights, module)
        return replace(_measured(module, data, device), file=weights.absolute())
    plain = to_plain(settings.data)
    name = teachers.folder_name(settings.network, settings.dataset, plain)
    folder = teachers.find(folders.teachers, name)
    if folder is not None:
        card = teachers.load(folder, module)
        _check_card(card, folder, settings, recipe_set)
    elif may_train:
        card = _train_teacher(settings, module, data, folders.new_teachers / name, device)
    else:
        looked = ", ".join(map(str, folders.teachers)) or "no folder"
        raise WeightsError(
            f"The run's teacher {name} is gone (looked in {looked}): use --teachers."
        )
    return _teacher(*_as_network(module, data, device), card.accuracy, card.validation_accuracy)


def _as_network(
    module: nn.Module, data: DataSet, device: torch.device
) -> tuple[StudentNetwork, dict[str, Tensor]]:
    """`module` (not changed) as a network of this package on `device`; its weights on the CPU."""
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


def _measured(module: nn.Module, data: DataSet, device: torch.device) -> Teacher:
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
    found: dict[str, Any] = {"network": card.network, "dataset": card.dataset, "data": card.data}
    wanted: dict[str, Any] = {
        "network": settings.network,
        "dataset": settings.dataset,
        "data": to_plain(settings.data),
    }
    if recipe_set:
        found["teacher"], wanted["teacher"] = card.recipe, to_plain(settings.teacher)
    different = compare(found, wanted)
    if different:
        raise WeightsError(
            f"The teacher in {folder} is another one ({_pairs(different)}). Replace it by "
            "`esnac teacher --force` with these settings, or name another place: --teachers."
        )


def make_teacher(
    choices: Choices, folders: Folders, *, device: str = "auto", force: bool = False
) -> tuple[teachers.Card, Path]:
    """`esnac teacher`: trains a teacher by its recipe; returns its card and folder."""
    where = resolve_device(device)
    settings = resolve_settings(choices, folders)
    name = teachers.folder_name(settings.network, settings.dataset, to_plain(settings.data))
    there = teachers.find([folders.new_teachers], name)
    if there and not force:
        raise WeightsError(f"There is a teacher in {there}. Replace it with --force.")
    data = data_room.load(settings.dataset, folders.data, settings.data).to(where)
    module = _new_network(settings, data)
    folder = folders.new_teachers / name
    return _train_teacher(settings, module, data, folder, where), folder


def start(
    choices: Choices,
    folders: Folders,
    *,
    suffix: str | None = None,
    device: str = "auto",
    resume: bool = False,
    weights: Path | None = None,
) -> Path:
    """`esnac search`: runs or resumes a whole run; returns its folder."""
    where = resolve_device(device)
    with _opened(choices, folders, suffix, resume) as (run, settings):
        data = data_room.load(settings.dataset, folders.data, settings.data).to(where)
        teacher = prepare_teacher(
            settings,
            data,
            folders,
            where,
            weights or _recorded_file(run),
            recipe_set="teacher" in _explicit(choices),
            may_train=not _recorded_teacher(run),
        )
        _run(run, settings, data, teacher, where)
        return run.path


def finish(
    path: Path, folders: Folders, *, device: str = "auto", weights: Path | None = None
) -> None:
    """`esnac finish`: ends the search where it stands and trains the best students fully."""
    where = resolve_device(device)
    with Run.open(path, write=True) as run:
        settings = build(RunSettings, run.settings, where=str(path))
        if not any(event.get("state") == "DONE" for event in run.events()):
            raise RunError(
                f"{path} has no finished evaluation yet. Resume its search first: --resume."
            )
        data = data_room.load(settings.dataset, folders.data, settings.data).to(where)
        if settings.network not in networks.NETWORKS and ":" not in settings.network:
            raise RunError(
                f"{path} compresses a module of Python code. Finish it there: "
                "esnac.run_search(..., resume=True)."
            )
        teacher = prepare_teacher(
            settings, data, folders, where, weights or _recorded_file(run), may_train=False
        )
        _refuse_other_teacher(run, teacher)
        targets = _targets(teacher, settings, data, where)
        searcher = _searcher(teacher, settings)
        restore(searcher, run.events())
        _finish(run, settings, data, teacher, targets, searcher, where)


def run_search(
    model: nn.Module,
    data: DataSet,
    settings: RunSettings | Mapping[str, Any] | None = None,
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    device: str = "auto",
    resume: bool = False,
) -> SearchResult:
    """Compresses a trained module of the user's own.

    `model`: any network that `esnac.trace` understands, trained; it is not changed. `data`: a
    `DataSet` (for own tensors: `esnac.data.from_tensors`). `settings`: a `RunSettings`, or nested
    plain settings on top of the "quick" preset, such as `{"search": {"steps": 10}}`. The run is
    kept in `runs/name`; `resume` goes on with one that was interrupted.
    """
    where = resolve_device(device)
    if not isinstance(settings, RunSettings):
        own = dict(settings or {})
        for key in ("data", "teacher"):
            if key in own:
                raise SettingsError(
                    f"run_search gets its data and teacher as they are: no {key!r}."
                )
        names = {"network": type(model).__name__, "dataset": data.name, "preset": "quick"}
        own = merge(names, own)
        settings = build(RunSettings, merge(preset(own["preset"], len(data.train)), own))
    root = Path(runs).absolute()
    name = name or run_name(settings.network, settings.dataset, str(settings.seed))
    if Path(name).name != name:
        raise RunError(f"A run's name is a single folder name; got {name!r}.")
    if not resume:
        Run.check_new(root, name)
    data = data.to(where)
    teacher = _measured(model, data, where)
    opened = Run.resume(root, name) if resume else Run.create(root, name, to_plain(settings))
    with opened as run:
        _refuse_other(run, to_plain(settings))
        _run(run, settings, data, teacher, where)
        return SearchResult(run.path, summarise(run.events(), run.path.name, run.path))


def _new_network(settings: RunSettings, data: DataSet) -> nn.Module:
    """The network with fresh weights that follow from the seed."""
    if ":" in settings.network:  # a user's own network may import torchvision
        torchvision()
    with seeded(derive_seed(settings.seed, "initial weights"), torch.device("cpu")):
        return networks.build(settings.network, data.num_classes, data.input_shape[0])


def _train_teacher(
    settings: RunSettings, module: nn.Module, data: DataSet, folder: Path, device: torch.device
) -> teachers.Card:
    plain = to_plain(settings.data)
    job = TeacherJob(settings.network, settings.dataset, settings.teacher, plain, settings.seed)
    with EpochProgress("teacher", settings.teacher.epochs) as progress:
        return train_teacher(module, data, job, folder, device, progress.update)


@contextmanager
def _opened(
    choices: Choices, folders: Folders, suffix: str | None, resume: bool
) -> Iterator[tuple[Run, RunSettings]]:
    """A new run, or an old one with the settings it was started with.

    A new run that fails before its first journal line leaves no folder behind.
    """
    seed = choices.seed if choices.seed is not None else _explicit(choices).get("seed")
    suffix = suffix or str(RunSettings.seed if seed is None else seed)
    name = run_name(choices.network, choices.dataset, suffix)
    if resume:
        run = Run.resume(folders.runs, name)
        with run:
            yield run, _resumed_settings(run, choices)
        return
    Run.check_new(folders.runs, name)
    settings = resolve_settings(choices, folders)
    run = Run.create(folders.runs, name, to_plain(settings))
    with run:
        try:
            yield run, settings
        except Exception:
            if not run.events():
                run.discard()
            raise


def _resumed_settings(run: Run, choices: Choices) -> RunSettings:
    """The run's own settings; what the user asks for now must agree with them."""
    own = run.settings
    wanted: dict[str, Any] = {} if choices.seed is None else {"seed": choices.seed}
    wanted |= {} if choices.preset is None else {"preset": choices.preset}
    explicit = _explicit(choices)
    settings = build(RunSettings, merge(own, explicit, wanted), where=str(run.path))
    _refuse_other(run, to_plain(settings))
    return settings


def _refuse_other(run: Run, wanted: dict[str, Any]) -> None:
    different = compare(run.settings, wanted)
    if different:
        raise RunError(
            f"{run.path} was started with other settings ({_pairs(different)}). "
            "Resume it without them, or start another run with --suffix."
        )


def _pairs(different: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} {old} there, {new} here" for key, (old, new) in different.items())


def _searcher(teacher: Teacher, settings: RunSettings) -> Searcher:
    return Searcher(
        teacher.graph,
        teacher_accuracy=teacher.validation_accuracy,
        settings=settings.search,
        space=settings.space,
        surrogate=settings.surrogate,
        seed=settings.seed,
    )


def _run(
    run: Run, settings: RunSettings, data: DataSet, teacher: Teacher, device: torch.device
) -> None:
    """Search and full training, from wherever the journal says the run stands."""
    events = run.events()
    searcher = _searcher(teacher, settings)
    restore(searcher, events)
    _record_start(run, settings, teacher)
    _refuse_other_teacher(run, teacher)
    targets = _targets(teacher, settings, data, device)
    if not any(event["event"] == "finalists" for event in events):
        evaluator = Evaluator(
            searcher.space,
            teacher.weights,
            data,
            targets,
            settings.evaluation,
            settings.space.inherit,
            settings.seed,
            device,
            run.trial_folder,
        )
        with Progress() as bar, ScalarLog(run.path / "tensorboard", events) as scalars:

            def record(rows: Sequence[dict[str, Any]]) -> None:
                run.append_many(rows)
                for row in rows:
                    if row["state"] == "DONE":
                        scalars.trial(row)

            def progress(searcher: Searcher) -> None:
                best = searcher.best()
                total = settings.search.steps * settings.search.batch
                bar.update(
                    len(searcher.outcomes),
                    total,
                    max(searcher.steps, 1),
                    searcher.f(best[0]) if best else None,
                )

            executor = SerialExecutor(evaluator)
            try:
                search_loop(searcher, executor, record, progress)
            finally:
                executor.close()
    _finish(run, settings, data, teacher, targets, searcher, device)


def _record_start(run: Run, settings: RunSettings, teacher: Teacher) -> None:
    """The journal's first lines, unless they are there."""
    spent = cost(teacher.graph)
    rows: list[dict[str, Any]] = [
        {
            "event": "run",
            "network": settings.network,
            "dataset": settings.dataset,
            "seed": settings.seed,
            "engine": settings.search.engine,
            "versions": versions(),
        },
        {
            "event": "teacher",
            "accuracy": teacher.accuracy,
            "validation_accuracy": teacher.validation_accuracy,
            "params": spent.params,
            "macs": spent.macs,
            "file": None if teacher.file is None else str(teacher.file),
        },
    ]
    there = {event["event"] for event in run.events()}
    run.append_many([row for row in rows if row["event"] not in there])


def _recorded_teacher(run: Run) -> dict[str, Any]:
    return next((event for event in run.events() if event["event"] == "teacher"), {})


def _recorded_file(run: Run) -> Path | None:
    """The weights that the run was started with, if a user named them."""
    file = _recorded_teacher(run).get("file")
    return None if file is None else Path(file)


def _refuse_other_teacher(run: Run, teacher: Teacher) -> None:
    before = _recorded_teacher(run)
    now = cost(teacher.graph).params, teacher.validation_accuracy
    if (before["params"], before["validation_accuracy"]) != now:
        raise RunError(
            f"{run.path} was started with another teacher: {before['params']:,} parameters and "
            f"{100 * before['validation_accuracy']:.2f} % on the validation images, against "
            f"{now[0]:,} and {100 * now[1]:.2f} % now. Pass the same --teachers or --teacher."
        )


def _targets(
    teacher: Teacher, settings: RunSettings, data: DataSet, device: torch.device
) -> TeacherTargets:
    """The teacher's answers, shared by all trials and finalists."""
    seed = derive_seed(settings.seed, "augmentation")
    return TeacherTargets(
        teacher.module, data, seed, device, precision=settings.evaluation.precision
    )


def _finish(
    run: Run,
    settings: RunSettings,
    data: DataSet,
    teacher: Teacher,
    targets: TeacherTargets,
    searcher: Searcher,
    device: torch.device,
) -> None:
    """Full training of the finalists; those that the journal holds already are not repeated."""
    events = run.events()
    chosen = [event["trials"] for event in events if event["event"] == "finalists"]
    if not chosen:
        chosen = [[trial.number for trial in searcher.best(settings.finish.finalists)]]
        run.append("finalists", trials=chosen[0])
    ready = {event["index"] for event in events if event["event"] == "stage"}
    failures: list[str] = []
    stage = FullTraining(settings.finish.training, settings.finish.from_scratch)
    for index, number in enumerate(chosen[-1]):
        target = run.finalist_folder(index)
        if index in ready:
            clean(target)
            continue
        title = f"finalist {index + 1} of {len(chosen[-1])}"
        with EpochProgress(title, settings.finish.training.epochs) as progress:
            context = StageContext(data, targets, device, settings.seed, index, progress.update)
            try:
                result = stage.run(run.trial_folder(number), target, context)
            except TrainingError as error:  # the other finalists may still do well
                run.append(
                    "failure", index=index, trial=number, stage=stage.name, reason=str(error)
                )
                failures.append(f"finalist {index} (trial {number}): {error}")
                continue
        ratio = compression(result.params, searcher.teacher_cost.params)
        row = result.to_plain() | {
            "path": target.relative_to(run.path).as_posix(),
            "index": index,
            "trial": number,
            "ratio": ratio,
            "f": reward(ratio, result.accuracy, teacher.accuracy),
        }
        run.append("stage", **row)
        clean(target)
    if failures:
        raise TrainingError(f"{run.path}: full training failed for {'; '.join(failures)}")
    if not any(event["event"] == "end" for event in events):
        run.append("end")
