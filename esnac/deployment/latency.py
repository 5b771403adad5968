"""The predicted inference latency of students that were never built, from times of single layers.

    latency = sum over layers of t(its shape) + sum over edges beyond a layer's first of t(addition)

A removed layer costs nothing. Left out is what layers do to each other: operations that a compiler
fuses, whether the input is still in the processor's cache (of a layer measured alone it is, if it
fits), the copy that some layers make of a slice, and on a GPU the launch of one kernel while
another runs. So the sum ranks students on a device better than it gives their seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from esnac.deployment import stopwatch
from esnac.deployment.shapes import Channels, Form, LayerShape, Shapes
from esnac.errors import EsnacError, SettingsError
from esnac.files import reason, write_json
from esnac.graphs import ops
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.space import Candidates, Space

FORMAT = 1


@dataclass(frozen=True)
class Conditions:
    """Under which a time was measured; it is used under equal ones only."""

    device: str
    torch: str
    threads: int
    batch: int


#: Seconds by the key of the layer shape.
Times = dict[str, float]


class LayerTimes:
    """Seconds per layer shape (see `shapes`), measured when first needed and then remembered.

    All times are of one pass of `batch` images over `device`, with the threads that torch has when
    a method is called. `cache` is a JSON file that outlives the process; several devices, versions,
    threads and batches share it. `measure` takes the place of the stopwatch.
    """

    def __init__(
        self,
        device: torch.device,
        batch: int = 1,
        cache: Path | None = None,
        measure: Callable[[LayerShape], float] | None = None,
    ) -> None:
        """Raises SettingsError for an empty batch, EsnacError for a file that is no such cache."""
        if batch < 1:
            raise SettingsError(f"Latency is that of a batch of 1 or more images; got {batch}.")
        self._device = stopwatch.device_name(device)
        self._batch = batch
        self._measure = measure or partial(stopwatch.measure, device=device, batch=batch)
        self._cache = cache
        self._times = {} if cache is None else _read(cache)
        self._seen: dict[tuple[Conditions, Form], dict[Channels, float]] = {}

    def candidates(self, space: Space, candidates: Candidates) -> np.ndarray:
        """Seconds (N, float64), for each candidate those of its `graph`, which is not made.

        New shapes are measured first, up to 20 ms each on the CPU. Raises EsnacError when the cache
        cannot be written.
        """
        reads, makes = space.widths(candidates.kept)
        layers = len(space.graph)
        row, skip = np.nonzero(candidates.skips)
        places = row * layers + space.skips[skip, 1]
        added = np.bincount(places, minlength=len(candidates) * layers).reshape(-1, layers)
        return self._latency(space.graph, reads, makes, candidates.removed, added)

    def graph(self, graph: ArchGraph) -> float:
        """Seconds; measures and raises like `candidates`."""
        reads = np.array([[layer.in_shape[0] for layer in graph.layers]])
        makes = np.array([[layer.out_shape[0] for layer in graph.layers]])
        none = np.zeros(reads.shape, dtype=np.int64)
        return float(self._latency(graph, reads, makes, none > 0, none)[0])

    def _latency(
        self,
        graph: ArchGraph,
        reads: np.ndarray,
        makes: np.ndarray,
        removed: np.ndarray,
        added: np.ndarray,
    ) -> np.ndarray:
        """Seconds (N) of students by channels read and made, removals, added edges (N x L each)."""
        conditions = self._conditions()
        times = self._times.setdefault(conditions, {})
        known = len(times)
        shapes = Shapes(graph, reads, makes)
        seconds = np.zeros(len(reads))
        try:
            for number, layer in enumerate(graph.layers):
                extra = added[:, number]
                if ops.operation(layer.kind).join == "sum":
                    extra = extra + len(layer.inputs) - 1
                # A removed layer, too, passes on the sum of what it reads.
                rows = np.flatnonzero(extra)
                if len(rows):
                    form, distinct, which = shapes.of_sum(number, rows)
                    seconds[rows] += extra[rows] * self._lookup(conditions, form, distinct)[which]
                rows = np.flatnonzero(~removed[:, number])
                if len(rows) and layer.kind != "identity":
                    form, distinct, which = shapes.of_layer(number, rows)
                    seconds[rows] += self._lookup(conditions, form, distinct)[which]
        finally:  # what was measured before an interrupt is kept as well
            if self._cache is not None and len(times) > known:
                self._save(self._cache)
        return seconds

    def _lookup(self, conditions: Conditions, form: Form, distinct: list[Channels]) -> np.ndarray:
        """Seconds of a form with each of the `distinct` channels; the new ones are measured."""
        times = self._times[conditions]
        # Thousands of shapes are asked for again and again, and most of the time would go into
        # writing their keys.
        seen = self._seen.setdefault((conditions, form), {})
        for channels in distinct:
            if channels not in seen:
                shape = form.shape(*channels)
                key = shape.key()
                if key not in times:
                    times[key] = float(self._measure(shape))
                seen[channels] = times[key]
        return np.array([seen[channels] for channels in distinct])

    def _conditions(self) -> Conditions:
        return Conditions(
            self._device, str(torch.__version__), torch.get_num_threads(), self._batch
        )

    def _save(self, cache: Path) -> None:
        merged = _read(cache)  # with what other processes wrote meanwhile
        for conditions, times in self._times.items():
            merged.setdefault(conditions, {}).update(times)
        tables = [asdict(conditions) | {"seconds": times} for conditions, times in merged.items()]
        write_json(cache, {"format": FORMAT, "measured": tables})


def _read(cache: Path) -> dict[Conditions, Times]:
    """Nothing when there is no file. Raises EsnacError for a file of another kind or format."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise EsnacError(f"Cannot read {cache}: {reason(error)}.") from None
    except ValueError:
        content = None
    try:
        if content["format"] != FORMAT:
            raise ValueError
        return {
            Conditions(**{name: table[name] for name in Conditions.__dataclass_fields__}): {
                str(key): float(seconds) for key, seconds in table["seconds"].items()
            }
            for table in content["measured"]
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise EsnacError(
            f"{cache} is no file of layer times of this version. Name another file, or delete it."
        ) from None
