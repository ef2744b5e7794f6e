"""Volumes and films by a prior of images: each slice by itself in the prior, all of them in the physics."""

import copy
from dataclasses import replace
from itertools import product

import deepinv as dinv
import pytest
import torch
from deepinv.physics import GaussianNoise
from diffusers import DDIMScheduler
from toys import AffineNet, ConvNet, tiny_autoencoder, tiny_unet, toy_prior

from deepinv_dmilo import (
    DMILO,
    DMILOPGD,
    LBFGS,
    Chain,
    Channelwise,
    DiffusionPrior,
    DMILOSampler,
    DMPlug,
    Greyscale,
    LatentPrior,
    Levels,
    Simplex,
    Slicewise,
)
from deepinv_dmilo.posterior.problem import LatentTerm, Problem
from deepinv_dmilo.priors.slicewise import Fold, Folded

METHODS = {
    "dmilo": lambda prior, **s: DMILO(prior, max_passes=12, **s),
    "dmilo-pgd": lambda prior, **s: DMILOPGD(prior, max_passes=12, **s),
    "sampler": lambda prior, **s: DMILOSampler(prior, **{"sigmas": (2.0, 1.0, 0.5, 0.2, 0.05), "num_samples": 2, **s}),
    "dmplug": lambda prior, **s: DMPlug(prior, steps=3, **s),
    "published": lambda prior, **s: DMILO(
        prior, schedule=Chain(2, outer_steps=2, sparsity=None), solver=LBFGS(steps=3), **s
    ),
}
AXES = (2, 3, 4)
SIZE = (5, 9, 12)  # D, H, W


def noise(sigma=0.02):
    return GaussianNoise(sigma, rng=torch.Generator().manual_seed(0))


def volumes(n=1, channels=1, size=SIZE):
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(1)).double()


def blur(sigma=0.02):
    """A blur along all axes, with an open boundary: its measurements are smaller than the volume."""
    kernel = torch.rand(1, 1, 3, 3, 3, generator=torch.Generator().manual_seed(2)).double()
    return dinv.physics.Blur(kernel / kernel.sum(), padding="valid", noise_model=noise(sigma)).double()


def masked(channels=1, size=SIZE):
    rng = torch.Generator().manual_seed(0)
    return dinv.physics.Inpainting((channels, *size), mask=0.5, noise_model=noise(), rng=rng).double()


def slices(x, axis):
    return x.unbind(axis)


def roughness(x, axis=2):
    return x.diff(dim=axis).square().mean().sqrt().item()


# The prior


@pytest.mark.parametrize("axis", AXES)
def test_a_volume_is_folded_and_unfolded(axis):
    x = volumes(2, 3)
    fold = Fold(axis - 5, x.shape[axis])
    images = fold.images(x)
    assert images.shape == (2, 3 * x.shape[axis], *(s for k, s in enumerate(SIZE, 2) if k != axis))
    torch.testing.assert_close(images[:, 3:6], slices(x, axis)[1])  # the channels of a slice together
    torch.testing.assert_close(fold.volumes(images), x)
    torch.testing.assert_close(fold.volumes(images[None]), x[None])


@pytest.mark.parametrize("axis", [*AXES, -3, -1])
def test_each_slice_is_an_image_of_its_own(axis):
    inside = toy_prior(ConvNet(2)).eval()
    prior, level, z = Slicewise(inside, axis), inside.level(0.5), torch.randn(2, 2, *SIZE).double()
    each = torch.stack([inside.denoise(part, level) for part in slices(z, axis)], axis)
    torch.testing.assert_close(prior.denoise(z, level), each)
    torch.testing.assert_close(prior.in_parts(3).denoise(z, level), each)


def test_as_a_denoiser_of_deepinv():
    inside, x = toy_prior(ConvNet()).eval(), volumes(2, 3)
    each = torch.stack([inside.denoiser()(part, 0.2) for part in slices(x, 2)], 2)
    torch.testing.assert_close(Slicewise(inside).denoiser()(x, 0.2), each)


def test_the_slices_of_a_volume_have_its_condition():
    class Labelled(torch.nn.Module):
        def forward(self, z, t, class_labels):
            return z * class_labels.view(-1, 1, 1, 1)

    labels = {"class_labels": torch.tensor([1.0, 2.0])}
    inside = DiffusionPrior(Labelled(), DDIMScheduler(prediction_type="sample"), conditioning=labels)
    for at_once in (None, 2):
        prior = Slicewise(inside, axis=3).in_parts(at_once)
        u = prior.denoise(torch.full((2, 1, 4, 3, 4), 0.1), prior.level(0.5))
        torch.testing.assert_close(u[:, 0, 0, :, 0], torch.tensor([[0.1] * 3, [0.2] * 3]))
    y = torch.rand(2, 1, 3, 4, 4)
    assert DMILO(Slicewise(inside), max_passes=4)(y, dinv.physics.Denoising(noise(0.1))).shape == y.shape


