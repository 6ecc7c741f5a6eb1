import gzip
import hashlib
import pickle
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

from periodic_lib import datasets
from periodic_lib.config import ConfigError, Setup
from periodic_lib.datasets import BatchOrder


def test_breast_cancer_has_the_stated_split_and_scale():
    data = datasets.load(Setup(dataset="breast_cancer", dtype="float64"))
    assert (data.shape, data.classes) == ((1, 1, 30), 2)
    assert (len(data.x_train), len(data.x_test)) == (455, 114)
    features = data.x_train[:, 0, 0]
    assert features.mean(dim=0).abs().max() < 1e-12
    assert (features.std(dim=0, correction=0) - 1).abs().max() < 1e-12
    parts = [labels.double().mean() for labels in (data.y_train, data.y_test)]
    assert abs(parts[0] - parts[1]) < 0.01
    rows = np.concatenate([data.x_train, data.x_test])[:, 0, 0]
    assert len(np.unique(rows, axis=0)) == 569  # no row is in both parts


def test_features_are_not_augmented():
    with pytest.raises(ConfigError, match="`augment` needs pictures; 'breast_cancer' holds features"):
        datasets.load(Setup(dataset="breast_cancer", augment=True))


def test_digits_have_the_stated_split_and_scale():
    data = datasets.load(Setup(dtype="float64"))
    assert data.x_train.shape == (1437, 1, 8, 8)
    assert data.x_test.shape == (360, 1, 8, 8)
    assert data.shape == (1, 8, 8)
    assert data.classes == 10
    assert float(data.x_train.mean()) == pytest.approx(0, abs=1e-12)
    assert float(data.x_train.std(correction=0)) == pytest.approx(1, rel=1e-12)
    assert data.x_train.dtype == torch.float64
    assert data.y_train.dtype == torch.int64


def test_the_split_is_fixed_and_stratified_and_loses_no_picture():
    from sklearn.datasets import load_digits

    x_train, y_train, x_test, y_test = datasets._digits()
    assert np.bincount(y_test).min() >= 35
    together = np.concatenate([x_train, x_test])
    pictures, labels = load_digits(return_X_y=True)
    assert sorted(map(bytes, together)) == sorted(map(bytes, pictures))
    assert (np.bincount(y_train) + np.bincount(y_test) == np.bincount(labels)).all()
    assert y_test[:12].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]  # seed 0, for good


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ConfigError, match=r"`batch_size` must be at most 1437.*got 2000"):
        datasets.load(Setup(batch_size=2000))


def test_an_epoch_shows_every_example_once_and_keeps_the_short_batch():
    order = BatchOrder([3], examples=10, batch_size=4)
    sizes = [order.next() for _ in range(3)]
    assert [batch.shape[1] for batch in sizes] == [4, 4, 2]
    assert sorted(torch.cat(sizes, dim=1)[0].tolist()) == list(range(10))


def test_drop_last_leaves_out_the_short_batch_but_no_example_for_good():
    order = BatchOrder([0], examples=10, batch_size=4, drop_last=True)
    batches = [order.next() for _ in range(20)]
    assert {batch.shape[1] for batch in batches} == {4}
    assert set(torch.cat(batches, dim=1)[0].tolist()) == set(range(10))


def test_the_order_of_a_run_does_not_depend_on_its_neighbours():
    alone, stacked = BatchOrder([7], 50, 8), BatchOrder([1, 7, 1], 50, 8)
    for _ in range(15):
        mine, all_three = alone.next(), stacked.next()
        assert torch.equal(mine[0], all_three[1])
        assert torch.equal(all_three[0], all_three[2])
        assert not torch.equal(all_three[0], all_three[1])


def test_epochs_differ():
    order = BatchOrder([0], examples=30, batch_size=30 - 1)
    first, _, second = order.next(), order.next(), order.next()
    assert not torch.equal(first, second)


def test_full_batch_is_every_example():
    order = BatchOrder([0, 1], examples=6, batch_size=None)
    assert order.next().tolist() == [list(range(6))] * 2


