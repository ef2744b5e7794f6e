"""The monitor of a call: progress, passes, metrics and how each layer problem ended; it does not affect the result."""

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
from deepinv_dmilo.schedules.schedule import CALLS_OF_A_PASS, Stage


class Monitor:
    """
    Monitors the reconstruction of B images.

    :param str name: of the method.
    :param int batch: B.
    :param int num_samples: reconstructions of each image.
    :param bool verbose: show a progress bar.
    :param bool compute_metrics: record metrics.
    :param torch.Tensor x_gt: ground truth in [0, 1] for the metric ``psnr``, (B, C, H, W), if any.
    """

    def __init__(
        self, name: str, batch: int, num_samples: int, verbose: bool, compute_metrics: bool, x_gt: Tensor | None
    ) -> None:
        self.name, self.batch, self.verbose = name, batch, verbose
        self.compute_metrics, self.x_gt = compute_metrics, x_gt
        self.passes, self.calls = (torch.zeros(num_samples * batch, dtype=torch.long) for _ in range(2))
        self.metrics: dict[str, list[list[float]]] = {}
        self.ended: list[list[Ended]] = [[] for _ in range(batch)]

    @property
    def is_watched(self) -> bool:
        """Whether intermediate images are shown or recorded."""
        return self.verbose or self.compute_metrics

    @contextmanager
    def showing(self, total: int) -> Iterator[None]:
        """Show a progress bar of at most ``total`` calls of the network."""
        with tqdm(total=total, desc=self.name, unit="call", disable=not self.verbose) as self.bar:
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
        """Solve a problem and count its passes; ``watch`` gets the iterates of a solver that reports them."""

        def step(v: Variables | None, value: Tensor | None) -> None:
            if watch is not None and v is not None and value is not None:
                watch(v, value)
            self.bar.update(CALLS_OF_A_PASS * each)

        each, before = len(problem.levels) - 1, self.bar.n
        try:
            minimum = solver(problem, start, steps=stage.steps, watch=step)
        except FloatingPointError as error:
            cause = str(error)
            if diverged := not_finite(problem.prior):
                cause = f"the prior has NaN or infinite weights, such as {diverged[0]}; load finite ones"
            raise FloatingPointError(f"{problem.name}, outer step {stage.index + 1}: {cause}") from error
        most = CALLS_OF_A_PASS * each * stage.steps
        self.bar.update(before + most - self.bar.n)  # including unused steps
        self._count(each * minimum.passes.cpu(), each * stage.steps, posterior, stage)
        return minimum

    def called(self, posterior: Posterior, calls: int = 1) -> None:
        """Count calls of the network for each row."""
        self.bar.update(calls)
        self.calls[posterior.rows.cpu()] += calls

    def _count(self, passes: Tensor, most: int, posterior: Posterior, stage: Stage) -> None:
        """Count the passes of each row, (n,), out of at most ``most``."""
        self.passes[posterior.rows.cpu()] += passes
        self.calls[posterior.rows.cpu()] += CALLS_OF_A_PASS * passes
        of_samples = passes.view(posterior.num_samples, -1)
        columns = posterior.image_numbers, of_samples.double().mean(0), (of_samples < most).all(0)
        for image, mean, done in zip(*(t.tolist() for t in columns), strict=True):
            self.ended[image].append(Ended(stage.levels[0].sigma, mean, done))

    def record(self, posterior: Posterior, stage: Stage, x: Tensor, cost: Tensor, likelihood: Likelihood) -> None:
        """Record the metrics of images, (n, C, H, W), with objectives ``cost``, (n,), if they are watched."""
        if not self.is_watched:
            return
        places = chosen_rows(posterior, cost)
        images, one = of_samples(posterior, x, places), posterior.likelihood.select(places)
        numbers = posterior.image_numbers.tolist()
        values = {"cost": posterior.mean(cost), "residual": one.rms(images)}
        for name, count in (("passes", self.passes), ("calls", self.calls)):
            values[name] = count[posterior.rows.cpu()].view(posterior.num_samples, -1).sum(0)
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


def chosen_rows(posterior: Posterior, cost: Tensor) -> Tensor:
    """
    The position of one row of each image, (n / S,): in blind problems that of the sample of least cost, (n,).

    A blind deconvolution is ambiguous up to a shift of image and kernel, so its samples cannot be averaged.
    """
    costs = cost.view(posterior.num_samples, -1)
    best = torch.zeros_like(costs[0], dtype=torch.long) if posterior.nuisance is None else costs.argmin(0)
    return best * costs.shape[1] + torch.arange(costs.shape[1], device=best.device)


def of_samples(posterior: Posterior, x: Tensor, places: Tensor) -> Tensor:
    """One image from the samples of each: their mean, in blind problems the rows at these positions."""
    return posterior.mean(x) if posterior.nuisance is None else x[places]
