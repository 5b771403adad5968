"""Runs without a search: the network as it was given is their one finalist, and the teacher."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from esnac.data import DataSet
from esnac.errors import RunError, SettingsError
from esnac.graphs import student as students
from esnac.graphs.network import StudentNetwork
from esnac.preparation import Folders, Teacher, measured_teacher, prepare_teacher
from esnac.quantization.store import QUANTIZATION
from esnac.runs import Run
from esnac.search.evaluation import preparation
from esnac.search.settings import RunSettings
from esnac.session._base import Session
from esnac.session.finishing import context, row
from esnac.session.records import finalists, record_start, recorded_file, searches
from esnac.stages.measure import load_student, measure
from esnac.stages.pipeline import check_order, links

#: The name of link 0, which no stage has made.
SOURCE = "source"


def check(run: Run, settings: RunSettings) -> None:
    """Raises an EsnacError for a run that searches, or has nothing to do."""
    if searches(run):
        raise RunError(f"{run.path} is a search. Go on with it: esnac search --resume.")
    require_stages(settings)


def require_stages(settings: RunSettings) -> None:
    """Raises SettingsError for a chain without a link."""
    if not settings.stages:
        raise SettingsError('Nothing to do: name stages, as in --stages "train(epochs=10)".')


def teacher(
    run: Run,
    settings: RunSettings,
    data: DataSet,
    folders: Folders,
    device: torch.device,
    weights: Path | None,
) -> Teacher:
    """The network: from the run's folder, else from `weights` (a file or a student's folder), else
    the teacher of that name."""
    if finalists(run) is not None:
        return kept_teacher(run, data, device)
    return named_teacher(settings, data, folders, device, weights or recorded_file(run))


def named_teacher(
    settings: RunSettings, data: DataSet, folders: Folders, device: torch.device, file: Path | None
) -> Teacher:
    """The network from a file of weights, a student's folder or (None) the folders of teachers."""
    if file is None or not file.is_dir():
        return prepare_teacher(settings, data, folders, device, file, may_train=False)
    return replace(measured_teacher(load_student(file), data, device), file=file.absolute())


def quantized(teacher: Teacher) -> str | None:
    """How the network was quantised, for `check_order`; None: it was not."""
    file = teacher.file
    return f"{file}" if file is not None and (file / QUANTIZATION).exists() else None


def kept_teacher(run: Run, data: DataSet, device: torch.device) -> Teacher:
    """The network that a run was given, from its own folder."""
    kept = measured_teacher(load_student(run.finalist_folder(0)), data, device)
    return replace(kept, file=recorded_file(run))


def record_given(session: Session) -> None:
    """Keeps the network, as a student of finalist 0, and the journal's lines of it; once."""
    run = session.run
    if finalists(run) is None:
        check_order(links(session.settings.stages), quantized(session.teacher))
    record_start(session, searches=False)
    there = {event["event"] for event in run.events()}
    if "finalists" in there:
        return
    start, folder = time.perf_counter(), run.finalist_folder(0)
    _keep(session, folder)
    result = measure(SOURCE, folder, context(session), start)
    place = {"index": 0, "trial": None, "stage": SOURCE, "link": 0}
    rows: list[dict[str, Any]] = [
        {"event": "stage", **row(session, result), **place},
        {"event": "finalists", "trials": [None]},  # last: it says that all of this is done
    ]
    run.append_many([line for line in rows if line["event"] not in there])


def _keep(session: Session, folder: Path) -> None:
    file = session.teacher.file
    if file is not None and file.is_dir():  # a student, with all that lies beside it
        students.write_files(folder, students.read_files(file))
        return
    network = StudentNetwork(session.teacher.graph, session.teacher.weights)
    network.preparation = preparation(session.data)
    students.save(folder, network)