@pytest.mark.parametrize("batch_size", [4, None])
def test_seek_goes_on_anywhere_as_if_never_stopped(batch_size):
    order = BatchOrder([5, 2], examples=10, batch_size=batch_size)
    batches = [order.next() for _ in range(9)]
    for step in (4, 8, 0, 7):
        order.seek(step)
        fresh = BatchOrder([5, 2], examples=10, batch_size=batch_size)
        fresh.seek(step)
        for expected in batches[step:]:
            assert torch.equal(order.next(), expected)
            assert torch.equal(fresh.next(), expected)


# ---------------------------------------------------------------- subset and label noise


@pytest.mark.parametrize("size", [3, 10, 137, 500])
def test_a_subset_is_balanced_drawn_by_its_seed_and_part_of_a_larger_one(size):
    first, again, other, larger, full = (
        datasets.load(Setup(train_size=examples, sample_seed=seed, batch_size=None))
        for examples, seed in [(size, 0), (size, 0), (size, 1), (size + 7, 0), (None, 0)]
    )
    counts = torch.bincount(first.y_train, minlength=10)
    assert len(first.x_train) == size
    assert counts.max() - counts.min() <= 1
    assert torch.equal(first.x_train, again.x_train)
    assert not torch.equal(first.x_train, other.x_train)
    pictures, more = ({bytes(picture.numpy()) for picture in data.x_train} for data in (first, larger))
    assert pictures <= more
    assert torch.equal(first.x_test, full.x_test)
    assert first.classes == 10  # also when a class is not drawn


def test_a_subset_keeps_the_standardization_and_the_labels_of_the_full_set():
    full = datasets.load(Setup())
    labels = {bytes(picture.numpy()): int(label) for picture, label in zip(full.x_train, full.y_train, strict=True)}
    part = datasets.load(Setup(train_size=200))
    for picture, label in zip(part.x_train, part.y_train, strict=True):
        assert labels[bytes(picture.numpy())] == label


def test_testing_on_the_rest_uses_every_picture_once_with_its_true_label():
    full = datasets.load(Setup())
    part = datasets.load(Setup(train_size=200, label_noise=0.5, test_on_rest=True))
    rest = datasets.load(Setup(train_size=200))
    assert (len(part.x_train), len(part.x_test)) == (200, 360 + 1237)
    assert torch.equal(part.x_test[:360], full.x_test)
    assert torch.equal(part.x_train, rest.x_train)

    def all_of(x, y):
        return sorted((bytes(picture.numpy()), int(label)) for picture, label in zip(x, y, strict=True))

    everything = torch.cat([part.x_test[360:], rest.x_train]), torch.cat([part.y_test[360:], rest.y_train])
    assert all_of(*everything) == all_of(full.x_train, full.y_train)
    assert torch.equal(datasets.load(Setup(test_on_rest=True)).x_test, full.x_test)  # nothing is left


def test_a_class_that_is_too_small_is_filled_up_by_the_others():
    labels = np.repeat([0, 1, 2], [2, 10, 10])
    chosen = datasets._subset(Setup(train_size=12), labels)
    assert np.bincount(labels[chosen]).tolist() == [2, 5, 5]


def test_the_whole_set_as_a_subset_is_the_set():
    assert torch.equal(datasets.load(Setup(train_size=1437)).x_train, datasets.load(Setup()).x_train)


def test_a_subset_larger_than_the_set_or_smaller_than_the_batch_is_refused():
    with pytest.raises(ConfigError, match=r"`train_size` must be at most 1437.*got 1438"):
        datasets.load(Setup(train_size=1438))
    with pytest.raises(ConfigError, match=r"`batch_size` must be at most 100.*got 128"):
        datasets.load(Setup(train_size=100))


@pytest.mark.parametrize(("noise", "size"), [(0.0, None), (0.1, None), (0.333, 200), (0.999, 200)])
def test_label_noise_changes_that_many_training_labels_and_no_other(noise, size):
    clean = datasets.load(Setup(train_size=size))
    noisy = datasets.load(Setup(train_size=size, label_noise=noise))
    assert int((clean.y_train != noisy.y_train).sum()) == round(noise * len(clean.y_train))
    assert 0 <= noisy.y_train.min() <= noisy.y_train.max() < 10
    assert torch.equal(clean.y_test, noisy.y_test)
    assert torch.equal(clean.x_train, noisy.x_train)


