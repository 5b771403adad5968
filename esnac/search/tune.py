"""The search on Ray Tune: a search algorithm for any `tune.Tuner`, and esnac's own way to use it.

Needs the extra `ray`.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher as TuneSearcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from esnac.cluster import Cluster, Mailbox, environment
from esnac.errors import EsnacError
from esnac.graphs import student as students
from esnac.runtime import set_up_worker
from esnac.search.bundle import Bundle
from esnac.search.evaluation import Evaluation
from esnac.search.feed import Feed, StreamingFeed, restore
from esnac.search.searcher import Searcher
from esnac.search.trial import Outcome, Trial


class EmbeddingSearch(TuneSearcher):
    """Proposes students to any trainable:

        searcher = esnac.Searcher(module, input_size, teacher_accuracy=0.93)
        tuner = tune.Tuner(train, tune_config=tune.TuneConfig(
            search_alg=EmbeddingSearch(searcher, workers=4), metric="accuracy", mode="max",
            num_samples=160))

    `train` gets config["architecture"] (JSON of an `ArchGraph`, for `StudentNetwork`) and
    config["trial"], and reports the validation accuracy, a fraction, under the name `metric`: Tune
    does not hand on that of the `TuneConfig`, so another name than "accuracy" is given here, too.
    The search ends after the searcher's own number of trials or after `num_samples`, whichever is
    less. Trials under evaluation count as pending; new ones are proposed while others are
    evaluated.
    """

    def __init__(
        self, searcher: Searcher, *, workers: int = 1, metric: str = "accuracy", mode: str = "max"
    ) -> None:
        if mode != "max":
            raise EsnacError(f"An accuracy is to be maximised; got mode {mode!r}.")
        super().__init__(metric, mode)
        self._searcher = searcher
        self._rows: list[dict[str, Any]] = []
        self._workers = workers
        self._feed: Feed | None = None
        self._trials: dict[str, Trial] = {}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        self._metric = metric or self._metric
        return not config and mode in (None, "max")  # the space is the searcher's own

    def suggest(self, trial_id: str) -> Any:
        trial = self._open().next()
        if trial is None:
            return TuneSearcher.FINISHED if self._open().finished else None
        self._trials[trial_id] = trial
        return self._config(trial)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        feed = self._open()  # which knows what runs
        trial = self._trials.pop(trial_id, None)
        if trial is not None:
            feed.take(trial, self._outcome(trial_id, trial, None if error else result))
        if not self._trials:  # it may be the last: what came in while proposing is told as well
            feed.settle()

    def save(self, checkpoint_path: str) -> None:
        """As JSON: no pickle."""
        self._open().settle()
        running = {trial_id: trial.number for trial_id, trial in self._trials.items()}
        content = {"rows": self._rows, "running": running}
        Path(checkpoint_path).write_text(json.dumps(content), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        content = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        restore(self._searcher, content["rows"])
        self._rows = content["rows"]
        numbers: dict[str, int] = content["running"]
        self._trials = {key: self._searcher.trials[n] for key, n in numbers.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a copy of what a tuner was given; what works in the background stays here."""
        return {**self.__dict__, "_feed": None}

    def _open(self) -> Feed:
        if self._feed is None:
            feed = StreamingFeed(self._searcher, self._rows.extend, workers=self._workers)
            feed.claim(self._trials.values())
            self._feed = feed
        return self._feed

    def _config(self, trial: Trial) -> dict[str, Any]:
        architecture = self._searcher.student(trial).to_json()
        return {"trial": trial.to_plain(), "architecture": architecture}

    def _outcome(self, trial_id: str, trial: Trial, result: dict[str, Any] | None) -> Outcome:
        accuracy = float((result or {}).get(str(self._metric), math.nan))
        if result is None or math.isnan(accuracy):
            return Outcome(reason=f"The trial ended without a value of {self._metric!r}.")
        if not 0 <= accuracy <= 1:
            reason = f"{self._metric!r} is to be an accuracy, a fraction in [0, 1]; got {accuracy}."
            return Outcome(reason=reason)
        return Outcome(accuracy=accuracy, seconds=float(result.get("time_total_s", 0.0)))


