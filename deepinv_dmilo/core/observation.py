"""Measurements and their physics, as the reconstructions of a batch see them: several samples of each image at once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from deepinv.physics import Physics
from torch import Tensor

from deepinv_dmilo.core.measurements import SHAPE_ERRORS, Measurements, join, mean_energy, measure, parts, take
from deepinv_dmilo.core.noise import noise_variance, unexplained_variance
from deepinv_dmilo.core.problem import Fit
from deepinv_dmilo.core.projection import gradient_steps
from deepinv_dmilo.priors.diffusers import DiffusionPrior


@dataclass(frozen=True)
class Observation:
    """
    Measurements y of B images, of each of which S reconstructions are made.

    Reconstructions have S * B rows: those of the first sample of all images, then those of the second, and so on, so
    that an operator with parameters for each of B images applies to each of the S groups.
    """

    y: Measurements
    physics: Physics
    num_samples: int = 1
    _known: dict[str, bool] = field(default_factory=dict)

    def fit(self, targets: list[Measurements] | None = None) -> Fit:
        r"""
        The data term of images u in [-1, 1].

        It is :math:`4 \, \mathrm{mean} |A(x) - t|^2` for targets t; the factor gives the paper's value.

        :param list targets: one for each group of B rows; None: y for all.
        """
        targets = [self.y] * self.num_samples if targets is None else targets
        joined = join(targets)
        total = self.num_samples * len(parts(self.y)[0])

        def fit(u: Tensor, rows: Tensor | None) -> Tensor:
            x = DiffusionPrior.to_image(u)
            if rows is not None and len(rows) < total:
                if self._is_shared(x):
                    return 4 * mean_energy(measure(x, self.physics) - take(joined, rows))
                x = x.new_full((total, *x.shape[1:]), 0.5).index_copy(0, rows, x)
            groups = zip(self.measure(x), targets, strict=True)
            energies = torch.cat([mean_energy(measured - target) for measured, target in groups])
            return 4 * (energies if len(energies) == len(u) else energies[rows])

        return fit

    def _is_shared(self, x: Tensor) -> bool:
        """Whether the operator is the same for all images, so that some of them can be measured alone."""
        if "shared" not in self._known:
            self._known["shared"] = False
            with suppress(*SHAPE_ERRORS), torch.no_grad():
                self._known["shared"] = len(parts(measure(x[:1], self.physics))[0]) == 1
        return self._known["shared"]

    def mean(self, t: Tensor) -> Tensor:
        """The mean of S * B rows over the samples of each image, B rows."""
        return t.view(self.num_samples, -1, *t.shape[1:]).mean(0)

    def measure(self, x: Tensor) -> list[Measurements]:
        """A(x) of S * B images, a group of B at a time."""
        return [measure(part, self.physics) for part in x.chunk(self.num_samples)]

    def gradient_steps(self, x: Tensor, pull: Tensor | None = None, **settings: Any) -> Tensor:
        """:func:`gradient_steps` on S * B images; ``pull`` is (S * B,)."""
        pulls = [None] * self.num_samples if pull is None else pull.chunk(self.num_samples)
        steps = [
            gradient_steps(part, self.y, self.physics, pull=p, **settings)
            for part, p in zip(x.chunk(self.num_samples), pulls, strict=True)
        ]
        return torch.cat(steps)

    def noise_variance(self, x: Tensor, noise_level: float | None) -> Tensor:
        """:func:`noise_variance` at S * B images, (S * B,); an image's samples share it."""
        return noise_variance(self.mean(x), self.physics, noise_level).repeat(self.num_samples)

    def variance(self, noise: Tensor, x: Tensor) -> Tensor:
        """How far a measurement may be from A(x), (S * B,): the noise where known, else what x leaves unexplained."""
        groups = [unexplained_variance(part, self.y, self.physics) for part in x.chunk(self.num_samples)]
        return torch.where(noise > 0, noise, torch.cat(groups))

    @property
    def size(self) -> int:
        """Number m of measurements of an image."""
        return sum(t[0].numel() for t in parts(self.y))
