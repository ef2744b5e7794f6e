r"""
Does the projected step contract?
=================================

DMILO-PGD :footcite:p:`zheng2025dmilo` alternates between a gradient step on the data fidelity and a fit by the prior.
Here the prior is an affine toy whose images form a subspace, so that both steps have a closed form. The error after
each outer step is compared with theory.
"""

# %%
# An affine prior
# ---------------
#
# The network projects any latent onto a subspace, which gives the clean image; in [0, 1] the images are mid-grey plus a
# subspace. With a scheduler whose last step is free of noise, the chain of one layer is exactly that projection.

from types import SimpleNamespace

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

from deepinv_dmilo import DMILOPGD, LBFGS, Chain, DiffusionPrior

torch.set_default_dtype(torch.float64)
rng = torch.Generator().manual_seed(0)
shape, dimension, measurements = (1, 12, 20), 8, 48
pixels = shape[1] * shape[2]


class Projection(torch.nn.Module):
    """The point of a subspace of small images, in [-1, 1], that is nearest to z."""

    def __init__(self):
        super().__init__()
        self.basis = torch.linalg.qr(torch.randn(pixels, dimension, generator=rng))[0]

    def forward(self, z, t):
        return (z.flatten(1) @ self.basis @ self.basis.T).view_as(z)


network = Projection()
scheduler = SimpleNamespace(
    alphas_cumprod=torch.linspace(1.0, 0.01, 1000), config=SimpleNamespace(prediction_type="sample")
)
prior = DiffusionPrior(network, scheduler, clip_sample=False)

# %%
# Random measurements, no noise
# -----------------------------
#
# There are more measurements than dimensions of the subspace, and far fewer than pixels. The true image is in the
# subspace, and close enough to mid-grey that no pixel is clipped.

matrix = torch.randn(measurements, pixels, generator=rng) / measurements**0.5
physics = dinv.physics.LinearPhysics(
    A=lambda x, **kwargs: x.flatten(1) @ matrix.T,
    A_adjoint=lambda y, **kwargs: (y @ matrix).view(-1, *shape),
)
x = prior.decode((network.basis @ torch.randn(dimension, generator=rng)).view(1, *shape))
x = 0.5 + 0.05 * (x - 0.5) / (x - 0.5).abs().max()
y = physics.A(x)

# %%
# Theory
# ------
#
# Let :math:`U` be the basis and :math:`x_k - x^\star = U w_k`. The gradient step gives
# :math:`\tilde x = x_k - \eta A^\top A (x_k - x^\star)`, and the fit the :math:`w_{k+1}` that minimises
# :math:`\|A U w - A (\tilde x - x^\star)\|^2`. Together, with :math:`M = U^\top A^\top A U`,
#
# .. math::
#
#     w_{k+1} = (I - \eta\, M^{-1} U^\top (A^\top A)^2 U)\, w_k,
#
# so the error shrinks in each step, in the limit, by the spectral radius of that matrix. Its eigenvalues are one minus
# :math:`\eta` times averages of the squared singular values of :math:`A`. So the step contracts if :math:`A` is
# injective on the subspace and :math:`0 < \eta < 2 / \|A\|^2`.

gram = matrix.T @ matrix
norm = torch.linalg.matrix_norm(matrix, 2).square().item()
U = network.basis


def factor(step_size):
    """The factor by which an outer step shrinks the error."""
    step = torch.linalg.solve(U.T @ gram @ U, U.T @ gram @ gram @ U)
    return torch.linalg.eigvals(torch.eye(dimension) - step_size * step).abs().max().item()


# %%
# DMILO-PGD
# ---------
#
# The published loop on this prior: one gradient step and one fit for each outer step, no penalty on the latent and no
# deviation, and L-BFGS until convergence. A run of k outer steps is the beginning of a run of k + 1 steps, so runs of
# growing length give the error after each step.

steps = 12
sizes = {"0.5 / |A|^2": 0.5, "1 / |A|^2": 1.0, "1.5 / |A|^2": 1.5}


def error_after(outer_steps, step_size):
    """Root mean square error of DMILO-PGD."""
    chain = Chain(num_layers=1, outer_steps=outer_steps, sparsity=None, latent_penalty=0.0)
    exact = LBFGS(steps=100, tolerance=0.0)
    model = DMILOPGD(prior, schedule=chain, solver=exact, gradient_steps=1, step_size=step_size)
    return (model(y, physics) - x).square().mean().sqrt().item()


errors = {
    name: torch.tensor([error_after(k, size / norm) for k in range(1, steps + 1)]) for name, size in sizes.items()
}

print("step size       theory   measured")
for name, size in sizes.items():
    print(f"{name:12} {factor(size / norm):9.4f} {(errors[name][-1] / errors[name][-2]).item():10.4f}")

# %%
# Plot
# ----
#
# Lines: the theoretical factor, drawn through the last point. Points: the errors of DMILO-PGD.

figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
for name, size in sizes.items():
    k = torch.arange(1, steps + 1)
    last = errors[name][-1] * factor(size / norm) ** (k - steps)
    (line,) = axes.semilogy(k, last, alpha=0.6)
    axes.semilogy(k, errors[name], "o", color=line.get_color(), label=name)
axes.set(xlabel="outer step", ylabel="root mean square error")
axes.legend(title="step size")
plt.show()

# %%
# Summary
# -------

apart = max(abs(errors[name][-1] / errors[name][-2] / factor(size / norm) - 1).item() for name, size in sizes.items())
print(f"The measured ratios are within {100 * apart:.1f} % of the theoretical factors.")

# %%
# The images of a trained prior are no subspace and the noise is not zero, so none of this holds exactly there. What
# carries over is in :doc:`/method`: the operator must be injective on the images of the prior, and the step size must
# fit its norm.
#
# .. footbibliography::

torch.set_default_dtype(torch.float32)
