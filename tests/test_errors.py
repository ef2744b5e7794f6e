"""Bad input: one named error that says what to type instead."""

import deepinv as dinv
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from toys import ConvNet, tiny_unet, toy_prior

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Adam, Chain, DiffusionPrior, DMPlug, Levels
from deepinv_dmilo.core import lbfgs
from deepinv_dmilo.priors.pretrained import held_out_images

IMAGE = (1, 16, 24)


@pytest.fixture
def prior():
    return DiffusionPrior(tiny_unet(), DDIMScheduler())


@pytest.fixture
def model(prior):
    return DMILOPGD(prior, solver=LBFGS(steps=2))


@pytest.fixture
def physics():
    return dinv.physics.Inpainting(IMAGE, mask=0.5)


@pytest.fixture
def folder(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def test_the_fixtures_work(model, physics):
    assert model(physics(torch.rand(2, *IMAGE)), physics).shape == (2, *IMAGE)


def test_wrong_number_of_channels(model):
    physics = dinv.physics.Inpainting((3, 16, 24), mask=0.5)
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 24\) do not fit the prior, which takes \(B, 1, H, W\)"):
        model(physics(torch.rand(2, 3, 16, 24)), physics)


def test_a_latent_of_a_size_that_the_network_cannot_take(prior):
    physics = dinv.physics.Inpainting((1, 16, 25), mask=0.5)
    y = physics(torch.rand(1, 1, 16, 25))
    for method in (DMPlug(prior, steps=1), DMILO.from_preset("inpainting", prior)):
        with pytest.raises(ValueError, match="which the prior's network does not take as it is"):
            method(y, physics, init=torch.randn(1, 1, 16, 25))


def test_measurements_of_another_physics(model, physics):
    with pytest.raises(ValueError, match=r"does not match physics .* pass y = physics\(x\)"):
        model(torch.rand(2, 1, 4, 6), physics)


def test_physics_that_hides_its_image_size_is_asked_to_tell_it(model):
    physics = dinv.physics.Physics(A=lambda x: x.flatten(1)[:, :100].square())
    y = torch.rand(2, 100)
    assert model(y, physics).shape == (2, 1, 16, 16)  # the prior's own size fits
    y, physics = torch.rand(2, 384), dinv.physics.Physics(A=lambda x: x.flatten(1).square())
    with pytest.raises(ValueError, match=r"type physics.img_size = \(C, H, W\)"):
        model(y, physics)
    assert model(y, physics, init=torch.randn(2, *IMAGE)).shape == (2, *IMAGE)
    physics.img_size = IMAGE
    assert model(y, physics).shape == (2, *IMAGE)


def test_complex_measurements_of_a_real_physics_and_the_reverse(model):
    fourier = dinv.physics.Physics(A=lambda x: torch.fft.fft2(x, norm="ortho"))
    y = torch.rand(2, 1, 8, 8)
    with pytest.raises(TypeError, match="y is real and the physics' measurements are complex"):
        model(y, fourier)
    with pytest.raises(TypeError, match="y is complex and the physics' measurements are real"):
        model(y.to(torch.complex64), dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1)))


def test_measurements_far_out_of_scale_are_refused_before_any_work(model, physics):
    y = physics(torch.rand(2, *IMAGE))
    with pytest.raises(
        ValueError, match=r"y is 1\d\d times as large as measurements of images in \[0, 1\]; pass y / 255"
    ):
        model.check(255 * y, physics)
    noisy = dinv.physics.Denoising(dinv.physics.GaussianNoise(20.0))
    assert DMILO(model.prior, max_passes=4).check(noisy(torch.rand(1, *IMAGE)), noisy) == (1, *IMAGE)


def test_a_check_looks_at_all_that_a_call_looks_at(model, physics):
    y = physics(torch.rand(2, *IMAGE))
    with pytest.raises(ValueError, match="cannot be differentiated"):
        model.check(y, dinv.physics.Physics(A=lambda x: x.detach()))
    one = DMILO(model.prior, max_passes=4)
    one.max_passes = 0
    with pytest.raises(ValueError, match="max_passes=0: type a whole number of at least 1"):
        one(y, physics)


