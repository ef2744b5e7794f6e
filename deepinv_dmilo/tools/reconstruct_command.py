"""The command ``deepinv-dmilo reconstruct``: a picture of the user's."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from deepinv_dmilo import registry
from deepinv_dmilo.tools.errors import InputError, door
from deepinv_dmilo.tools.folder import shown, write_whole
from deepinv_dmilo.tools.options import (
    NOISE_HELP,
    PRIOR_HELP,
    SAMPLER,
    SIMULATED_NOISE,
    add_method,
    choose_method,
    open_device,
    open_method,
    open_prior,
    png,
    task_options,
)
from deepinv_dmilo.tools.task_names import PICTURE_TASKS

if TYPE_CHECKING:
    from torch import Tensor

    from deepinv_dmilo.priors.prior import Prior


TILE = 512  # pixels of a tile's side, where the network has no attention: ours
SMALL_NOISE = 0.02  # of a small picture: what its 8 bits, JPEG and resampler add; measured in docs/own_pictures.md
WHOLE_PIXELS = TILE**2  # that such a network takes whole
GUESS_SIDE = 33  # pixels, at most, of a blur that is not known: ours


def add_reconstruct(commands: Any) -> None:
    """Add the command to those of the command line."""
    command = commands.add_parser("reconstruct", help="reconstruct a picture of yours")
    command.add_argument("image", type=Path, metavar="IMAGE", help="degraded picture; clean with --simulate")
    command.add_argument("--out", type=png, required=True, help="PNG to write, of 8 bits, in sRGB")
    command.add_argument(
        "--uncertainty",
        type=png,
        help="PNG to write of the standard deviation of each pixel over samples of the posterior (--method "
        f"{SAMPLER}); white is the largest, which is printed",
    )
    command.add_argument(
        "--save-samples",
        action="store_true",
        help=f"also write the samples (--method {SAMPLER}) beside the PNG: NAME-sample-1.png, NAME-sample-2.png, ...",
    )
    command.add_argument("--simulate", action="store_true", help="degrade IMAGE first; print PSNR before and after")
    command.add_argument(
        "--mask",
        type=Path,
        help="inpainting: picture of IMAGE's size, white where known, black or transparent where not; IMAGE itself: "
        "what is transparent is not known",
    )
    command.add_argument(
        "--kernel", type=Path, help="(motion-)deblurring: grey picture of the blur, of odd sides; scaled to sum 1"
    )
    command.add_argument(
        "--blind",
        action="store_true",
        help="(motion-)deblurring: the blur is not known, is found, too, and written beside the PNG; --kernel, or a "
        "Gaussian of --blur-sigma (2), is a first guess of it; with --simulate of deblurring the true one; 400 calls "
        "a sample, 100 where noise is much, and of several samples the most probable one is written; where IMAGE seems "
        "to have no such blur, --out is IMAGE without its noise, and NAME-search.png what the search made of it",
    )
    command.add_argument("--prior", default="photos", help=f"{PRIOR_HELP} (default: photos)")
    command.add_argument(
        "--noise",
        type=float,
        help=f"{NOISE_HELP}(default: {SIMULATED_NOISE} with --simulate, {SMALL_NOISE} for a small picture's "
        "super-resolution, else 0: to be estimated; of a grey picture with a colour prior it is often found too small, "
        "so say it)",
    )
    command.add_argument(
        "--tile", type=int, help=f"the network sees tiles of so many pixels (of pictures above {TILE} x {TILE}: {TILE})"
    )
    add_method(command)
    command.set_defaults(run=_reconstruct)


def _reconstruct(args: argparse.Namespace) -> None:
    import torch
    from deepinv.loss.metric import PSNR
    from deepinv.physics import LinearPhysics
    from torchvision.transforms.functional import center_crop

    from deepinv_dmilo.likelihood.constraints import Simplex
    from deepinv_dmilo.tools.found_blur import why_no_blur
    from deepinv_dmilo.tools.given_pictures import kernel_of, mask_of, picture_of
    from deepinv_dmilo.tools.pictures import scaled_to_white
    from deepinv_dmilo.tools.scoring import registered
    from deepinv_dmilo.tools.tasks import FACTOR, RESAMPLER, check_factor, make_physics

    with door():
        choose_method(args)
        _check_pictures(args)
        device = open_device(args.device)
        prior: Prior = open_prior(args.prior, device, bfloat16=args.bfloat16)
        prior, picture = picture_of(args, prior)
        channels = picture.shape[1]
        is_small = args.task == "super-resolution" and not args.simulate
        unsaid = SIMULATED_NOISE if args.simulate else SMALL_NOISE if is_small else 0.0  # else it is estimated
        is_guess = args.blind and args.task == "motion-deblurring"  # what --blur-sigma says
        noise = unsaid if args.noise is None else args.noise
        options = task_options(args, noise, without="blur_sigma" if is_guess else None)
        scale = options.get("factor", FACTOR) if is_small else 1
        if is_small:
            options.setdefault("downsampling", RESAMPLER)
            check_factor(scale)
        kernel = kernel_of(args, tuple(picture.shape[2:]))
        height, width = (round(side * scale) for side in picture.shape[2:])
        # A periodic boundary shows the kernel to a blind search; so blind problems are simulated with an open one, too.
        is_photograph = args.blind or not args.simulate
        options |= {"mask": mask_of(args, picture), "kernel": kernel, "is_photograph": is_photograph}
        physics = make_physics(args.task, (channels, height, width), device=device, **options)
        with torch.no_grad():
            y = physics(picture) if args.simulate else physics.A(picture) if "inpainting" in args.task else picture
        settings: dict[str, Any] = {}
        if args.blind:
            options["kernel"] = _first_guess(args, kernel, height, width).to(device)
            physics = make_physics(args.task, (channels, height, width), device=device, **options)
            settings["unknown"] = {"filter": Simplex(options["kernel"])}
        prior = _in_tiles(prior, args.tile, height, width)
        model = open_method(args, prior, verbose=True, **settings)
        if hasattr(model, "check"):  # as ours have: an error after this is no fault of the input
            model.check(y, physics)
    asked = {"return_unknown": args.blind, "return_std": args.uncertainty, "return_samples": args.save_samples}
    wanted = [name for name, value in asked.items() if value]
    result = model(y, physics, **dict.fromkeys(wanted, True))
    x_hat, *more = result if wanted else [result]
    results = dict(zip(wanted, more, strict=True))
    area = list(y.shape[2:]) if args.blind else [height, width]  # of a blur an image reaches farther than the picture
    shown = center_crop(x_hat, area)
    pictures, white, none_found = {args.out: shown[0]}, 0.0, ""
    if args.blind:
        (blur,) = results["return_unknown"].values()
        pictures[_beside(args.out, "kernel")] = blur[0] / blur.max()
        if none_found := why_no_blur(y, blur):
            with torch.no_grad():
                rms = (physics.A(x_hat, filter=blur) - y).square().mean().sqrt()
                clean = prior.denoiser()(y, noise or rms) if prior.affine else y
            pictures |= {args.out: clean[0].clamp(0, 1), _beside(args.out, "search"): shown[0]}
    if args.uncertainty:
        pictures[args.uncertainty], white = scaled_to_white(center_crop(results["return_std"], area)[0])
    if args.save_samples:
        pictures |= zip(_sample_files(args), center_crop(results["return_samples"], area)[0], strict=True)
    _write(pictures)
    if none_found:
        _tell_no_blur(args, none_found, is_denoised=prior.affine)
    if args.uncertainty:
        estimated = "" if noise else ", without the error of the estimated noise level; --noise tells it"
        print(f"white is a standard deviation of {white:.2g}{estimated}")
    if args.simulate:
        after, truth, before, how = shown, center_crop(picture, area), "", args.method
        if args.blind:  # what was measured does not tell where the image is, and where the blur
            before = f"{PSNR()(y.clamp(0, 1), truth).item():.2f} dB (blurred) -> "
            after = pictures[args.out][None] if none_found else registered(x_hat, truth)
            how += ", the blur not told"
        elif isinstance(physics, LinearPhysics):
            before = f"{PSNR()(physics.A_dagger(y).clamp(0, 1), truth).item():.2f} dB (pseudo-inverse) -> "
        print(f"PSNR {before}{PSNR()(after, truth).item():.2f} dB ({how})")


def _write(pictures: dict[Path, Tensor]) -> None:
    """Write images (C, H, W) in [0, 1]; those that cannot be, into a folder of its own, so that nothing is lost."""
    from deepinv_dmilo.tools.pictures import png_bytes

    failures = []
    for file, image in pictures.items():
        try:
            write_whole(file, png_bytes(image), advice="")
            print(f"wrote {shown(str(file))}")
        except OSError as error:  # a disk that is full by now
            rescued = Path(mkdtemp()) / f"{file.stem}.png"
            rescued.write_bytes(png_bytes(image))
            failures.append(f"{error.strerror}; the picture is in {rescued}")
    if failures:
        raise InputError("; ".join(failures))


def _beside(out: Path, what: str) -> Path:
    """A file next to the picture: ``kernel``, the blur that was found, or ``search``, the result if there was none."""
    return out.with_name(f"{out.stem}-{what}.png")


def _tell_no_blur(args: argparse.Namespace, why: str, *, is_denoised: bool) -> None:
    """Print what was written if a blind search seems to have found no blur."""
    out, picture, search = (shown(str(file)) for file in (args.out, args.image, _beside(args.out, "search")))
    picture = f"the degraded {picture}" if args.simulate else picture
    picture += " without noise" if is_denoised else ""
    print(f"found no blur: {why}; {out} is {picture}, {search} what the search made of it")


def _sample_files(args: argparse.Namespace) -> list[Path]:
    """Where the samples go, next to the picture."""
    count = args.num_samples or registry.get(args.method).num_samples
    return [args.out.with_name(f"{args.out.stem}-sample-{k + 1}.png") for k in range(count)]


def _first_guess(args: argparse.Namespace, kernel: Tensor | None, height: int, width: int) -> Tensor:
    """The kernel that a blind search starts from, (1, 1, h, w): that of the command line, if it is not the true one."""
    from deepinv_dmilo.tools.tasks import GUESS_STD, gaussian_kernel

    if kernel is not None and not args.simulate:
        return kernel
    is_true = args.simulate and args.task == "deblurring"
    std = GUESS_STD if args.blur_sigma is None or is_true else args.blur_sigma
    if not std > 0:
        raise ValueError(f"--blur-sigma {std:g}: type a number above 0, such as 2")
    return gaussian_kernel(std, min(GUESS_SIDE, min(height, width) // 4 | 1))


def _in_tiles(prior: Prior, tile: int | None, height: int, width: int) -> Prior:
    """The prior, its network on tiles where that is asked for or a picture takes too much memory whole."""
    from deepinv_dmilo.priors.tiled import Tiled
    from deepinv_dmilo.priors.wrappers import LARGE, has_attention

    if tile is None:
        trained = prior.image_shape
        limit, tile = WHOLE_PIXELS, TILE
        if trained is not None and has_attention(prior):
            limit, tile = int(LARGE * trained[1] * trained[2]), max(trained[1:])
        if height * width <= limit or not prior.affine:
            return prior
        tile += -tile % prior.multiple
    tiled = Tiled(prior, tile, overlap=tile // 8)
    count = len(tiled.places(height)) * len(tiled.places(width))
    print(f"{width} x {height} pixels: the network sees {count} tiles of {tile} x {tile} in each pass")
    return tiled


def _check_pictures(args: argparse.Namespace) -> None:
    """Refuse pictures that are not there, that the task does not take, or that it lacks."""
    if args.mask is not None and args.task != "inpainting":
        raise ValueError(f"--mask goes with --task inpainting, not {args.task}")
    if args.mask is not None and args.missing is not None:
        raise ValueError("--mask and --missing both say what is missing; type one of them")
    if args.image.is_dir():
        raise ValueError(f"{args.image} is a folder; type one of its pictures, or deepinv-dmilo evaluate {args.image}")
    for option, is_given in (("--kernel", args.kernel is not None), ("--blind", args.blind)):
        if is_given and args.task not in ("deblurring", "motion-deblurring"):
            raise ValueError(f"{option} goes with --task deblurring or motion-deblurring, not {args.task}")
    if args.kernel is not None and args.blur_sigma is not None:
        raise ValueError("--kernel and --blur-sigma both say what the blur is; type one of them")
    written = [(f"--out {args.out}", args.out)]
    if args.blind:
        written += [(written[0][0], _beside(args.out, what)) for what in ("kernel", "search")]
    if args.save_samples:
        written += [(written[0][0], file) for file in _sample_files(args)]
    if args.uncertainty:
        written.append((f"--uncertainty {args.uncertainty}", args.uncertainty))
    for file in filter(None, (args.image, args.mask, args.kernel)):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is a folder; type a picture" if file.is_dir() else f"{file}: no such picture"
            )
        for option, out in written:
            if out.exists() and out.samefile(file):
                raise ValueError(f"{option}: {file} would be lost; type another")
    for option, out in written:
        if out.is_dir() or not os.access(out.parent, os.W_OK):
            raise ValueError(f"{option}: no file can be written there; type a name in a folder that is there")
    if args.uncertainty and args.uncertainty.resolve() in [out.resolve() for _, out in written[:-1]]:
        raise ValueError(f"--uncertainty {args.uncertainty} is a file of --out, too; type another")
    if args.simulate:
        return
    told = args.kernel is not None or args.blind
    if args.task in ("deblurring", "motion-deblurring") and not told and args.blur_sigma is None:
        raise ValueError(
            "a blurred picture needs --kernel FILE, a grey picture of the blur, --blind, or of a Gaussian blur "
            "--blur-sigma (or --simulate)"
        )
    if args.task not in PICTURE_TASKS and not told:
        raise ValueError(f"{args.task} has no measurements that a picture can be; type --simulate and a clean one")
    if args.task == "box-inpainting":
        raise ValueError("box-inpainting hides its own box; of a degraded picture type --task inpainting --mask FILE")
    if args.task == "inpainting" and args.mask is None:
        raise ValueError(
            "inpainting a degraded picture needs --mask FILE, white where known; type --mask IMAGE, the picture "
            "itself, where what is missing is transparent (or --simulate)"
        )
