"""Mean and covariance of p(u | z), the clean latents that fit a noisy one, and a draw of p(u | z, y) from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

import torch
from torch import Tensor

from deepinv_dmilo.likelihood.likelihoods import Likelihood
from deepinv_dmilo.likelihood.measurements import Measurements, like_parts, parts, real
from deepinv_dmilo.likelihood.wiener import octave_spectrum
from deepinv_dmilo.optim.descent import Potential, correlated_proximal_point, filtered, value_and_gradient
from deepinv_dmilo.posterior.posterior import Posterior, WithEnergy
from deepinv_dmilo.priors.prior import Level, Prior
from deepinv_dmilo.utils.rows import column, dot

# Both ours: evaluations of the likelihood in each proximal step, and halvings of the step along the covariance.
EVALUATIONS, SHORTENINGS = 10, 4
# Steps along the covariance for a draw: docs/lab-book/sampler.md.
PRODUCT_STEPS = 2
#: products with the Jacobian of the denoiser for a draw, each a backward pass
PRODUCTS = 2 + PRODUCT_STEPS
CALLS_OF_A_LEVEL = 1 + PRODUCTS
#: evaluations of A and its adjoint for a draw, at most; a value without a gradient counts as half of one
EVALUATIONS_OF_A_DRAW = (PRODUCT_STEPS + 1) * EVALUATIONS + PRODUCT_STEPS * (2 + SHORTENINGS // 2)


@dataclass(frozen=True)
class OfLatents:
    """A potential of images, such as a negative log-likelihood, as one of clean latents, (n, C, H, W) -> (n,)."""

    potential: Potential
    prior: Prior

    def __call__(self, u: Tensor) -> Tensor:
        return self.potential(self.prior.decode(u))

    def select(self, rows: Tensor) -> OfLatents:
        """That of some of the rows."""
        return OfLatents(self.potential.select(rows), self.prior.select(rows))


class Moments:
    r"""
    The mean and covariance of the clean latents u, given :math:`z = a u + s \epsilon`.

    With the denoiser D and the noise level :math:`\sigma = s / a`, they are :math:`D(z)` and :math:`\sigma^2 J`, with
    :math:`J = a \, \partial D / \partial z` (Tweedie's formulas; :footcite:t:`rozet2024moment`). J is used by its
    products, of a backward pass each; the graph of one call of the network is kept.

    :param Prior prior: the denoiser.
    :param torch.Tensor z: noisy latents, (n, C, H, W).
    :param Level level: their level.
    """

    def __init__(self, prior: Prior, z: Tensor, level: Level) -> None:
        with torch.enable_grad():
            self._z = z.detach().requires_grad_()
            self._output = prior.denoise(self._z, level)
        self.mean, self.level = self._output.detach(), level

    def covariance(self, v: Tensor) -> Tensor:
        """The product of the covariance with v, (n, C, H, W)."""
        return self.level.ratio**2 * self._jacobian(v)

    def deviation(self, e: Tensor) -> Tensor:
        r"""
        A draw of u less its mean, from standard normal e, (n, C, H, W).

        Its covariance is :math:`\sigma^2 (2 J - J^2)^2`, for the square root of J by two products: within 0.13
        :math:`\sigma^2` of :math:`\sigma^2 J` for eigenvalues of J in [0, 1].
        """
        once = self._jacobian(e)
        return self.level.ratio * (2 * once - self._jacobian(once))

    def _jacobian(self, v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(self._output, self._z, v, retain_graph=True)
        return self.level.signal * product


def conditional_draw(moments: Moments, objective: Potential, deviation: Tensor) -> Tensor:
    r"""
    An approximate draw of p(u | z, y), with p(u | z) the normal distribution of its moments, (n, C, H, W).

    A draw :math:`u_0` of p(u | z), moved to the minimiser of
    :math:`f(u) + (u - u_0)^\top C^{-1} (u - u_0) / 2`, with C the covariance and f the negative log-likelihood of y
    with fresh noise added: for a linear A and Gaussian noise an exact draw :footcite:p:`bardsley2014randomize`. The
    minimiser is approximated by proximal steps with the octaves' spectrum of :math:`u_0 - D(z)` in place of C: the dual
    variable that the first finds is multiplied by C, and the last corrects what remains.

    :param Moments moments: of p(u | z).
    :param objective: f, of clean latents.
    :param torch.Tensor deviation: a draw of p(u | z) less its mean, (n, C, H, W).
    """
    start = moments.mean + deviation
    spectrum = octave_spectrum(deviation).clamp(min=torch.finfo(deviation.dtype).eps, max=moments.level.ratio**2)
    near = partial(
        correlated_proximal_point, objective=objective, spectrum=spectrum, steps=EVALUATIONS, limits=(-inf, inf)
    )
    u, slope = start, torch.zeros_like(start)
    for _ in range(PRODUCT_STEPS):
        dual = filtered(near(u, slope=slope) - u, 1 / spectrum)
        move = moments.covariance(dual)
        length = column(_length(objective, u, slope, dual, move), u)
        u, slope = u + length * move, slope + length * dual
    return near(u, slope=slope)


def latent_draw(
    posterior: Posterior,
    likelihood: Likelihood,
    x: Tensor,
    z: Tensor,
    level: Level,
    index: int,
    before: Callable[[Tensor, Moments, Tensor], None] | None = None,
) -> Tensor:
    """
    Draws of p(u | z, y), ``micro_batch`` rows at a time, (n, C, H, W).

    :param torch.Tensor x: current images in [0, 1], at which the noise of y, and of the energy of the prior, is drawn.
    :param torch.Tensor z: latents with the noise of ``level``.
    :param int index: of the stage, for its noise.
    :param before: called before each draw with the rows, their moments and a draw of u less its mean.
    """
    energy = posterior.prior.perturbed_energy(x, partial(_normal, posterior, "slice difference", index))
    noisy = WithEnergy(likelihood.tangent_at(x).perturbed(x, partial(_noise, posterior, index)), energy)
    e, u = posterior.noise("sample", index), torch.empty_like(z)
    for rows in torch.arange(len(z), device=z.device).split(posterior.micro_batch or len(z)):
        prior = posterior.prior.select(rows)
        moments = Moments(prior, z[rows], level)
        deviation = moments.deviation(e[rows])
        if before is not None:
            before(rows, moments, deviation)
        u[rows] = conditional_draw(moments, OfLatents(noisy.select(rows), prior), deviation)
    return u


def _length(objective: Potential, u: Tensor, slope: Tensor, dual: Tensor, move: Tensor) -> Tensor:
    """The step size along ``move``, C times ``dual``, (n,): of a Newton step, halved while the objective is larger."""
    value, gradient = value_and_gradient(objective, u)
    change = value_and_gradient(objective, u + move)[1] - gradient
    linear, quadratic = dot(move, slope), dot(move, dual)
    curvature = dot(move, change) + quadratic
    length = torch.where(curvature > 0, -(dot(move, gradient) + linear) / curvature, 0).clamp(min=0)
    for _ in range(SHORTENINGS):
        moved = objective(u + column(length, u) * move) + length * linear + length.square() * quadratic / 2
        length = torch.where(moved <= value, length, length / 2)  # False for NaN
    return torch.where(moved <= value, length, 0)


def _noise(posterior: Posterior, index: int, y: Measurements) -> Measurements:
    """Standard normal noise like measurements, for each row."""
    sizes = [real(t[:1]).numel() for t in parts(y)]
    drawn, noises = _normal(posterior, "measurements", index, (sum(sizes),)), []
    for t, e in zip(parts(y), drawn.split(sizes, 1), strict=True):
        e = e.to(t.device, t.real.dtype)
        e = torch.view_as_complex(e.view(*t.shape, 2)) if t.is_complex() else e.view(t.shape)
        noises.append(e)
    return like_parts(y, noises)


def _normal(posterior: Posterior, purpose: str, index: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of a shape for each row."""
    rows = posterior.rows
    return posterior.draws(purpose, index, shape, rows // posterior.likelihood.forward.batch, rows)