def test_init_of_another_batch(model, physics):
    with pytest.raises(ValueError, match="init has shape"):
        model(physics(torch.rand(2, *IMAGE)), physics, init=torch.randn(3, *IMAGE))
    with pytest.raises(ValueError, match=r"init has shape \(2, 1, 8, 8\)"):
        model(physics(torch.rand(2, *IMAGE)), physics, init=torch.randn(2, 1, 8, 8))


def test_physics_and_prior_on_another_device(model, physics):
    y = physics(torch.rand(2, *IMAGE))
    with pytest.raises(ValueError, match=r"physics is on meta and y on cpu; type physics.to\(y.device\)"):
        model(y, physics.to("meta"))
    model.prior.to("meta")
    with pytest.raises(ValueError, match=r"the prior is on meta and y on cpu; type model.to\(y.device\)"):
        model(y, physics)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_measurements_that_are_not_finite(model, physics, value):
    y = physics(torch.rand(2, *IMAGE))
    y[0, 0, 3, 4] = value
    with pytest.raises(ValueError, match="y has 1 NaN or infinite values"):
        model(y, physics)


def test_empty_batch(model, physics):
    with pytest.raises(ValueError, match="non-empty batch"):
        model(torch.zeros(0, *IMAGE), physics)


def test_arguments_in_the_wrong_order_or_of_the_wrong_kind(model, physics, prior):
    y = physics(torch.rand(1, *IMAGE))
    with pytest.raises(TypeError, match="y is a Inpainting"):
        model(physics, y)
    with pytest.raises(TypeError, match="physics is a function"):
        model(y, lambda x: x)
    with pytest.raises(TypeError, match="prior is a UNet2DModel; pass DiffusionPrior"):
        DMILO(prior.network)
    with pytest.raises(TypeError, match="rng is a str; pass a seed"):
        DMILO(prior, rng="3")
    with pytest.raises(TypeError, match="no alphas_cumprod"):
        DiffusionPrior(prior.network, object())


def test_an_operator_without_a_gradient(model):
    physics = dinv.physics.LinearPhysics(A=lambda x: torch.from_numpy(x.detach().numpy()), A_adjoint=lambda y: y)
    with pytest.raises(ValueError, match=r"physics.A cannot be differentiated; write it in torch"):
        model(torch.rand(1, *IMAGE), physics)


@pytest.mark.parametrize("operator", [lambda x: x.mul_(2), lambda x: torch.from_numpy(x.numpy())])
def test_an_operator_that_torch_cannot_follow(model, operator):
    with pytest.raises(ValueError, match=r"cannot be differentiated \(.*\); write it in torch, without detach"):
        model(torch.rand(1, *IMAGE), dinv.physics.Physics(A=operator))


def test_an_operator_whose_gradient_is_zero(model):
    with pytest.raises(ValueError, match=r"its gradient is zero, as that of rounding"):
        model(torch.rand(1, *IMAGE), dinv.physics.Physics(A=lambda x: (8 * x).round() / 8))


def test_finite_differences_have_a_gradient(model):
    """Though not at a constant image."""
    physics = dinv.physics.Physics(A=lambda x: x.diff(dim=3).square())
    assert model(physics.A(torch.rand(1, *IMAGE)), physics, init=torch.rand(1, *IMAGE)).shape == (1, *IMAGE)


def test_whole_numbers_are_no_measurements(model, physics):
    y = physics(torch.rand(1, *IMAGE))
    with pytest.raises(TypeError, match=r"y is torch\.uint8; pass floats on the scale of"):
        model((255 * y).byte(), physics)
    with pytest.raises(TypeError, match=r"init is a tensor of torch\.uint8; pass a floating tensor"):
        model(y, physics, init=torch.zeros(1, *IMAGE).byte())


def test_measurements_on_another_scale_are_told(model, physics):
    y = physics(torch.rand(2, *IMAGE))
    y[1] *= 10
    with pytest.warns(RuntimeWarning, match=r"1 of 2 images leave \d+% of the energy of y unexplained"):
        model(y, physics)


def test_noise_of_another_unit_is_told(model, physics):
    model.noise_level = 25.0  # of 255 levels
    with pytest.warns(RuntimeWarning, match=r"noise of 25 is more than all that y measures; .* 25 / 255") as warned:
        model(physics(torch.rand(2, *IMAGE)), physics)
    assert __file__ in {one.filename for one in warned}  # where the model was called


