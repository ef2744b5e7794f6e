"""The result of a call and its plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from deepinv_dmilo.posterior.posterior import Posterior
from deepinv_dmilo.schedules.schedule import Plan, Stage


class Ended(NamedTuple):
    """
    How a layer problem of an image ended.

    :param float sigma: noise level of its stage, for images in [0, 1].
    :param int passes: of the network, mean over the samples.
    :param bool converged: whether the solver stopped before its last step.
    """

    sigma: float
    passes: float
    converged: bool


@dataclass(frozen=True)
class CallPlan:
    """
    The plans of all images of a call.

    :param tuple groups: the image numbers and the plan of each group.
    :param tuple passes: maximum number of forward and backward passes of the network per image, for all samples, of
        each group.
    :param tuple calls: maximum number of forward passes; a forward and backward pass counts as two.
    :param float seconds: upper estimate of the run time of the call, from the times of its first image, of one pass of
        the network and of one evaluation of A; None: not timed.
    :param float seconds_in_network: the part of it in the network.
    """

    groups: tuple[tuple[tuple[int, ...], Plan], ...]
    passes: tuple[int, ...]
    calls: tuple[int, ...]
    seconds: float | None = None
    seconds_in_network: float | None = None

    @classmethod
    def of(cls, groups: list[tuple[Posterior, Plan]], num_samples: int) -> CallPlan:
        """From the plans of groups of S samples of some images each."""
        plans = []
        for posterior, plan in groups:
            first = posterior.prior.given(plan.first_image)
            plans.append((tuple(posterior.image_numbers.tolist()), replace(plan, first_image=first)))
        passes, calls = (tuple(num_samples * getattr(plan, n) for _, plan in groups) for n in ("passes", "calls"))
        return cls(tuple(plans), passes, calls)

    def __str__(self) -> str:
        lines = []
        for (images, plan), passes, calls in zip(self.groups, self.passes, self.calls, strict=True):
            lines.append(f"images {', '.join(map(str, images))}: {plan.rule}")
            for number, facts in zip(images, plan.facts, strict=False):
                lines.append(
                    f"  facts of {number}: {'linear' if facts.linear else 'not linear'}, {'blind, ' * facts.blind}"
                    f"{'all' if facts.fully_observed else 'not all'} measurements depend on it, noise "
                    f"{facts.relative_noise:.2g} of y, LMMSE error {facts.lmmse_error:.2g}"
                )
            finishing = [getattr(step, "__name__", type(step).__name__) for step in plan.stages[-1].finishing]
            lines += [
                f"  first image: {', '.join(plan.first)}",
                f"  noise level: {plan.noise}",
                *_described(plan.stages),
                f"  finishing: {', '.join(finishing) or 'none'}",
                "  at most "
                + (
                    f"{passes} passes of the network for an image, {calls} calls in all"
                    if passes
                    else f"{calls} calls of the network for an image"
                ),
            ]
        if self.seconds is not None and self.seconds_in_network is not None:
            network, rest = self.seconds_in_network, self.seconds - self.seconds_in_network
            lines.append(
                f"at most about {self.seconds:.2g} s in all: {network:.2g} in the network, {rest:.2g} in A and the "
                "first image"
            )
        return "\n".join(lines)


def _described(stages: tuple[Stage, ...]) -> list[str]:
    """A line for the stages of each kind, in their order."""
    lines = []
    for _, same in groupby(stages, lambda stage: (stage.decoupled, stage.products, stage.fixed)):
        of_kind = list(same)
        first, sigmas = of_kind[0], [f"{stage.levels[0].sigma:.3g}" for stage in of_kind]
        kind = "levels" if first.products else "decoupled stages"
        if first.decoupled:
            kernels = [f"{stage.kernel_sigma:.3g}" for stage in of_kind if stage.kernel_sigma]
            of_kernel = f", that of kernels {kernels[0]} to {kernels[-1]}" if kernels else ""
            lines.append(f"  {len(of_kind)} {kind} of noise {sigmas[0]} to {sigmas[-1]}{of_kernel}")
        else:
            held = "with the kernel fixed, " * first.fixed
            lines.append(
                f"  {len(of_kind)} stages of noise {', '.join(sigmas)}, {held}{first.steps} steps a layer at most"
            )
    return lines


class Solution(NamedTuple):
    """
    All results of a call.

    :param torch.Tensor images: in [0, 1], (B, C, H, W), of volumes (B, C, D, H, W): means over the samples, in blind
        problems the most probable samples.
    :param torch.Tensor samples: all samples, (B, S, C, H, W).
    :param dict parameters: nuisance parameters of the physics with a row for each image; empty: none.
    :param dict metrics: by name, for each image a value per stage; empty: not asked for.
    :param CallPlan plan: the plan of the call.
    :param list ended: for each image, how each of its layer problems ended, in order.
    """

    images: Tensor
    samples: Tensor
    parameters: dict[str, Tensor]
    metrics: dict[str, list[list[float]]]
    plan: CallPlan
    ended: list[list[Ended]]