def test_wrong_labels_are_uniform_over_the_other_classes_and_drawn_by_their_seed():
    labels = np.full(9000, 3)
    noisy = datasets._with_noise(Setup(label_noise=0.99), labels, classes=10)
    counts = np.bincount(noisy[noisy != 3], minlength=10)
    assert counts[3] == 0
    assert np.delete(counts, 3) == pytest.approx(990, abs=5 * 990**0.5)
    seeds = [datasets.load(Setup(label_noise=0.5, sample_seed=seed)).y_train for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])


# ---------------------------------------------------------------- your own file


def arrays(shape=(6, 5), classes=3, **changed) -> dict:
    draw = np.random.default_rng(0)
    made = {}
    for part, examples in (("train", 12), ("test", 6)):
        made[f"x_{part}"] = draw.integers(0, 256, (examples, *shape), dtype=np.uint8)
        made[f"y_{part}"] = np.arange(examples) % classes
    return {name: values for name, values in (made | changed).items() if values is not None}


def own(tmp_path, **made) -> Setup:
    np.savez(tmp_path / "own.npz", **made)
    return Setup(dataset=str(tmp_path / "own.npz"), batch_size=4, dtype="float64")


@pytest.mark.parametrize(
    ("shape", "expected"), [((6, 5), (1, 6, 5)), ((6, 5, 3), (3, 6, 5)), ((6, 5, 1), (1, 6, 5)), ((7,), (1, 1, 7))]
)
def test_an_own_file_of_pictures_or_features(tmp_path, shape, expected):
    made = arrays(shape)
    data = datasets.load(own(tmp_path, **made))
    assert data.shape == expected
    assert data.classes == 3
    assert data.y_train.tolist() == made["y_train"].tolist()
    pixels = np.moveaxis(made["x_train"].reshape(12, *shape, 1)[..., 0].reshape(12, -1, expected[0]), 2, 1)
    mean, std = pixels.mean((0, 2), keepdims=True), pixels.std((0, 2), keepdims=True)
    assert data.x_train.flatten(2).numpy() == pytest.approx((pixels - mean) / std, abs=1e-9)
    assert data.black.numpy() == pytest.approx(-(mean / std).ravel())
    assert (data.x_train.mean((0, 2, 3)).abs() < 1e-12).all()


def test_bytes_are_fractions_of_255_and_floats_are_taken_as_they_are(tmp_path):
    made = arrays()
    from_bytes = datasets.load(own(tmp_path, **made))
    as_floats = made | {name: made[name] / 255.0 for name in ("x_train", "x_test")}
    assert torch.equal(from_bytes.x_train, datasets.load(own(tmp_path, **as_floats)).x_train)  # the file is read anew
    assert datasets._arrays(str(tmp_path / "own.npz")).x_train.max() <= 1
    assert torch.equal(datasets.load(own(tmp_path, **as_floats)).x_test, from_bytes.x_test)


