"""esnac: neural architecture compression by search, distillation, pruning and quantisation.

The public names are imported on first use, so that `import esnac` and `esnac --help` are quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from esnac.api import SearchResult as SearchResult
    from esnac.api import compress as compress
    from esnac.api import run_search as run_search
    from esnac.errors import EsnacError as EsnacError
    from esnac.graphs.arch_graph import ArchGraph as ArchGraph
    from esnac.graphs.trace import trace as trace
    from esnac.search.searcher import Searcher as Searcher
    from esnac.stages.measure import load_student as load_student

_PUBLIC = {
    "ArchGraph": ("esnac.graphs.arch_graph", "ArchGraph"),
    "EsnacError": ("esnac.errors", "EsnacError"),
    "SearchResult": ("esnac.api", "SearchResult"),
    "Searcher": ("esnac.search.searcher", "Searcher"),
    "compress": ("esnac.api", "compress"),
    "load_student": ("esnac.stages.measure", "load_student"),
    "run_search": ("esnac.api", "run_search"),
    "trace": ("esnac.graphs.trace", "trace"),
}

__all__ = [
    "ArchGraph",
    "EsnacError",
    "SearchResult",
    "Searcher",
    "compress",
    "load_student",
    "run_search",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'esnac' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value
