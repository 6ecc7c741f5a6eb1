import os
import textwrap
import threading
import time

import numpy as np
import pytest

from periodic_lib import Setup, experiments, fingerprints, grid, results, train
from periodic_lib import project as project_module
from periodic_lib.experiments import declared, keep, kept, plan, run_experiment, run_variants, state
from periodic_lib.fingerprints import bare_source, code_digest
from periodic_lib.project import ConfigError
from periodic_lib.storage import store

FILE = """
    small:
      chapter: 01_scale_invariance
      question: Is it
        small?
      setup: {width: 8, depth: 1, steps: 1e1}
      profiles:
        smoke:
          grid: {lr: [1e-1, 0.3], weight_decay: 1e-2, seed: [0, 1]}
          record: {evaluate_every: 5}
        classroom:
          setup: {steps: 20}
          grid:
            - {lr: 0.1, weight_decay: 1e-2}
            - {lr: 0.3, weight_decay: 0}
"""


@pytest.fixture
def project(project_of):
    return project_of(FILE)


def declare(project, text):
    (project / "book" / "experiments.yml").write_text(textwrap.dedent(text))


def test_a_profile_adds_to_what_is_shared(project):
    smoke, classroom = plan("small", "smoke"), plan("small")
    assert (smoke.setup.steps, classroom.setup.steps, classroom.setup.width) == (10, 20, 8)
    assert [run.lr for run in smoke.runs] == [0.1, 0.1, 0.3, 0.3]
    assert [(run.lr, run.weight_decay) for run in classroom.runs] == [(0.1, 0.01), (0.3, 0.0)]
    assert smoke.question == "Is it small?"
    assert smoke.record.evaluate_every == 5


def test_overrides_replace_declared_values_of_any_kind(project):
    changed = plan("small", "smoke", {"lr": ["1e-3"], "steps": 7, "every": 2, "init_seed": 5})
    assert [(run.lr, run.init_seed, run.data_seed) for run in changed.runs] == [(1e-3, 5, 0)]
    assert (changed.setup.steps, changed.record.every) == (7, 2)
    assert plan("small", "smoke", {"seed": [4]}).runs[0].data_seed == 4
    assert plan("small", overrides={"lr": 0.2}).runs[0].lr == 0.2


def test_overridden_results_have_a_place_of_their_own(project):
    assert plan("small", "smoke").path.name == "smoke.nc"
    changed = plan("small", "smoke", {"steps": 7}).path
    assert changed != plan("small", "smoke", {"steps": 8}).path
    assert changed == plan("small", "smoke", {"steps": "7"}).path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("smal",), ["unknown experiment 'smal'", "small", "Did you mean"]),
        (("small", "paper"), ["`profile`", "'smoke', 'classroom'", "'paper'"]),
        (("small", "smoke", {"lrs": 1}), ["unknown parameter 'lrs'", "weight_decay"]),
        (("small", "smoke", {"lr": []}), ["empty", "`lr`"]),
        (("small", "smoke", {"lr": "fast"}), ["`lr`", "'fast'"]),
    ],
)
def test_bad_requests_are_refused_before_anything_is_computed(project, arguments, words):
    with pytest.raises(ConfigError) as caught:
        run_experiment(*arguments[:2], overrides=dict(*arguments[2:]))
    assert all(word in str(caught.value) for word in words)
    assert not (project / "cache").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("small:\n  setup: {width: 8\n  grid: 3\n", ["line 3"]),
        ("a:\n  profiles: {}\nb: 2\na: 3\n", ["line 4", "'a' is given twice"]),
        ("- just\n- a list\n", ["line 1", "mapping"]),
        ("small: {setup: {}}\n", ["'small'", "`profiles`"]),
        ("small: {profile: {}, profiles: {}}\n", ["unknown key", "'profile'", "profiles"]),
        ("small: {profiles: {huge: {}}}\n", ["unknown profile", "'huge'", "smoke"]),
        ("small: {profiles: {smoke: {step: 3}}}\n", ["unknown key", "'step'"]),
        ("small: {profiles: {smoke: {setup: {widht: 3}}}}\n", ["'widht'", "Did you mean 'width'"]),
    ],
)
def test_an_unreadable_declaration_says_where(project, text, words):
    declare(project, text)
    with pytest.raises(ConfigError) as caught:
        plan("small", "smoke")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_missing_declaration_is_one_line(project):
    (project / "book" / "experiments.yml").unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        plan("small")


def test_a_result_is_made_once_and_then_loaded(project):
    assert state(plan("small", "smoke")) == ("not made", None)
    first = run_experiment("small", "smoke", progress=False)
    assert state(plan("small", "smoke"))[0] == "ready"
    second = run_experiment("small", "smoke", progress=False)
    assert second.identical(first)  # the time of making too: it was not made again
    forced = run_experiment("small", "smoke", force=True, progress=False)
    assert forced.attrs["created"] >= first.attrs["created"]
    assert (forced.train_loss.values == first.train_loss.values).all()