class _RunSearch(EmbeddingSearch):
    """The same for a run of esnac: its feed keeps the journal, students come by the mailbox."""

    def __init__(
        self, searcher: Searcher, feed: Feed, fetch: Callable[[int], None], started: _Started
    ) -> None:
        super().__init__(searcher)
        self._feed = feed
        self._fetch = fetch
        self._started = started
        self._curves: dict[str, list[float]] = {}
        #: What went wrong in the driver; Tune would go on.
        self.error: BaseException | None = None

    def suggest(self, trial_id: str) -> Any:
        if self.error is not None:
            return TuneSearcher.FINISHED
        try:
            return super().suggest(trial_id)
        except Exception as error:
            self.error = error
            return TuneSearcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        try:
            super().on_trial_complete(trial_id, result, error)
        except Exception as fault:
            self.error = self.error or fault

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the truth."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, likewise."""
        return {}

    def _config(self, trial: Trial) -> dict[str, Any]:
        return {"trial": trial.to_plain(), "weight": self._searcher.weight(trial)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Notes the accuracy after an epoch; a trial that is tried again starts from its first."""
        if not result["whole"]:
            epoch = int(result["training_iteration"])
            self._curves.setdefault(trial_id, [])[epoch - 1 :] = [result["accuracy"]]

    def _outcome(self, trial_id: str, trial: Trial, result: dict[str, Any] | None) -> Outcome:
        if result is None:
            self._curves.pop(trial_id, None)
            return Outcome(reason=self._started.reason(trial_id))
        if result["reason"] is not None:
            self._curves.pop(trial_id, None)
            return Outcome(reason=result["reason"], seconds=result["seconds"])
        self.on_trial_result(trial_id, result)  # Tune leaves out the last one
        if result["saved"]:
            self._fetch(trial.number)
        return Outcome(
            accuracy=result["kept"] if result["saved"] else result["accuracy"],
            seconds=result["seconds"],
            stopped_after=None if result["saved"] else int(result["training_iteration"]),
            curve=tuple(self._curves.pop(trial_id, [])),
        )


class _Started(tune.Callback):
    """Knows Tune's trials by their id, for the reason of a failure."""

    def __init__(self) -> None:
        self._trials: dict[str, TuneTrial] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_trials": {}}

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._trials[trial.trial_id] = trial

    def reason(self, trial_id: str) -> str:
        """One line on why a trial failed for good."""
        trial = self._trials.get(trial_id)
        file = None if trial is None else trial.error_file
        try:
            text = Path(file).read_text(encoding="utf-8") if file else ""
        except OSError:
            text = ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        died = [line for line in lines if "died" in line or "Error" in line]
        return (died or lines or ["Its worker failed."])[-1][:300]


class StudentTrial(tune.Trainable):
    """Evaluates one trial after the other; data and teacher's targets are loaded once."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], bundle: Bundle, mailbox: Any, device: str, stepwise: bool
    ) -> None:
        if device == "cpu":
            set_up_worker()
        self._folder = tempfile.TemporaryDirectory(prefix="esnac-")
        self._mailbox = mailbox
        self._stepwise = stepwise
        self._evaluator = bundle.evaluator(torch.device(device), self._student)
        self._epochs = self._evaluator.training.epochs
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        trial = Trial.from_plain(new_config["trial"])
        self._number, self._weight = trial.number, new_config["weight"]
        self._evaluation = Evaluation(self._evaluator, trial)
        return True

    def step(self) -> dict[str, Any]:
        """The whole evaluation, or one epoch of it where it may be stopped early."""
        evaluation = self._evaluation
        outcome = evaluation.advance()
        while outcome is None and not self._stepwise:
            outcome = evaluation.advance()
        share = max(evaluation.epochs, 1) / self._epochs
        reason = None if outcome is None else outcome.reason
        saved = outcome is not None and reason is None
        accuracy = 0.0 if reason else evaluation.accuracy
        if saved:
            folder = self._student(self._number)
            files = students.read_files(folder)
            ray.get(self._mailbox.put.remote(self._number, files))
        return {
            "accuracy": accuracy,
            "kept": None if outcome is None else outcome.accuracy,
            "value": comparable(self._weight, accuracy, share),
            "seconds": evaluation.seconds,
            "reason": reason,
            "saved": saved,
            "whole": not self._stepwise,
            "done": outcome is not None,
        }

    def cleanup(self) -> None:
        self._folder.cleanup()

    def _student(self, number: int) -> Path:
        return Path(self._folder.name) / "student"


def tune_search(
    searcher: Searcher,
    feed: Feed,
    bundle: Bundle,
    cluster: Cluster,
    folder: Callable[[int], Path],
    *,
    scheduler: Any = None,
    retries: int = 2,
) -> None:
    """Runs a search to its end on the workers of a cluster; students go to `folder(number)`.

    A trial whose worker is lost is tried again up to `retries` times, then FAILED. `scheduler` is
    one of Ray Tune's that may stop trials early.
    """
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    beside: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox)
    mailbox = beside.remote()

    def fetch(number: int) -> None:
        target = folder(number)
        students.write_files(target, ray.get(mailbox.take.remote(number)))

    started = _Started()
    algorithm = _RunSearch(searcher, feed, fetch, started)
    trainable = tune.with_parameters(
        StudentTrial,
        bundle=bundle,
        mailbox=mailbox,
        device=cluster.device,
        stepwise=scheduler is not None,
    )
    pending = environment({"TUNE_MAX_PENDING_TRIALS_PG": str(cluster.workers)})
    with pending, tempfile.TemporaryDirectory(prefix="esnac-tune-") as storage:
        tuner = tune.Tuner(
            tune.with_resources(trainable, cluster.resources),
            tune_config=tune.TuneConfig(
                search_alg=algorithm,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=cluster.workers,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=retries),
                callbacks=[started],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    if algorithm.error is not None:
        raise algorithm.error


def comparable(weight: float, accuracy: float, share: float) -> float:
    """What students are compared by after a `share` of their epochs (0 to 1); in the end f.

    Small ones learn more slowly: of a ratio of accuracies about the share is left in the end, as a
    power.
    """
    return weight * accuracy**share


def asha(epochs: int) -> Any:
    """Asynchronous successive halving (Li et al. 2020).

    Of those that come to a tenth of the epochs only the better half goes on, and again each time
    that the epochs have doubled.
    """
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="training_iteration",
        metric="value",
        mode="max",
        max_t=epochs,
        grace_period=max(1, epochs // 10),
        reduction_factor=2,
    )