INSIDE = {
    "channels": (lambda: Channelwise(toy_prior(ConvNet(1))), 2),
    "grey": (lambda: Greyscale(toy_prior(ConvNet())), 1),
    "padding": (lambda: DiffusionPrior(tiny_unet(1), DDIMScheduler()).double(), 1),
    "autoencoder": (
        lambda: LatentPrior(DiffusionPrior(tiny_unet(4, 8), DDIMScheduler(), clip_sample=False), tiny_autoencoder()),
        3,
    ),
}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("inside", INSIDE)
def test_around_any_prior(inside, axis):
    torch.manual_seed(0)
    make, channels = INSIDE[inside]
    physics = masked(channels)
    y = physics(volumes(1, channels))
    prior = Slicewise(make(), axis).double()
    x_hat = DMILO(prior, max_passes=6)(y, physics)
    assert x_hat.shape == y.shape
    parts = DMILO(prior, max_passes=6, micro_batch=2)(y, physics)
    torch.testing.assert_close(parts, x_hat, rtol=0, atol=1e-4)  # rounding that untrained networks amplify


# Reconstruction


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("method", METHODS)
def test_a_volume_of_one_slice_is_an_image(method, axis):
    x, model = volumes(2, 2, (9, 12)), METHODS[method]
    mask = (torch.rand(1, 2, 9, 12, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    flat = dinv.physics.Inpainting((2, 9, 12), mask=mask, noise_model=noise()).double()
    size = x.unsqueeze(axis).shape[1:]
    deep = dinv.physics.Inpainting(size, mask=mask.unsqueeze(axis), noise_model=noise()).double()
    y, inside = flat(x), toy_prior(ConvNet(2))
    expected = model(inside).solve(y, flat)
    found = model(Slicewise(inside, axis)).solve(y.unsqueeze(axis), deep)
    torch.testing.assert_close(found.images, expected.images.unsqueeze(axis))
    torch.testing.assert_close(found.samples, expected.samples.unsqueeze(axis + 1))


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize("axis", AXES)
def test_slices_that_the_physics_does_not_mix_are_those_of_images(method, axis):
    """Problems of a linear network and physics have one minimum, whatever the noise."""
    inside, physics = toy_prior(AffineNet(), clip_sample=False), dinv.physics.Denoising(noise())
    y = physics(volumes(size=(4, 8, 8) if axis == 2 else (8, 4, 8) if axis == 3 else (8, 8, 4)))
    schedule = Levels((1.0, 0.3), skip=False, mean=False, deviation_threshold=None)
    settings = {"schedule": schedule, "solver": LBFGS(steps=40, tolerance=1e-9), "noise_level": 0.1}
    found = method(Slicewise(inside, axis), **settings)(y, physics, init=torch.full_like(y, 0.5))
    images = torch.cat(slices(y, axis))
    each = method(inside, **settings)(images, physics, init=torch.full_like(images, 0.5))
    torch.testing.assert_close(torch.cat(slices(found, axis)), each, rtol=0, atol=1e-5)  # of the solver


@pytest.mark.parametrize(
    ("method", "difference"), [*product(METHODS, [None]), *product(sorted(METHODS.keys() - {"sampler"}), [0.1])]
)
def test_slices_that_are_alike_start_with_one_noise(method, difference, monkeypatch):
    seen = []

    def denoise(self, z, level, inside=Slicewise.denoise):
        seen.append((z, level))
        return inside(self, z, level)

    monkeypatch.setattr(Slicewise, "denoise", denoise)
    y = torch.full((1, 2, *SIZE), 0.5).double()
    physics = dinv.physics.Denoising(noise(0.1))
    model = METHODS[method](Slicewise(toy_prior(ConvNet(2)), axis=3, slice_difference=difference))
    init = None if model.schedule.starts_from_latent else torch.full_like(y, 0.5)
    model(y, physics, init=init)
    noisiest = max(seen, key=lambda at: at[1].ratio)[0]
    assert noisiest.std() > 0.1
    assert (roughness(noisiest, 3) == 0) == (difference is not None)


@pytest.mark.parametrize("method", METHODS)
def test_a_physics_that_mixes_slices(method):
    """All that a call gives has the shape of volumes, in batches and micro-batches alike."""
    physics, model = blur(), METHODS[method](Slicewise(toy_prior(ConvNet(1))))
    x = volumes(2)
    y = physics(x)
    assert model.check(y, physics) == x.shape
    assert [plan.first_image.shape[1:] for _, plan in model.plan(y, physics).groups] == [x.shape[1:]]
    solution = model.solve(y, physics, x_gt=x, compute_metrics=True)
    assert solution.images.shape == x.shape
    assert solution.samples.shape == (2, model.num_samples, *x.shape[1:])
    assert solution.images.is_contiguous()
    torch.testing.assert_close(solution.samples.mean(1), solution.images)
    psnr = -10 * (solution.images - x).square().mean((1, 2, 3, 4)).log10()
    assert [curve[-1] for curve in solution.metrics["psnr"]] == pytest.approx(psnr.tolist(), abs=2)  # before finishing
    assert physics.A(x).shape == y.shape  # the caller's is as it was
    torch.testing.assert_close(model(y[1:], physics), solution.images[1:], rtol=0, atol=1e-6)
    for micro_batch in (3, 8):
        model.micro_batch = micro_batch
        torch.testing.assert_close(model(y, physics), solution.images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [DMILO, DMILOPGD])
@pytest.mark.parametrize("axis", AXES)
def test_the_data_are_fitted(method, axis):
    physics = blur()
    y = physics(0.3 + 0.4 * volumes())
    x_hat = method(Slicewise(toy_prior(ConvNet(1)), axis), max_passes=60)(y, physics)
    assert (physics.A(x_hat) - y).square().mean().sqrt() < 0.03  # the noise is 0.02


def test_samples_and_their_spread():
    physics = masked()
    model = METHODS["sampler"](Slicewise(toy_prior(ConvNet(1)), axis=3))
    settings = {"return_std": True, "quantiles": (0.4, 0.6), "return_samples": True}
    mean, std, quantiles, samples = model(physics(volumes(2)), physics, **settings)
    assert mean.shape == std.shape == (2, 1, *SIZE)
    assert quantiles.shape == samples.shape == (2, 2, 1, *SIZE)
    assert (std[physics.mask.expand_as(std) == 0]).mean() > (std[physics.mask.expand_as(std) == 1]).mean()


def test_micro_batches_count_slices():
    inside, seen = toy_prior(ConvNet(1)), []
    inside.network.first.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    physics = blur()
    y = physics(volumes(3))
    for micro_batch, most in ((None, 15), (4, 4), (11, 10)):  # two whole volumes of five slices
        seen.clear()
        DMILO(Slicewise(inside), max_passes=4, micro_batch=micro_batch)(y, physics)
        assert max(seen) == most


def test_init_is_a_volume():
    physics, x = blur(), volumes(2)
    y, prior = physics(x), Slicewise(toy_prior(ConvNet(1)), axis=4)
    one, other = (DMILO(prior, max_passes=4)(y, physics, init=init) for init in (x, torch.zeros_like(x)))
    assert one.shape == x.shape
    assert (one - other).abs().max() > 1e-4
    latent = DMPlug(prior, steps=1, lr=1e-6)(y, physics, init=torch.randn_like(x))
    assert latent.shape == x.shape


def test_masks_of_each_volume():
    x = volumes(3)
    mask = (torch.rand(3, 1, *SIZE, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    several = dinv.physics.Inpainting((1, *SIZE), mask=mask, noise_model=noise()).double()
    model = DMILO(Slicewise(toy_prior(ConvNet(1))), max_passes=6)
    y = several(x)
    alone = dinv.physics.Inpainting((1, *SIZE), mask=mask[1:2], noise_model=noise()).double()
    torch.testing.assert_close(model(y[1:2], alone), model(y, several)[1:2], rtol=0, atol=1e-6)


class Flat(dinv.physics.LinearPhysics):
    """The slices of a volume as channels of an image: a member of a composition that gets no volume."""

    def A(self, x, **kwargs):
        return x.squeeze(1)

    def A_adjoint(self, y, **kwargs):
        return y.unsqueeze(1)


def test_several_measurements_and_compositions():
    x, model = volumes(2), DMILO(Slicewise(toy_prior(ConvNet(1))), max_passes=6)
    both = dinv.physics.stack(blur(), masked())
    assert model(both(x), both).shape == x.shape
    fidelity = dinv.optim.data_fidelity.StackedPhysicsDataFidelity([dinv.optim.L2(0.1), dinv.optim.L2(0.1)])
    given = DMILO(Slicewise(toy_prior(ConvNet(1))), max_passes=6, data_fidelity=fidelity)
    assert given(both(x), both).shape == x.shape
    of_volumes = masked()
    composed = dinv.physics.Inpainting(SIZE, mask=of_volumes.mask[0, 0]).double() * Flat()
    composed.noise_model, y = of_volumes.noise_model, of_volumes(x)
    torch.testing.assert_close(model(y[:, 0], composed), model(y, of_volumes), rtol=0, atol=1e-6)


def test_a_physics_that_is_not_linear_nor_of_deepinv():
    class Saturation(dinv.physics.Physics):
        def A(self, x, **kwargs):
            return (2 * x.mean(2)).tanh()

        def forward(self, x, **kwargs):
            return self.A(x) + 0.01 * torch.randn_like(x[:, :, 0])

    physics, x = Saturation(), volumes(2)
    physics.img_size = (1, *SIZE)
    y, model = physics(x), DMILO(Slicewise(toy_prior(ConvNet(1))), max_passes=6)
    assert model(y, physics).shape == x.shape
    assert model(y, physics, init=x).shape == x.shape


def test_an_unknown_blur_of_a_volume():
    physics = blur()
    guess = {"filter": Simplex(torch.full((1, 1, 3, 3, 3), 1 / 27).double())}
    model = DMILO(Slicewise(toy_prior(ConvNet(1))), unknown=guess, max_passes=20)
    x_hat, found = model(physics(volumes()), physics, return_unknown=True)
    assert x_hat.shape == (1, 1, *SIZE)
    assert found["filter"].shape == (1, 1, 3, 3, 3)
    assert found["filter"].sum().item() == pytest.approx(1)


# Slices that are alike

DECOUPLED = {"decoupled": lambda prior, **s: DMILO(prior, schedule=Levels(decoupled=True), max_passes=12, **s)}
COUPLED = METHODS | DECOUPLED


@pytest.mark.parametrize("axis", [*AXES, -2])
def test_the_energy_is_the_total_variation_along_the_axis(axis):
    x, prior = volumes(2, 3), Slicewise(toy_prior(ConvNet()), axis, slice_difference=1e-5)
    total = x.diff(dim=axis).abs().flatten(1).sum(1)
    torch.testing.assert_close(1e-5 * prior.energy(x), total, rtol=1e-3, atol=0)  # the scale: nearly no smoothing
    fold = Fold(prior.axis, x.shape[axis])
    torch.testing.assert_close(Folded(prior, fold).energy(fold.images(x)), prior.energy(x))
    constant = x.narrow(axis, 0, 1).expand_as(x)
    assert not prior.energy(constant).any()
    assert not Slicewise(toy_prior(ConvNet()), axis).energy(x).any()


@pytest.mark.parametrize("prior", [lambda p: p, lambda p: p.for_images(*SIZE).in_parts(2), copy.deepcopy])
def test_the_energy_has_its_gradient_and_outlives_copies(prior):
    prior = prior(Slicewise(toy_prior(ConvNet(1)), axis=3, slice_difference=0.2))
    x = volumes(2, 1, (2, 4, 3)).requires_grad_()
    assert torch.autograd.gradcheck(prior.energy, x)
    assert prior.energy(x).min() > 1


def test_the_energy_is_in_the_objective_of_images_alone():
    prior = Slicewise(toy_prior(ConvNet(1)).eval(), slice_difference=0.1)
    fold = Fold(prior.axis, SIZE[0])
    folded, z = Folded(prior, fold), {"latent": torch.randn(2, SIZE[0], *SIZE[1:]).double()}
    levels = folded.levels(1)
    problem = Problem(folded, levels, LatentTerm(torch.zeros_like(z["latent"])), penalty=0.1, energy=0.5)
    image = folded.decode(folded.step(z["latent"], *levels))
    added = problem.value(z) - replace(problem, energy=0.0).value(z)
    torch.testing.assert_close(added, 0.5 * folded.energy(image))
    inner = replace(problem, gives_image=False)
    torch.testing.assert_close(inner.value(z), replace(inner, energy=0.0).value(z))


def test_the_total_variation_is_a_mixture_of_normal_terms():
    """A draw of weights given differences, and of differences given weights, leaves their density as it is."""
    grid = torch.linspace(-40, 40, 1_000_000).double()
    cumulative = (-(1 + grid.square()).sqrt()).exp().cumsum(0)
    places = torch.linspace(0, 1, 200_001).double()[1:-1]
    d = 0.1 * grid[torch.searchsorted(cumulative / cumulative[-1], places)]
    prior, fold = Slicewise(toy_prior(ConvNet(1)), slice_difference=0.1), Fold(-3, 2)
    rng = torch.Generator().manual_seed(0)

    def images(d):
        """Of volumes of two slices with these differences."""
        return fold.images(torch.stack([0 * d, d])[None, None, :, :, None])

    terms = Folded(prior, fold).perturbed_energy(images(d), lambda shape: torch.randn(1, *shape, generator=rng))
    drawn = (terms.noise / terms.roots).flatten()
    assert terms.energy(images(drawn)) < 1e-6
    levels = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]).double()
    torch.testing.assert_close(drawn.quantile(levels), d.quantile(levels), rtol=0.02, atol=0.001)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("method", COUPLED)
def test_slices_that_are_alike_stay_alike(method, axis):
    x = volumes(2)
    x = x.mean(axis, keepdim=True).expand_as(x).contiguous()
    physics, inside = blur(0.1), toy_prior(ConvNet(1))
    y = physics(x)
    least = 0.01 if method == "sampler" else 1e-3
    free, tied = (
        roughness(COUPLED[method](Slicewise(inside, axis, slice_difference=b))(y, physics), axis) for b in (None, least)
    )
    few_steps = method in ("dmplug", "published")
    assert tied < (free if few_steps else 0.3 * free)


@pytest.mark.parametrize("method", ["dmilo", "dmilo-pgd", "sampler", "dmplug"])
def test_volumes_of_alike_slices_in_batches_and_micro_batches(method):
    physics, model = blur(), METHODS[method](Slicewise(toy_prior(ConvNet(1)), slice_difference=0.05))
    y = physics(volumes(2))
    together = model(y, physics)
    torch.testing.assert_close(model(y[1:], physics), together[1:], rtol=0, atol=1e-6)
    model.micro_batch = 3
    torch.testing.assert_close(model(y, physics), together, rtol=0, atol=1e-6)


# Errors


def test_what_does_not_fit_says_what_to_type():
    inside = toy_prior(ConvNet(1))
    physics, x, prior = blur(), volumes(), Slicewise(inside)
    y, model = physics(x), DMILO(prior, max_passes=4)
    with pytest.raises(
        ValueError, match=r"acts on volumes or films of shape \(1, 1, 5, 9, 12\).*type Slicewise\(prior\)"
    ):
        DMILO(inside)(y, physics)
    with pytest.raises(ValueError, match=r"prior takes \(B, C, H, W\); type Slicewise\(prior\), around all other"):
        DMILO(Channelwise(prior))(y, physics)
    with pytest.raises(ValueError, match=r"and the prior takes \(B, C, D, H, W\); type prior, without Slicewise"):
        model(x[:, :, 0], dinv.physics.Denoising())
    with pytest.raises(ValueError, match=r"without its batch dimension; pass y\[None\]"):
        model(y[0], physics)
    with pytest.raises(ValueError, match=r"pass an init of these, for volumes Slicewise\(prior\)"):
        DMILO(inside)(y, physics, init=x)
    with pytest.raises(ValueError, match=r"init has shape \(1, 1, 9, 12\), and the prior takes \(B, C, D, H, W\)"):
        model(y, physics, init=x[:, :, 0])
    with pytest.raises(ValueError, match=r"pass an init of shape \(B, C, D, H, W\)"):
        model(y, physics, init=x[:, :, :4])
    with pytest.raises(ValueError, match=r"a tensor of shape \(1, 1, 5, 9, 12\)"):
        model(y, physics, x_gt=x[:, :, 0], compute_metrics=True)
    with pytest.raises(ValueError, match=r"do not fit the prior, which takes \(B, 1, H, W\)"):
        DMILO(Slicewise(DiffusionPrior(tiny_unet(1), DDIMScheduler())))(
            y.expand(-1, 2, -1, -1, -1), dinv.physics.Denoising()
        )
    with pytest.raises(ValueError, match=r"the dimension of .* that counts slices: 2, 3 or 4"):
        Slicewise(inside, axis=1)
    for wrong in (0, -0.1, float("nan"), "0.1", True):
        with pytest.raises(ValueError, match=r"slice_difference=.*: type a (finite number|number above 0)"):
            Slicewise(inside, slice_difference=wrong)
    with pytest.raises(ValueError, match=r"slice_difference=0\.005: .*; type 0\.01 at least, or DMILO\(prior\)"):
        DMILOSampler(Slicewise(inside, slice_difference=0.005))
    with pytest.raises(ValueError, match=r"use prior.decode\(prior\(z\)\) with your own z"):
        prior.sample(1)
