"""The engines: what proposes the next students."""

from __future__ import annotations

from typing import get_args

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
    source = Source(space, space_settings, objective.allowed if objective.limited else None)
    if settings.engine == "paper" and objective.settings.kind != "f":
        raise SettingsError("The engine paper models f alone; take another for other objectives.")
    if settings.engine == "paper":
        from esnac.search.engines.paper import PaperProposer

        return PaperProposer(source, settings, surrogate, seed)
    if settings.engine == "esnac":
        from esnac.graphs.encode_slim import SLIM_FEATURES, SlimEncoder
        from esnac.search.engines.grey_box import GreyBoxProposer
        from esnac.surrogate.ensemble import Ensemble

        encode = SlimEncoder(space).encode
        if earlier is None:
            ensemble = Ensemble(SLIM_FEATURES, model)
        else:
            rows = SlimEncoder(earlier.space()).encode(earlier.candidates())
            ensemble = Ensemble(SLIM_FEATURES, model, (rows, earlier.log_ratio()))
        return GreyBoxProposer(source, objective, settings, ensemble, encode, seed)
    if settings.engine == "features":
        from esnac.graphs.stage_features import StageFeatures
        from esnac.search.engines.grey_box import GreyBoxProposer
        from esnac.surrogate.feature_model import FeatureModel

        features = StageFeatures(space).encode
        return GreyBoxProposer(source, objective, settings, FeatureModel(), features, seed)
    if settings.engine == "random":
        from esnac.search.engines.random import RandomProposer

        return RandomProposer(source, seed)
    if settings.engine == "tpe":
        from esnac.search.engines.tpe import TpeProposer

        return TpeProposer(source, seed)
    if settings.engine == "evolution":
        from esnac.search.engines.evolution import EvolutionProposer

        return EvolutionProposer(source, settings, seed)
    raise UnknownNameError("engine", settings.engine, get_args(Engine))