def test_a_noise_model_that_moves_the_mean_is_told(model):
    physics = dinv.physics.Denoising(dinv.physics.PoissonNoise(0.05, normalize=False))  # in counts
    with pytest.warns(RuntimeWarning, match="away from A"):
        model(physics(torch.rand(1, *IMAGE)), physics)


def test_init_and_several_samples(prior, physics):
    y = physics(torch.rand(1, *IMAGE))
    for method in (DMPlug(prior, steps=1, num_samples=2), DMILO.from_preset("inpainting", prior, num_samples=2)):
        with pytest.raises(ValueError, match="type num_samples=1, or leave init out"):
            method(y, physics, init=torch.randn(1, *IMAGE))


def test_a_network_that_is_no_module_and_a_type_that_is_none(prior):
    with pytest.raises(TypeError, match="network is a function"):
        DiffusionPrior(lambda z, t: z, DDIMScheduler())
    with pytest.raises(TypeError, match=r"autocast='bfloat16': type torch.bfloat16"):
        DiffusionPrior(prior.network, DDIMScheduler(), autocast="bfloat16")


def test_ground_truth_of_another_shape(model, physics):
    y = physics(torch.rand(2, *IMAGE))
    for x_gt in (torch.rand(1, *IMAGE), torch.rand(2, *IMAGE).numpy()):
        with pytest.raises(ValueError, match=r"x_gt is .* pass the ground truth of the batch, a tensor of shape \(2, "):
            model(y, physics, x_gt=x_gt, compute_metrics=True)


def test_divergence_in_the_last_step_is_not_returned(model, physics, monkeypatch):
    """The step that is taken after the last objective that anyone looks at."""
    minimize = lbfgs.minimize

    def diverging(*args, **settings):
        z, value, passes = minimize(*args, **settings)
        return z * float("nan"), value, passes

    monkeypatch.setattr(lbfgs, "minimize", diverging)
    model = DMILO(model.prior, schedule=Levels((1.0,), mean=False, deviation_threshold=None))
    with pytest.raises(FloatingPointError, match="the last step left NaN"):
        model(physics(torch.rand(1, *IMAGE)), physics)


def test_divergence_names_step_and_row(physics):
    net = ConvNet(channels=1)
    net.last.weight.data.fill_(float("nan"))
    prior = toy_prior(net, dtype=torch.float32)
    y = physics(torch.rand(1, *IMAGE))
    with pytest.raises(
        FloatingPointError, match=r"layer 3 of 3, outer step 1: .* became nan in step 1 of row 0; lower"
    ):
        DMILO.from_preset("inpainting", prior, inner_steps=2)(y, physics)
    with pytest.raises(FloatingPointError, match=r"layer 1 of 1, outer step \d: .* nowhere finite, .*give a power"):
        DMILO(prior, noise_level=0.1)(y, physics)
    with pytest.raises(FloatingPointError, match=r"all layers, outer step 1: .* became nan in step 1 of row 0; lower"):
        DMPlug(prior)(y, physics)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("allowed", [0, 1, 2, 4, 6, 9])
def test_out_of_memory_in_the_physics_arrives_as_what_it_is(prior, error, allowed):
    """Wherever it happens: at the door, where the operator is looked at, in the noise, in a pass."""
    blur, calls = dinv.physics.Blur(torch.rand(2, 1, 3, 5), padding="circular"), []

    def short_of_memory(x):
        calls.append(len(x))
        if len(calls) > allowed:
            raise error
        return blur.A(x)

    physics = dinv.physics.Physics(A=short_of_memory)
    with pytest.raises(type(error), match=str(error)):
        DMILO(prior, solver=LBFGS(steps=2))(torch.rand(2, *IMAGE), physics)


def test_out_of_memory_in_the_noise_arrives_as_what_it_is(prior):
    class Exhausted(dinv.physics.GaussianNoise):
        def forward(self, x, *args, **kwargs):
            raise torch.OutOfMemoryError("no")

    physics = dinv.physics.Denoising(Exhausted(0.1))
    with pytest.raises(torch.OutOfMemoryError):
        DMILO(prior, solver=LBFGS(steps=2))(torch.rand(2, *IMAGE), physics)


