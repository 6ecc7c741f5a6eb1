import gzip
import hashlib
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from periodic_lib import project
from periodic_lib.config import DATASETS, Setup
from periodic_lib.engine import batches, datasets, sources
from periodic_lib.engine.batches import BatchOrder, FixedOrder, with_fresh_noise
from periodic_lib.project import ConfigError


def test_a_character_of_the_novel_is_told_by_the_sixteen_before_it():
    data = datasets.load(Setup(dataset="moby_dick"))
    assert data.shape == (27, 4, 4)
    assert (data.classes, len(data.y_train), len(data.y_test)) == (27, 4000, 1000)
    assert (data.x_train.sum(1) == 1).all()
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    text = (project.root() / "data" / "text" / "moby_dick.txt").read_text(encoding="utf-8").lower()
    plain = re.sub("[^a-z]+", " ", text)
    border = 9 * len(plain) // 10
    halves = ((data.x_train, data.y_train, plain[:border]), (data.x_test, data.y_test, plain[border:]))
    for x, y, part in halves:
        for k in range(0, len(y), 100):
            context = "".join(letters[x[k].flatten(1).argmax(0)])
            assert context + letters[y[k]] in part


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

    x_train, y_train, x_test, y_test = sources._digits()
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


@pytest.mark.parametrize("size", [2, 4, 359, 718, 1436])
def test_a_last_batch_of_one_example_is_refused(size):
    with pytest.raises(
        ConfigError, match=rf"`batch_size` {size} leaves one of the 1437 .*'digits'.*drop_last: true, or"
    ):
        datasets.load(Setup(batch_size=size))
    assert len(datasets.load(Setup(batch_size=size, drop_last=True)).x_train) == 1437
    datasets.check_batch_size(Setup(batch_size=size), 2 * size)


@pytest.mark.parametrize("batch_size", [None, 2, 128])
@pytest.mark.parametrize("drop_last", [False, True])
def test_one_training_example_is_refused(batch_size, drop_last):
    with pytest.raises(ConfigError, match="`train_size` must leave at least 2 training examples of 'digits'; got 1"):
        datasets.load(Setup(train_size=1, batch_size=batch_size, drop_last=drop_last))


@pytest.mark.parametrize("drop_last", [False, True])
def test_no_legal_setup_makes_a_batch_of_one(drop_last):
    for examples in range(1, 40):
        for batch_size in (None, *range(2, 45)):
            try:
                datasets.check_batch_size(Setup(batch_size=batch_size, drop_last=drop_last), examples)
            except ConfigError:
                continue
            order = BatchOrder([0], examples, batch_size, drop_last)
            assert min(order.next().shape[1] for _ in range(order.steps_per_epoch)) >= 2


# ---------------------------------------------------------------- an explicit order

ROWS = [[0, 5, 2], [1, 1, 4], [3, 0, 5]]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda rows: np.array(rows, np.uint64)])
def test_a_fixed_order_is_what_was_given_for_every_run_and_can_be_sought(kind):
    order = FixedOrder(kind(ROWS), examples=6, steps=2, runs=2)
    assert [order.next().tolist() for _ in range(3)] == [[row, row] for row in ROWS]
    order.seek(1)
    assert order.next().tolist() == [ROWS[1]] * 2


