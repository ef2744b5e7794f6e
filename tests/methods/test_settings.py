"""Settings, names and files that do not fit: one named error that says what to type instead."""

import copy
import pickle
from dataclasses import replace
from fractions import Fraction

import deepinv as dinv
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler
from toys import ConvNet, Gain, tiny_unet

from deepinv_dmilo import DMILO, DMILOPGD, LBFGS, Adam, Chain, DiffusionPrior, DMPlug, Levels
from deepinv_dmilo.likelihood.constraints import Positive
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.schedules.planning import FIFTEEN, SEVEN


@pytest.fixture
def prior():
    return DiffusionPrior(tiny_unet(), DDIMScheduler())


@pytest.fixture
def folder(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


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
        (Levels, {"sigmas": (0.2, 1.0)}, r"sigmas=\(0.2, 1.0\) must decrease; type \(1.0, 0.2\)"),
        (Levels, {"sigmas": "high"}, r"sigmas\[0\]='h': type a finite number"),
        (Levels, {"deviation_threshold": "auto"}, "deviation_threshold='auto': type a finite number"),
    ],
)
def test_parts_out_of_range(part, setting, message):
    with pytest.raises(ValueError, match=message):
        part(**setting)


@pytest.mark.parametrize(("part", "name"), [(Levels, "skip"), (Levels, "mean"), (DMPlug, "verbose")])
def test_a_word_is_neither_true_nor_false(prior, part, name):
    with pytest.raises(TypeError, match=f"{name}='no': type True or False"):
        part(**{name: "no"}, **({} if part is Levels else {"prior": prior}))


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
        (DMILO, {"max_passes": 14, "schedule": Chain(), "solver": Adam()}, "max_passes=14 is less .* at least 15"),
        (DMILO, {"max_passes": 1, "num_samples": 2}, "type at least 2"),
        (DMPlug, {"max_passes": 2}, "max_passes=2 is less than a pass .* type at least 3"),
        (DMILO, {"max_calls": 1}, "max_calls=1 is less than a pass .* type at least 2,"),
        (DMILOPGD, {"max_calls": 3, "num_samples": 2}, "max_calls=3 is less than a pass .* type at least 4,"),
        (DMPlug, {"max_calls": 5}, "max_calls=5 is less than a pass .* type at least 6,"),
        (DMILO, {"max_calls": 0}, "max_calls=0: type a whole number of at least 1"),
        (DMPlug, {"max_calls": 60, "max_passes": 30}, "^max_calls=60 and max_passes=30 both .* type one of them$"),
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
            "noise_level and data_fidelity have no effect with a Chain",
        ),
        ({"schedule": Chain(), "solver": Adam(), "data_fidelity": dinv.optim.L2()}, r"type schedule=Levels\(\)"),
        ({"noise_level": 0.1, "data_fidelity": dinv.optim.L2()}, "type one of them"),
        ({"schedule": Chain()}, r"type solver=Adam\(\), or schedule=Chain\(sparsity=None\)"),
        ({"solver": Adam(deviation_lr=1e-3)}, "deviation_lr has no effect without deviations"),
        ({"schedule": Chain(sparsity=None), "solver": Adam(deviation_lr=1e-3)}, "deviation_lr has no effect"),
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
        ("inner_steps", r"type solver=LBFGS\(steps=...\)"),
        ("outer_steps", r"type schedule=Chain\(outer_steps=...\)"),
        ("sparsity", r"type schedule=Chain\(sparsity=...\)"),
        ("sigma", "type noise_level=..., or give the physics its noise model"),
        ("max_iter", "type max_calls=..., forward passes of the network, or max_passes=..., forward and backward"),
        ("max_pases", "has no setting 'max_pases': type max_passes$"),
        ("colour", "type some of prior, max_calls, max_passes, num_samples"),
    ],
)
def test_a_setting_that_is_elsewhere_or_nowhere(prior, name, message):
    with pytest.raises(TypeError, match=message):
        DMILO(prior, **{name: 1e9})


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [(DMILO, "noise_level", 0.0), (DMILOPGD, "gradient_steps", 0), (DMPlug, "steps", 0), (DMILO, "num_samples", 0)],
)
def test_a_setting_that_was_changed_is_checked_at_the_call(prior, method, name, value):
    model = method(prior, max_passes=6)
    setattr(model, name, value)
    with pytest.raises(ValueError, match=f"{name}=0"):
        model(torch.rand(1, 1, 8, 8), dinv.physics.Denoising())


