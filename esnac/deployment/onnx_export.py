"""A network as an ONNX file: float32, any batch size, one file, checked against torch.

Batch norms are folded into convolutions or become convolutions (`depthwise`).
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from esnac import files
from esnac.deployment import onnx_session
from esnac.deployment.depthwise import replace_unfoldable
from esnac.deployment.extras import require_extra
from esnac.deployment.onnx_operators import KnownOperations
from esnac.errors import EsnacError
from esnac.runtime import torch_generator

#: Largest difference of logits to torch, in units of the largest logit but at least 1.
TOLERANCE = 1e-4

#: Random images that the file is checked with, where none are given.
_EXAMPLES = 8


def export(
    network: nn.Module,
    path: Path,
    input_shape: tuple[int, ...],
    *,
    examples: Tensor | None = None,
    tolerance: float | None = TOLERANCE,
) -> float:
    """Writes `path` and gives the largest difference of its logits to those of `network`.

    `input_shape` is (C, H, W); input "input", output "logits", both with a free batch. What the
    network computes in eval mode is written; it is left as it was. `examples` (N x C x H x W,
    normalised) serve the comparison, else normal noise. Raises EsnacError for a layer that ONNX has
    no form for, and unless the difference is within `tolerance` (None: whatever it is).
    """
    require_extra("onnx")
    import onnx

    if examples is None:
        generator = torch_generator(0, "ONNX examples")
        examples = torch.randn(_EXAMPLES, *input_shape, generator=generator)
    examples = examples.detach().cpu().float()
    plain = exportable(network)
    with torch.no_grad():
        expected = plain(examples).numpy()
    replace_unfoldable(plain, input_shape)
    model = without_notes(_to_onnx(plain, examples))
    files.write(path, lambda place: onnx.save(model, place), parents=True)
    found = onnx_session.run(onnx_session.open_session(path), examples.numpy())
    difference = float(np.abs(found - expected).max())
    limit = None if tolerance is None else tolerance * max(1.0, float(np.abs(expected).max()))
    if limit is not None and not difference <= limit:
        path.unlink()
        raise EsnacError(
            f"The exported network differs from torch by {difference:.2g} in a logit, more than "
            f"{limit:.2g}. A layer computes something else in ONNX; export its parts to find it."
        )
    return difference


def exportable(network: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode and float32, with parametrizations baked into the weights."""
    plain = copy.deepcopy(network).cpu().float().eval()
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            _bake(module)
    return plain


@torch.no_grad()
def _bake(module: nn.Module) -> None:
    """Not by `remove_parametrizations`, which would change the class that copies share."""
    names = list(module.parametrizations)  # type: ignore[arg-type]
    values = {name: getattr(module, name).detach().clone() for name in names}
    kind = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = kind
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def without_notes(model: Any) -> Any:
    """The ONNX model without names of nodes and notes of the exporter; they are up to a tenth."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    for node in graph.node:
        node.name = ""
    del graph.value_info[:]
    return model


def _to_onnx(network: nn.Module, examples: Tensor) -> Any:
    try:
        return _convert(network, examples)
    except torch.onnx.OnnxExporterError as error:
        why = _cause(error)
    name, layer = _culprit(network, examples)
    where = f"Layer {name!r} ({type(layer).__name__})" if name else type(layer).__name__
    raise EsnacError(
        f"{where} has no form in ONNX: {why}. Put another layer in its place, or export to another "
        "format."
    )


def _convert(network: nn.Module, examples: Tensor) -> Any:
    """The ONNX model of the network, an `onnx.ModelProto`."""
    # Two images: torch takes a batch of one for a constant.
    inputs = examples[:1].repeat(2, *[1] * (examples.dim() - 1))
    with _quiet(), KnownOperations():
        program = torch.onnx.export(
            network,
            (inputs,),
            dynamo=True,
            input_names=[onnx_session.INPUT],
            output_names=[onnx_session.OUTPUT],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _culprit(network: nn.Module, examples: Tensor) -> tuple[str, nn.Module]:
    """The first layer that cannot be exported by itself, or ("", the network) if all can."""
    inputs: dict[str, Tensor] = {}
    leaves = {name: part for name, part in network.named_modules() if name and _is_leaf(part)}

    def keep(name: str) -> Any:
        return lambda _module, given: inputs.setdefault(name, given[0].detach())

    handles = [part.register_forward_pre_hook(keep(name)) for name, part in leaves.items()]
    try:
        with torch.no_grad():
            network(examples[:2])
    finally:
        for handle in handles:
            handle.remove()
    tried = set()
    for name in inputs:
        kind = type(leaves[name])
        # Layers of one kind share their fate; torch's own convolutions and the like all pass.
        if kind in tried:
            continue
        tried.add(kind)
        try:
            _convert(leaves[name], inputs[name])
        except torch.onnx.OnnxExporterError:
            return name, leaves[name]
    return "", network


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _cause(error: BaseException) -> str:
    """The first line of what lies at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what the exporter prints, logs and warns of."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