OTHER = np.zeros((6, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x_tran": OTHER}, r"unknown array in .*own\.npz: 'x_tran'.*Did you mean 'x_train'\?"),
        ({"y_test": None}, r"own\.npz must have the arrays x_train, y_train, x_test, y_test; `y_test` is missing"),
        ({"x_test": OTHER}, r"`x_train` and `x_test` must have pictures of one shape.*\(12, 6, 5\).*\(6, 4, 4\)"),
        ({"x_test": np.ones((6, 6, 5))}, r"one shape and dtype; got .*uint8 and .*float64"),
        ({"x_train": np.zeros((12, 6, 5), int)}, r"`x_train` must be uint8 \(0 to 255\) or floating point; got int64"),
        ({"x_train": np.zeros((12, 6, 5, 2), np.uint8)}, r"`x_train` must have the shape .*got \(12, 6, 5, 2\)"),
        ({"x_train": np.zeros(12, np.uint8)}, r"`x_train` must have the shape .*got \(12,\)"),
        ({"x_test": np.zeros((0, 6, 5), np.uint8)}, r"`x_test` must have the shape .*got \(0, 6, 5\)"),
        ({"x_test": np.full((6, 6, 5), np.nan)}, r"`x_test` must be finite"),
        (
            {"x_train": np.full((12, 6, 5), 9, np.uint8)},
            r"cannot be standardized: all pixels of a channel are equal",
        ),
        ({"y_train": np.arange(11) % 3}, r"`y_train` must be 12 whole numbers, one for each of `x_train`.*\(11,\)"),
        ({"y_test": np.zeros(6)}, r"`y_test` must be 6 whole numbers.*float64"),
        ({"y_train": np.arange(12) % 3 + 1}, r"`y_train` must have every class from 0 to 3.*3 different.*1 to 3"),
        ({"y_test": np.arange(6) % 4}, r"`y_test` must have every class from 0 to 2.*4 different labels from 0 to 3"),
        ({"y_test": np.arange(6) % 3 - 1}, r"`y_test` must have every class from 0 to 2.*from -1 to 1"),
        ({"y_train": np.zeros(12, int)}, r"`y_train` must have every class from 0 to 1.*1 different"),
    ],
)
def test_a_wrong_own_file_is_refused_in_one_line(tmp_path, changed, words):
    with pytest.raises(ConfigError, match=words) as caught:
        datasets.load(own(tmp_path, **arrays(**changed)))
    assert "\n" not in str(caught.value)


def test_an_own_file_that_is_absent_damaged_or_could_run_code_is_refused(tmp_path):
    path = tmp_path / "own.npz"
    with pytest.raises(ConfigError, match=r"there is no file .*own\.npz"):
        datasets.load(Setup(dataset=str(path)))
    setup = own(tmp_path, **arrays())
    whole = path.read_bytes()
    for damaged in (b"", b"no archive", whole[: len(whole) // 2], whole[:100] + b"!!!!" + whole[104:]):
        path.write_bytes(damaged)
        datasets._npz.cache_clear()
        with pytest.raises(ConfigError, match=r"own\.npz is not a readable \.npz file of plain arrays: ."):
            datasets.load(setup)
    datasets._npz.cache_clear()
    with pytest.raises(ConfigError, match="allow_pickle=False"):
        datasets.load(own(tmp_path, **arrays(y_test=np.array([print] * 6))))


# ---------------------------------------------------------------- torchvision's data sets


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_DATA", str(tmp_path / "downloads"))
    monkeypatch.setenv("PERIODIC_OFFLINE", "1")
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
    return tmp_path / "downloads"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", "cifar-10-batches-py (from cifar-10-python.tar.gz)"),
        ("cifar100", "cifar-100-python (from cifar-100-python.tar.gz)"),
        ("fashion_mnist", "FashionMNIST/raw (from train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "),
    ],
)
def test_offline_the_message_says_which_files_belong_where(downloads, name, expected):
    with pytest.raises(ConfigError) as caught:
        datasets.load(Setup(dataset=name))
    message = str(caught.value)
    for words in (repr(name), str(downloads), expected, "PERIODIC_DATA", "PERIODIC_OFFLINE=1", "not found"):
        assert words in message
    assert "\n" not in message


def test_a_download_that_fails_is_explained(downloads, monkeypatch):
    monkeypatch.delenv("PERIODIC_OFFLINE")

    def fail(*_arguments, **_options):
        raise OSError("no\nroute")

    datasets._import_torchvision()
    import torchvision.datasets.cifar as module

    monkeypatch.setattr(module, "download_and_extract_archive", fail)
    with pytest.raises(ConfigError, match=r"cannot be read from .*downloads.*Reason: no route$"):
        datasets.load(Setup(dataset="cifar10"))


def test_torchvision_can_be_imported_twice_without_a_warning_and_only_on_request():
    code = (
        "import sys; from periodic_lib import datasets; assert 'torchvision' not in sys.modules; "
        "first, second = datasets._import_torchvision(), datasets._import_torchvision(); assert first is second; "
        "from torchvision.datasets import CIFAR10; print(CIFAR10.__name__)"
    )
    made = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (made.stdout.strip(), made.stderr) == ("CIFAR10", "")