def test_noise_of_a_size_for_each_measurement_is_of_the_physics(prior):
    for levels in (torch.full((1, 1, 8, 8), 0.05), torch.tensor([0.05]), torch.full((3,), 0.05).numpy()):
        with pytest.raises(TypeError, match=r"noise_level has shape \(.*\), .* type .*GaussianNoise\(sigma\)"):
            DMILO(prior, noise_level=levels)
    with pytest.raises(ValueError, match=r"of a tensor its .item\(\)"):
        DMILO(prior, noise_level=torch.tensor(0.05))


@pytest.mark.parametrize(
    "settings",
    [
        lambda kind: {"noise_level": kind("0.05"), "max_passes": 5},
        lambda kind: {"schedule": Levels(deviation_threshold=kind("5")), "max_passes": 5},
        lambda kind: {
            "schedule": Chain(outer_steps=1, sparsity=kind("0.1"), latent_penalty=kind("0.001")),
            "solver": Adam(steps=2),
        },
    ],
)
def test_a_setting_of_any_kind_of_number(prior, settings):
    y, physics = torch.rand(1, 1, 8, 8), dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    images = [DMILO(prior, **settings(kind))(y, physics) for kind in (float, Fraction)]
    assert torch.equal(*images)


UNKNOWN = {"gain": Positive(torch.ones(1, 1, 1, 1))}
EVERY = Levels(skip=False)  # of the levels of a rule


def takes(model, sigmas):
    """Whether these are the noise levels that a model plans."""
    ((_, plan),) = model.plan(torch.rand(1, 1, 8, 8), Gain()).groups
    return [stage.levels[0] for stage in plan.stages] == [model.prior.level(2 * sigma) for sigma in sigmas]


def test_the_levels_follow_the_other_settings(prior):
    model = DMILO(prior)
    for settings in (UNKNOWN, None):
        model.unknown = settings
        assert f"schedule={Levels()}" in repr(model)
        model._check()  # as each call does
        assert model.schedule == Levels()
    for model in (DMILO(prior, schedule=EVERY), DMILO(prior, schedule=replace(EVERY, sigmas=SEVEN))):
        model = copy.deepcopy(model)
        for settings, sigmas in ((UNKNOWN, FIFTEEN), (None, SEVEN)):
            model.unknown = settings
            assert takes(model, model.schedule.sigmas or sigmas)
    model.schedule = None
    model._check()
    assert model.schedule == Levels()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), lambda s: s])
def test_a_model_with_some_settings_replaced_is_as_if_made_with_them(prior, copied):
    model = replace(copied(DMILO(prior, schedule=EVERY)), unknown=UNKNOWN)
    assert takes(model, FIFTEEN)
    assert takes(replace(copied(model), unknown=None), SEVEN)
    given = replace(EVERY, sigmas=FIFTEEN)
    assert takes(replace(copied(DMILO(prior, schedule=given)), num_samples=2), FIFTEEN)
    coarse = replace(model.schedule, sigmas=(1.0, 0.2))
    assert takes(replace(DMILO(prior, schedule=coarse), unknown=UNKNOWN), (1.0, 0.2))


def test_a_setting_given_to_the_call(prior):
    y, physics = torch.rand(1, 1, 8, 8), dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    with pytest.raises(TypeError, match=r"no 'num_samples'; .* type DMILO\(prior, num_samples=...\)\(y, physics\)"):
        DMILO(prior)(y, physics, num_samples=2)


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
    tiny_unet().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="a network alone, without the scheduler that it was trained with"):
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