@pytest.mark.parametrize(
    ("part", "setting", "message"),
    [
        (Chain, {"outer_steps": 0}, "outer_steps=0: type a whole number of at least 1"),
        (Chain, {"num_layers": True}, "num_layers=True: type a whole number of at least 1"),
        (Chain, {"sparsity": -1.0}, "sparsity=-1.0: type a number of at least 0"),
        (Chain, {"latent_penalty": float("nan")}, "latent_penalty=nan: type a finite number"),
        (Chain, {"latent_penalty": None}, "latent_penalty=None: type a finite number"),
        (Adam, {"steps": 2.5}, "steps=2.5"),
        (Adam, {"latent_lr": 0.0}, "latent_lr=0.0: type a number above 0"),
        (LBFGS, {"steps": 0}, "steps=0"),
        (LBFGS, {"tolerance": -1.0}, "tolerance=-1.0: type a number of at least 0"),
        (Levels, {"sigmas": ()}, r"sigmas is empty; type Levels\(\)"),
        (Levels, {"sigmas": (1.0, -0.5)}, r"sigmas\[1\]=-0.5: type a number above 0"),
        (Levels, {"sigmas": (0.2, 1.0)}, r"sigmas=\(0.2, 1.0\) go from coarse to fine; type \(1.0, 0.2\)"),
        (Levels, {"sigmas": "high"}, r"sigmas\[0\]='h': type a finite number"),
        (Levels, {"deviation_threshold": "auto"}, "deviation_threshold='auto': type a finite number"),
    ],
)
def test_parts_out_of_range(part, setting, message):
    with pytest.raises(ValueError, match=message):
        part(**setting)


def test_a_number_is_no_schedule():
    with pytest.raises(TypeError, match=r"sigmas=3: type a sequence of noise levels, Levels\(\(1.0, 0.2\)\)"):
        Levels(3)


@pytest.mark.parametrize(
    ("method", "setting", "message"),
    [
        (DMILOPGD, {"step_size": "fast"}, "type 'auto' or a positive number"),
        (DMILOPGD, {"step_size": -1.0}, "step_size=-1.0"),
        (DMILOPGD, {"gradient_steps": 0}, "gradient_steps=0"),
        (DMILOPGD, {"normalize_gradient": True}, "step_size=1.0"),
        (DMPlug, {"steps": 0}, "steps=0"),
        (DMILO, {"noise_level": 0.0}, "noise_level=0: leave it out"),
        (DMILO, {"noise_level": -1.0}, "noise_level=-1.0: type a number above 0"),
        (DMILO, {"max_passes": 14, "schedule": Chain(), "solver": Adam()}, "max_passes=14 is not .* at least 15"),
        (DMILO, {"max_passes": 1, "num_samples": 2}, "type at least 2"),
        (DMPlug, {"max_passes": 2}, "max_passes=2 is not a pass .* type at least 3"),
        (DMPlug, {"num_samples": 0}, "num_samples=0"),
        (DMPlug, {"micro_batch": 0}, "micro_batch=0"),
        (DMILO, {"rng": -3}, "rng=-3: type a seed of at least 0"),
    ],
)
def test_settings_out_of_range(prior, method, setting, message):
    with pytest.raises(ValueError, match=message):
        method(prior, **setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"schedule": Chain(), "solver": Adam(), "noise_level": 0.1},
            "noise_level and data_fidelity are of a schedule",
        ),
        ({"schedule": Chain(), "solver": Adam(), "data_fidelity": dinv.optim.L2()}, r"type schedule=Levels\(\)"),
        ({"noise_level": 0.1, "data_fidelity": dinv.optim.L2()}, "type one of them"),
        ({"schedule": Chain()}, r"type solver=Adam\(\), or schedule=Chain\(sparsity=None\)"),
        ({"solver": Adam(deviation_lr=1e-3)}, "deviation_lr has no deviations to learn"),
        ({"schedule": Chain(sparsity=None), "solver": Adam(deviation_lr=1e-3)}, "deviation_lr has no deviations"),
    ],
)
def test_a_setting_that_another_leaves_without_effect(prior, setting, message):
    with pytest.raises(ValueError, match=message):
        DMILOPGD(prior, **setting)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("latent_lr", r"type solver=Adam\(latent_lr=...\)"),
        ("tolerance", r"type solver=LBFGS\(tolerance=...\)"),
        ("levels", r"type schedule=Levels\(\(1.0, 0.2\)\), or schedule=Chain\(\)"),
        ("inner_steps", r"type solver=LBFGS\(steps=...\)"),
        ("outer_steps", r"type schedule=Chain\(outer_steps=...\)"),
        ("sparsity", r"Levels\(deviation_threshold=...\), or .* Chain\(sparsity=...\)"),
        ("sigma", "type noise_level=..., or give the physics its noise model"),
        ("max_iter", "type max_passes=..."),
        ("max_pases", "has no setting 'max_pases': type max_passes$"),
        ("colour", "type some of prior, max_passes, num_samples"),
        ("layers_per_level", "DMILO has no setting 'layers_per_level': a level has one layer"),
    ],
)
def test_a_setting_that_is_elsewhere_or_nowhere(prior, name, message):
    with pytest.raises(TypeError, match=message):
        DMILO(prior, **{name: 1e9})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"schedule": (1.0, 0.2)}, r"type schedule=Levels\(...\) or schedule=Chain\(...\)"),
        ({"solver": "adam"}, r"solver='adam': type solver=LBFGS\(...\) or solver=Adam\(...\)"),
    ],
)
def test_a_part_of_another_kind(prior, setting, message):
    with pytest.raises(TypeError, match=message):
        DMILO(prior, **setting)