@pytest.mark.parametrize(
    ("batches", "came"),
    [
        (np.zeros((3, 0), int), r"shape (3, 0) of int64"),
        (np.zeros((0, 3), int), r"shape (0, 3) of int64"),
        (np.zeros((3, 1), int), r"shape (3, 1) of int64"),
        (np.zeros((3, 7), int), r"shape (3, 7) of int64"),
        (np.zeros((2, 3), int), r"shape (2, 3) of int64"),
        (np.zeros(3, int), r"shape (3,) of int64"),
        (np.zeros((3, 3, 1), int), r"shape (3, 3, 1) of int64"),
        (np.zeros((3, 3), bool), r"shape (3, 3) of bool"),
        (torch.zeros(3, 3, dtype=torch.bool), r"shape (3, 3) of bool"),
        (np.zeros((3, 3)), r"shape (3, 3) of float64"),
        ([["a", "b"]] * 3, r"shape (3, 2) of <U1"),
        ([[0, 10**30]] * 3, r"shape (3, 2) of object"),
        ([], r"shape (0,) of float64"),
        (5, r"shape () of int64"),
        ([[0, 1], [2]], r"rows of different lengths"),
        ([[0, 6]] * 3, r"index the 6 training examples from 0; got 0 to 6"),
        ([[-1, 5]] * 3, r"index the 6 training examples from 0; got -1 to 5"),
    ],
)
def test_a_wrong_fixed_order_is_refused_in_one_line(batches, came):
    with pytest.raises(ConfigError, match=rf"^`batches` must .*{re.escape(came)}") as caught:
        FixedOrder(batches, examples=6, steps=3, runs=2)
    assert "\n" not in str(caught.value)


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
    assert sources.read(str(tmp_path / "own.npz"))[0].x_train.max() <= 1
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
        with pytest.raises(ConfigError, match=r"own\.npz is not a readable \.npz file of plain arrays: ."):
            datasets.load(setup)
    with pytest.raises(ConfigError, match="Python objects, which could run code"):
        datasets.load(own(tmp_path, **arrays(y_test=np.array([print] * 6))))


def damaged(content: bytes, offset: int, values: bytes, signature: bytes) -> bytes:
    """Return a zip file with other bytes at `offset` of every header that has this signature."""
    result, at = bytearray(content), content.find(signature)
    while at >= 0:
        result[at + offset : at + offset + len(values)] = values
        at = content.find(signature, at + 1)
    return bytes(result)


def zip_of_headers(header: str) -> bytes:
    """Return an .npz file whose arrays have this header, and no values."""
    text = header.encode().ljust(117) + b"\n"
    member = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", member)
    return stream.getvalue()


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
WITH_SHAPE = "{{'descr': '<f8', 'fortran_order': False, 'shape': ({},), }}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda whole: damaged(damaged(whole, 8, b"\1", CENTRAL), 6, b"\1", LOCAL), "encrypted"),
        (lambda whole: damaged(damaged(whole, 10, b"c", CENTRAL), 8, b"c", LOCAL), "compressed in another way"),
        (lambda _: zip_of_headers(WITH_SHAPE.format(10**15)), "not its size"),
        (lambda _: zip_of_headers(WITH_SHAPE.format(10**30)), "."),
        (lambda _: zip_of_headers("{'descr': '<f8', ("), "."),
        (lambda _: zip_of_headers("(" * 100), "."),
    ],
)
def test_whatever_the_readers_raise_is_one_line(tmp_path, change, words):
    setup, path = own(tmp_path, **arrays()), tmp_path / "own.npz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ConfigError, match=rf"not a readable \.npz file of plain arrays: .*{words}") as caught:
        datasets.load(setup)
    assert "\n" not in str(caught.value)


def test_a_member_that_is_no_array_is_refused(tmp_path):
    setup = own(tmp_path, **arrays(y_test=None))
    with zipfile.ZipFile(tmp_path / "own.npz", "a") as archive:
        archive.writestr("y_test", "012012")
    with pytest.raises(ConfigError, match="'y_test' is no array"):
        datasets.load(setup)


def test_what_unpacks_to_more_than_8_gb_is_refused_before_it_is_unpacked(tmp_path):
    setup, path = own(tmp_path, **arrays()), tmp_path / "own.npz"
    path.write_bytes(damaged(path.read_bytes(), 24, (3 * 10**9).to_bytes(4, "little"), CENTRAL))
    with pytest.raises(ConfigError, match=r"own\.npz' must be at most 8 GB, also when unpacked; got 12\.0 GB"):
        datasets.load(setup)


def test_a_file_of_more_than_8_gb_is_refused_before_it_is_read(tmp_path):
    setup = own(tmp_path, **arrays())
    with (tmp_path / "own.npz").open("r+b") as file:
        file.truncate(9 * 10**9)  # of nothing: no space is taken
    with pytest.raises(ConfigError, match=r"must be at most 8 GB, also when unpacked; got 9\.0 GB"):
        datasets.load(setup)


