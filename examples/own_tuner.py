"""Let Ray Tune train what esnac proposes, by a training of your own.

    python examples/own_tuner.py

The teacher is a small network for scikit-learn's digits. Workers get a student's architecture,
train it from scratch and report its accuracy; esnac learns from that which students to propose
next. Needs the extra `ray`; a minute or two on two cores.
"""

from __future__ import annotations

import tempfile
from typing import Any

import ray
import torch
from ray import tune
from sklearn.datasets import load_digits
from torch import nn

import esnac
from esnac.graphs.network import StudentNetwork
from esnac.search.settings import SearchSettings
from esnac.search.tune import EmbeddingSearch


def images() -> tuple[torch.Tensor, torch.Tensor]:
    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    return x, torch.tensor(digits.target)


def fit(network: nn.Module, epochs: int) -> float:
    """Trains on 1,200 images; returns the accuracy on 300 others."""
    x, y = images()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(1200).split(100):
            loss = nn.functional.cross_entropy(network(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return (network.eval()(x[1200:1500]).argmax(1) == y[1200:1500]).float().mean().item()


def train(config: dict[str, Any], epochs: int) -> None:
    """On a worker: what a `tune.Tuner` calls a trainable."""
    torch.manual_seed(0)
    student = StudentNetwork(esnac.ArchGraph.from_json(config["architecture"]))
    tune.report({"accuracy": fit(student, epochs)})


def main(epochs: int = 20, workers: int = 2, address: str = "local", **search: Any) -> None:
    """`address`: "local" for a Ray of its own, "auto" for the cluster that this machine is in."""
    ray.init(address=address)
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    teacher = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    accuracy = fit(teacher, epochs)

    settings = SearchSettings(**{"steps": 4, "batch": 4, **search})
    searcher = esnac.Searcher(teacher, (1, 8, 8), teacher_accuracy=accuracy, settings=settings)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, epochs=epochs), {"CPU": 1}),
        tune_config=tune.TuneConfig(
            search_alg=EmbeddingSearch(searcher, workers=workers),
            metric="accuracy",
            mode="max",
            num_samples=settings.steps * settings.batch,
            max_concurrent_trials=workers,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
    )
    results = tuner.fit()
    best = searcher.best()[0]
    print(f"teacher: {searcher.teacher_cost.params:,} parameters, accuracy {100 * accuracy:.2f} %")
    print(f"best of {len(results)} students: {best.params:,} parameters, f {searcher.f(best):.4f}")


if __name__ == "__main__":
    main()
