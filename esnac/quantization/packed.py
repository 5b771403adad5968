"""`student.packed`: one file with all that is needed to run a student, and no more.

Quantised weights are kept as codes, all others as they are, zeros under masks not at all. Read
back, it is a network of plain weights with the quantisers of its activations, whose outputs are
those of the student it was made from, bit for bit. Training goes on from the student's folder, not
from here: masters are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esnac import files
from esnac.errors import EsnacError
from esnac.graphs.arch_graph import ArchGraph
from esnac.graphs.network import COUNTER, Preparation, StudentNetwork, check_weights
from esnac.quantization import container, description, store
from esnac.quantization.attach import INPUT, activation_quantizers, attach, weight_codes
from esnac.quantization.codes import decode
from esnac.quantization.packing import Stored, pack, unpack

_MEAN = "running_mean"


def write(path: Path, network: StudentNetwork) -> int:
    """Writes the file and gives its size in bytes.

    Raises EsnacError for activation quantisers that have no range yet, and when the file cannot be
    written.
    """
    data = pack(_tensors(network), _about(network))
    files.write(path, lambda temporary: temporary.write_bytes(data))
    return len(data)


def read(path: Path) -> StudentNetwork:
    """The network in eval mode, on the CPU.

    Raises WeightsError when the file is missing, truncated, damaged or of another format.
    """
    tensors, about = unpack(container.read_bytes(path), str(path))
    inputs = {key: value for key, value in tensors.items() if f".{INPUT}." in key}
    weights = {key: _values(value) for key, value in tensors.items() if key not in inputs}
    for key in [key for key in weights if key.endswith(_MEAN)]:
        weights[key.removesuffix(_MEAN) + COUNTER] = torch.tensor(0)
    try:
        graph = ArchGraph.from_json(json.dumps(about["architecture"]), path)
        network = StudentNetwork(graph, weights)
        _quantize_inputs(network, about["quantization"], inputs, str(path))
        network.preparation = _preparation(about["preparation"])
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, EsnacError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise container.damaged(str(path), reason) from None
    return network.eval()


def _tensors(network: StudentNetwork) -> dict[str, Stored]:
    codes = weight_codes(network)
    found: dict[str, Stored] = {}
    for key, value in store.plain(network).state_dict().items():
        if key.endswith(COUNTER):  # counts steps of training
            continue
        found[key] = codes.get(key, value)
        if key in codes and not torch.equal(decode(codes[key]).cpu(), value.cpu()):
            raise EsnacError(f"The codes of {key} are not what its layer computes with.")
    for layer, quantizer in activation_quantizers(network).items():
        if not quantizer.recall():
            raise EsnacError(
                f"The activation quantiser of layer {layer!r} has no range yet. Train or calibrate "
                "the network before it is packed."
            )
        for key, value in quantizer.state_dict().items():
            found[f"{layer}.{INPUT}.{key}"] = value
    return found


def _about(network: StudentNetwork) -> dict[str, Any]:
    known = network.preparation
    return {
        "architecture": json.loads(network.graph.to_json()),
        "quantization": description.describe(network) | {"masks": [], "weights": {}},
        "preparation": None if known is None else asdict(known),
    }


def _values(stored: Stored) -> Tensor:
    return stored if isinstance(stored, Tensor) else decode(stored)


def _quantize_inputs(
    network: StudentNetwork, about: Mapping[str, Any], tensors: Mapping[str, Stored], where: str
) -> None:
    plan, _ = description.read(about, where)
    if plan.activations:
        attach(network, plan)
    plain = {key: _values(value) for key, value in tensors.items()}
    state = network.state_dict()
    expected = {key: tuple(state[key].shape) for key in state if f".{INPUT}." in key}
    check_weights(expected, plain)
    network.load_state_dict(plain, strict=False)


def _preparation(about: Mapping[str, Any] | None) -> Preparation | None:
    return None if about is None else Preparation(**{key: tuple(v) for key, v in about.items()})
