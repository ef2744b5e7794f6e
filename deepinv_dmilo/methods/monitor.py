"""Watches a call: progress, passes, metrics, and how each layer ended. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from deepinv.loss.metric import PSNR
from torch import Tensor
from tqdm.auto import tqdm

from deepinv_dmilo.likelihood.likelihoods import Gaussian, Likelihood
from deepinv_dmilo.methods.solution import Ended
from deepinv_dmilo.optim.solvers import Minimum, Solver, Variables
from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.posterior.problem import Problem
from deepinv_dmilo.priors.prior import not_finite
from deepinv_dmilo.schedules.schedule import Stage


class Monitor:
    """
    Watches the reconstruction of B images.

    :param str name: of the method.
    :param int batch: B.
    :param bool verbose: show a progress bar.
    :param bool compute_metrics: keep metrics.
    :param torch.Tensor x_gt: ground truth for the metric ``psnr``, (B, C, H, W), if any.
    """

    def __init__(self, name: str, batch: int, *, verbose: bool, compute_metrics: bool, x_gt: Tensor | None) -> None:
        self.name, self.batch, self.verbose = name, batch, verbose
        self.compute_metrics, self.x_gt = compute_metrics, x_gt
        self.passes: dict[int, int] = {}  # by row
        self.metrics: dict[str, list[list[float]]] = {}
        self.ended: list[list[Ended]] = [[] for _ in range(batch)]

    @property
    def is_watched(self) -> bool:
        """Whether anybody looks at iterates on the way."""
        return self.verbose or self.compute_metrics

    @contextmanager
    def showing(self, total: int) -> Iterator[None]:
        """With a progress bar of so many passes of the network, at most."""
        with tqdm(total=total, desc=self.name, unit="pass", disable=not self.verbose) as self.bar:
            yield

    def solve(
        self,
        solver: Solver,
        problem: Problem,
        start: Variables,
        posterior: Posterior,
        stage: Stage,
        *,
        watch: Callable[[Variables, Tensor], object] | None = None,
    ) -> Minimum:
        """The minimum of a problem, its passes counted; ``watch`` sees the iterates of a solver that has them."""

        def step(v: Variables | None, value: Tensor | None) -> None:
            if watch is not None and v is not None and value is not None:
                watch(v, value)
            self.bar.update(each)

        each, before = len(problem.levels) - 1, self.bar.n
        try:
            minimum = solver(problem, start, steps=stage.steps, watch=step)
        except FloatingPointError as error:
            cause = str(error)
            if diverged := not_finite(problem.prior):
                cause = f"the prior has NaN or infinite weights, such as {diverged[0]}; give those of a finite training"
            raise FloatingPointError(f"{problem.name}, outer step {stage.index + 1}: {cause}") from error
        self.bar.update(before + each * stage.steps - self.bar.n)  # what was not needed
        self._count(each * minimum.passes, each * stage.steps, posterior, stage)
        return minimum

    def _count(self, passes: Tensor, most: int, posterior: Posterior, stage: Stage) -> None:
        """Passes of the network of each row, (n,), of so many at most."""
        for row, count in zip(posterior.rows.tolist(), passes.tolist(), strict=True):
            self.passes[row] = self.passes.get(row, 0) + count
        of_samples = passes.view(posterior.num_samples, -1)
        images = posterior.rows[: of_samples.shape[1]] % self.batch
        means, all_done = of_samples.double().mean(0), (of_samples < most).all(0)
        for image, mean, done in zip(images.tolist(), means.tolist(), all_done.tolist(), strict=True):
            self.ended[image].append(Ended(stage.levels[0].sigma, mean, done))

    def record(self, posterior: Posterior, stage: Stage, x: Tensor, cost: Tensor, likelihood: Likelihood) -> None:
        """Keep the metrics of images (n, C, H, W) of objectives ``cost``, (n,), where somebody looks at them."""
        if not self.is_watched:
            return
        places = chosen_rows(posterior, cost)
        images, one = of_samples(posterior, x, places), posterior.likelihood.select(places)
        numbers = (posterior.rows[places] % self.batch).tolist()
        values = {"cost": posterior.mean(cost), "residual": one.rms(images), "passes": self._passes(posterior)}
        shown = {"residual": f"{values['residual'].mean().item():.3g}"}
        if isinstance(likelihood, Gaussian):
            values["noise"] = likelihood.forward.units.scale * posterior.mean(likelihood.variance).sqrt()
            shown["noise"] = f"{values['noise'].mean().item():.3g}"
        self.bar.set_postfix(outer=stage.index + 1, **shown)
        if self.x_gt is not None:
            values["psnr"] = PSNR()(images, self.x_gt.to(x)[numbers])
        for name, value in values.items() if self.compute_metrics else ():
            curves = self.metrics.setdefault(name, [[] for _ in range(self.batch)])
            for number, v in zip(numbers, value.tolist(), strict=True):
                curves[number].append(v)

    def _passes(self, posterior: Posterior) -> Tensor:
        """Of all samples of each image together, (n / S,)."""
        counts = torch.tensor([self.passes.get(row, 0) for row in posterior.rows.tolist()])
        return counts.view(posterior.num_samples, -1).sum(0)


def chosen_rows(posterior: Posterior, cost: Tensor) -> Tensor:
    """
    The places of one row of each image, (n / S,): where parameters are unknown, the one of least cost, (n,).

    A blur may be shifted against its image, so that a mean of such images, or of such blurs, is neither.
    """
    costs = cost.view(posterior.num_samples, -1)
    best = torch.zeros_like(costs[0], dtype=torch.long) if posterior.nuisance is None else costs.argmin(0)
    return best * costs.shape[1] + torch.arange(costs.shape[1], device=best.device)


def of_samples(posterior: Posterior, x: Tensor, places: Tensor) -> Tensor:
    """What the samples of each image come to: their mean, or the one at these places where parameters are unknown."""
    return posterior.mean(x) if posterior.nuisance is None else x[places]
