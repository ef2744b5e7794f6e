"""What a call returns beside its images: the plan, and why each level ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from deepinv_dmilo.schedules.schedule import Plan


class Ended(NamedTuple):
    """
    How a layer problem of an image ended.

    :param float sigma: the noise level of its stage, for images in [0, 1].
    :param int passes: of the network, mean over the samples.
    :param bool converged: whether it ended before its steps were used up.
    """

    sigma: float
    passes: float
    converged: bool


@dataclass(frozen=True)
class CallPlan:
    """
    What a call does: a plan for each group of images.

    :param tuple groups: the numbers of the images of each group, and their plan.
    :param int passes: forward and backward passes of the network that an image takes at most, its samples together, by
        group.
    :param float seconds: about what all of them take here, from the time of a pass; None: not timed.
    """

    groups: tuple[tuple[tuple[int, ...], Plan], ...]
    passes: tuple[int, ...]
    seconds: float | None = None

    def __str__(self) -> str:
        blocks = [_described(*group, passes) for group, passes in zip(self.groups, self.passes, strict=True)]
        time = [] if self.seconds is None else [f"about {self.seconds:.2g} s in all"]
        return "\n".join([*blocks, *time])


class Solution(NamedTuple):
    """
    All that a call found.

    :param torch.Tensor images: in [0, 1], (B, C, H, W): means over the samples; with unknown parameters the most
        probable samples.
    :param torch.Tensor samples: all of them, (B, S, C, H, W).
    :param dict parameters: of the physics that were unknown, a row for each image; empty: none were.
    :param dict metrics: by name, for each image a value for each stage; empty: none were asked for.
    :param CallPlan plan: what was done.
    :param list ended: for each image, how each of its layer problems ended, in their order.
    """

    images: Tensor
    samples: Tensor
    parameters: dict[str, Tensor]
    metrics: dict[str, list[list[float]]]
    plan: CallPlan
    ended: list[list[Ended]]


def _described(images: tuple[int, ...], plan: Plan, passes: int) -> str:
    """The plan of a group in a few lines."""
    lines = [f"images {', '.join(map(str, images))}: {plan.rule}"]
    for number, facts in zip(images, plan.facts, strict=False):
        lines.append(
            f"  facts of {number}: {'linear' if facts.linear else 'not linear'}, {'blind, ' * facts.blind}"
            f"{'all' if facts.fully_observed else 'not all'} measurements observe it, noise {facts.relative_noise:.2g} "
            f"of y, LMMSE error {facts.lmmse_error:.2g}"
        )
    sigmas = ", ".join(f"{stage.levels[0].sigma:.3g}" for stage in plan.stages)
    finishing = [getattr(step, "__name__", type(step).__name__) for step in plan.stages[-1].finishing]
    lines.append(f"  first image: {', '.join(plan.first)}")
    lines.append(f"  {len(plan.stages)} stages of noise {sigmas}, {plan.stages[0].steps} steps a layer at most")
    lines.append(f"  finishing: {', '.join(finishing) or 'none'}")
    lines.append(f"  at most {passes} passes of the network for an image")
    return "\n".join(lines)
