"""One call of a reconstructor: what it observes and draws, the passes it counts, the metrics it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from deepinv.loss.metric import PSNR
from deepinv.optim import DataFidelity
from deepinv.physics import Physics
from torch import Tensor
from tqdm.auto import tqdm

from deepinv_dmilo.likelihood.blind import Unknowns
from deepinv_dmilo.likelihood.constraints import Guess
from deepinv_dmilo.likelihood.data import check_fidelity
from deepinv_dmilo.likelihood.forward import Operator
from deepinv_dmilo.likelihood.measurements import Measurements, parts, working_dtype
from deepinv_dmilo.likelihood.observation import Observation
from deepinv_dmilo.methods.scale import check_scale
from deepinv_dmilo.optim.descent import STANDSTILL, gradient_steps, proximal_point
from deepinv_dmilo.optim.solvers import SLOWER, Solution
from deepinv_dmilo.posterior.problem import Problem, Variables
from deepinv_dmilo.priors.prior import Level, Prior, not_finite
from deepinv_dmilo.utils.draws import Draws


class Run:
    """One call of a reconstructor: what it observes and draws; it solves, counts passes and keeps metrics."""

    def __init__(
        self,
        model: Any,  # the reconstructor
        y: Measurements,
        physics: Physics,
        shape: tuple[int, ...],
        init: Tensor | None,
        x_gt: Tensor | None,
        compute_metrics: bool,
    ) -> None:
        self.model, self.shape, self.num_samples = model, shape, model.num_samples
        rows = shape[0] * model.num_samples
        #: for images of the size, its conditions repeated for each sample
        self.prior: Prior = model.prior.for_images(*shape[2:]).select(torch.arange(shape[0]).repeat(model.num_samples))
        self.like = torch.empty(0, dtype=working_dtype(y), device=parts(y)[0].device)
        noise_level: float | None = getattr(model, "noise_level", None)
        fidelity: DataFidelity | None = getattr(model, "data_fidelity", None)
        given: dict[str, Guess] | None = getattr(model, "unknown", None)
        #: parameters of the physics that are found with the images
        self.unknowns = Unknowns(given, physics, shape[0], model.num_samples, self.like) if given else None
        operator = Operator(physics, shape, self.like, single=rows == 1, unknowns=self.unknowns)
        self.observation = Observation(y, operator, model.num_samples, noise_level, fidelity)
        check_scale(self.observation)
        if fidelity is not None:
            check_fidelity(fidelity, self.observation.data, self.grey())
        self.draws = Draws(model.rng)
        self.latent_shape = (shape[0], *self.prior.encode(self.grey()[:1]).shape[1:])
        #: the start of every sample, where the caller gave one
        self.init = None if init is None else init.detach().to(self.like).repeat(model.num_samples, 1, 1, 1)
        self.x_gt, self.compute_metrics = x_gt, compute_metrics
        #: the rows that take part in the present outer step
        self.rows = torch.arange(rows, device=self.like.device)
        #: steps of the solver that a problem of each row may take
        self.steps = torch.full((rows,), model._steps(model._solves()), device=self.like.device)
        self.outer = 1
        #: how far a measurement may be from A(x) in this outer step, (S * B,); None: the data term is another
        self.variance: Tensor | None = None
        #: the variance of noise that nobody told, as the network saw it at the first image, (S * B,)
        self.seen: Tensor | None = None
        #: images whose measurements are known to leave open little more than their noise, (B,)
        self.determined = torch.zeros(shape[0], dtype=torch.bool, device=self.like.device)
        #: of the samples, the least of which is returned where parameters are unknown, (S * B,); None: the objectives
        self.surprise: Tensor | None = None
        #: steps that a problem of each image may take at most, (B,); None: as many as the budget has
        self.most_steps: Tensor | None = None
        self.passes = torch.zeros(rows, dtype=torch.long, device=self.like.device)
        self.metrics: dict[str, list[list[float]]] = {}

    @property
    def is_watched(self) -> bool:
        """Whether anybody looks at iterates on the way."""
        return self.model.verbose or self.compute_metrics

    def grey(self) -> Tensor:
        """Mid-grey images, (S * B, C, H, W)."""
        return self.like.new_full((self.num_samples * self.shape[0], *self.shape[1:]), sum(self.prior.limits) / 2)

    def noise(self) -> Tensor:
        """The next standard normal noise for every sample of every image, (S * B, C, H, W)."""
        return self.draws(self.latent_shape, self.num_samples).to(self.like)

    def first_latent(self, level: Level) -> Tensor:
        """Where a chain starts: what the caller gave, or pure noise."""
        return level.spread * self.noise() if self.init is None else self.init

    def descend(
        self,
        x: Tensor,
        *,
        step_size: float | str = "auto",
        misfit: Callable[[Tensor], Tensor] | None = None,
        pull: Tensor | None = None,
        limits: tuple[float, float] | None = None,
        **how: Any,
    ) -> Tensor:
        """
        Gradient steps of images x, (S * B, C, H, W), on the measurements.

        What they descend is half of ``misfit``; None: of ``||A(x) - y||^2``, or twice another negative log-likelihood.
        "auto": with a ``pull``, L-BFGS towards the proximal point; else steps of size ``1 / ||A||^2`` where that is
        known, or found by backtracking. They are clamped to ``limits``; None: to those of the prior's images.
        """
        observation, limits = self.observation, limits or self.prior.limits
        misfit = misfit or observation.misfit(as_made=step_size != "auto")
        if step_size == "auto" and pull is not None:
            return proximal_point(x, misfit, pull=pull, steps=how["steps"], limits=limits)
        if step_size != "auto":
            size = torch.full_like(x[:, 0, 0, 0], float(step_size))
            if pull is not None and observation.is_gaussian:
                pull = pull * observation.operator.units.scale**2
            return gradient_steps(x, misfit, size=size, pull=pull, limits=limits, **how)
        norm = observation.operator.squared_norm if observation.is_gaussian else None
        auto = None if norm is None else 1 / norm.repeat(self.num_samples)
        return gradient_steps(x, misfit, size=auto, standstill=STANDSTILL, limits=limits, **how)

    @property
    def budget(self) -> int | None:
        """Passes of the network that a sample may take; None: as many as the steps of the solver come to."""
        return self.model._passes_of_a_sample()

    def outer_steps(
        self, chains: list[tuple[Level, ...]], taken: Tensor | None = None
    ) -> Iterator[tuple[tuple[Level, ...], bool]]:
        """
        The chain of each outer step, and whether it is the last.

        :param torch.Tensor taken: which of them each image takes, and shares its budget among, (B, len(chains)); None:
            all.
        """
        if taken is None:
            taken = torch.ones(self.shape[0], len(chains), dtype=torch.bool, device=self.rows.device)
        taken = taken.repeat(self.num_samples, 1)
        solves = torch.tensor([len(levels) - 1 for levels in chains], device=taken.device)
        for row in taken.unique(dim=0):
            self.steps[(taken == row).all(1)] = self.model._steps(int(solves[row].sum()))
        if self.most_steps is not None:
            self.steps = torch.minimum(self.steps, self.most_steps.repeat(self.num_samples))
        groups = [self.steps[part].unique().sum() for part in taken.T]
        self.bar.total = int(sum(n * steps for n, steps in zip(solves, groups, strict=True)))
        for k, levels in enumerate(chains):
            self.outer, self.rows = k + 1, taken[:, k].nonzero()[:, 0]
            yield levels, self.outer == len(chains)

    def in_parts(self, function: Callable[[Prior, Tensor], Tensor], z: Tensor, rows: Tensor | None = None) -> Tensor:
        """
        A function of the prior and latents, of as many at a time as may go through the network.

        :param torch.Tensor rows: whose latents these are; None: of those that take part in the present outer step.
        """
        rows, most = self.rows if rows is None else rows, self.model.micro_batch or len(z)
        parts = zip(rows.split(most), z.split(most), strict=True)
        return torch.cat([function(self.prior.select(some), part) for some, part in parts])

    def images(self, u: Tensor) -> Tensor:
        """The images of clean latents of the rows that take part, within the limits."""
        return self.in_parts(lambda prior, part: prior.decode(part).clamp(*prior.limits), u)

    def denoised(self, z: Tensor, level: Level, rows: Tensor) -> Tensor:
        """What the network as a denoiser makes of latents of some rows at a level: images, within the limits."""
        return self.in_parts(lambda prior, part: prior.decode(prior.denoise(part, level)).clamp(*prior.limits), z, rows)

    def last_of(self, iterates: Callable[[Run], Iterator[tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
        """Go through the outer steps; the last images, checked, one for each image and all samples."""
        total = int(self.steps[0]) * self.model._solves()
        with tqdm(total=total, desc=type(self.model).__name__, unit="step", disable=not self.model.verbose) as self.bar:
            for x, cost in iterates(self):
                self.record(x, cost)
        if not torch.isfinite(x).all():
            raise FloatingPointError(f"the last step left NaN or infinite pixels; {SLOWER}")
        images, rows = self.of_samples(x, cost)
        if self.unknowns is not None:
            self.unknowns.keep(rows)
        return images, x

    def of_samples(self, x: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """
        What the samples of each of the present images come to, (n, C, H, W), and a row of each, (n,).

        Their mean; where parameters of the physics are unknown, the most probable sample: a blur may be shifted
        against its image, so that a mean of such images, or of such blurs, is neither.

        :param torch.Tensor cost: the objectives of the present rows, which count until more is known of them.
        """
        costs = (cost if self.surprise is None else self.surprise[self.rows]).view(self.num_samples, -1)
        best = torch.zeros_like(costs[0], dtype=torch.long) if self.unknowns is None else costs.argmin(0)
        rows = self.rows.view(self.num_samples, -1).gather(0, best[None])[0]
        return self.observation.mean(x[self.rows]) if self.unknowns is None else x[rows], rows

    def solve(self, problem: Problem, start: Variables, watch: Callable[..., object] | None = None) -> Solution:
        """The solution of a problem of the present rows, its passes counted; those of one budget go together."""
        budgets = self.steps[self.rows]
        groups = [(budgets == steps).nonzero()[:, 0] for steps in budgets.unique()]
        parts = [
            self._solve(problem.select(g), {name: t[g] for name, t in start.items()}, int(budgets[g[0]]), watch)
            for g in groups
        ]
        order = torch.cat(groups).argsort()
        variables = {name: torch.cat([part.variables[name] for part in parts])[order] for name in start}
        value, passes = (torch.cat([getattr(part, name) for part in parts])[order] for name in ("value", "passes"))
        self.passes[self.rows] += passes * self.model._passes_per_step()
        return Solution(variables, value, passes)

    def _solve(self, problem: Problem, start: Variables, steps: int, watch: Callable[..., object] | None) -> Solution:
        def look(v: Variables | None, value: Tensor | None) -> None:
            if watch is not None:
                watch(v, value)
            self.bar.update()

        seen = self.bar.n
        try:
            solution = self.model._solver()(problem, start, steps=steps, watch=look)
        except FloatingPointError as error:
            cause = str(error)
            if diverged := not_finite(problem.prior):
                cause = f"the prior has NaN or infinite weights, such as {diverged[0]}; give those of a finite training"
            raise FloatingPointError(f"{problem.name}, outer step {self.outer}: {cause}") from error
        self.bar.update(seen + steps - self.bar.n)  # what was not needed
        return solution

    def record(self, x: Tensor, cost: Tensor) -> None:
        """Keep the metrics of images (S * B, C, H, W), of those that take part now, where somebody looks at them."""
        if not self.is_watched or not len(self.rows):
            return
        mean, (images, rows) = self.observation.mean, self.of_samples(x, cost)
        numbers = rows % self.shape[0]
        residual = self.observation.data.select(rows).rms(images)
        scale = self.observation.operator.units.scale
        noise = None if self.variance is None else scale * mean(self.variance[self.rows]).sqrt()
        shown = {} if noise is None else {"noise": f"{noise.mean().item():.3g}"}
        self.bar.set_postfix(outer=self.outer, residual=f"{residual.mean().item():.3g}", **shown)
        if self.compute_metrics:
            passes = self.passes[self.rows].view(-1, len(images)).sum(0)
            values = {"cost": mean(cost), "residual": residual, "passes": passes}
            if noise is not None:
                values["noise"] = noise
            if self.x_gt is not None:
                values["psnr"] = PSNR()(images, self.x_gt.to(x)[numbers])
            for name, value in values.items():
                curves = self.metrics.setdefault(name, [[] for _ in range(self.shape[0])])
                for number, v in zip(numbers.tolist(), value.tolist(), strict=True):
                    curves[number].append(v)
