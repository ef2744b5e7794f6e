"""
What a call does with which measurements: docs/plans.md, made from the tables of the package.

`python docs/scripts/plans.py --out docs/plans.md`
"""

from __future__ import annotations

import argparse
from math import isinf
from pathlib import Path

from deepinv_dmilo.schedules.initial import EVEN_NOISE, NEWTON_STEPS, START_STEPS
from deepinv_dmilo.schedules.planning import COVER_ERROR, COVER_NOISE, PASSES_OF_A_LEVEL, RULES, Rule

HEAD = f"""# What a call does

A call of `DMILO` or `DMILOPGD` decides once, before any layer problem is solved, what is done for each image. It looks
at a few facts, takes the first rule of a table that applies, and makes a plan: first image, stages, finishing. Images
with equal plans run together. `print(model.plan(y, physics))` shows the plan of a call without running it:

```python
>>> print(DMILO(prior, max_passes=25).plan(y, physics))  # doctest: +SKIP
images 0, 1: linear, or masked
  facts of 0: linear, not all measurements observe it, noise 0.015 of y, LMMSE error 0.21
  ...
```

`model.solve(y, physics)` returns the plan beside images, samples, parameters and metrics, and for each image
how each of its layer problems ended. This page is made from the tables that the package computes with, by
`python docs/scripts/plans.py --out docs/plans.md`.

## Facts

Of one image (`deepinv_dmilo.posterior.facts.Facts`): whether A is linear, whether parameters of the physics
are unknown (blind), and if so, whether they are a blur with open boundaries (a camera's, `padding="valid"`); whether
every measurement changes with the image (else some are masked); the noise over y, and as the noise of an image; the
error of a linear estimate under a 1/f spectrum (LMMSE), at the frequencies and places where it is largest.

## Levels

An image begins at the lowest level of at least {COVER_ERROR} times the LMMSE error and {COVER_NOISE:.0f} times the
noise, or of "start below", if that is less. It takes as many levels from there on as the budget has
{PASSES_OF_A_LEVEL} passes for, evenly, and shares the budget equally among them.

| rule | levels | start below | at most | measured |
|---|---|---|---|---|
"""
FIRST = f"""
The figures are from [defaults.md](defaults.md), which has all that was tried.

## First image

| measurements | first image |
|---|---|
| `init=` | as given |
| noise Gaussian and told or simulated, A linear | prior mean, then regularised least squares (LMMSE) |
| the same, noise estimated | then {START_STEPS} gradient steps, too |
| A not linear | {NEWTON_STEPS} Gauss-Newton steps, then {START_STEPS} gradient steps |
| photons, speckle, heavy tails, A linear, noise up to {EVEN_NOISE} of [0, 1] | least squares, then gradient steps |
| the same with more noise; outliers; a `data_fidelity`; A not linear | gradient steps on the likelihood |
| blind | least squares with the residual as the noise: a guess of A explains nothing yet |
| `schedule=Chain()` | mid-grey; the chain starts from pure noise |

## Noise

| noise of the physics | where the noise level comes from |
|---|---|
| `noise_level=`, or a `sigma` for each measurement | told |
| Gaussian of one `sigma`, uniform, your own | simulated: drawn four times, at the images so far |
| none, or 0 | estimated by the network on the first image; then no more than the residual |
| photons, speckle, heavy tails, outliers | the likelihood of the noise model |

## Finishing

| | done where |
|---|---|
| `PosteriorMean` | the likelihood says how large the noise is, and the prior's latents are pixels |
| `SparseDeviation` | the noise is Gaussian, or a `data_fidelity` is given, and nothing is unknown |

"""
OWN = """## Your own

A rule, a finishing step, a schedule and a likelihood are one class each. These run as they stand
(`tests/schedules/test_plans.py`).

```python
from dataclasses import dataclass

import torch
from deepinv.physics import NoiseModel

from deepinv_dmilo import DMILO, Levels
from deepinv_dmilo.likelihood.densities import Density
from deepinv_dmilo.schedules.planning import RULES, Rule


# a rule: very noisy images take three levels
noisy = Rule("very noisy", lambda facts: facts.relative_noise > 0.3, sigmas=(1.0, 0.37, 0.1))
by_rule = Levels(rules=(noisy, *RULES))


# a finishing step: images of whole grey values
def rounded(posterior, x):
    return (255 * x).round() / 255


by_step = Levels(finishing=(rounded,))


# a schedule: levels evenly in their logarithm, as many as are asked for
@dataclass(frozen=True)
class Geometric(Levels):
    number: int = 5

    def __post_init__(self):
        object.__setattr__(self, "sigmas", tuple(2.0 * 0.03 ** (k / (self.number - 1)) for k in range(self.number)))
        super().__post_init__()


# a likelihood: that of a noise model of your own
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
        return None  # it has none: some measurements say little
```

A data fidelity of deepinv takes the place of the likelihood for one call: `DMILO(prior, data_fidelity=...)`. A schedule
that is no `Levels` has the five methods of `deepinv_dmilo.schedules.schedule.Schedule`.
"""


def row(rule: Rule) -> str:
    """A rule as a row of the table."""
    levels = f"{len(rule.sigmas)}, {rule.sigmas[0]:.3g} to {rule.sigmas[-1]:.3g}"
    start = "" if isinf(rule.start_below) else f"{rule.start_below:g}"
    most = "" if rule.max_steps is None else f"{rule.max_levels} levels of {rule.max_steps} steps"
    return f"| {rule.name} | {levels} | {start} | {most} | {rule.evidence} |"


def page() -> str:
    """The page."""
    return HEAD + "\n".join(map(row, RULES)) + "\n" + FIRST + OWN


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.parse_args().out.write_text(page())