def test_a_result_of_other_code_or_settings_is_made_again(project, monkeypatch, capsys):
    first = run_experiment("small", "smoke", progress=False)
    monkeypatch.setattr(fingerprints, "code_digest", lambda: "changed")
    assert state(plan("small", "smoke"))[0] == "out of date"
    again = run_experiment("small", "smoke", progress=False)
    assert again.attrs["code"] == "changed" != first.attrs["code"]
    assert "training code has changed" in capsys.readouterr().err
    declare(project, FILE.replace("steps: 1e1", "steps: 12"))
    assert run_experiment("small", "smoke", progress=False).sizes["step"] == 12
    assert "other settings" in capsys.readouterr().err


def test_who_finds_a_result_being_made_waits_and_reads_it(project, capsys):
    """Two at once: one trains, the other waits, then loads."""
    todo, found = plan("small", "smoke"), []

    def ask():
        found.append(run_experiment("small", "smoke", progress=False))

    with store.claimed(todo.keys):
        other = threading.Thread(target=ask)
        other.start()
        while "waiting" not in capsys.readouterr().err:
            time.sleep(0.01)
        made = experiments._train(todo, progress=False, budget=None)
    other.join()
    assert found[0].identical(made)  # the time of making, too


def test_shifted_seeds_are_other_runs_with_other_results(project, monkeypatch):
    plain = plan("small", "smoke")
    monkeypatch.setenv("PERIODIC_SEED_SHIFT", "100")
    shifted = plan("small", "smoke")
    assert [run.init_seed for run in shifted.runs] == [run.init_seed + 100 for run in plain.runs]
    assert [run.data_seed for run in shifted.runs] == [run.data_seed + 100 for run in plain.runs]
    assert shifted.settings != plain.settings
    monkeypatch.setenv("PERIODIC_SEED_SHIFT", "many")
    with pytest.raises(ConfigError, match="PERIODIC_SEED_SHIFT"):
        plan("small", "smoke")


def test_a_damaged_result_is_set_aside_and_made_again(project, capsys):
    first = run_experiment("small", "smoke", progress=False)
    path = plan("small", "smoke").path
    path.write_bytes(path.read_bytes()[:1000])
    assert state(plan("small", "smoke"))[0] == "damaged"
    again = run_experiment("small", "smoke", progress=False)
    assert (again.train_loss.values == first.train_loss.values).all()
    assert "Set aside as smoke.nc.damaged-" in capsys.readouterr().err
    assert len(list(path.parent.glob("*.damaged-*"))) == 1
    assert results.load(path).identical(again)


def test_the_code_digest_ignores_comments_and_sees_code(tmp_path):
    source = 'def f(x):\n    """Double."""\n    return 2 * x  # twice\n'
    better = '"""A module."""\n\n\ndef f(x):\n    """Return twice x."""\n    return 2 * x\n'
    assert bare_source(source) == bare_source(better)
    assert bare_source(source) != bare_source(source.replace("2 *", "3 *"))
    assert bare_source("x = '#'  # c") == "x = '#'"
    assert len(code_digest()) == 64


# ---------------------------------------------------------------- one value of the setup changed at a time


VARIED = FILE.replace(
    "      profiles:\n        smoke:\n",
    "      vary: {width: [4, 16], label_noise: [2e-1]}\n      profiles:\n        smoke:\n          setup: {steps: 2}\n"
    "          vary: {width: [4]}\n",
)


def test_each_varied_value_makes_an_experiment(project):
    declare(project, VARIED)
    assert list(declared()) == ["small", "small_width_4", "small_width_16", "small_label_noise_2e-1"]
    assert declared()["small_width_4"]["part_of"] == ("small", "width", 4)
    narrow, noisy = plan("small_width_4"), plan("small_label_noise_2e-1")
    assert (plan("small").setup.width, narrow.setup.width, noisy.setup.width) == (8, 4, 8)
    assert (narrow.setup.label_noise, noisy.setup.label_noise, narrow.setup.steps) == (0, 0.2, 20)
    assert narrow.runs == plan("small").runs
    with pytest.raises(ConfigError, match="`profile` must be one of 'classroom'"):
        plan("small_width_16", "smoke")


def test_variants_are_run_beside_the_unchanged_setup(project):
    declare(project, VARIED)
    found = run_variants("small", "smoke", overrides={"lr": 0.2}, progress=False)
    assert list(found) == [("width", 8), ("width", 4)]
    assert [results.setup_of(data).width for data in found.values()] == [8, 4]
    assert all((data.lr == 0.2).all() and data.sizes["step"] == 2 for data in found.values())
    assert ("label_noise", 0.2) in run_variants("small", progress=False)


