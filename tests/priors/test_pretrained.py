"""Priors from pipeline folders and the bundled one."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from toys import tiny_unet

from deepinv_dmilo import DiffusionPrior


@pytest.mark.parametrize(
    ("pipeline", "scheduler"),
    [(DDPMPipeline, DDPMScheduler(prediction_type="v_prediction")), (DDIMPipeline, DDIMScheduler())],
)
def test_a_pipeline_folder_gives_the_prior_of_its_parts(pipeline, scheduler, tmp_path):
    unet = tiny_unet()
    pipeline(unet, scheduler).save_pretrained(tmp_path)
    prior = DiffusionPrior.from_pretrained(str(tmp_path))
    assert prior.family.prediction_type == scheduler.config.prediction_type
    saved = unet.state_dict()
    assert all(torch.equal(w, saved[name]) for name, w in prior.network.state_dict().items())


def test_a_folder_with_the_weights_beside_the_index(tmp_path):
    """The layout of google/ddpm-celebahq-256: everything in one folder."""
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    for part in ("unet", "scheduler"):
        for file in (tmp_path / part).iterdir():
            file.rename(tmp_path / file.name)
        (tmp_path / part).rmdir()
    assert DiffusionPrior.from_pretrained(str(tmp_path)).image_shape == (1, 16, 16)


def test_double_precision(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    prior = DiffusionPrior.from_pretrained(str(tmp_path)).double()
    z = torch.randn(1, 1, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        single = prior.float()(z.float())
        # float32 rounding through three layers, the first with a gain of 100
        torch.testing.assert_close(prior.double()(z).float(), single, rtol=0, atol=1e-3)
