"""The engines: what proposes the next students."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from esnac.errors import SettingsError, UnknownNameError
from esnac.graphs.space import Space
from esnac.search.earlier import Earlier
from esnac.search.objectives import Objective
from esnac.search.proposer import Proposer
from esnac.search.sampler import Source
from esnac.search.settings import Engine, SearchSettings
from esnac.search_spaces import SpaceSettings
from esnac.surrogate.settings import EnsembleSettings, SurrogateSettings


def make_engine(
    space: Space,
    objective: Objective,
    settings: SearchSettings,
    space_settings: SpaceSettings,
    surrogate: SurrogateSettings,
    model: EnsembleSettings,
    earlier: Earlier | None,
    seed: int,
) -> Proposer:
    """The engine that `settings.engine` names; heavy libraries are imported with it.

    Only "esnac" starts warm, from what an `earlier` search found out.
    """
    if earlier is not None and settings.engine != "esnac":
        raise SettingsError(f"The engine {settings.engine} cannot start warm; esnac can.")
    make = _ENGINES.get(settings.engine)
    if make is None:
        raise UnknownNameError("engine", settings.engine, _ENGINES)
    source = Source(space, space_settings, objective.allowed if objective.limited else None)
    return make(_Parts(source, objective, settings, surrogate, model, earlier, seed))


@dataclass(frozen=True)
class _Parts:
    """What engines are made of."""

    source: Source
    objective: Objective
    settings: SearchSettings
    surrogate: SurrogateSettings
    model: EnsembleSettings
    earlier: Earlier | None
    seed: int


def _esnac(parts: _Parts) -> Proposer:
    from esnac.graphs.encode_slim import SLIM_FEATURES, SlimEncoder
    from esnac.search.engines.grey_box import GreyBoxProposer
    from esnac.surrogate.ensemble import Ensemble

    encode = SlimEncoder(parts.source.space).encode
    known = None
    if parts.earlier is not None:
        rows = SlimEncoder(parts.earlier.space()).encode(parts.earlier.candidates())
        known = rows, parts.earlier.log_ratio()
    ensemble = Ensemble(SLIM_FEATURES, parts.model, known)
    return GreyBoxProposer(
        parts.source, parts.objective, parts.settings, ensemble, encode, parts.seed
    )


def _paper(parts: _Parts) -> Proposer:
    from esnac.search.engines.paper import PaperProposer

    if parts.objective.settings.kind != "f":
        raise SettingsError("The engine paper models f alone; take another for other objectives.")
    return PaperProposer(parts.source, parts.settings, parts.surrogate, parts.seed)


def _features(parts: _Parts) -> Proposer:
    from esnac.graphs.stage_features import StageFeatures
    from esnac.search.engines.grey_box import GreyBoxProposer
    from esnac.surrogate.feature_model import FeatureModel

    encode = StageFeatures(parts.source.space).encode
    return GreyBoxProposer(
        parts.source, parts.objective, parts.settings, FeatureModel(), encode, parts.seed
    )


def _evolution(parts: _Parts) -> Proposer:
    from esnac.search.engines.evolution import EvolutionProposer

    return EvolutionProposer(parts.source, parts.settings, parts.seed)


def _tpe(parts: _Parts) -> Proposer:
    from esnac.search.engines.tpe import TpeProposer

    return TpeProposer(parts.source, parts.seed)


def _random(parts: _Parts) -> Proposer:
    from esnac.search.engines.random import RandomProposer

    return RandomProposer(parts.source, parts.seed)


_ENGINES: dict[Engine, Callable[[_Parts], Proposer]] = {
    "esnac": _esnac,
    "paper": _paper,
    "features": _features,
    "evolution": _evolution,
    "tpe": _tpe,
    "random": _random,
}
