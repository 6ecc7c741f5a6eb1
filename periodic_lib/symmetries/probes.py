"""A private copy of a model that can be scaled, run and differentiated without the model noticing.

The copy is of double precision on the CPU. Its weights are perturbed, for at the start zeros and
ones make tensors look invariant that are not; dropout is off and other chance is frozen;
normalization layers use the statistics of the batch, as in training; their epsilons are tiny, on
request, also where they are no attribute but written into the code.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
import re
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from periodic_lib.project import ConfigError

TINY = 1e-14  # of the variance: an epsilon that double precision hardly sees
SPREAD = 0.25  # of the perturbation, relative to a tensor's root mean square
SMALL = 1e-3  # root mean square below which a tensor counts as not yet grown: it is set to 0.1
EPSILON = re.compile(r"(^|_)(eps|epsilon)$")  # names of attributes
EPSILON_PLACE = {  # compiled functions with an epsilon -> its place among the arguments
    torch.layer_norm: 4,
    torch.group_norm: 4,
    torch.batch_norm: 7,
    torch.instance_norm: 7,
    torch.rms_norm: 3,
    torch.cosine_similarity: 3,
}
WITH_EPSILON = {  # functions in Python with an epsilon
    getattr(functional, name): inspect.signature(getattr(functional, name))
    for name in dir(functional)
    if name.endswith("_norm") or name == "normalize"
}
SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__", "clamp", "clamp_min", "clip", "clamp_"}
DROPPING = {
    getattr(owner, name)
    for owner in (functional, torch)
    for name in dir(owner)
    if re.fullmatch(r"(feature_)?(alpha_)?dropout([123]d)?", name)
}
LOW = {torch.float32, torch.float16, torch.bfloat16}
HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs"))]


class NotRunError(ConfigError):
    """A copy of a model does not run on the example."""


class Precise(TorchFunctionMode):
    """Run PyTorch's functions in one precision, without dropout, and with tiny epsilons if asked.

    `order` has the parameters (by `id`) in the order of their last use.
    """

    def __init__(self, dtype: torch.dtype, tiny: bool, known: set[int]):
        super().__init__()
        self.dtype, self.tiny, self.known, self.order = dtype, tiny, known, {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self._note(args)
        if func in DROPPING:
            return args[0] if args else kwargs["input"]
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            return args[0].to(self.dtype)
        args = [self.dtype if _is_low(value) else value for value in args]
        kwargs = {k: self.dtype if _is_low(v) else v for k, v in (kwargs or {}).items()}
        if "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        if self.tiny:
            _shrink(func, args, kwargs)
        return func(*args, **kwargs)

    def _note(self, values) -> None:
        """Note which parameters are among the arguments."""
        for value in values:
            if isinstance(value, (list, tuple)):
                self._note(value)
            elif id(value) in self.known:
                self.order.pop(id(value), None)
                self.order[id(value)] = None


def _is_low(value: object) -> bool:
    """Whether an argument asks for single or half precision."""
    return isinstance(value, torch.dtype) and value in LOW


def _shrink(func, args: list, kwargs: dict) -> None:
    """Make an epsilon among the arguments of a function tiny, in place."""
    place = EPSILON_PLACE.get(func)
    if func in WITH_EPSILON:
        names = list(WITH_EPSILON[func].parameters)
        place = names.index("eps")
        if len(args) <= place:
            kwargs["eps"] = TINY
    if place is not None and len(args) > place:
        args[place] = TINY
    if "eps" in kwargs:
        kwargs["eps"] = TINY
    if getattr(func, "__name__", "") in SUMS:
        args[1:] = [TINY if _is_epsilon(value) else value for value in args[1:]]
        kwargs.update({k: TINY for k, v in kwargs.items() if k != "alpha" and _is_epsilon(v)})


def _is_epsilon(value: object, largest: float = 1e-3) -> bool:
    """Whether a number is positive and so small that it only keeps something from being 0."""
    return isinstance(value, float) and 0 < value <= largest


class Probe:
    """A private copy of `model` to scale, run and differentiate.

    `names`: the names of each trainable tensor, more than one where it is shared; `norms`: of the
    model's weights.

    Raises
    ------
    ConfigError : if the model cannot be copied, or is not one that can be scaled tensor by tensor.
    """

    def __init__(self, model: nn.Module, example: object, dtype: torch.dtype = torch.float64):
        self.dtype = dtype
        original = unwrapped(model)
        refuse(original)
        names: dict[int, list[str]] = {}
        for name, value in original.named_parameters(remove_duplicate=False):
            names.setdefault(id(value), []).append(name)
        self.model = copied(original, dtype)
        self.example = _converted(example, dtype)
        own = dict(self.model.named_parameters())
        trained = [(k, v) for k, v in original.named_parameters() if v.requires_grad]
        self.names = [tuple(names[id(value)]) for _, value in trained]
        self.tensors = [own[name] for name, _ in trained]
        if not trained:
            raise ConfigError("`model` has no parameter that is trained (requires_grad is False).")
        self.frozen = len(names) - len(trained)
        self.start = [value.detach().clone() for value in self.tensors]
        self.norms = np.array([float(value.norm()) for value in self.start])
        self.sizes = np.array([value.numel() for value in self.start])
        self.buffers = [(value, value.clone()) for value in self.model.buffers()]
        self.order = np.zeros(len(trained))
        _prepare(self.model)
        self.perturb(0)

    def perturb(self, seed: int) -> None:
        """Set the weights to the model's with noise, each tensor with the norm that it has.

        A tensor that is nearly 0 is given a root mean square of 0.1.
        """
        chance = torch.Generator().manual_seed(seed)
        self.weights = []
        for value in self.start:
            noise = torch.randn(value.shape, generator=chance).to(value)
            norm, size = float(value.norm()), value.numel() ** 0.5
            small = norm < SMALL * size
            moved = noise.mul_(0.1 if small else SPREAD * norm / size).add_(value)
            self.weights.append(moved if small else moved.mul_(norm / float(moved.norm())))
        self.scales = np.full(len(self.start), np.nan)  # of what the tensors hold

    def run(
        self, powers: np.ndarray | None = None, factor: float = 2.0, tiny: bool = True
    ) -> torch.Tensor:
        """Return the outputs, flat, with every tensor scaled by factor ** power.

        `tiny`: with tiny epsilons; else with the model's own.

        Raises
        ------
        ConfigError : if the copy does not run, or its outputs are not finite.
        """
        scales = np.ones(len(self.weights)) if powers is None else factor**powers
        with torch.no_grad():
            for place in np.flatnonzero(scales != self.scales):
                torch.mul(self.weights[place], float(scales[place]), out=self.tensors[place].data)
            for buffer, value in self.buffers:
                buffer.copy_(value)
        self.scales = scales
        mode = Precise(self.dtype, tiny, {id(tensor) for tensor in self.tensors})
        try:
            with undisturbed(self.dtype), tiny_epsilons(self.model, tiny):
                with mode:
                    found = _call(self.model, self.example)
                outputs = _flat(found)
        except ConfigError:
            raise
        except Exception as error:
            raise NotRunError(
                f"a copy of `model` in {str(self.dtype)[6:]} on the CPU does not run on `example`: "
                f"{' '.join(str(error).split())[:200]}. Give a tensor, a tuple of the arguments or "
                "a dict of the named ones, as the model takes them."
            ) from error
        places = {key: place for place, key in enumerate(mode.order)}
        self.order = np.array([places.get(id(tensor), -1) for tensor in self.tensors])
        return outputs

    def row(self, outputs: torch.Tensor, seed: int) -> np.ndarray:
        """Return, for a random projection of the outputs, <g, w> and |g| |w| of all tensors (2, K).

        One pass backward; the first is the derivative by the logarithm of a tensor's scale,
        relative to the outputs.
        """
        chance = torch.Generator().manual_seed(seed)
        direction = torch.randn(outputs.shape, generator=chance).to(outputs)
        with undisturbed(self.dtype):
            projected = outputs @ (direction / float(outputs.detach().norm()))
            found = torch.autograd.grad(
                projected, self.tensors, retain_graph=True, allow_unused=True
            )
        return np.array([_products(*pair) for pair in zip(found, self.tensors, strict=True)]).T


def _products(gradient: torch.Tensor | None, weight: torch.Tensor) -> tuple[float, float]:
    """Return <g, w> and |g| |w|, zeros without a gradient."""
    if gradient is None:
        return 0.0, 0.0
    one, other = gradient.reshape(-1), weight.detach().reshape(-1)
    return float(one @ other), float(one.norm() * other.norm())


# ---------------------------------------------------------------- copying


def unwrapped(model: object) -> nn.Module:
    """Return the model inside a wrapper of `torch.compile` or of data parallel training.

    Raises
    ------
    ConfigError : if it is no module.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def refuse(model: nn.Module) -> None:
    """Raise `ConfigError` for a model whose tensors are not whole, or no floating numbers."""
    for module in model.modules():
        if ".quantized" in type(module).__module__:
            raise ConfigError(
                f"`model` is quantized ({type(module).__name__}): give the one in training."
            )
    for name, value in model.named_parameters():
        kind = type(value).__name__
        if kind in {"DTensor", "FlatParameter", "ShardedTensor"} or hasattr(value, "_local_tensor"):
            why = "is a shard of a tensor: find the groups before sharding the model"
        elif nn.parameter.is_lazy(value):
            why = "has no shape yet: run the model once before"
        elif value.is_meta:
            why = "has no values (device meta): initialize the model before"
        elif value.is_complex():
            why = "is complex: only real weights are supported"
        elif value.is_quantized or not value.is_floating_point():
            why = f"is quantized ({value.dtype}): give the model in training"
        else:
            continue
        raise ConfigError(f"`model` cannot be probed: its parameter {name!r} {why}.")


