"""The adapters: in Lightning's and Hugging Face's trainers the monitor sees what it sees in a plain loop."""

import copy
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plain_networks import PlainMLP
from torch import nn

from periodic_lib.engine.sources import import_torchvision
from periodic_lib.monitor import Monitor, adapters
from periodic_lib.project import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")  # of the two libraries
GROUPS = [[f"net.hidden{i}.weight"] for i in range(3)]
BATCH, ACCUMULATE, CLIP, STEPS = 16, 4, 0.5, 12
COMPARED = ["train_loss", "weight_norm", "grad_norm", "angular_update", "elr", "radial_cosine", "group_grad_norm"]


def library(name: str):
    """Import a library of the adapters, or skip the test and say so."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install periodic-lib[{name}]")
    import_torchvision()  # both look for torchvision's operators
    return pytest.importorskip({"lightning": "lightning.pytorch"}.get(name, name))


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = PlainMLP((1, 8, 8), 8, affine=True)

    def forward(self, x, labels=None):
        outputs = self.net(x)
        return {"loss": nn.functional.cross_entropy(outputs, labels), "logits": outputs}


def optimizer_of(model):
    named = dict(model.named_parameters())
    hidden = [named[name] for (name,) in GROUPS]
    rest = [p for name, p in named.items() if [name] not in GROUPS]
    parts = [{"params": hidden, "weight_decay": 1e-2}, {"params": rest, "weight_decay": 0.0, "lr": 0.05}]
    return torch.optim.SGD(parts, lr=0.1)


def examples(steps=STEPS):
    chance = torch.Generator().manual_seed(1)
    number = steps * BATCH * ACCUMULATE
    x, y = torch.randn(number, 1, 8, 8, generator=chance), torch.randint(10, (number,), generator=chance)
    return [{"x": one, "labels": label} for one, label in zip(x, y, strict=True)]


def loader(start=0):
    """Batches from step `start` on, then those before: as long as ever."""
    first = start * BATCH * ACCUMULATE
    return torch.utils.data.DataLoader(examples()[first:] + examples()[:first], batch_size=BATCH)


@pytest.fixture(scope="module")
def plain():
    model = Watched()
    optimizer = optimizer_of(model)
    monitor = Monitor(model, optimizer, groups=GROUPS)
    for i, batch in enumerate(loader()):
        loss = model(**batch)["loss"]
        (loss / ACCUMULATE).backward()
        monitor.loss = loss
        if (i + 1) % ACCUMULATE == 0:
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    return monitor.results


def same(found, expected):
    assert found.sizes == expected.sizes
    for name in COMPARED:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-9, err_msg=name)


def lightning_fit(folder, callback, steps, checkpoint=None, start=0):
    lightning = library("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Watched().net

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch["x"]), batch["labels"])

        def configure_optimizers(self):
            return optimizer_of(self)

    trainer = lightning.Trainer(
        max_steps=steps,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=CLIP,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Module(), loader(start), ckpt_path=checkpoint)
    return trainer


def test_lightning_sees_what_a_plain_loop_sees(plain, tmp_path):
    library("lightning")
    callback = Monitor.lightning(groups=GROUPS)
    lightning_fit(tmp_path, callback, STEPS)
    assert callback.monitor.failure is None
    assert callback.monitor.total_steps == STEPS
    same(callback.monitor.results, plain)


def test_lightning_resumes(plain, tmp_path):
    library("lightning")
    path = tmp_path / "half.ckpt"
    lightning_fit(tmp_path, Monitor.lightning(groups=GROUPS), 5).save_checkpoint(path)
    callback = Monitor.lightning(groups=GROUPS)
    lightning_fit(tmp_path, callback, STEPS, checkpoint=path, start=5)  # it begins its data anew
    same(callback.monitor.results, plain)


def huggingface_fit(folder, callback, steps, resume=False):
    transformers = library("transformers")

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self):
            return self.accelerator.prepare(loader())

    options = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATE,
        max_grad_norm=CLIP,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=5,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model = Watched()
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = Trainer(model, options, train_dataset=examples(), callbacks=[callback], optimizers=(optimizer, schedule))
    trainer.train(resume_from_checkpoint=resume or None)


def test_huggingface_sees_what_a_plain_loop_sees(plain, tmp_path):
    library("transformers")
    callback = Monitor.huggingface(groups=GROUPS)
    huggingface_fit(tmp_path, callback, STEPS)
    assert callback.monitor.failure is None
    assert callback.monitor.total_steps == STEPS
    same(callback.monitor.results, plain)


def test_huggingface_resumes(plain, tmp_path):
    library("transformers")
    huggingface_fit(tmp_path, Monitor.huggingface(groups=GROUPS), 5)
    callback = Monitor.huggingface(groups=GROUPS)
    huggingface_fit(tmp_path, callback, STEPS, resume=True)
    same(callback.monitor.results, plain)


@pytest.mark.parametrize(("name", "fit"), [("lightning", lightning_fit), ("huggingface", huggingface_fit)])
def test_first_batch_and_faults(name, fit, tmp_path, monkeypatch):
    library("lightning" if name == "lightning" else "transformers")
    seen = []

    def refuse(model, example, seconds):
        seen.append(example)
        raise ValueError("no probe today")

    monkeypatch.setattr(Monitor, "find_groups", refuse)
    callback = getattr(Monitor, name)(example="first batch")
    with pytest.warns(RuntimeWarning, match="the training goes on. no probe today"):
        fit(tmp_path, callback, 2)
    assert len(seen) == 1
    assert seen[0]["x"].shape == (BATCH, 1, 8, 8)
    assert "labels" not in seen[0]


@pytest.mark.parametrize(("name", "fit"), [("lightning", lightning_fit), ("huggingface", huggingface_fit)])
def test_a_probe_may_copy_and_call_the_model(name, fit, plain, tmp_path, monkeypatch):
    library("lightning" if name == "lightning" else "transformers")

    def probe(model, example, seconds):
        twin = copy.deepcopy(model)
        twin.net(example["x"])
        if name == "huggingface":
            twin(**example, labels=torch.zeros(BATCH, dtype=torch.long))
        return SimpleNamespace(groups=[SimpleNamespace(names=tuple(group), fails_below=None) for group in GROUPS])

    monkeypatch.setattr(Monitor, "find_groups", probe)
    callback = getattr(Monitor, name)(example="first batch")
    fit(tmp_path, callback, STEPS)
    assert callback.monitor.failure is None
    same(callback.monitor.results, plain)


def test_messages():
    with pytest.raises(ConfigError, match="needs the package 'lightning', which is not installed"):
        adapters._imported("no_such_library", "lightning")
    with pytest.raises(ConfigError, match="Write example='first batch' to probe"):
        adapters._Carrier(Monitor, {})