def test_variants_that_cannot_be_meant_are_refused(project):
    with pytest.raises(ConfigError, match="'small' varies nothing at profile 'classroom'"):
        run_variants("small")
    declare(project, VARIED)
    with pytest.raises(ConfigError, match="`width` is varied by experiment 'small': it cannot be overridden"):
        run_variants("small", "smoke", overrides={"width": 2})


# ---------------------------------------------------------------- long runs


@pytest.fixture
def pictures(tmp_path):
    """Pictures of CIFAR-10's shape, drawn at random."""
    rng, path = np.random.default_rng(0), tmp_path / "pictures.npz"
    labels = np.arange(64) % 10
    arrays = {f"x_{part}": rng.integers(0, 256, (64, 32, 32, 3), np.uint8) for part in ("train", "test")}
    np.savez(path, y_train=labels, y_test=labels, **arrays)
    return str(path)


PAPER = [name for name, entry in declared().items() if "paper" in entry["profiles"]]
OF_PAPER = {("cifar10", "convnet"), ("cifar10", "resnet18"), ("fashion_mnist", "mlp")}
LARGE = 8  # runs; of a larger grid one learning rate is rehearsed


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_profile_is_rehearsed_for_two_steps(name, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("PERIODIC_CACHE", str(tmp_path))
    asked = plan(name, "paper")
    width = asked.setup.width
    assert (asked.setup.dataset, asked.setup.network) in OF_PAPER
    usual = 64 if asked.setup.network == "mlp" else 32
    if name.startswith("small_cifar"):  # the small laboratory
        assert width == 16
    else:
        assert width == usual or declared()[name]["part_of"][1:] == ("width", width)
    changes = dict.fromkeys(["evaluate_every", "curvature_every", "snapshot_every", "train_size"])
    changes |= {"dataset": pictures, "steps": 2, "batch_size": asked.setup.batch_size and 8}
    if len(asked.runs) > LARGE:
        changes["lr"] = max(run.lr for run in asked.runs)
    done = run_experiment(name, "paper", overrides=changes, progress=False)
    assert done.sizes["step"] >= 1
    assert np.isfinite(done.train_loss).all()
    initial_norm = {"convnet": 12.65, "resnet18": 28.0, "mlp": 8.0}[asked.setup.network] * np.sqrt(width / usual)
    initial_norm *= float(done.init_scale[0])
    assert float(done.weight_norm[0, 0]) == pytest.approx(initial_norm, rel=0.01) or asked.setup.fixed_norm


def test_a_result_is_kept_with_another_copy_of_the_data_only(project):
    with pytest.raises(ConfigError, match="only a declared result is kept"):
        keep(None, plan("small", "smoke", {"steps": 3}))
    assert kept("small", "smoke") is None
    dataset = run_experiment("small", "smoke", progress=False)
    path = keep(dataset, plan("small", "smoke"))
    assert path == project / "data" / "results" / "smoke" / "small.nc"
    assert (kept("small", "smoke").train_loss == dataset.train_loss).all()
    declare(project, FILE.replace("steps: 1e1", "steps: 12"))
    with pytest.raises(results.ResultsError, match="other settings than are declared"):
        kept("small", "smoke")


def test_with_shifted_seeds_a_kept_result_is_found_and_none_is_kept(project, monkeypatch):
    dataset = run_experiment("small", "smoke", progress=False)
    keep(dataset, plan("small", "smoke"))
    monkeypatch.setenv("PERIODIC_SEED_SHIFT", "100")
    assert (kept("small", "smoke").init_seed == dataset.init_seed).all()
    with pytest.raises(ConfigError, match="unset PERIODIC_SEED_SHIFT, which is 100"):
        keep(dataset, plan("small", "smoke"))


def test_of_networks_what_they_are_worth_is_kept(project):
    declare(project, FILE.replace("evaluate_every: 5", "evaluate_every: 5, snapshot_every: 2"))
    dataset = run_experiment("small", "smoke", progress=False)
    assert "test_logits" in dataset
    keep(dataset, plan("small", "smoke"))
    assert "test_logits" not in kept("small", "smoke")
    assert "ensemble" in kept("small", "smoke")


def test_a_budget_needs_a_place_for_the_state():
    with pytest.raises(ConfigError, match="`budget` needs `resume`"):
        train(Setup(steps=3), grid(lr=0.1, weight_decay=0), budget=3)


def test_waiting_for_another_process_is_progress_and_not_part_of_a_page(project, monkeypatch, capsys, tmp_path):
    todo, progress = plan("small", "smoke"), tmp_path / "progress"
    monkeypatch.setenv("PERIODIC_PROGRESS", str(progress))
    held = threading.Event()

    def hold():
        with store.claimed(todo.keys):
            held.set()
            time.sleep(0.5)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    with store.claimed(todo.keys, "small (smoke)"):
        pass
    other.join()
    assert f"small (smoke) is being made by process {os.getpid()} on" in progress.read_text()
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("PERIODIC_PROGRESS")
    project_module.print_progress("waiting")
    assert capsys.readouterr().err == "periodic: waiting\n"
