"""The chain: against closed forms, against diffusers' DDIM step, and its bookkeeping."""

import pytest
import torch
from deepinv.physics import Inpainting
from diffusers import DDIMScheduler
from toys import AffineNet, ConvNet, NoDoubles, tiny_unet, toy_prior

from deepinv_dmilo import DMILO, DiffusionPrior

SHAPE = (2, 3, 24, 40)  # asymmetric, so that a swapped axis cannot hide


def layer(prior, i, z, num_layers=3):
    """Layer i of the published chain."""
    return prior.step(z, *prior.levels(num_layers)[i : i + 2])


def test_time_grid_is_the_papers():
    prior = toy_prior(ConvNet())
    times = {n: [level.time for level in prior.levels(n)] for n in (1, 3, 4)}
    assert times == {1: [999, 0], 3: [999, 666, 333, 0], 4: [999, 750, 500, 250, 0]}


@pytest.mark.parametrize("num_layers", [0, -1, 1000])
def test_number_of_layers(num_layers):
    with pytest.raises(ValueError, match="type a whole number from 1 to 999"):
        toy_prior(ConvNet()).levels(num_layers)


def test_a_level_is_the_nearest_noise_level_of_the_prior():
    prior = toy_prior(ConvNet())
    assert prior.level(2.0).time == 396
    assert prior.level(2.0).sigma == pytest.approx(1.0, rel=0.01)
    assert prior.level(1e9).time == 999
    assert all(level.spread == pytest.approx(1) for level in prior.levels(7))


def test_layer_of_an_affine_network_is_its_closed_form():
    w, b = 0.25, 0.125  # exact in float32, in which the network is made
    prior = toy_prior(AffineNet(w, b), clip_sample=False)
    z = torch.randn(SHAPE, dtype=torch.float64)
    abar = DDIMScheduler().alphas_cumprod.double()
    for i, (t, s) in enumerate([(999, 666), (666, 333), (333, 0)]):
        # eps = w z + b, x0 = (z - sqrt(1 - a_t) eps) / sqrt(a_t), next = sqrt(a_s) x0 + sqrt(1 - a_s) eps
        ratio = (abar[s] / abar[t]).sqrt()
        gain = ratio * (1 - (1 - abar[t]).sqrt() * w) + (1 - abar[s]).sqrt() * w
        offset = b * ((1 - abar[s]).sqrt() - ratio * (1 - abar[t]).sqrt())
        # float64 rounding, times the gain of about 100 of the layer next to the noise
        torch.testing.assert_close(layer(prior, i, z), gain * z + offset, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_layer_is_the_ddim_step_of_diffusers(prediction_type, clip_sample):
    net = ConvNet()
    prior = toy_prior(net, prediction_type=prediction_type, clip_sample=clip_sample).eval()
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=clip_sample, set_alpha_to_one=False)
    scheduler.set_timesteps(3)
    z = torch.randn(SHAPE, dtype=torch.float64)
    for i, t in enumerate([999, 666, 333]):
        output = net(z, torch.full((2,), t))
        expected = scheduler.step(output, t, z, eta=0.0, use_clipped_model_output=True).prev_sample
        # diffusers keeps its levels in float32: 1e-7, times the gain of the first layer
        torch.testing.assert_close(layer(prior, i, z), expected, rtol=1e-4, atol=1e-4)
        z = expected


def test_chain_is_its_layers_composed():
    prior = toy_prior(ConvNet()).eval()
    z = torch.randn(SHAPE, dtype=torch.float64)
    composed = z
    for i in range(5):
        composed = layer(prior, i, composed, 5)
    torch.testing.assert_close(prior(z, 5), composed, rtol=0, atol=0)


def test_layer_is_differentiable():
    prior = toy_prior(ConvNet(channels=1), clip_sample=False).eval()
    z = torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: layer(prior, 1, z), z)


def test_learned_variance_uses_the_mean_half():
    net = ConvNet(out_channels=6)
    prior = toy_prior(net).eval()
    z = torch.randn(SHAPE, dtype=torch.float64)
    t = torch.tensor(500)
    torch.testing.assert_close(prior.predict(z, t), net(z, t)[:, :3], rtol=0, atol=0)
    assert prior(z).shape == z.shape


def test_ranges_are_inverse_to_each_other():
    x = torch.rand(SHAPE)
    prior = toy_prior(ConvNet())
    assert prior.encode(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]
    # one rounding in float32
    torch.testing.assert_close(prior.decode(prior.encode(x)), x, rtol=0, atol=1e-6)


