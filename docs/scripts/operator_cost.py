r"""
The cost of a reconstruction in the forward operator and in the network: evaluations, passes, and seconds in each.

    python docs/scripts/operator_cost.py --out docs/operator_cost.md

One digit, the bundled prior and default settings, on tasks of the package and on tomography with many angles. The
seconds are the time of one forward and backward evaluation, measured alone, times the number of evaluations.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deepinv.physics import GaussianNoise, Physics, Tomography
from torch import Tensor

from deepinv_dmilo.methods.dmilo import DMILO
from deepinv_dmilo.methods.dmilo_pgd import DMILOPGD
from deepinv_dmilo.priors.diffusers import DiffusionPrior
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.provenance import provenance, sentence
from deepinv_dmilo.tools.tasks import make_physics

TASKS_SHOWN = ("super-resolution", "inpainting", "deblurring", "nonlinear-deblurring", "compressed-sensing")
ANGLES, NOISE, REPEATS = 360, 0.005, 5


def tomograph(size: int) -> Physics:
    """Parallel beams from many angles: an evaluation costs more than a pass of the bundled network."""
    return Tomography(ANGLES, img_width=size, circle=False, noise_model=GaussianNoise(NOISE))


def seconds_of(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """One forward and backward evaluation, the fastest of a few."""
    times = []
    for _ in range(REPEATS):
        x = x.detach().requires_grad_()
        start = time.perf_counter()
        function(x).square().sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)


def count(model: DMILO, y: Tensor, physics: Physics) -> tuple[int, int]:
    """Evaluations of A and passes of the network of a reconstruction of one image."""
    evaluations, A = 0, physics.A

    def counted(x: Tensor, **parameters: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(x)
        return A(x, **parameters)

    physics.A = counted  # type: ignore[method-assign]
    try:
        model(y, physics)
        total = evaluations
        _, metrics = model(y, physics, compute_metrics=True)  # which asks A itself, too
    finally:
        del physics.A
    return total, metrics["passes"][0][-1]


def main(argv: list[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python docs/scripts/operator_cost.py")
    parser.add_argument("--out", type=Path, required=True, help="markdown file to write")
    args = parser.parse_args(argv)
    prior, x = DiffusionPrior.from_pretrained("digits"), held_out_images("digits")[:1]
    size = x.shape[-1]
    operators: dict[str, Physics] = {name: make_physics(name, (1, size, size), noise=NOISE) for name in TASKS_SHOWN}
    operators[f"tomography, {ANGLES} angles"] = tomograph(size)
    a, b = prior.levels(2)[1:]
    frozen = prior.frozen()
    of_network = seconds_of(lambda z: frozen.step(z, a, b), prior.encode(x))
    lines = [
        "| operator | method | evaluations of A | passes | seconds in A | seconds in the network |",
        "|---|---|---|---|---|---|",
    ]
    for name, physics in operators.items():
        y, of_operator = physics(x), seconds_of(physics.A, x)
        for method in (DMILO, DMILOPGD):
            evaluations, passes = count(method(prior), y, physics)
            row = [name, method.__name__, str(evaluations), str(passes)]
            row += [f"{evaluations * of_operator:.2f}", f"{passes * of_network:.2f}"]
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    heading = f"# Cost of the forward operator\n\n{' '.join(str(__doc__).split(chr(10) * 2)[2].split())}\n\n"
    command = f"`python docs/scripts/operator_cost.py {' '.join(sys.argv[1:] if argv is None else argv)}`"
    args.out.write_text(f"{heading}{command}; {sentence(provenance())}.\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
