"""Which results of an earlier run of ``evaluate`` still hold: of the same pictures, weights and version."""

import json
import os

import pytest
import torch
import toys
from diffusers import DDPMScheduler
from test_evaluate import DIGITS, Backprojection, psnrs, run

from deepinv_dmilo import DiffusionPrior, LatentPrior
from deepinv_dmilo.tools.errors import InputError
from deepinv_dmilo.tools.images import open_images
from deepinv_dmilo.tools.pictures import as_png
from deepinv_dmilo.tools.provenance import prior_digest


def records(out):
    return {f.stem: (f.stat().st_mtime_ns, json.loads(f.read_text())) for f in (out / "records").iterdir()}


def test_another_picture_of_the_name_is_done_again_and_so_is_one_whose_result_is_gone(tmp_path, capsys):
    """Alone: the others are neither reconstructed nor decoded again, nor does a new date of their file matter."""
    out, pictures = tmp_path / "out", tmp_path / "pictures"
    pictures.mkdir()
    for name, image in zip("ace", DIGITS, strict=False):
        as_png(image).save(pictures / f"{name}.png")

    def again(model):
        images, found = open_images(str(pictures), (1, 32, 32))
        return psnrs(run(out, model, images=images, image_names=found))

    before, first = again(Backprojection()), records(out)
    as_png(DIGITS[5]).save(pictures / "a.png")
    (out / "images" / "c.png").unlink()
    os.utime(pictures / "e.png")
    capsys.readouterr()
    model = Backprojection()
    after, second = again(model), records(out)
    assert "done again, since picture or result is another: a, c (2 in all)\n" in capsys.readouterr().err
    assert model.calls == 1  # of a batch of both
    assert second["e"] == first["e"]
    assert abs(after["a"] - before["a"]) > 0.01
    assert after["c"] == pytest.approx(before["c"], abs=1e-4)  # beside another picture now
    assert (out / "images" / "c.png").exists()


def test_images_that_are_no_files_are_known_by_their_values(tmp_path):
    run(tmp_path)
    images = DIGITS.clone()
    images[2] = images[0]
    model = Backprojection()
    assert psnrs(run(tmp_path, model, images=images))["digit 2"] != psnrs(run(tmp_path / "whole"))["digit 2"]
    assert model.calls == 1


def test_records_and_settings_of_an_earlier_version(tmp_path, capsys):
    run(tmp_path)
    for file in (tmp_path / "records").iterdir():
        record = json.loads(file.read_text())
        del record["picture"]
        file.write_text(json.dumps(record))
    model = Backprojection()
    capsys.readouterr()
    run(tmp_path, model)
    assert model.calls == 3
    assert "is another: digit 0, digit 1, digit 2, ... (6 in all)\n" in capsys.readouterr().err
    told = "holds results that do not tell their weights, as those of an earlier version; give another --out"
    with pytest.raises(InputError, match=told):
        run(tmp_path, settings={"noise": 0.1, "weights": "0123"})


def test_the_hash_of_a_prior_follows_from_its_weights_settings_and_schedule():
    network = toys.tiny_unet()

    def prior(scheduler=None, **settings):
        return DiffusionPrior(network, scheduler or DDPMScheduler(), **settings)

    first = prior_digest(prior())
    assert prior_digest(prior()) == first
    others = [
        prior(clip_sample=False),
        prior(DDPMScheduler(beta_end=0.03)),
        prior(DDPMScheduler(prediction_type="sample")),
    ]
    assert len({first, *map(prior_digest, others)}) == 4
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-3
    assert prior_digest(prior()) != first


def test_the_hash_of_a_prior_follows_from_how_its_networks_are_built():
    """Of equal weights; where they lie, and the version of diffusers that saved them, do not matter."""
    network, autoencoder = toys.tiny_unet(channels=4), toys.tiny_autoencoder()
    prior = LatentPrior(DiffusionPrior(torch.nn.DataParallel(network), DDPMScheduler(), clip_sample=False), autoencoder)

    def hashed(part, **config):
        part.register_to_config(**config)
        return prior_digest(prior)

    first = prior_digest(prior)
    others = [
        hashed(network, flip_sin_to_cos=False),
        hashed(network, norm_eps=1e-6),
        hashed(network, act_fn="gelu"),
        hashed(autoencoder, act_fn="gelu"),
    ]
    assert len({first, *others}) == 5
    assert hashed(network, _name_or_path="elsewhere", _diffusers_version="0.1") == others[-1]
