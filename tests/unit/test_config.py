import numpy as np
import pytest

from periodic_lib.config import ConfigError, Record, Run, Setup, grid
from periodic_lib.project import root

BAD = [  # what is made, what the message must say
    (lambda: Setup(dataset="mnist"), ["`dataset`", "'digits'", "'mnist'"]),
    (lambda: Setup(dataset=3), ["`dataset`", ".npz", "3"]),
    (lambda: Setup(network="resnet"), ["`network`", "'mlp'", "'resnet18'", "'resnet'"]),
    (lambda: Setup(optimizer="lion"), ["`optimizer`", "'sgd'", "'adamw'", "'lion'"]),
    (lambda: Setup(matmul="half"), ["`matmul`", "'tf32'", "'half'"]),
    (lambda: Setup(label_noise=1), ["`label_noise`", "below 1", "1"]),
    (lambda: Setup(train_size=0), ["`train_size`", "at least 1", "0"]),
    (lambda: Setup(fixed_norm=-1), ["`fixed_norm`", "positive", "-1"]),
    (lambda: Setup(fixed_norm_scope="neuron"), ["`fixed_norm_scope`", "'total', 'layer'", "'neuron'"]),
    (lambda: Setup(normalization="batch"), ["`normalization`", "'rmsnorm'", "'batch'"]),
    (lambda: Run(lr=1, weight_decay=0, schedule="exponential"), ["`schedule`", "'cosine'", "'exponential'"]),
    (lambda: Run(lr=1, weight_decay=0, beta2=1), ["`beta2`", "below 1", "1"]),
    (lambda: Run(lr=1, weight_decay=0, warmup=-1), ["`warmup`", "-1"]),
    (lambda: Run(lr=1, weight_decay=0, decay_factor=0.5), ["`decay_factor`", "from 1", "0.5"]),
    (lambda: Run(lr=1, weight_decay=0, others_lr=-1), ["`others_lr`", "from 0", "-1"]),
    (lambda: Record(snapshot_every=0), ["`snapshot_every`", "at least 1", "0"]),
    (lambda: Setup(test_on_rest="yes"), ["`test_on_rest`", "true or false", "'yes'"]),
    (lambda: Record(curvature_every=0), ["`curvature_every`", "at least 1", "0"]),
    (lambda: Setup(dtype="float16"), ["`dtype`", "'float32'", "'float64'", "'float16'"]),
    (lambda: Setup(steps=0), ["`steps`", "at least 1", "0"]),
    (lambda: Setup(steps=2.5), ["`steps`", "whole number", "2.5"]),
    (lambda: Setup(steps="many"), ["`steps`", "'many'"]),
    (lambda: Setup(steps=float("inf")), ["`steps`", "inf"]),
    (lambda: Setup(batch_size=1), ["`batch_size`", "at least 2", "1"]),
    (lambda: Setup(width=-3), ["`width`", "-3"]),
    (lambda: Setup(depth=0), ["`depth`", "0"]),
    (lambda: Setup(last_layer_norm=0), ["`last_layer_norm`", "positive", "0"]),
    (lambda: Setup(bn_eps=-1e-5), ["`bn_eps`", "-1e-05"]),
    (lambda: Setup(drop_last="yes"), ["`drop_last`", "true or false", "'yes'"]),
    (lambda: Run(lr=0, weight_decay=0), ["`lr`", "positive", "0"]),
    (lambda: Run(lr=-0.1, weight_decay=0), ["`lr`", "positive", "-0.1"]),
    (lambda: Run(lr="fast", weight_decay=0), ["`lr`", "positive number", "'fast'"]),
    (lambda: Run(lr=True, weight_decay=0), ["`lr`", "True"]),
    (lambda: Run(lr=float("nan"), weight_decay=0), ["`lr`", "nan"]),
    (lambda: Run(lr=0.1, weight_decay=-1e-3), ["`weight_decay`", "from 0", "-0.001"]),
    (lambda: Run(lr=10, weight_decay=0.1), ["`lr` * `weight_decay`", "below 1", "10", "0.1"]),
    (lambda: Run(lr=0.1, weight_decay=0, momentum=1), ["`momentum`", "below 1", "1"]),
    (lambda: Run(lr=0.1, weight_decay=0, init_seed=-1), ["`init_seed`", "-1"]),
    (lambda: Run(lr=0.1, weight_decay=0, init_scale=0), ["`init_scale`", "positive", "0"]),
    (lambda: Record(every=0), ["`every`", "at least 1", "0"]),
    (lambda: Record(unit="hour"), ["`unit`", "'step'", "'epoch'", "'hour'"]),
    (lambda: Record(evaluate_every=-1), ["`evaluate_every`", "-1"]),
    (lambda: grid(lr=[], weight_decay=0), ["empty", "`lr`"]),
    (lambda: grid(lr=0.1), ["`weight_decay`", "none"]),
    (lambda: grid(lr=0.1, weight_decay=0, wd=1), ["'wd'", "weight_decay"]),
    (lambda: grid(lr=0.1, weight_decays=0), ["'weight_decays'", "Did you mean 'weight_decay'"]),
    (lambda: grid(lr=0.1, weight_decay=0, seed=0, init_seed=0), ["`seed`", "not both"]),
]


@pytest.mark.parametrize(("make", "words"), BAD)
def test_an_error_names_the_parameter_the_legal_values_and_what_came(make, words):
    with pytest.raises(ConfigError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_numbers_may_come_as_text_or_numpy_scalars():
    run = Run(lr="1e-3", weight_decay=np.float32(0.5), init_seed=np.int64(3))
    assert (run.lr, run.weight_decay, run.init_seed) == (1e-3, 0.5, 3)
    assert type(run.init_seed) is int
    assert Setup(steps="2e4", batch_size=np.int32(64)).steps == 20_000


def test_none_means_absent():
    setup = Setup(batch_size=None, depth=None, last_layer_norm=None)
    assert (setup.batch_size, setup.depth, setup.last_layer_norm) == (None, None, None)


def test_settings_survive_a_dictionary():
    setup = Setup(width=8, depth=2, dtype="float64")
    assert Setup(**setup.to_dict()) == setup


def test_grid_is_the_product_in_order_with_the_last_name_fastest():
    runs = grid(weight_decay=[0, 1e-3], lr=(0.1, 0.2), seed=range(2))
    assert [(r.weight_decay, r.lr, r.init_seed, r.data_seed) for r in runs[:3]] == [
        (0, 0.1, 0, 0),
        (0, 0.1, 1, 1),
        (0, 0.2, 0, 0),
    ]
    assert len(runs) == 8


def test_root_is_found_upwards_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "experiments.yml").write_text("{}")
    (tmp_path / "deep" / "down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "down")
    assert root() == tmp_path
