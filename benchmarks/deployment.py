"""Size and speed of a network, ResNet-20 by default, in the runtimes that it can be exported to.

Random weights, norms as after a training, random images of 3 x 32 x 32 (calibration: 128 of them).
Times are the shortest of many passes; torch and onnxruntime take turns, MNN (left out where its
extra is missing or its quantiser fails) runs in a process of its own. With --slim the channels of
least norm scale are cut first, as the stage slim(scales) does.

Prints one JSON object on its last line; the machine goes to standard error.

    <runtime>.bytes         of the file: onnx, onnx_int8, mnn, mnn_int8
    <runtime>.ms            milliseconds of a pass by size of the batch; also of torch
    <runtime>.difference    the largest of a logit to torch's
    <runtime>.agreement     fraction of 64 images with torch's prediction
    int8_speedup            onnx / onnx_int8, by size of the batch
    int8_size               onnx_int8 / onnx
    gathers                 gathers in the ONNX files
    threads, quick
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _machine import print_machine

if TYPE_CHECKING:
    from esnac.data import DataSet
    from esnac.graphs.network import StudentNetwork

BATCHES = (1, 64)
IMAGES = 128


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    import torch

    from esnac.deployment import onnx_session
    from esnac.deployment.runtime_table import table

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network, data = normalised(args.network), random_images()
    if args.slim:
        network = slimmed(network, args.slim)
    print_machine(args.threads, "torch", "onnxruntime")
    batches = BATCHES[:1] if args.quick else BATCHES
    with tempfile.TemporaryDirectory(prefix="esnac-benchmark-") as folder:
        paths = export(network, data, Path(folder))
        rows = table(network, paths, data, threads=args.threads, batches=batches)
        operators = [onnx_session.operators(paths[name]) for name in ("onnx", "onnx_int8")]
    figures: dict[str, Any] = {
        row.runtime: {
            "bytes": row.bytes,
            "ms": {str(batch): round(1000 * took, 3) for batch, took in row.seconds.items()},
            "difference": float(f"{row.difference:.3g}"),
            "agreement": round(row.agreement, 4),
        }
        for row in rows
    }
    exact, coarse = figures["onnx"], figures["onnx_int8"]
    figures["int8_speedup"] = {b: round(exact["ms"][b] / coarse["ms"][b], 2) for b in exact["ms"]}
    figures["int8_size"] = round(coarse["bytes"] / exact["bytes"], 3)
    kinds = ("Gather", "GatherElements", "GatherND")
    figures["gathers"] = sum(found[kind] for found in operators for kind in kinds)
    figures |= {"threads": args.threads, "quick": args.quick}
    print(json.dumps(figures))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="batches of one only")
    parser.add_argument("--threads", type=int, default=1, help="of each runtime (default 1)")
    parser.add_argument("--network", default="resnet20", help="a registered name")
    parser.add_argument("--slim", type=float, default=0.0, help="share of channels to cut first")
    return parser.parse_args(argv)


def normalised(name: str) -> StudentNetwork:
    """The network with norms as after a training."""
    import torch
    from torch import nn

    from esnac.graphs.network import StudentNetwork
    from esnac.graphs.trace import trace
    from esnac.networks import build

    network = StudentNetwork(trace(build(name, 10), (3, 32, 32))).eval()
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                for centred in (norm.running_mean, norm.bias):
                    centred.normal_(0, 0.1)
                for spread in (norm.running_var, norm.weight):
                    spread.uniform_(0.5, 1.5)
    return network


def slimmed(network: StudentNetwork, share: float) -> StudentNetwork:
    from esnac.graphs.space import Space
    from esnac.pruning import importance
    from esnac.pruning.removal import removable, remove
    from esnac.pruning.slimming import choose

    space = Space(network.graph, tie="dependency")
    scores = importance.by_scales(network, space.groups)
    return remove(network, space, choose(space, scores, share, removable(space, by_scales=True)))


def random_images() -> DataSet:
    import torch

    from esnac.data import DataSet, ImageSet

    pixels = torch.randint(256, (IMAGES + 64, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (IMAGES + 64,))
    train = ImageSet(pixels[64:], labels[64:])
    test = ImageSet(pixels[:64], labels[:64])
    names = tuple(map(str, range(10)))
    mean, std = (0.5, 0.5, 0.5), (0.29, 0.29, 0.29)
    return DataSet("random", train, test, test, 10, names, mean, std, padding=0, flip=False)


def export(network: StudentNetwork, data: DataSet, folder: Path) -> dict[str, Path]:
    """The files by runtime."""
    from esnac.deployment import mnn, onnx_export, onnx_int8
    from esnac.deployment.runtime_table import inputs_of
    from esnac.errors import EsnacError

    paths = {"onnx": folder / "a.onnx", "onnx_int8": folder / "a.int8.onnx"}
    onnx_export.export(network, paths["onnx"], data.input_shape)
    onnx_int8.quantize(paths["onnx"], paths["onnx_int8"], inputs_of(data.train, data))
    if find_spec("MNN") is not None:
        paths |= {"mnn": folder / "a.mnn", "mnn_int8": folder / "a.int8.mnn"}
        mnn.convert(paths["onnx"], paths["mnn"])
        images = data.train.images.numpy()
        try:
            mnn.quantize(paths["mnn"], paths["mnn_int8"], images, data.mean, data.std)
        except EsnacError as error:
            print(f"left out: {error}", file=sys.stderr)
            del paths["mnn_int8"]
    return paths


if __name__ == "__main__":
    sys.exit(main())
