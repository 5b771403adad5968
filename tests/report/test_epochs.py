import io
from types import SimpleNamespace

from esnac.report.epochs import EpochProgress


def test_one_plain_line_per_epoch_when_not_a_terminal():
    stream = io.StringIO()
    with EpochProgress("teacher", 3, stream) as progress:
        for epoch, accuracy in enumerate((0.5, 0.625)):
            progress.update(SimpleNamespace(epoch=epoch, accuracy=accuracy))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("teacher: epoch 1/3, validation accuracy 50.00 %")
    assert lines[1].startswith("teacher: epoch 2/3, validation accuracy 62.50 %")


def test_without_a_known_end():
    stream = io.StringIO()
    with EpochProgress("prune", None, stream) as progress:
        progress.update(SimpleNamespace(epoch=4, accuracy=0.5))
    assert stream.getvalue() == "prune: epoch 5, validation accuracy 50.00 %\n"


def test_rewritten_in_place_on_a_terminal():
    stream = io.StringIO()
    stream.isatty = lambda: True
    with EpochProgress("teacher", 2, stream) as progress:
        progress.update(SimpleNamespace(epoch=0, accuracy=0.5))
    assert stream.getvalue().startswith("\r")
    assert stream.getvalue().endswith("\n")
