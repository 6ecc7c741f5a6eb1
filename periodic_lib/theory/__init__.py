r"""Closed forms for norm and direction of scale-invariant weights under SGD and AdamW with decay.

Assumption: the loss does not change when the scale-invariant weights w are scaled, L(c w) = L(w)
for c > 0. Then the gradient is orthogonal to w and grows as 1/|w|, and one step of SGD with coupled
weight decay,

    w' = a w - eta grad L(w),    a = 1 - eta lambda,

splits exactly into a motion of the norm rho = |w| and a motion of the direction u = w / rho.
Notation: eta `lr`, lambda `weight_decay`, g~ = rho |grad L| `eff_grad_norm`, eta/rho^2 `elr`,
Phi = eta/(a rho^2) `sphere_step`, h `sharpness` (largest Hessian eigenvalue on the unit sphere),
eta lambda `lr_wd`. Where a formula holds for momentum or AdamW it says so; else momentum is zero.
"Exact" formulas hold step by step for stochastic gradients too. All functions take numbers or
arrays, which broadcast.

One module an idea: `motion` (one step, schedules), `equilibrium`, `jumps` (and how long a period
lasts), `edge` (and batch normalization's epsilon); all functions are names of this package. The two
toy models on which all of it can be watched are in `periodic_lib.theory.toys`.
"""

from periodic_lib.theory.edge import (
    balance_to_edge,
    dilogarithm,
    edge_constant,
    edge_elr,
    edge_eps,
    exit_with_floor,
    exit_without_noise,
    noise_floor,
)
from periodic_lib.theory.equilibrium import (
    balance_line,
    balance_ratio,
    equilibrium_angle,
    equilibrium_angle_adamw,
    equilibrium_norm,
    equilibrium_norm_adamw,
    norm_budget,
    norm_fluctuation,
    relaxation_steps,
    relaxed_norm,
)
from periodic_lib.theory.jumps import (
    free_decay_steps,
    intrinsic_time,
    jump_norm,
    jump_not_before,
    jump_tangent,
    never_jump_ratio,
    return_not_before,
    unstable_by,
)
from periodic_lib.theory.motion import (
    angular_update,
    decay_clock,
    effective_lr,
    exponential_lr,
    next_norm,
    rescaled,
    sphere_step,
)

__all__ = [
    "angular_update",
    "balance_line",
    "balance_ratio",
    "balance_to_edge",
    "decay_clock",
    "dilogarithm",
    "edge_constant",
    "edge_elr",
    "edge_eps",
    "effective_lr",
    "equilibrium_angle",
    "equilibrium_angle_adamw",
    "equilibrium_norm",
    "equilibrium_norm_adamw",
    "exit_with_floor",
    "exit_without_noise",
    "exponential_lr",
    "free_decay_steps",
    "intrinsic_time",
    "jump_norm",
    "jump_not_before",
    "jump_tangent",
    "never_jump_ratio",
    "next_norm",
    "noise_floor",
    "norm_budget",
    "norm_fluctuation",
    "relaxation_steps",
    "relaxed_norm",
    "rescaled",
    "return_not_before",
    "sphere_step",
    "unstable_by",
]
