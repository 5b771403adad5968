"""Chains: from plain data to links, and run in this process."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from esnac.errors import EsnacError, SettingsError
from esnac.settings import require
from esnac.stages import STAGES, StageKind
from esnac.stages._base import StageContext, StageResult
from esnac.stages.pipeline import Link, Step, check_order, links, resolve, run_here, steps

TOO_LARGE = (
    "The device has too little memory: take one with more, or start another run with a smaller "
    "batch, as in --set finish.training.batch_size=32."
)


@dataclass(frozen=True)
class AddSettings:
    method: Literal["plus", "minus"]
    amount: int = 1
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.amount > 0, "amount", "positive", self.amount)


@dataclass(frozen=True)
class AddStage:
    """Students here are a number in a file; 13 brings bad luck, 14 is too much."""

    settings: AddSettings

    @property
    def name(self) -> str:
        return f"add-{self.settings.method}"

    def run(self, source: Path, target: Path, context: StageContext) -> StageResult:
        sign = 1 if self.settings.method == "plus" else -1
        number = int((source / "number").read_text()) + sign * self.settings.amount
        if number == 13:
            raise EsnacError("That would be 13.")
        if number == 14:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14 GiB.")
        target.mkdir(parents=True)
        (target / "number").write_text(str(number))
        return StageResult(self.name, target, 0.5, 0.5, number, 1, 0.1, 1, {"number": number})


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "add", StageKind(__name__, "AddSettings", "AddStage"))


def add(method: str, **more: Any) -> dict[str, Any]:
    return {"stage": "add", "method": method, **more}


def test_links_are_numbered_named_and_built() -> None:
    chain = links([add("plus", amount=3), {"stage": "train", "epochs": 2}, add("plus")])
    assert [(link.number, link.name) for link in chain] == [
        (1, "add-plus"),
        (2, "train-finetune"),
        (3, "add-plus"),
    ]
    assert chain[0].stage.settings == AddSettings("plus", 3)
    assert chain[2].folder(Path("finalists/1")) == Path("finalists/1/3-add-plus")
    assert Link(0, "train", chain[1].stage).folder(Path("finalists/1")) == Path("finalists/1")


def test_slimming_is_a_way_to_prune() -> None:
    (link,) = links([{"stage": "prune", "method": "slim", "sparsity": 0.7}])
    assert link.name == "slim-scales"
    assert resolve([{"stage": "prune", "method": "slim"}])[0]["stage"] == "slim"


def test_a_resolved_chain_says_everything_and_resolves_to_itself() -> None:
    chain = resolve([add("minus", layers=["a"])])
    assert chain == ({"stage": "add", "method": "minus", "amount": 1, "layers": ["a"]},)
    assert resolve(chain) == chain
    assert resolve([]) == ()


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ({"stage": "trian"}, ["'trian' is no stage", "Did you mean 'train'?", "Known: add, "]),
        ({"method": "plus"}, ['stage = "..." is missing']),
        ({"stage": ["add"]}, ["['add'] is no stage"]),
        ({"stage": "add"}, ["method must be given"]),
        (add("pluss"), ["plus, minus", "Did you mean 'plus'?"]),
        (add("plus", amuont=3), ["unknown key 'amuont'", "'amount'"]),
        (add("plus", amount="three"), ["amount must be a whole number"]),
        (add("plus", amount=0), ["amount must be positive; got 0"]),
        ({"stage": "train", "epochs": 0}, ["epochs must be at least 1"]),
        ({"stage": "prune", "method": "l1"}, ["whole channels go by slim(l1)"]),
    ],
)
def test_what_is_wrong_is_told_with_its_place(table: dict[str, Any], parts: list[str]) -> None:
    for read in (links, resolve):
        with pytest.raises(SettingsError) as error:
            read([add("plus"), table])
        for part in ["stages, number 2", *parts]:
            assert part in str(error.value)


@pytest.mark.parametrize(
    ("table", "way_out"),
    [
        ({"stage": "quantize", "method": "lsq"}, "take the float student"),
        ({"stage": "slim", "method": "l1"}, "slim the float student"),
        ({"stage": "train", "method": "scratch"}, "put it before what quantises"),
        ({"stage": "export", "method": "all"}, "onnx_int8 quantises a float student"),
        ({"stage": "export", "method": "mnn_int8"}, "mnn_int8 quantises a float student"),
    ],
)
def test_what_takes_float_students_alone_is_refused_after_quantize(
    table: dict[str, Any], way_out: str
) -> None:
    quantize = {"stage": "quantize", "method": "post"}
    told = r"number 3 \(.*\): the student is quantised already \(number 1, quantize-post\)"
    with pytest.raises(SettingsError, match=f"{told}.*{way_out}"):
        check_order(links([quantize, add("plus"), table]))
    check_order(links([table, add("plus")]))
    with pytest.raises(SettingsError, match=rf"number 1 .* already \(as given\).*{way_out}"):
        check_order(links([table]), "as given")


def test_a_quantised_student_is_trained_pruned_and_exported() -> None:
    after = [{"stage": "train"}, {"stage": "prune"}, {"stage": "export", "method": "onnx_int4"}]
    check_order(links([{"stage": "quantize", "method": "lsq"}, *after]))


@pytest.mark.parametrize(("entry", "quantizes"), [("quantizers", True), ("pruners", False)])
def test_a_schedule_quantises_if_it_has_quantisers(
    entry: str, quantizes: bool, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    own = {"quantizers": "weights = 4", "pruners": "end = 2\nsparsity = 0.5"}
    plan.write_text(f"epochs = 3\n[[{entry}]]\n{own[entry]}\n")
    schedule = {"stage": "schedule", "method": "file", "path": str(plan)}
    chain = links([schedule, {"stage": "slim", "method": "l1"}])
    with pytest.raises(SettingsError) if quantizes else nullcontext():
        check_order(chain)


def test_steps_that_are_done_are_left_out(tmp_path: Path) -> None:
    chain = links([add("plus"), add("minus"), add("plus")])
    first, second, third = (tmp_path / name for name in ("1-add-plus", "2-add-minus", "3-add-plus"))
    assert steps(4, chain, tmp_path, tmp_path, done={0, 1}) == [
        Step(4, chain[1], first, second),
        Step(4, chain[2], second, third),
    ]
    assert steps(4, chain, tmp_path, tmp_path, done={0, 1, 2, 3}) == []


def test_a_failure_ends_the_chain_of_its_finalist_only(tmp_path: Path) -> None:
    chain = links([add("plus", amount=2), add("plus")])
    work = []
    for index, number in enumerate((1, 10, 12, 11)):
        finalist = tmp_path / str(index)
        finalist.mkdir()
        (finalist / "number").write_text(str(number))
        work.append(steps(index, chain, finalist, finalist, done={0}))
    told: list[tuple[int, int, int | str]] = []

    def report(step: Step, outcome: StageResult | str) -> None:
        told.append(
            (step.index, step.link.number, outcome if isinstance(outcome, str) else outcome.params)
        )

    run_here(work, lambda step: nullcontext(None), report)  # type: ignore[arg-type]
    assert told == [
        *[(0, 1, 3), (0, 2, 4)],
        *[(1, 1, 12), (1, 2, "That would be 13.")],
        (2, 1, TOO_LARGE),
        (3, 1, "That would be 13."),
    ]
    assert (tmp_path / "0" / "2-add-plus" / "number").read_text() == "4"
    assert not (tmp_path / "3" / "1-add-plus").exists()