def test_a_torchvision_that_is_absent_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what Python does not look for again
    with pytest.raises(ConfigError, match="needs torchvision: install it"):
        datasets._import_torchvision()


def fake_cifar(folder, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """Write a tiny CIFAR-10 and make torchvision expect its checksums; return its pictures and labels."""
    cifar = datasets._import_torchvision().datasets.CIFAR10
    pictures = np.random.default_rng(0).integers(0, 256, (30, 3072), dtype=np.uint8)
    labels = np.arange(30) % 10
    (folder / cifar.base_folder).mkdir(parents=True)

    def write(name: str, content: dict) -> list[str]:
        path = folder / cifar.base_folder / name
        path.write_bytes(pickle.dumps(content))
        return [name, hashlib.md5(path.read_bytes()).hexdigest()]

    batches = [
        write(name, {"data": pictures[start : start + 10], "labels": labels[start : start + 10].tolist()})
        for start, name in ((0, "data_batch_1"), (10, "data_batch_2"), (20, "test_batch"))
    ]
    meta, checksum = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(cifar, "train_list", batches[:2])
    monkeypatch.setattr(cifar, "test_list", batches[2:])
    monkeypatch.setattr(cifar, "meta", {"filename": meta, "key": "label_names", "md5": checksum})
    return pictures.reshape(30, 3, 32, 32), labels


def test_cifar_is_read_and_standardized_by_the_published_statistics(downloads, monkeypatch):
    pictures, labels = fake_cifar(downloads, monkeypatch)
    data = datasets.load(Setup(dataset="cifar10", batch_size=8, dtype="float64"))
    assert (data.shape, data.classes) == ((3, 32, 32), 10)
    together = torch.cat([data.x_train, data.x_test]).numpy()
    for channel, (mean, std) in enumerate([(0.4914, 0.2023), (0.4822, 0.1994), (0.4465, 0.2010)]):
        assert together[:, channel] == pytest.approx((pictures[:, channel] / 255 - mean) / std)
        assert float(data.black[channel]) == pytest.approx(-mean / std)
    assert torch.cat([data.y_train, data.y_test]).tolist() == labels.tolist()


def test_a_damaged_cifar_is_not_read(downloads, monkeypatch):
    fake_cifar(downloads, monkeypatch)
    with (downloads / "cifar-10-batches-py" / "test_batch").open("ab") as file:
        file.write(b"!")
    with pytest.raises(ConfigError, match="corrupted"):
        datasets.load(Setup(dataset="cifar10"))


def test_offline_an_undamaged_archive_is_unpacked_and_a_damaged_one_is_not_fetched_again(downloads, monkeypatch):
    fake_cifar(downloads, monkeypatch)
    cifar = datasets._import_torchvision().datasets.CIFAR10
    archive = downloads / cifar.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(downloads / cifar.base_folder, cifar.base_folder)
    shutil.rmtree(downloads / cifar.base_folder)
    monkeypatch.setattr(cifar, "url", "file:///absent")
    with pytest.raises(ConfigError, match="Reason: Dataset not found or corrupted"):  # not: no such address
        datasets.load(Setup(dataset="cifar10", batch_size=8))
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(datasets.load(Setup(dataset="cifar10", batch_size=8)).x_train) == 20


def fake_fashion_mnist(folder, packed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Write a tiny Fashion-MNIST in the idx format; return its pictures and labels."""
    pictures = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = (np.arange(30) % 10).astype(np.uint8)
    folder.mkdir(parents=True)
    for part, rows in (("train", slice(20)), ("t10k", slice(20, 30))):
        for kind, values in (("images-idx3", pictures[rows]), ("labels-idx1", labels[rows])):
            content = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()
            name = f"{part}-{kind}-ubyte" + ".gz" * packed
            (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return pictures, labels


@pytest.mark.parametrize("place", ["unpacked", "packed", "debian"])
def test_fashion_mnist_is_read_from_each_place(downloads, monkeypatch, tmp_path, place):
    folder = tmp_path / "system" if place == "debian" else downloads / "FashionMNIST" / "raw"
    pictures, labels = fake_fashion_mnist(folder, packed=place != "unpacked")
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "system")
    data = datasets.load(Setup(dataset="fashion_mnist", batch_size=8, dtype="float64"))
    assert (data.shape, data.classes) == ((1, 28, 28), 10)
    mean, std = pictures[:20].mean(), pictures[:20].std()
    assert data.x_test[:, 0].numpy() == pytest.approx((pictures[20:] - mean) / std)
    assert data.y_train.tolist() == labels[:20].tolist()


def test_a_cut_off_fashion_mnist_is_refused(downloads):
    fake_fashion_mnist(downloads / "FashionMNIST" / "raw", packed=False)
    path = downloads / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    for length in (0, 10, 500):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ConfigError, match="`dataset` 'fashion_mnist' cannot be read"):
            datasets.load(Setup(dataset="fashion_mnist"))


# ---------------------------------------------------------------- augmentation

BLACK = torch.tensor([-2.0, -3.0, -4.0])


def some_pictures(runs=3, batch=40) -> torch.Tensor:
    return torch.randn(runs, batch, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def one_by_one(picture: torch.Tensor, top: int, left: int, flip: int) -> torch.Tensor:
    """Crop and mirror one picture (channels, height, width) as torchvision's RandomCrop and flip do."""
    channels, height, width = picture.shape
    padded = [torch.nn.functional.pad(picture[c], (4, 4, 4, 4), value=float(BLACK[c])) for c in range(channels)]
    crop = torch.stack(padded)[:, top : top + height, left : left + width]
    return crop.flip(-1) if flip else crop


def test_augmentation_is_the_crop_and_flip_of_each_example():
    pictures = some_pictures()
    result = datasets.augment(pictures, [3, 1, 3], step=5, black=BLACK)
    drawn = datasets.draw_shifts([3, 1, 3], 5, 40)
    for run in range(3):
        for example in range(40):
            expected = one_by_one(pictures[run, example], *drawn[:, run, example])
            assert torch.equal(result[run, example], expected)


def test_no_shift_and_no_flip_is_the_picture_itself():
    pictures = some_pictures()
    drawn = torch.tensor([4, 4, 0])[:, None, None].expand(3, 3, 40)
    assert torch.equal(datasets.shift_and_flip(pictures, drawn, BLACK), pictures)


def test_every_shift_up_to_4_pixels_is_found_as_often_flipped_as_not():
    pictures = some_pictures(runs=1, batch=2000)
    result = datasets.augment(pictures, [0], step=0, black=BLACK)[0]
    found = {}
    for flip in (0, 1):
        for top in range(9):
            for left in range(9):
                same = datasets.shift_and_flip(pictures, torch.tensor([top, left, flip])[:, None, None], BLACK)[0]
                found[top, left, flip] = int((same == result).flatten(1).all(1).sum())
    assert sum(found.values()) == 2000
    assert min(found.values()) > 0
    flipped = sum(count for (_, _, flip), count in found.items() if flip)
    assert flipped == pytest.approx(1000, abs=5 * 500**0.5)


def test_the_augmentation_of_a_run_depends_on_its_seed_and_the_step_alone():
    pictures = some_pictures(runs=1).expand(3, -1, -1, -1, -1)
    stacked = datasets.augment(pictures, [1, 7, 1], step=9, black=BLACK)
    alone = datasets.augment(pictures[:1], [7], step=9, black=BLACK)
    assert torch.equal(stacked[1], alone[0])
    assert torch.equal(stacked[0], stacked[2])
    assert not torch.equal(stacked[0], stacked[1])
    assert not torch.equal(datasets.augment(pictures[:1], [7], step=10, black=BLACK), alone)


def test_what_comes_in_is_a_raw_black_pixel(tmp_path):
    made = arrays((6, 5, 3))
    made["x_train"][0] = 0
    data = datasets.load(own(tmp_path, **made))
    assert torch.equal(data.x_train[0, :, 0, 0], data.black)


def test_features_cannot_be_augmented(tmp_path):
    own(tmp_path, **arrays((7,)))
    with pytest.raises(ConfigError, match="`augment` needs pictures"):
        datasets.load(Setup(dataset=str(tmp_path / "own.npz"), batch_size=4, augment=True))