def test_a_path_that_leads_nowhere_is_refused_in_one_line(tmp_path):
    loop, pipe = tmp_path / "loop.npz", tmp_path / "pipe.npz"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    (tmp_path / "folder.npz").mkdir()
    for name in ("loop", "pipe", "folder", "nul\0", "two\nlines", "long" * 100):
        with pytest.raises(ConfigError, match=r"^`dataset`.*(there is no file|cannot be read)") as caught:
            datasets.load(Setup(dataset=str(tmp_path / f"{name}.npz")))
        assert not set(str(caught.value)) & set("\0\n")
    with pytest.raises(ConfigError, match=r"`dataset` '~nobody-of-this-name/x\.npz' cannot be read: .*home"):
        datasets.load(Setup(dataset="~nobody-of-this-name/x.npz"))


def floats(scale: float, **changed) -> dict:
    draw = np.random.default_rng(0)
    pictures = {f"x_{part}": scale * draw.uniform(-1, 1, (n, 6, 5)) for part, n in (("train", 12), ("test", 6))}
    return arrays(**pictures | changed)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (floats(1e308), r"`x_train` of .* cannot be standardized: .*from -9.*e\+307 to 9.*e\+307, are too far apart"),
        (floats(1e200), "`x_train` of .* too far apart or too close"),
        (floats(1e-200), "`x_train` of .* too far apart or too close"),
        (floats(1e-320), "`x_train` of .* too far apart or too close"),
        (floats(1e-160), "`x_train` of .* too far apart or too close"),  # std of squares with 3 digits
        (floats(1, x_test=np.full((6, 6, 5), 1e39)), "`x_test` of .* must be finite in float32; got infinity"),
        (floats(1, x_test=np.full((6, 6, 5), -1e39)), "`x_test` of .* must be finite in float32; got infinity"),
    ],
)
def test_values_that_cannot_be_standardized_are_refused(tmp_path, made, words):
    with pytest.raises(ConfigError, match=words) as caught:
        datasets.load(replace(own(tmp_path, **made), dtype="float32"))
    assert "\n" not in str(caught.value)


def test_pictures_that_are_all_equal_where_they_are_trained_on_are_refused(tmp_path):
    pictures = np.zeros((12, 6, 5))
    pictures[6:] = np.random.default_rng(0).uniform(size=(6, 6, 5))
    labels = np.repeat([0, 1], 6)
    setup = own(tmp_path, **arrays(x_train=pictures, x_test=pictures[6:], y_train=labels, y_test=labels[3:9]))
    assert datasets.load(setup).x_train.std(correction=0) == pytest.approx(1)
    pictures[6:] = 0
    pictures[0] = 1
    setup = own(tmp_path, **arrays(x_train=pictures, x_test=pictures[:6], y_train=labels, y_test=labels[3:9]))
    for seed in range(20):  # some of them do not draw the one picture that differs
        small = replace(setup, train_size=2, batch_size=2, sample_seed=seed)
        if 0 not in datasets._subset(small, labels):
            with pytest.raises(ConfigError, match=r"all standardized values .* are -0\.302 in float64.*`train_size`"):
                datasets.load(small)
            return
    raise AssertionError