def test_a_preset_and_a_prior_in_the_wrong_order(prior):
    with pytest.raises(TypeError, match=r"type DMILO.from_preset\('inpainting', prior\)"):
        DMILO.from_preset(prior, "inpainting")


def test_settings_are_given_by_name(prior):
    for method in (DMILO, DMILOPGD, DMPlug):
        with pytest.raises(TypeError, match="positional"):
            method(prior, 25)


def test_misspelt_setting(prior):
    with pytest.raises(TypeError, match="outer_step"):
        DMILO.from_preset("inpainting", prior, outer_step=2)


@pytest.mark.parametrize(
    ("denoiser", "max_noise", "error"),
    [(ConvNet(), 0.2, TypeError), *[(None, noise, ValueError) for noise in (0.0, True, float("inf"), "0.2")]],
)
def test_what_is_no_denoiser(denoiser, max_noise, error):
    denoiser = dinv.models.DRUNet(pretrained=None, nc=(4, 4, 4, 4), nb=1) if denoiser is None else denoiser
    with pytest.raises(error, match=r"deepinv\.models\.Denoiser|type a number above 0"):
        DiffusionPrior.from_denoiser(denoiser, max_noise=max_noise)


def test_a_preset_has_its_schedule_and_solver(prior):
    for part in ({"schedule": Levels()}, {"solver": LBFGS()}):
        with pytest.raises(TypeError, match="type names of their settings, such as outer_steps=2"):
            DMILO.from_preset("inpainting", prior, **part)
    assert DMILO.from_preset("super-resolution", prior).schedule == Chain(outer_steps=5)


def test_unknown_preset(prior):
    with pytest.raises(ValueError, match="no preset 'inpaint' for DMILO; type one of inpainting, super_resolution"):
        DMILO.from_preset("inpaint", prior)


def test_names_that_are_no_prior(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a bundled prior"):
        DiffusionPrior.from_pretrained("digitz")
    with pytest.raises(FileNotFoundError, match=r"has no model_index.json"):
        DiffusionPrior.from_pretrained(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"held_out.npz does not exist"):
        held_out_images(str(tmp_path))


def test_hub_id_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="cannot be loaded from the hub"):
        DiffusionPrior.from_pretrained("nobody/no-such-model")

    def load_config(name):
        try:
            raise ConnectionError("no route to the hub")
        except ConnectionError as error:
            raise OSError(f"{name} has no model_index.json.") from error

    monkeypatch.setattr("diffusers.DiffusionPipeline.load_config", load_config)
    with pytest.raises(FileNotFoundError, match=r"no route to the hub\. Offline, give a folder"):
        DiffusionPrior.from_pretrained("nobody/no-such-model")


def test_pickled_weights_are_refused(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save(tiny_unet().state_dict(), weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"no \*\.safetensors weights .* convert them with"):
        DiffusionPrior.from_pretrained(str(folder))
