"""
Write docs/plans.md, the page on the plan of a call, from the tables of the package.

`python docs/scripts/plans.py --out docs/plans.md`
"""

from __future__ import annotations

import argparse
from math import isinf
from pathlib import Path

from deepinv_dmilo.posterior.moments import CALLS_OF_A_LEVEL
from deepinv_dmilo.schedules.blind_blur import FEWEST_LEVELS, IMAGE_SIGMAS, LAST_SIGMAS, MOST_LEVELS, SEARCH_CALLS
from deepinv_dmilo.schedules.initial import MOST_NOISE_FOR_SQUARES as SQUARES
from deepinv_dmilo.schedules.initial import NEWTON_STEPS, START_STEPS
from deepinv_dmilo.schedules.planning import (
    COVER_ALL,
    COVER_ERROR,
    COVER_NOISE,
    COVER_REST,
    LAST_DECOUPLED,
    PASSES_OF_A_LEVEL,
    RULES,
    Rule,
)

HEAD = f"""# What a call does

A call of `DMILO` or `DMILOPGD` makes a plan for each image before it solves any layer problem. It computes the first
image, determines the noise level, and computes a few facts from both. The first rule of a table that applies to the
facts determines the noise levels, and the finishing steps follow from the facts. Images with equal plans run together.

`print(model.plan(y, physics))` shows the plan of a call without running it:

```python
>>> print(DMILO(prior, max_passes=25).plan(y, physics))  # doctest: +SKIP
images 0, 1: linear, or masked
  facts of 0: linear, not all measurements depend on it, noise 0.015 of y, LMMSE error 0.21
  ...
```

`model.solve(y, physics)` returns the plan together with the images, samples, nuisance parameters and metrics, and how
each layer problem of each image ended. `DMILOSampler` uses no rule: its plan, annealing, has the same levels for all
images. This page is generated from the tables of the package by
`python docs/scripts/plans.py --out docs/plans.md`.

## Facts

For each image (`deepinv_dmilo.posterior.facts.Facts`):

* `linear`: A is linear and known.
* `blind`: the physics has unknown (nuisance) parameters; `open_boundary`: they are a blur with open boundaries
  (`padding="valid"`, as in a camera).
* `fully_observed`: every measurement depends on the image; else some are masked.
* `relative_noise`: the noise level relative to y; `image_noise`: as the noise level of an image, over the norm of A.
* `lmmse_error`: the error of the linear estimate of least mean square (LMMSE) under a 1/f spectrum, at the frequencies
  and places where it is largest; `well_determined`: it is little more than the noise.
* `gaussian`: the noise is Gaussian (for rules of your own).

## Levels

The first level is the lowest of at least {COVER_ERROR} times the LMMSE error and {COVER_NOISE:.0f} times the noise
level of an image, or of at least the bound of the rule, if that is less. From there on the levels are evenly spaced, as
many as the budget has {PASSES_OF_A_LEVEL} passes for, and share it equally; with fewer than {2 * PASSES_OF_A_LEVEL}
passes it is the last level alone. `Levels(skip=False)` begins with the first.

With `Levels(decoupled=True)`, decoupled stages come before them (not with a latent prior; an error in blind problems).
They take a third of the calls, from {COVER_ALL:.0f} times the LMMSE error, rounded up to half an octave, down to
{LAST_DECOUPLED}. The first level after them is at least {COVER_REST} times the error.

With `unknown={{"filter": BlurKernel(guess)}}`, the levels of the rule have {SEARCH_CALLS} calls. {FEWEST_LEVELS} to
{MOST_LEVELS} levels from {IMAGE_SIGMAS[0]} to {IMAGE_SIGMAS[1]} follow, of {CALLS_OF_A_LEVEL} calls each, at which the
kernel is estimated with the prior of kernels, then levels of {", ".join(map(str, LAST_SIGMAS))} with this kernel.

| rule | levels | bound of the first level | limit | evidence |
|---|---|---|---|---|
"""
FIRST = f"""
The figures are from [defaults.md](defaults.md) and the [lab book](lab-book/index.md).

## First image

The first row that applies. The prior mean is the output of the network for pure noise (mid-grey if its noise levels end
below that).

| measurements | first image |
|---|---|
| any, with `init=` | `init` |
| blind; noise Gaussian, or not with a linear A | prior mean, then least squares with the residual as the noise |
| Gaussian noise of known or simulated level, A linear | prior mean, then regularised least squares (LMMSE) |
| the same, noise level estimated | the same, then {START_STEPS} gradient steps |
| Gaussian noise, A nonlinear | up to {NEWTON_STEPS} Gauss-Newton steps, then {START_STEPS} gradient steps |
| photons, speckle, heavy tails, noise up to {SQUARES} in [0, 1], A linear | least squares, then gradient steps |
| the same with more noise or A nonlinear; outliers; a `data_fidelity` | gradient steps on the likelihood |
| `schedule=Chain()` | mid-grey; the chain starts from pure noise |

## Noise

| noise of the physics | noise level |
|---|---|
| `noise_level=`; a `sigma` for each measurement, or for each member of a stack | as given |
| Gaussian of one `sigma`, uniform, your own | simulated by four draws at the current images |
| none, or 0 | estimated by the network on the first image; later at most the residual, at least 2 % of the level |
| photons, speckle, heavy tails | that of the noise model at the current images |
| outliers, a `data_fidelity` | none |

## Finishing

| step | condition |
|---|---|
| `PosteriorMean` | the likelihood has a noise level, and the latents of the prior are pixels |
| `SparseDeviation` | the noise is Gaussian or a `data_fidelity` is given, and the problem is not blind |

"""
OWN = """## Your own

A rule, a finishing step, a schedule and a likelihood are one class or function each. These examples run as they are
(`tests/schedules/test_plans.py`).

```python
from dataclasses import dataclass

import torch
from deepinv.physics import NoiseModel

from deepinv_dmilo import DMILO, Levels
from deepinv_dmilo.likelihood.densities import Density
from deepinv_dmilo.schedules.planning import RULES, Rule


# a rule: three levels for very noisy images
noisy = Rule("very noisy", lambda facts: facts.relative_noise > 0.3, sigmas=(1.0, 0.37, 0.1))
by_rule = Levels(rules=(noisy, *RULES))


# a finishing step: round to 8-bit grey values
def rounded(posterior, x):
    return (255 * x).round() / 255


by_step = Levels(finishing=(rounded,))


# a schedule: a given number of geometrically spaced levels
@dataclass(frozen=True)
class Geometric(Levels):
    number: int = 5

    def __post_init__(self):
        object.__setattr__(self, "sigmas", tuple(2.0 * 0.03 ** (k / (self.number - 1)) for k in range(self.number)))
        super().__post_init__()


# a likelihood: that of your own noise model
class CauchyNoise(NoiseModel):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x, **kwargs):
        return x + self.scale * torch.distributions.Cauchy(0.0, 1.0).sample(x.shape)


class Cauchy(Density, of=CauchyNoise, names=("scale",)):
    def __call__(self, measured, y, rows):
        (scale,) = self.of_rows(rows, measured)
        return ((measured - y) / scale).square().log1p()

    def std(self, measured, rows):
        return None  # infinite: there may be outliers
```

`DMILO(prior, data_fidelity=...)` uses a data fidelity of deepinv instead of the likelihood. A schedule that is no
`Levels` inherits from `deepinv_dmilo.schedules.schedule.Schedule` and defines its methods.
"""


def row(rule: Rule) -> str:
    """One row of the table of rules."""
    levels = f"{len(rule.sigmas)}, {rule.sigmas[0]:.3g} to {rule.sigmas[-1]:.3g}"
    start = "" if isinf(rule.most_to_cover) else f"{rule.most_to_cover:g}"
    most = "" if rule.max_steps is None else f"{rule.max_levels} levels of {rule.max_steps} steps"
    return f"| {rule.name} | {levels} | {start} | {most} | {rule.evidence} |"


def page() -> str:
    """The text of the page."""
    return HEAD + "\n".join(map(row, RULES)) + "\n" + FIRST + OWN


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.parse_args().out.write_text(page())