@pytest.mark.parametrize(("scale", "dtype"), [(1e150, "float32"), (1e-150, "float32"), (1e30, "float64")])
def test_large_and_small_values_that_can_be_standardized_are(tmp_path, scale, dtype):
    data = datasets.load(replace(own(tmp_path, **floats(scale)), dtype=dtype))
    plain = datasets.load(replace(own(tmp_path, **floats(1)), dtype=dtype))
    assert data.x_train.numpy() == pytest.approx(plain.x_train.numpy(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("highest", [10**9, np.uint32(-1 % 2**32), np.uint64(2**64 - 1)])
def test_a_huge_label_is_refused_without_a_list_of_all_classes(tmp_path, highest):
    labels = (np.arange(12) % 3).astype(np.asarray(highest).dtype)
    labels[0] = highest
    setup = own(tmp_path, **arrays(y_train=labels))
    tracemalloc.start()
    with pytest.raises(ConfigError, match=rf"`y_train` must have every class from 0 to {highest} .*got 4 different"):
        datasets.load(setup)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10e6  # bytes


# ---------------------------------------------------------------- the digest of your own file


def test_the_digest_is_of_the_content_that_was_loaded(tmp_path):
    first = datasets.load(own(tmp_path, **floats(1)))
    path = tmp_path / "own.npz"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert first.digest == first.to("cpu").digest == sources.own_data_digest(str(path)) == digest
    own(tmp_path, **arrays())
    assert first.digest == digest
    assert datasets.load(Setup(dataset=str(path), batch_size=4)).digest == sources.own_data_digest(str(path)) != digest
    assert datasets.load(Setup()).digest is None


def test_new_content_is_read_though_name_size_and_time_are_the_same(tmp_path):
    made = arrays()
    setup, path = own(tmp_path, **made), tmp_path / "own.npz"
    before, first = path.stat(), datasets.load(setup)
    own(tmp_path, **made | {"x_train": made["x_train"][::-1]})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)
    second = datasets.load(setup)
    assert torch.equal(second.x_train, first.x_train.flip(0))
    assert second.digest != first.digest


def test_the_same_content_is_unpacked_once(tmp_path, monkeypatch):
    setup = own(tmp_path, **floats(1))
    first = datasets.load(setup)
    (tmp_path / "copy.npz").write_bytes((tmp_path / "own.npz").read_bytes())
    monkeypatch.setattr(sources, "_unpacked", None)
    assert torch.equal(datasets.load(replace(setup, dataset=str(tmp_path / "copy.npz"))).x_train, first.x_train)


def test_the_home_folder_and_links_are_followed_and_names_of_data_sets_have_no_digest(tmp_path, monkeypatch):
    own(tmp_path, **arrays())
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link.npz").symlink_to("own.npz")
    plain = sources.own_data_digest(str(tmp_path / "own.npz"))
    assert plain == sources.own_data_digest("~/own.npz") == sources.own_data_digest("~/link.npz")
    assert datasets.load(Setup(dataset="~/own.npz", batch_size=4)).digest == plain
    for name in (*DATASETS, "~/absent.npz", "nul\0.npz", "~nobody-of-this-name/x.npz"):
        assert sources.own_data_digest(name) is None


# ---------------------------------------------------------------- torchvision's data sets


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_DATA", str(tmp_path / "downloads"))
    monkeypatch.setenv("PERIODIC_OFFLINE", "1")
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
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

    sources.import_torchvision()
    import torchvision.datasets.cifar as module

    monkeypatch.setattr(module, "download_and_extract_archive", fail)
    with pytest.raises(ConfigError, match=r"cannot be read from .*downloads.*Reason: no route$"):
        datasets.load(Setup(dataset="cifar10"))


def test_torchvision_can_be_imported_twice_without_a_warning_and_only_on_request():
    code = (
        "import sys; from periodic_lib.engine import datasets, sources; assert 'torchvision' not in sys.modules; "
        "first, second = sources.import_torchvision(), sources.import_torchvision(); assert first is second; "
        "from torchvision.datasets import CIFAR10; print(CIFAR10.__name__)"
    )
    made = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (made.stdout.strip(), made.stderr) == ("CIFAR10", "")


def test_a_torchvision_that_is_absent_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what Python does not look for again
    with pytest.raises(ConfigError, match="needs torchvision: install it"):
        sources.import_torchvision()


def fake_cifar(folder, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """Write a tiny CIFAR-10 and make torchvision expect its checksums; return its pictures and labels."""
    cifar = sources.import_torchvision().datasets.CIFAR10
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
    cifar = sources.import_torchvision().datasets.CIFAR10
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
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "system")
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
    result = batches.augment(pictures, [3, 1, 3], step=5, black=BLACK)
    drawn = batches.draw_shifts([3, 1, 3], 5, 40)
    for run in range(3):
        for example in range(40):
            expected = one_by_one(pictures[run, example], *drawn[:, run, example])
            assert torch.equal(result[run, example], expected)


def test_no_shift_and_no_flip_is_the_picture_itself():
    pictures = some_pictures()
    drawn = torch.tensor([4, 4, 0])[:, None, None].expand(3, 3, 40)
    assert torch.equal(batches.shift_and_flip(pictures, drawn, BLACK), pictures)


def test_every_shift_up_to_4_pixels_is_found_as_often_flipped_as_not():
    pictures = some_pictures(runs=1, batch=2000)
    result = batches.augment(pictures, [0], step=0, black=BLACK)[0]
    found = {}
    for flip in (0, 1):
        for top in range(9):
            for left in range(9):
                same = batches.shift_and_flip(pictures, torch.tensor([top, left, flip])[:, None, None], BLACK)[0]
                found[top, left, flip] = int((same == result).flatten(1).all(1).sum())
    assert sum(found.values()) == 2000
    assert min(found.values()) > 0
    flipped = sum(count for (_, _, flip), count in found.items() if flip)
    assert flipped == pytest.approx(1000, abs=5 * 500**0.5)


def test_the_augmentation_of_a_run_depends_on_its_seed_and_the_step_alone():
    pictures = some_pictures(runs=1).expand(3, -1, -1, -1, -1)
    stacked = batches.augment(pictures, [1, 7, 1], step=9, black=BLACK)
    alone = batches.augment(pictures[:1], [7], step=9, black=BLACK)
    assert torch.equal(stacked[1], alone[0])
    assert torch.equal(stacked[0], stacked[2])
    assert not torch.equal(stacked[0], stacked[1])
    assert not torch.equal(batches.augment(pictures[:1], [7], step=10, black=BLACK), alone)


def test_what_comes_in_is_a_raw_black_pixel(tmp_path):
    made = arrays((6, 5, 3))
    made["x_train"][0] = 0
    data = datasets.load(own(tmp_path, **made))
    assert torch.equal(data.x_train[0, :, 0, 0], data.black)


def test_features_cannot_be_augmented(tmp_path):
    own(tmp_path, **arrays((7,)))
    with pytest.raises(ConfigError, match="`augment` needs pictures"):
        datasets.load(Setup(dataset=str(tmp_path / "own.npz"), batch_size=4, augment=True))


def test_jpeg_is_one_encoding_and_the_better_the_closer():
    plain = datasets.load(Setup(dtype="float64")).x_train
    far = {quality: datasets.load(Setup(dtype="float64", jpeg=quality)).x_train for quality in (100, 50, 10)}
    distance = {quality: float((x - plain).square().mean()) for quality, x in far.items()}
    assert 0 < distance[100] < 0.01 < distance[50] < distance[10] < 0.5


def test_jpeg_keeps_channels_apart_and_refuses_features(tmp_path):
    colours = np.zeros((20, 16, 16, 3), np.uint8)
    colours[::2, ..., 0], colours[1::2, ..., 2] = 200, 200  # red, blue
    labels = np.arange(20) % 2
    np.savez(tmp_path / "colours.npz", x_train=colours, y_train=labels, x_test=colours, y_test=labels)
    data = sources.read(str(tmp_path / "colours.npz"))[0]
    encoded = datasets._jpeg(Setup(dataset=str(tmp_path / "colours.npz"), jpeg=95), data).x_train
    assert np.abs(encoded.astype(int) - colours.transpose(0, 3, 1, 2)).max() < 8
    with pytest.raises(ConfigError, match="`jpeg` needs pictures of 1 or 3 channels"):
        datasets.load(Setup(dataset="breast_cancer", jpeg=90))
    with pytest.raises(ConfigError, match="`jpeg` must be a quality from 1 to 100"):
        Setup(jpeg=101)


def test_fresh_noise_is_as_much_as_asked_uniform_and_another_at_every_step():
    labels = torch.arange(6000).remainder(5).expand(2, -1)
    noisy = with_fresh_noise(labels, [3, 4], step=0, fraction=0.3, classes=5)
    assert ((noisy != labels).float().mean(dim=1) - 0.3).abs().max() < 0.03
    moved = (noisy - labels).remainder(5).flatten().bincount()
    assert (moved[1:] / moved[1:].sum() - 1 / 4).abs().max() < 0.03
    assert not torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy, with_fresh_noise(labels, [3, 4], step=1, fraction=0.3, classes=5))
    alone = with_fresh_noise(labels[:1], [4], step=0, fraction=0.3, classes=5)  # whatever its neighbours
    assert torch.equal(noisy[1:], alone)
    assert torch.equal(with_fresh_noise(labels, [3, 4], step=0, fraction=0, classes=5), labels)
