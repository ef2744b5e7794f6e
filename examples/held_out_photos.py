"""
Make ``held_out.npz`` of the prior ``photos``: held-out pictures of 256 x 256, all public domain or CC0.

    pip install scikit-image
    python examples/held_out_photos.py --data photos --out deepinv_dmilo/priors/photos

The first twelve are for the reports, the last four for tuning. ``--data`` is the same folder as for ``train_prior.py``,
whose split by file leaves these pictures out. Four are of scikit-image, on which the prior was not trained either.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIZE = 256
GCOMPRIS = "gcompris-qt-data-"
REPORTED = (
    f"{GCOMPRIS}clickgame-sea1.jpg",
    f"{GCOMPRIS}erase-pika.jpg",
    f"{GCOMPRIS}explore-farm-animals-sheep.jpg",
    f"{GCOMPRIS}explore-monuments-citedecarcassonne.jpg",
    f"{GCOMPRIS}explore-monuments-montstmichel.jpg",
    f"{GCOMPRIS}explore-world-animals-narwhal.jpg",
    "plasma-workspace-data-chameleon.jpg",
    f"{GCOMPRIS}categorization-hammer9.jpg",
)
SCIKIT_IMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")  # reported, too
TUNING = tuple(f"{GCOMPRIS}categorization-{name}.jpg" for name in ("dam2", "fish5", "solar5", "windmill11"))


def square(file: Path) -> np.ndarray:
    """The middle of a picture, (3, 256, 256), 8 bits; a picture that is smaller is enlarged."""
    with Image.open(file) as picture:
        return np.asarray(ImageOps.fit(picture.convert("RGB"), (SIZE, SIZE), Image.Resampling.LANCZOS)).transpose(
            2, 0, 1
        )


def main() -> None:
    from skimage import data

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prior")
    args = parser.parse_args()
    scikit_image = Path(data.__file__).parent
    files = [args.data / name for name in REPORTED]
    files += [scikit_image / name for name in SCIKIT_IMAGE]
    files += [args.data / name for name in TUNING]
    np.savez_compressed(args.out / "held_out.npz", images=np.stack([square(file) for file in files]))


if __name__ == "__main__":
    main()