def copied(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a model in one precision on the CPU, without the hooks of its user.

    Raises
    ------
    ConfigError : if something in it cannot be copied.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for name in HOOKS:
            hooks = getattr(module, name)
            kept = {k: v for k, v in hooks.items() if _is_of_torch(v)} if len(hooks) else {}
            memo[id(hooks)] = type(hooks)(kept)
        plain = [value for value in vars(module).values() if isinstance(value, torch.Tensor)]
        for value in [*module._parameters.values(), *module._buffers.values(), *plain]:
            if value is not None and id(value) not in memo:
                memo[id(value)] = _moved(value, dtype)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ConfigError(
            f"`model` cannot be copied: {type(error).__name__}: {str(error)[:150]}. Give a module "
            "without what cannot be copied (loggers, open files, a trainer)."
        ) from error


def _is_of_torch(hook: object) -> bool:
    """Whether a hook makes a weight (weight or spectral normalization of the old kind)."""
    return type(hook).__module__.startswith("torch.nn.utils")


def _moved(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a copy of a tensor on the CPU, of this precision if its numbers are floating."""
    new = value.detach().to("cpu", copy=True)
    if new.is_floating_point():
        new = new.to(dtype)
    elif new.is_complex():
        new = new.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    if isinstance(value, nn.Parameter):
        return nn.Parameter(new, requires_grad=value.requires_grad)
    return new


def _converted(value: object, dtype: torch.dtype) -> object:
    """Return an example's tensors, in whatever they are nested, on the CPU in this precision."""
    if isinstance(value, torch.Tensor):
        return _moved(value, dtype)
    if isinstance(value, Mapping):
        return {key: _converted(one, dtype) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_converted(one, dtype) for one in value)
    return value


def _prepare(model: nn.Module) -> None:
    """Set a copy to training, with dropout and what autograd cannot differentiate twice off."""
    model.train()
    for module in model.modules():
        if re.search("drop|stochasticdepth", type(module).__name__, re.IGNORECASE):
            for name in {"p", "drop_prob"} & set(vars(module)):
                setattr(module, name, 0.0)
        if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
            module.dropout = 0.0
        for name in {"sparse", "gradient_checkpointing"} & set(vars(module)):
            setattr(module, name, False)
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.padding_idx = None  # its gradient would not be the derivative


# ---------------------------------------------------------------- running


def _call(model: nn.Module, example: object) -> object:
    """Return what the model makes of its arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def _flat(found: object) -> torch.Tensor:
    """Return all floating outputs as one vector; of a mapping with logits, these alone.

    Raises
    ------
    ConfigError : if there are none, or some are not finite.
    """
    tensors = list(_tensors(found))
    if not tensors:
        raise ConfigError(f"`model` returned no floating tensor, but {type(found).__name__}.")
    outputs = torch.cat([tensor.reshape(-1) for tensor in tensors])
    if not bool(torch.isfinite(outputs).all()) or not float(outputs.detach().norm()) > 0:
        raise ConfigError("`model` returned zeros, or numbers that are not finite, on `example`.")
    if not outputs.requires_grad:
        raise ConfigError("the outputs of `model` do not depend on a trained parameter.")
    return outputs


def _tensors(found: object) -> Iterator[torch.Tensor]:
    """Yield the floating tensors of a nested output."""
    if isinstance(found, torch.Tensor):
        if found.is_complex():
            yield torch.view_as_real(found)
        elif found.is_floating_point():
            yield found
    elif isinstance(found, Mapping):
        main = [name for name in ("logits", "last_hidden_state") if name in found]
        for value in [found[main[0]]] if main else found.values():
            yield from _tensors(value)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _tensors(value)


@contextlib.contextmanager
def undisturbed(dtype: torch.dtype) -> Iterator[None]:
    """Freeze chance, in this precision with gradients; leave every global state as it was."""
    python, default = random.getstate(), torch.get_default_dtype()
    numpy_ = np.random.get_state()  # noqa: NPY002 (a model may use it)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.random.default_generator.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            torch.set_default_dtype(dtype)
            with torch.autocast("cpu", enabled=False):
                yield
    finally:
        torch.set_default_dtype(default)
        random.setstate(python)
        np.random.set_state(numpy_)  # noqa: NPY002


@contextlib.contextmanager
def tiny_epsilons(model: nn.Module, tiny: bool = True) -> Iterator[None]:
    """Make the epsilons that are attributes of modules tiny for a while, if `tiny`.

    >>> norm = nn.LayerNorm(3)
    >>> with tiny_epsilons(norm):
    ...     print(norm.eps)
    1e-14
    >>> norm.eps
    1e-05
    """
    found = [
        (module, name, value)
        for module in (model.modules() if tiny else ())
        for name, value in vars(module).items()
        if EPSILON.search(name) and _is_epsilon(value, 0.1)
    ]
    try:
        for module, name, _ in found:
            setattr(module, name, TINY)
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)
