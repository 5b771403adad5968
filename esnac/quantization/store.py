"""A student on disk, quantised or not.

A quantised one has, beside `architecture.json`, a `quantization.json` that says which tensor has
which quantiser, and its `weights.safetensors` holds masters, steps, ranges and masks under torch's
names for them; read as a plain student it is refused. The file to deploy, `student.packed`, is
written from it by `packed`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from esnac import files
from esnac.errors import EsnacError, WeightsError
from esnac.graphs import student
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.masks import attach_masks, effective_weights
from esnac.graphs.network import StudentNetwork, check_weights
from esnac.quantization.attach import attach, is_quantized
from esnac.quantization.description import describe, read

#: torch's name for what lies under the parametrizations of <layer>.<tensor>.
_MASTER = re.compile(r"^(\w+)\.parametrizations\.(\w+)\.original$")

QUANTIZATION = "quantization.json"
PACKED = "student.packed"


def save(folder: str | Path, network: StudentNetwork) -> None:
    """Writes the student; one in the folder is replaced, with its packed file.

    Without quantisers it is a plain student, masks as zeros. Raises EsnacError when the folder
    cannot be written.
    """
    folder = Path(folder)
    try:
        for name in (QUANTIZATION, PACKED):  # of the student that is replaced
            (folder / name).unlink(missing_ok=True)
        if is_quantized(network):
            student.save(folder, network)
            text = json.dumps(describe(network), indent=1)
            files.replace(folder / QUANTIZATION, lambda path: path.write_text(text, "utf-8"))
        else:
            student.save(folder, plain(network))
    except OSError as error:
        raise EsnacError(f"Cannot write a student to {folder} ({error.strerror}).") from None


def load(folder: str | Path) -> StudentNetwork:
    """The student in eval mode on the CPU, with its quantisers and masks if it has any.

    Raises EsnacError when a file is missing or damaged, WeightsError when the weights are not those
    of the architecture and the quantisers.
    """
    path = Path(folder) / QUANTIZATION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return student.load(folder)
    except (OSError, ValueError) as error:
        raise EsnacError(f"{path} cannot be read ({error}).") from None
    graph, tensors, preparation = student.read(folder)
    plan, masks = read(description, str(path))
    try:
        network = StudentNetwork(graph, _masters(graph, tensors))
        attach(network, plan)
        weights = effective_weights(network)
        attach_masks(network, {name: torch.ones_like(weights[name]) for name in masks})
        expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        check_weights(expected, tensors)
    except (EsnacError, KeyError) as error:
        raise WeightsError(
            f"The files of the quantised student in {folder} do not fit together: {error} "
            "Copy the whole folder again or quantise again."
        ) from None
    network.load_state_dict(tensors)
    network.preparation = preparation
    return network.eval()


def _masters(graph: ArchGraph, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the plain network among those of the quantised one."""
    plain = {_MASTER.sub(r"\1.\2", key): tensor for key, tensor in tensors.items()}
    names = {layer.name for layer in graph.layers}
    return {k: v for k, v in plain.items() if k.count(".") == 1 and k.partition(".")[0] in names}


def plain(network: StudentNetwork) -> StudentNetwork:
    """A copy without masks and quantisers of weights, their values baked in, in eval mode.

    Quantisers of activations are left out.
    """
    tensors = effective_weights(network) | dict(network.named_buffers())
    copy = StudentNetwork(network.graph, _masters(network.graph, tensors)).eval()
    copy.preparation = network.preparation
    return copy
