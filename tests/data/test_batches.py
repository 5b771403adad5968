from __future__ import annotations

import torch

from esnac import data
from esnac.data import DataSet, DataSettings, augment
from esnac.data.batches import evaluation_batches, training_batches


def small(images: int = 30) -> DataSet:
    pixels = torch.randint(
        0, 256, (images, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    settings = DataSettings(validation=5, padding=2, flip=True)
    labels = torch.arange(images) % 3
    return data.from_tensors((pixels, labels), (pixels[:7], labels[:7]), settings)


def test_every_image_once_in_random_order_with_its_label() -> None:
    own = small()
    generator = torch.Generator().manual_seed(1)
    orders = []
    for epoch in range(2):
        batches = list(
            training_batches(own, 8, order_generator=generator, augmentation_seed=None, epoch=epoch)
        )
        assert [len(indices) for _, _, indices in batches] == [8, 8, 9]  # no batch of one
        order = torch.cat([indices for _, _, indices in batches])
        assert sorted(order.tolist()) == list(range(25))
        assert torch.equal(torch.cat([labels for _, labels, _ in batches]), own.train.labels[order])
        inputs = torch.cat([inputs for inputs, _, _ in batches])
        expected = augment.normalise(own.train.images[order], own.mean, own.std)
        assert torch.equal(inputs, expected)
        orders.append(order.tolist())
    assert orders[0] != orders[1]


def test_augmentation_does_not_depend_on_order_or_batch_size() -> None:
    own = small()

    def epoch_inputs(batch_size: int, shuffle: bool, seed: int = 4) -> torch.Tensor:
        generator = torch.Generator().manual_seed(9) if shuffle else None
        out = torch.empty(25, 3, 8, 8)
        for inputs, _, indices in training_batches(
            own, batch_size, order_generator=generator, augmentation_seed=seed, epoch=3
        ):
            out[indices] = inputs
        return out

    reference = epoch_inputs(25, shuffle=False)
    assert torch.equal(reference, epoch_inputs(4, shuffle=True))
    assert not torch.equal(reference, epoch_inputs(25, shuffle=False, seed=5))
    plan = augment.plan(25, 4, 3, 2, True)
    crops = augment.apply(own.train.images, plan)
    assert torch.equal(reference, augment.normalise(crops, own.mean, own.std))


def test_evaluation_in_order() -> None:
    own = small()
    batches = list(evaluation_batches(own.test, own, 3, memory_format=torch.channels_last))
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([labels for _, labels in batches]), own.test.labels)
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
    together = torch.cat([inputs for inputs, _ in batches])
    assert torch.equal(together, augment.normalise(own.test.images, own.mean, own.std))