def test_sample_is_in_range_repeatable_and_leaves_the_global_state():
    prior = DiffusionPrior(tiny_unet(), DDIMScheduler())
    before = torch.random.get_rng_state()
    x = prior.sample(3, num_layers=3)
    assert x.shape == (3, 1, 16, 16)
    assert 0 <= x.min() <= x.max() <= 1
    assert torch.equal(x, prior.sample(3, num_layers=3))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("rng", [5, torch.Generator().manual_seed(5)])
def test_samples_differ_from_one_another_and_from_those_of_another_seed(rng):
    prior = DiffusionPrior(tiny_unet(), DDIMScheduler())
    x = torch.cat((prior.sample(3, rng, num_layers=3), prior.sample(3, 6, num_layers=3)))
    distances = torch.cdist(x.flatten(1), x.flatten(1)) + torch.eye(6)
    assert distances.min() > 0.1


def test_frozen_leaves_every_flag_as_it_is_and_shares_the_weights():
    prior = toy_prior(ConvNet()).train()
    prior.network.first.eval()
    prior.network.last.bias.requires_grad_(False)
    modes = [m.training for m in prior.modules()]
    flags = [p.requires_grad for p in prior.parameters()]
    frozen = prior.frozen()
    assert not any(m.training for m in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert {p.data_ptr() for p in frozen.parameters()} == {p.data_ptr() for p in prior.parameters()}
    assert [m.training for m in prior.modules()] == modes
    assert [p.requires_grad for p in prior.parameters()] == flags


def test_prints_its_settings():
    text = repr(toy_prior(ConvNet(), clip_sample=False))
    assert text == (
        "DiffusionPrior('ConvNet', 443 parameters, VariancePreserving, prediction_type='epsilon', clip_sample=False, "
        "autocast=None, compile=False, checkpointing=False)"
    )


def test_denoiser_is_the_posterior_mean_of_the_network():
    prior = toy_prior(AffineNet(0.3, 0.1), dtype=torch.float32, clip_sample=False)
    abar = float(DDIMScheduler().alphas_cumprod[400])
    sigma = ((1 - abar) / abar) ** 0.5 / 2  # in [0, 1], half of that in [-1, 1]
    x = torch.rand(2, 3, 8, 12)
    z = abar**0.5 * (2 * x - 1)
    expected = ((z - (1 - abar) ** 0.5 * (0.3 * z + 0.1)) / abar**0.5 + 1) / 2
    # deepinv looks sigma up in its table of 1000 levels: the noise is that of one level, to 1e-3
    torch.testing.assert_close(prior.denoiser()(x, sigma), expected, rtol=1e-3, atol=1e-3)


def test_a_denoiser_looks_a_noise_up_once_and_takes_it_from_any_device(monkeypatch):
    prior, asked = toy_prior(AffineNet(), dtype=torch.float32), []
    level = prior.level
    monkeypatch.setattr(prior, "level", lambda ratio: asked.append(ratio) or level(ratio))
    x, sigmas = torch.rand(4, 3, 8, 12), torch.tensor([0.1, 0.5, 0.1, 0.5])
    expected = torch.cat([prior.denoiser()(x[k : k + 1], sigmas[k].item()) for k in range(4)])
    asked.clear()
    with NoDoubles():
        found = prior.denoiser()(x, sigmas)
    assert sorted(asked) == [2 * s for s in sigmas[:2].tolist()]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # one rounding in float32


def test_a_denoiser_takes_a_noise_for_each_image_in_deepinvs_shape():
    denoiser, x, sigmas = toy_prior(AffineNet(), dtype=torch.float32).denoiser(), torch.rand(2, 3, 8, 12), [0.1, 0.5]
    expected = denoiser(x, torch.tensor(sigmas))
    assert torch.equal(denoiser(x, torch.tensor(sigmas).view(2, 1, 1, 1)), expected)
    assert torch.equal(denoiser(x, torch.full((1, 1, 1, 1), 0.1)), denoiser(x, 0.1))
    for shape in ((2, 1, 8, 12), (1, 1, 8, 12), (3,), (1, 1, 1, 2)):
        with pytest.raises(ValueError, match=r"sigma has shape \(.*\) and x .*; type one number, .* \(2,\)"):
            denoiser(x, torch.full(shape, 0.1))


class Wrapped(torch.nn.Module):
    """A network inside a user's own, as it is traced."""

    def __init__(self, network):
        super().__init__()
        self.module = network

    def forward(self, sample, t):
        return self.module(sample, t)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_network_in_torchscript_is_the_network_that_was_traced(tmp_path):
    network, z = ConvNet().eval(), torch.rand(2, 3, 8, 12)
    traced = torch.jit.trace(Wrapped(network), (z, torch.tensor([3, 3])))
    traced.save(tmp_path / "network.pt")
    for same in (traced, torch.jit.load(tmp_path / "network.pt")):
        found = toy_prior(same, dtype=torch.float32).denoiser()(z, 0.1)
        # the same operations, in an order of their own
        torch.testing.assert_close(found, toy_prior(network, dtype=torch.float32).denoiser()(z, 0.1), rtol=0, atol=1e-6)
        with pytest.raises(TypeError, match="takes no 'label'; type some of sample, t in conditioning"):
            DiffusionPrior(same, DDIMScheduler(), conditioning={"label": torch.ones(1)})


def test_autocast_computes_in_the_type_asked_for_and_keeps_the_weights():
    plain, fast = (DiffusionPrior(tiny_unet(), DDIMScheduler(), autocast=a).eval() for a in (None, torch.bfloat16))
    inside = []
    fast.network.conv_in.register_forward_hook(lambda module, args, output: inside.append(output.dtype))
    z = torch.randn(2, 1, 16, 16, requires_grad=True)
    out = layer(fast.frozen(), 1, z)
    (gradient,) = torch.autograd.grad(out.square().sum(), z)
    assert inside == [torch.bfloat16]
    assert {p.dtype for p in fast.parameters()} == {torch.float32}
    assert out.dtype == gradient.dtype == torch.float32
    # bfloat16 keeps 8 bits of the prediction, which the layer multiplies by about 3
    torch.testing.assert_close(out, layer(plain, 1, z), rtol=0, atol=0.1)
    physics = Inpainting((1, 16, 16), mask=0.5)
    y = physics(torch.rand(2, 1, 16, 16))
    x, exact = (DMILO(prior, max_passes=10)(y, physics) for prior in (fast, plain))
    assert (x - exact).abs().mean() < 0.05


def test_compiled_network_gives_the_same_and_keeps_its_name():
    plain, compiled = (DiffusionPrior(ConvNet(), DDIMScheduler(), compile=c).eval() for c in (False, True))
    z = torch.randn(SHAPE, requires_grad=True)
    results = []
    for prior in (plain, compiled):
        out = layer(prior.frozen(), 1, z)
        results.append((out, torch.autograd.grad(out.square().sum(), z)[0]))
    # fused kernels sum in another order: float32 rounding, times the layer's gain
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-3)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_a_compiled_prior_takes_the_network_that_is_put_in_its_place():
    prior = DiffusionPrior(AffineNet(0.5, 0.0), DDIMScheduler(), compile=True).eval()
    z = torch.randn(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(prior.predict(z, torch.tensor(1)), 0.5 * z)
        prior.network = AffineNet(0.25, 0.0)
        torch.testing.assert_close(prior.predict(z, torch.tensor(1)), 0.25 * z)


def test_a_scheduler_without_a_configuration_predicts_the_noise():
    class Bare:
        alphas_cumprod = DDIMScheduler().alphas_cumprod

    prior, plain = DiffusionPrior(ConvNet(), Bare()).eval(), DiffusionPrior(ConvNet(), DDIMScheduler()).eval()
    z = torch.randn(SHAPE)
    assert torch.equal(prior(z), plain(z))


def test_checkpointing_keeps_less_and_computes_the_same():
    kept, results = {}, {}
    for checkpointing in (False, True):
        prior = DiffusionPrior(tiny_unet(), DDIMScheduler(), checkpointing=checkpointing)
        z = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = layer(prior.frozen(), 1, z)
            kept[checkpointing] = sum(sizes)
            results[checkpointing] = torch.autograd.grad(out.square().sum(), z)[0]
    assert kept[True] < 0.5 * kept[False]
    torch.testing.assert_close(results[True], results[False])
    with pytest.raises(ValueError, match="ConvNet has no gradient checkpointing; type checkpointing=False"):
        DiffusionPrior(ConvNet(), DDIMScheduler(), checkpointing=True)


def test_a_network_that_is_replaced_is_the_one_that_is_called():
    prior = toy_prior(AffineNet(0.5, 0.0)).eval()
    prior.network = AffineNet(0.25, 0.0).double()
    z = torch.randn(SHAPE, dtype=torch.float64)
    torch.testing.assert_close(prior.predict(z, torch.tensor(1)), 0.25 * z)
