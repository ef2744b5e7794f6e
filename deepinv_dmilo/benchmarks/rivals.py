"""
Rivals that deepinv does not have, written by us from their papers, and total variation as the classic.

The papers work on images u in [-1, 1], and so do these inside. They were read beside their authors' code, which was not
run: docs/benchmarks.md has what differs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from deepinv.optim import FISTA, L2, TVPrior
from deepinv.physics import Physics
from torch import Tensor, nn

from deepinv_dmilo.likelihood.forward import forward_model
from deepinv_dmilo.likelihood.measurements import Measurements, energy, like_parts, measure, parts
from deepinv_dmilo.optim.descent import value_and_gradient
from deepinv_dmilo.priors.prior import Level, Prior


class Rival(nn.Module):
    """
    What they share: the prior as a denoiser, measurements of images in [-1, 1], noise levels from high to low.

    :param Prior prior: the prior.
    :param tuple shape: (C, H, W) of the images.
    :param float noise: standard deviation of the measurements' noise, for images in [0, 1].
    :param float weight: what of the method is tuned.
    """

    highest, lowest = 100.0, 0.1  # noise levels of DAPS, and of FAST-DIPS after it

    def __init__(self, prior: Prior, shape: tuple[int, ...], noise: float, weight: float) -> None:
        super().__init__()
        self.prior: Prior = prior
        self.shape, self.noise, self.weight = shape, 2 * noise, weight

    def clean(self, u: Tensor, s: float) -> Tensor:
        """The clean image in one with noise s."""
        level = self.prior.level(s)
        return self.prior.denoise(level.signal * u, level)

    def data(self, y: Measurements, physics: Physics) -> DataTerm:
        """The data term of images in [-1, 1]."""
        return DataTerm(y, physics, (len(parts(y)[0]), *self.shape), self.noise)

    def levels(self, count: int) -> list[float]:
        """So many noise levels down from the highest that the prior has, and 0, spaced as by Karras et al. (2022)."""
        return spaced(min(self.highest, self.prior.levels(1)[0].ratio), self.lowest, count)

    def pure_noise(self, y: Measurements) -> Tensor:
        """Standard normal noise for every image, (B, C, H, W)."""
        first = parts(y)[0]
        return torch.randn(len(first), *self.shape, device=first.device)


class DataTerm:
    """
    Measurements of images u in [-1, 1], on the scale where they are 2 y, and A(u) is 2 A((u + 1) / 2).

    :param torch.Tensor, deepinv.utils.TensorList y: measurements of B images.
    :param deepinv.physics.Physics physics: A, on images in [0, 1].
    :param tuple shape: (B, C, H, W) of the images.
    :param float noise: standard deviation of the noise of 2 y, as deepinv takes it: of a complex number, both parts.
    """

    def __init__(self, y: Measurements, physics: Physics, shape: tuple[int, ...], noise: float) -> None:
        first = parts(y)[0]
        self.physics: Physics = physics
        self.doubled, self.rows = 2 * y, torch.arange(shape[0], device=first.device)
        self.operator = forward_model(physics, shape, torch.empty(0, device=first.device), single=True)
        self.variance = noise**2 / (2 if first.is_complex() else 1)  # of a real number

    def measured(self, u: Tensor) -> Measurements:
        """``A(u)``."""
        return 2 * measure((u + 1) / 2, self.physics)

    def misfit(self, u: Tensor) -> Tensor:
        """``||A(u) - 2 y||^2`` of what changes with the image, (n,)."""
        return self.operator.observed_energy(self.measured(u) - self.doubled, self.rows)

    @property
    def noise_energy(self) -> Tensor:
        """The misfit of the true images, on average, (n,): what a mask hides has no noise, and does not count."""
        return self.variance * self.operator.observed


def spaced(high: float, low: float, count: int) -> list[float]:
    """So many numbers from high to low, evenly spaced in their seventh roots, and 0."""
    a, b = high ** (1 / 7), low ** (1 / 7)
    return [(a + k / max(1, count - 1) * (b - a)) ** 7 for k in range(count)] + [0.0]


class SITCOM(Rival):
    """
    Step-wise triple-consistent sampling (Alkhouri et al., ICML 2025).

    At each of N noise levels one latent is optimised through the network until its image fits the measurements to the
    noise; fresh noise takes the image to the next level. The weight is Adam's rate. The levels are those of the
    authors' code, from T - T / N down to 0 (paper: from T down to T / N).

    :param int steps: N (paper: 20).
    :param int inner: K, steps of Adam at each (paper: 20 to 40).
    """

    pull = 0.0  # of the latent to where it started (paper: lambda); 1 loses 0.4 to 4 dB on the tuning photographs
    slack = 1.0  # misfit that is enough, relative to the noise's

    def __init__(
        self, prior: Prior, shape: tuple[int, ...], noise: float, weight: float, *, steps: int, inner: int
    ) -> None:
        super().__init__(prior, shape, noise, weight)
        self.steps, self.inner = steps, inner

    def forward(self, y: Measurements, physics: Physics) -> Tensor:
        """Images in [0, 1], (B, C, H, W)."""
        levels, data = self.prior.levels(self.steps)[1:], self.data(y, physics)
        z = levels[0].spread * self.pure_noise(y)
        for level, after in pairwise([*levels, levels[-1]]):
            v = self.solve(z, level, data)
            u = self.prior.denoise(v, level).clamp(-1, 1)
            z = after.signal * u + after.noise * torch.randn_like(u)
        return (u + 1) / 2

    def solve(self, z: Tensor, level: Level, data: DataTerm) -> Tensor:
        """The latent next to z whose image fits the measurements; a row that fits them is left alone."""
        v, moving = z.clone(), torch.ones_like(z[:, 0, 0, 0], dtype=torch.bool)
        adam = torch.optim.Adam([v], lr=self.weight)
        for _ in range(self.inner):
            with torch.enable_grad():
                w = v.detach().requires_grad_()
                misfit = data.misfit(self.prior.denoise(w, level))
                (v.grad,) = torch.autograd.grad((misfit + self.pull * energy(w - z)).sum(), w)
            moving &= misfit.detach() > self.slack * data.noise_energy
            if not moving.any():
                break
            before = v.clone()
            adam.step()
            v.copy_(torch.where(moving.view(-1, 1, 1, 1), v, before))
        return v


class DAPS(Rival):
    """
    Decoupled annealing posterior sampling (Zhang et al., CVPR 2025).

    At each noise level a few Euler steps of the probability flow give an image, Langevin steps take it to the
    measurements, and fresh noise takes it to the next level. The weight is the Langevin rate, relative to the
    steepest curvature of the data term.

    :param int steps: noise levels (paper: 50 or 200).
    :param int flow: Euler steps at each (paper: 2 or 5).
    """

    langevin = 100  # steps (paper)
    end = 0.01  # of the flow, and fraction of the rate at the lowest level (paper)

    def __init__(
        self, prior: Prior, shape: tuple[int, ...], noise: float, weight: float, *, steps: int, flow: int
    ) -> None:
        super().__init__(prior, shape, noise, weight)
        self.steps, self.flow = steps, flow

    def forward(self, y: Measurements, physics: Physics) -> Tensor:
        """Images in [0, 1], (B, C, H, W)."""
        data, levels, steepest = self.data(y, physics), self.levels(self.steps), self.steepest(y, physics)
        u = levels[0] * self.pure_noise(y)
        for k, (s, after) in enumerate(pairwise(levels)):
            anchor = self.probability_flow(u, s)
            rate = self.weight * (1 - k / self.steps * (1 - self.end)) / (steepest + 1 / s**2)
            u = anchor
            for _ in range(self.langevin):
                _, gradient = value_and_gradient(lambda v: data.misfit(v) / (2 * data.variance), u)
                gradient = gradient + (u - anchor) / s**2
                u = u - rate * gradient + (2 * rate).sqrt() * torch.randn_like(u)
            u = u.clamp(-1, 1) + after * torch.randn_like(u)
        return (u + 1) / 2

    def steepest(self, y: Measurements, physics: Physics) -> Tensor:
        """The largest curvature of the data term in u, about, (n, 1, 1, 1)."""
        like = self.pure_noise(y)
        gain = forward_model(physics, tuple(like.shape), like, single=True).squared_norm
        return _column(gain) / self.noise**2

    def probability_flow(self, u: Tensor, s: float) -> Tensor:
        """Euler steps from noise s to none."""
        for a, b in pairwise(spaced(s, min(self.end, s), self.flow)):
            clean = self.clean(u, a)
            u = clean + b / a * (u - clean)
        return u


class FASTDIPS(Rival):
    """
    FAST-DIPS (Kim, Shin and Lim, ICLR 2026): no backward pass through the network.

    At each noise level the network's clean image is moved to where it fits the measurements to the noise, as little
    as possible: a few rounds of ADMM with a projection onto the ball of the noise and steepest descent of exact step
    length. The weight is ADMM's penalty (paper: rho = 200).

    :param int steps: noise levels, a call each (paper: 75).
    """

    rounds = 3  # of ADMM, with one gradient step each (paper: K, and S)
    ball = 0.3  # its radius, relative to the noise: better than 1 on the tuning photographs

    def __init__(self, prior: Prior, shape: tuple[int, ...], noise: float, weight: float, *, steps: int) -> None:
        super().__init__(prior, shape, noise, weight)
        self.steps = steps

    def forward(self, y: Measurements, physics: Physics) -> Tensor:
        """Images in [0, 1], (B, C, H, W)."""
        data, levels = self.data(y, physics), self.levels(self.steps)
        u = levels[0] * self.pure_noise(y)
        for s, after in pairwise(levels):
            u = self.corrected(self.clean(u, s), s, data)
            u = u + after * torch.randn_like(u)
        return (u + 1) / 2

    def corrected(self, anchor: Tensor, s: float, data: DataTerm) -> Tensor:
        """The image nearest to the anchor whose measurements are in the ball of the noise, about."""
        radius = self.ball * data.noise_energy.sqrt()
        u, dual = anchor, 0 * data.doubled
        for _ in range(self.rounds):
            away = data.measured(u) + dual - data.doubled
            split = data.doubled + _shrunk(away, radius)
            goal = split - dual

            def objective(v: Tensor, goal: Measurements = goal) -> Tensor:
                fit = energy(data.measured(v) - goal)
                return energy(v - anchor) / (2 * s**2) + self.weight / 2 * fit

            u = self.descended(u, objective, s, data)
            dual = dual + data.measured(u) - split
        return u

    def descended(self, u: Tensor, objective: Callable[[Tensor], Tensor], s: float, data: DataTerm) -> Tensor:
        """A step down the gradient, as long as the linearised A asks for, halved until it descends."""
        value, gradient = value_and_gradient(objective, u)
        size = energy(gradient).clamp(min=1e-20)
        probe = 1e-2 * (u[0].numel() / size).sqrt()
        change = data.measured(u + _column(probe) * gradient) - data.measured(u)
        length = size / (size / s**2 + self.weight * energy(change) / probe**2)
        for _ in range(10):
            good = objective(u - _column(length) * gradient) <= value
            if good.all():
                break
            length = torch.where(good, length, length / 2)
        return u - _column(length) * gradient


class TotalVariation(nn.Module):
    """
    Least squares with total variation, solved by deepinv's FISTA; no network.

    :param float weight: of the total variation.
    """

    steps, inner = 200, 20  # of FISTA, and of the proximal operator in each

    def __init__(self, shape: tuple[int, ...], weight: float) -> None:
        super().__init__()
        self.shape, self.weight = shape, weight

    def forward(self, y: Measurements, physics: Physics) -> Tensor:
        """Images in [0, 1], (B, C, H, W)."""
        like = torch.zeros(1, *self.shape, device=y.device)
        norm = forward_model(physics, tuple(like.shape), like, single=True).squared_norm.item()
        solver = FISTA(L2(), TVPrior(n_it_max=self.inner), self.weight, 1 / (1.02 * norm), max_iter=self.steps)
        return solver(y, physics)


def _shrunk(r: Measurements, radius: Tensor) -> Measurements:
    """What lies outside of a ball around 0, (n,) radii, moved onto it."""
    factor = (radius / energy(r).sqrt().clamp(min=1e-12)).clamp(max=1)
    return like_parts(r, [factor.view(-1, *[1] * (t.ndim - 1)) * t for t in parts(r)])


def _column(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1, 1)
