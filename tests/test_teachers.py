import json
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from esnac import teachers
from esnac.errors import EsnacError, WeightsError

CARD = teachers.Card(
    network="tiny", dataset="digits", accuracy=0.9, validation_accuracy=0.91, params=10, macs=100,
    data={"limit": None, "split_seed": 127}, recipe={}, seed=1, sha256="", versions={}, seconds=1.0,
)  # fmt: skip


def tiny(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def test_a_saved_teacher_is_found_and_loaded(tmp_path):
    module = tiny()
    card = teachers.save(tmp_path / "tiny-digits", module, CARD)
    assert len(card.sha256) == 64
    assert teachers.find([tmp_path / "none", tmp_path], "tiny-digits") == tmp_path / "tiny-digits"
    other = tiny()
    assert teachers.load(tmp_path / "tiny-digits", other) == card
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_weights_without_a_card_do_not_count(tmp_path):
    teachers.save(tmp_path / "t", tiny(), CARD)
    (tmp_path / "t" / "card.json").unlink()
    assert teachers.find([tmp_path], "t") is None


def test_tampered_weights_are_noticed(tmp_path):
    teachers.save(tmp_path / "t", tiny(), CARD)
    path = tmp_path / "t" / teachers.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="checksum.*esnac teacher --network tiny"):
        teachers.load(tmp_path / "t", tiny())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_user_weights_load_and_truncated_ones_do_not(tmp_path, suffix):
    module, path = tiny(), tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file(module.state_dict(), path)
    other = tiny()
    teachers.load_weights(path, other)
    assert torch.equal(other[0].weight, module[0].weight)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="truncated"):
        teachers.load_weights(path, tiny())


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(tiny(5).state_dict(), path)
    with pytest.raises(WeightsError, match=r"0.weight is \(5, 3\), expected \(4, 3\)"):
        teachers.load_weights(path, tiny())
    with pytest.raises(WeightsError, match="is missing"):
        teachers.load_weights(path, nn.Sequential(*tiny(5), nn.Linear(2, 2)))


def test_a_pickle_is_never_run(tmp_path):
    path, witness = tmp_path / "evil.pt", tmp_path / "witness"

    class Evil:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    torch.save(Evil(), path)
    with pytest.raises(WeightsError, match="for safety"):
        teachers.load_weights(path, tiny())
    assert not witness.exists()


def test_missing_weights_name_the_command(tmp_path):
    teachers.save(tmp_path / "t", tiny(), CARD)
    (tmp_path / "t" / teachers.WEIGHTS).unlink()
    with pytest.raises(
        WeightsError, match="python -m esnac teacher --network tiny --dataset digits"
    ):
        teachers.load(tmp_path / "t", tiny())


def test_recipes(tmp_path):
    assert teachers.recipe([tmp_path], "tiny", "digits")["epochs"] >= 10
    (tmp_path / "tiny-digits").mkdir()
    (tmp_path / "tiny-digits" / "recipe.toml").write_text("epochs = 3")
    assert teachers.recipe([tmp_path], "tiny", "digits") == {"epochs": 3}


def test_folder_names_tell_subsets_apart():
    name = teachers.folder_name
    assert name("resnet20", "cifar10", {"limit": None, "split_seed": 127}) == "resnet20-cifar10"
    assert name("resnet20", "cifar10", {"limit": 500}) == "resnet20-cifar10-limit500"
    assert name("resnet20", "digits", {"padding": 0}) == "resnet20-digits-padding0"
    assert name("n", "images:/a/b", {}) != name("n", "images:/a_b", {})
    assert "/" not in name("pkg.mod:net", "images:/some/path", {})


def test_a_damaged_card(tmp_path):
    teachers.save(tmp_path / "t", tiny(), CARD)
    (tmp_path / "t" / "card.json").write_text(json.dumps({"network": "tiny"}))
    with pytest.raises(WeightsError, match="not a teacher's card"):
        teachers.load(tmp_path / "t", tiny())


def test_a_prefix_is_stripped_only_from_all_keys_and_when_it_is_not_the_networks_own(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(3, 2)

    class Headed(Wrapped):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2)

    path = tmp_path / "w.pt"
    for kind in (Wrapped, Headed):
        network = kind()
        torch.save(network.state_dict(), path)
        other = kind()
        teachers.load_weights(path, other)
        assert torch.equal(other.module.weight, network.module.weight)
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, path)
    other = Headed()
    teachers.load_weights(path, other)
    assert torch.equal(other.module.weight, network.module.weight)


def test_weights_from_before_norms_counted_batches(tmp_path):
    network, other, path = tiny(), tiny(), tmp_path / "w.pt"
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    torch.save(state, path)
    teachers.load_weights(path, other)
    assert torch.equal(other[1].running_mean, network[1].running_mean)
    torch.save({k: v for k, v in state.items() if "running_mean" not in k}, path)
    with pytest.raises(WeightsError, match="1.running_mean is missing"):
        teachers.load_weights(path, tiny())


def test_a_failed_save_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    teachers.save(tmp_path / "t", tiny(), CARD)
    before = {path.name: path.read_bytes() for path in (tmp_path / "t").iterdir()}

    def full(path, _data):
        path.write_text("half")
        raise OSError(28, "No space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(EsnacError, match=r"t/weights.safetensors: no space left"):
            teachers.save(tmp_path / "t", tiny(), CARD)
    assert {path.name: path.read_bytes() for path in (tmp_path / "t").iterdir()} == before


def test_a_teachers_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "t").write_text("")
    with pytest.raises(EsnacError, match=r"t/weights.safetensors"):
        teachers.save(tmp_path / "t", tiny(), CARD)


def test_a_teacher_that_is_being_trained_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a-b"
    order: list[str] = []

    def second() -> None:
        with teachers.held(folder) as waited:
            order.append(f"second {waited}")

    waiting = threading.Thread(target=second)
    with teachers.held(folder) as waited:
        assert not waited
        (folder / "card.json").write_text("{}")
        waiting.start()
        waiting.join(0.5)
        order.append("first")
    waiting.join()
    assert order == ["first", "second True"]
    assert f"process {os.getpid()} is training {folder}: waiting" in capsys.readouterr().err
