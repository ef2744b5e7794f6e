"""What picture files are read as: endings, depths, palettes, transparency, pages, turns, colour profiles."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from PIL import __version__ as pillow

from deepinv_dmilo.tools.images import open_images, picture_files
from deepinv_dmilo.tools.pictures import ENDINGS, FORMATS, as_grey, is_grey, png_bytes, read_layers, read_picture

RAMP = np.tile(np.linspace(0.05, 0.95, 24, dtype=np.float32), (16, 1))
RAMP[:4, :4] = 0.3  # what is not symmetric shows a turn
EIGHT, SIXTEEN = (255 * RAMP).round().astype(np.uint8), (65535 * RAMP).round().astype(np.uint16)
LEVEL = 1.01 / 255  # of 8 bits, and a little rounding


def tiff(values, bits, photometric=1, **more):
    """A TIFF of one strip, as no library here writes it: grey (H, W) of 12 bits or more, (H, W, C) of 8 or 16."""
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    else:
        data = values.astype({8: "u1", 16: "<u2", 64: "<f8"}[bits]).tobytes()
    tags = {
        256: width,
        257: height,
        258: {1: bits, 2: bits | bits << 16}.get(samples, 248),
        259: 1,
        262: photometric,
        273: 256,
    }
    tags |= {277: samples, 278: height, 279: len(data), **{int(tag[1:]): value for tag, value in more.items()}}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, samples if tag == 258 else 1, value)
        for tag, value in sorted(tags.items())
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(248, b"\0") + struct.pack("<4H", *4 * [bits]) + data


def png(depth, kind, rows, transparent=b""):
    """A PNG of any depth and colour type, from its rows, and the level or colour that is transparent."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 24, 16, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = chunk(b"IHDR", header) + (chunk(b"tRNS", transparent) if transparent else b"")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def profile(space, *tags):
    """A colour profile with the tags of a display."""
    tags = [(b"desc", b"desc\0\0\0\0\0\0\0\x02x\0" + bytes(78)), (b"cprt", b"text\0\0\0\0x\0"), *tags]
    tags = [(name, body + bytes(-len(body) % 4)) for name, body in tags]
    start = 132 + 12 * len(tags)
    places = [start + sum(len(body) for _, body in tags[:k]) for k in range(len(tags))]
    table = b"".join(
        name + struct.pack(">II", place, len(body)) for (name, body), place in zip(tags, places, strict=True)
    )
    data = b"".join(body for _, body in tags)
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"lcms", 0x2400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + xyz(0.9642, 1, 0.8249)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def xyz(*values):
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(65536 * value)) for value in values)


def gamma(value):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * value))


WHITE = (b"wtpt", xyz(0.9642, 1, 0.8249))
CURVES = [(name, gamma(2.2)) for name in (b"rTRC", b"gTRC", b"bTRC")]
DISPLAY_P3 = profile(
    b"RGB ",
    WHITE,
    (b"rXYZ", xyz(0.51512, 0.24120, -0.00105)),
    (b"gXYZ", xyz(0.29198, 0.69225, 0.04189)),
    (b"bXYZ", xyz(0.15710, 0.06657, 0.78407)),
    *CURVES,
)
LINEAR_GREY = profile(b"GRAY", WHITE, (b"kTRC", gamma(1.0)))


def saved(tmp_path, image, name="x.png", **options):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    if isinstance(image, bytes):
        (tmp_path / name).write_bytes(image)
    else:
        Image.fromarray(image).save(tmp_path / name, **options) if isinstance(image, np.ndarray) else image.save(
            tmp_path / name, **options
        )
    return tmp_path / name


def assert_is(file, expected, atol):
    values = read_picture(file)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.as_tensor(expected).float().expand(3, -1, -1), rtol=0, atol=atol)


GREY_FILES = {
    "float.tif": (lambda: RAMP, 0),
    "sixteen.png": (lambda: SIXTEEN, 1 / 65535),
    "sixteen.tif": (lambda: SIXTEEN, 1 / 65535),
    "sixteen.pgm": (lambda: SIXTEEN, 1 / 65535),
    "big_endian.tif": (lambda: Image.frombytes("I;16B", (24, 16), SIXTEEN.astype(">u2").tobytes()), 1 / 65535),
    "twelve.tif": (lambda: tiff((4095 * RAMP).round(), 12), 1 / 4095),
    "twelve_of_sixteen.tif": (lambda: tiff((4095 * RAMP).round(), 16, t281=4095), 1 / 4095),
    "a_statistic.tif": (lambda: tiff(SIXTEEN, 16, t281=62259), 1 / 65535),
    "white_is_zero.tif": (lambda: tiff(65535 - SIXTEEN, 16, photometric=0), 1 / 65535),
    "grey_and_alpha.png": (lambda: Image.merge("LA", [Image.fromarray(EIGHT), Image.new("L", (24, 16), 255)]), LEVEL),
    "sixteen_and_alpha.png": (
        lambda: png(16, 4, [b"".join(struct.pack(">HH", v, 65535) for v in row) for row in SIXTEEN.tolist()]),
        LEVEL,
    ),
    "palette.png": (lambda: Image.fromarray(EIGHT).convert("P"), LEVEL),
    "palette.gif": (lambda: Image.fromarray(EIGHT).convert("P"), LEVEL),
    "eight.JPG": (lambda: EIGHT, 12 / 255),  # JPEG's own losses
    "pages_of_one.tif": (lambda: EIGHT, LEVEL),
}


@pytest.mark.parametrize("name", GREY_FILES)
def test_a_grey_ramp_of_any_kind_keeps_its_values(name, tmp_path):
    make, atol = GREY_FILES[name]
    file = saved(tmp_path, make(), name)
    assert_is(file, RAMP, atol)
    assert is_grey(read_picture(file))
    assert (read_layers(file)[1] == 1).all()


def test_grey_within_what_lossy_formats_round(tmp_path):
    """By two levels; then it is the mean of the channels, and exactly these where they are equal."""
    rounded = np.stack([EIGHT, EIGHT + 2, EIGHT + 1], -1)
    x = read_picture(saved(tmp_path, rounded))
    assert is_grey(x)
    torch.testing.assert_close(as_grey(x)[0], torch.tensor(EIGHT + 1) / 255, rtol=0, atol=1e-6)
    assert not is_grey(read_picture(saved(tmp_path, rounded + np.uint8([0, 1, 0]))))
    equal = read_picture(saved(tmp_path, EIGHT))
    assert torch.equal(as_grey(equal), equal[:1])


def test_two_colours_webp_and_cmyk(tmp_path):
    assert_is(saved(tmp_path, EIGHT, "x.webp", lossless=True), RAMP, LEVEL)
    assert_is(saved(tmp_path, RAMP > 0.5, "bits.png"), RAMP > 0.5, 0)
    colour = Image.merge("RGB", [Image.fromarray(c) for c in (EIGHT, EIGHT[::-1], EIGHT[:, ::-1])])
    file = saved(tmp_path, colour.convert("CMYK"), "print.tif")
    torch.testing.assert_close(read_picture(file), torch.tensor(np.asarray(colour)).permute(2, 0, 1) / 255)


def test_sixteen_bits_of_colour_are_read_to_eight(tmp_path):
    rows = [b"".join(struct.pack(">3H", v, 65535 - v, 7) for v in row) for row in SIXTEEN.tolist()]
    x = read_picture(saved(tmp_path, png(16, 2, rows)))
    expected = torch.stack([torch.tensor(RAMP), 1 - torch.tensor(RAMP), torch.zeros(16, 24)])
    torch.testing.assert_close(x, expected, rtol=0, atol=LEVEL)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (255 * RAMP, r"floats from 12\.75 to 242\.25, and black is 0, white 1; divide them by what is white"),
        (RAMP - 0.1, r"floats from -0\.05 to 0\.85"),
        (np.where(RAMP > 0.9, np.nan, RAMP), "floats from nan to nan"),
        ((2**31 * 0.99 * RAMP).astype(np.int32), "integers of 32 bits, or with a sign, of which none is white"),
    ],
)
def test_values_without_a_white_are_refused(values, told, tmp_path):
    with pytest.raises(ValueError, match=rf"x\.tif cannot be read: its values are {told}"):
        read_picture(saved(tmp_path, values, "x.tif"))


COLOURS = np.dstack([SIXTEEN, SIXTEEN[::-1], 65535 - SIXTEEN])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (tiff(EIGHT // 2, 8, t339=2), "its values are integers of 32 bits, or with a sign"),
        (
            tiff(COLOURS, 16, 2, t284=2),
            r"its channels of 16 bits lie one after the other, uncompressed \(PlanarConfiguration 2\)",
        ),
        (tiff(COLOURS // 16, 16, 2, t281=4095), "of its 16 bits of colour 12 are used; multiply its values by 16"),
        (tiff(RAMP, 64, t339=3), "is damaged, or a TIFF of a kind that is not read; save it as one of 8 bits, 16 bits"),
        (tiff(COLOURS[..., :2], 16, t338=0), "is damaged, or a TIFF of a kind that is not read"),
    ],
)
def test_a_tiff_that_would_be_misread_is_refused(content, told, tmp_path):
    with pytest.raises(ValueError, match=rf"x\.tif .*{told}"):
        read_picture(saved(tmp_path, content, "x.tif"))


def test_a_tiff_of_interleaved_colours_or_one_channel_is_read(tmp_path, recwarn):
    x = read_picture(saved(tmp_path, tiff(COLOURS, 16, 2), "x.tif"))
    torch.testing.assert_close(x, torch.tensor(COLOURS / 65535).permute(2, 0, 1).float(), rtol=0, atol=LEVEL)
    file = saved(tmp_path, SIXTEEN, "x.tif", compression="tiff_lzw", tiffinfo={284: 2})
    assert_is(file, RAMP, 1 / 65535)
    assert not recwarn.list


@pytest.mark.skipif(int(pillow.partition(".")[0]) < 13, reason="older ones of Pillow do not open such a TIFF")
def test_channels_of_a_tiff_that_are_no_colours_are_told(tmp_path):
    file = saved(tmp_path, tiff(np.dstack([EIGHT, EIGHT[::-1]]), 8, t338=0), "x.tif")
    with pytest.warns(RuntimeWarning, match=r"1 channel\(s\) of .*x\.tif beside its colours are left out"):
        assert_is(file, RAMP, LEVEL)


def test_floats_that_rounding_led_outside_are_taken(tmp_path):
    x = read_picture(saved(tmp_path, np.where(RAMP > 0.9, 1.001, RAMP).astype(np.float32), "x.tif"))
    torch.testing.assert_close(x[0], torch.tensor(np.where(RAMP > 0.9, 1, RAMP)).float(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["x.tif", "x.gif", "x.webp", "x.png"])
def test_several_pages_or_frames_are_refused(name, tmp_path):
    """Which of them is wanted the file does not say."""
    frames = [Image.fromarray(np.roll(EIGHT, 5 * k, 1)) for k in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"it holds several pictures \(pages or frames\); save the one that you want"):
        read_picture(tmp_path / name)


def test_of_a_cameras_jpeg_with_previews_the_first_is_the_picture(tmp_path):
    Image.fromarray(EIGHT).save(tmp_path / "x.mpo", save_all=True, append_images=[Image.new("L", (8, 8))])
    assert_is((tmp_path / "x.mpo").rename(tmp_path / "x.jpg"), RAMP, 12 / 255)  # JPEG's own losses


@pytest.mark.parametrize(
    ("name", "values"), [("x.png", EIGHT), ("x.tif", EIGHT), ("x.png", SIXTEEN), ("x.tif", SIXTEEN), ("x.tif", RAMP)]
)
def test_a_picture_is_upright(name, values, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned clockwise
    assert_is(saved(tmp_path, values, name, exif=exif), np.rot90(RAMP, -1).copy(), LEVEL)


HALF = np.where(np.arange(24) < 6, 0, 255).astype(np.uint8)[None].repeat(16, 0)  # the left quarter is transparent


def transparent(mode):
    grey, alpha = Image.fromarray(EIGHT), Image.fromarray(HALF)
    if mode in ("LA", "RGBA"):
        bands = [grey] * (len(mode) - 1)
        return Image.merge(mode, [*bands, alpha]), {}
    values = np.where(HALF == 0, 0, np.maximum(EIGHT, 1))
    return Image.fromarray(values.astype(np.uint8)).convert(mode), {"transparency": 0}


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L"])
def test_what_is_transparent_is_white_and_told(mode, tmp_path):
    image, options = transparent(mode)
    file = saved(tmp_path, image, **options)
    expected = np.where(HALF == 0, 1, RAMP)
    with pytest.warns(
        RuntimeWarning, match=r"25\.0% of .*x\.png is transparent, and white here; save it on the ground"
    ):
        assert_is(file, expected, LEVEL)
    assert read_picture(file, ground=0.0)[0, 1, :6].sum() == 0
    assert torch.equal(read_layers(file)[1][0], torch.tensor(HALF / 255).float())


@pytest.mark.parametrize(("rows", "share"), [(16, "100.0%"), (15, "93.8%")])
def test_the_share_that_is_transparent_is_told_in_per_cent(rows, share, tmp_path):
    alpha = np.where(np.arange(16)[:, None] < rows, 0, 255).astype(np.uint8).repeat(24, 1)
    with pytest.warns(RuntimeWarning, match=rf"{share} of .*x\.png is transparent"):
        read_picture(saved(tmp_path, np.dstack([EIGHT, EIGHT, EIGHT, alpha])))


def test_a_grey_level_of_sixteen_bits_that_is_transparent(tmp_path):
    file = saved(tmp_path, np.where(HALF == 0, 0, SIXTEEN).astype(np.uint16), transparency=0)
    opacity = read_layers(file)[1][0]
    assert torch.equal(opacity, torch.tensor(HALF / 255).float())


def test_a_level_of_four_bits_and_a_colour_of_sixteen_that_are_transparent(tmp_path):
    """The first as of 8 bits; the second is told: PIL keeps the upper 8 bits, which it may share with others."""
    levels = np.where(HALF == 0, 5, 9)
    rows = [(row[::2] << 4 | row[1::2]).astype(np.uint8).tobytes() for row in levels]
    opacity = read_layers(saved(tmp_path, png(4, 0, rows, struct.pack(">H", 5))))[1][0]
    assert torch.equal(opacity, torch.tensor(HALF / 255).float())
    rows = [b"".join(struct.pack(">3H", v, v, v) for v in row) for row in SIXTEEN.tolist()]
    file = saved(tmp_path, png(16, 2, rows, struct.pack(">3H", *[int(SIXTEEN[8, 8])] * 3)))
    with pytest.warns(
        RuntimeWarning, match=r"the colour of .*x\.png that is transparent has 16 bits: it is left opaque"
    ):
        assert (read_layers(file)[1] == 1).all()


def test_a_picture_that_is_opaque_has_no_warning(tmp_path, recwarn):
    assert_is(
        saved(tmp_path, Image.merge("RGBA", [Image.fromarray(EIGHT)] * 3 + [Image.new("L", (24, 16), 255)])),
        RAMP,
        LEVEL,
    )
    assert not recwarn.list


def test_a_colour_profile_is_converted_to_srgb(tmp_path):
    """Red of Display P3 (200, 100, 50) is (216, 93, 24) in sRGB, by the matrices of both."""
    x = read_picture(saved(tmp_path, Image.new("RGB", (4, 4), (200, 100, 50)), icc_profile=DISPLAY_P3))
    expected = torch.tensor([216.0, 93.0, 24.0]) / 255
    torch.testing.assert_close(x[:, 0, 0], expected, rtol=0, atol=2 / 255)  # gamma 2.2 is not quite the curve of sRGB
    grey = saved(tmp_path, Image.merge("RGB", [Image.fromarray(EIGHT)] * 3), icc_profile=DISPLAY_P3)
    assert is_grey(read_picture(grey))


@pytest.mark.parametrize(("values", "atol"), [(EIGHT, 2 / 255), (SIXTEEN, 2 / 255)])
def test_a_grey_profile_is_converted_too(values, atol, tmp_path):
    """Linear light in the curve of sRGB; the levels between 256 are interpolated."""
    curve = np.where(RAMP <= 0.0031308, 12.92 * RAMP, 1.055 * RAMP ** (1 / 2.4) - 0.055)
    assert_is(saved(tmp_path, values, icc_profile=LINEAR_GREY), curve, atol)


def test_a_profile_of_srgb_changes_nothing_and_a_broken_one_is_told(tmp_path):
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    plain = read_picture(saved(tmp_path, noise, "plain.png"))
    assert torch.equal(read_picture(saved(tmp_path, noise, icc_profile=srgb)), plain)
    assert_is(saved(tmp_path, EIGHT, "grey.png", icc_profile=srgb), EIGHT / 255, 1e-6)
    with pytest.warns(
        RuntimeWarning, match=r"the colour profile of .*x\.png cannot be used .* taken for those of sRGB"
    ):
        assert torch.equal(read_picture(saved(tmp_path, noise, icc_profile=b"no profile")), plain)


def test_endings_are_those_of_the_formats_that_are_opened():
    Image.init()
    assert set(ENDINGS) == {ending for ending, kind in Image.EXTENSION.items() if kind in FORMATS}


def test_endings_in_capitals_are_taken_and_the_rest_is_told_in_a_line(tmp_path, capsys):
    taken = ["IMG_1.JPG", "a.jpg", "b.PNG", "c.TIF", "sub/d.Jpeg"]
    left = [".DS_Store", "._a.jpg", ".thumbs/a.png", "notes.txt", "sub/raw.CR2"]
    for name in taken + left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    images, names = open_images(str(tmp_path), (3, 8, 8))
    assert names == ["IMG_1", "a", "b", "c", "sub/d"]
    assert [image.shape for image in images] == [(3, 8, 8)] * 5
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "5 of 10 files are not taken, hidden or without the ending of a picture: .DS_Store, ._a.jpg" in told
    assert len(picture_files(tmp_path, quiet=True)) == 5
    assert not capsys.readouterr().err


def test_links_to_folders_are_followed_once_and_folders_are_no_pictures(tmp_path, capsys):
    folder, other = tmp_path / "set", tmp_path / "other"
    for name in ("set/b.png", "set/z.png/1.png", "set/.h/x/d.png", "other/a.png", "other/sub/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    links = {"set/a": folder / "z.png", "set/more": other, "set/up": tmp_path, "other/back": folder, "other/me": other}
    links |= {"set/seen": folder / ".h/x", "set/.a": other}  # a hidden name is none
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    (folder / "broken.png").symlink_to("nowhere.png")
    found = [file.relative_to(folder).as_posix() for file in picture_files(folder)]
    assert found == [
        "b.png",
        "broken.png",
        "more/a.png",
        "more/sub/c.png",
        "seen/d.png",
        "z.png/1.png",
    ]
    assert "folders are left out, unreadable or taken already: a, up, more/back, ..." in capsys.readouterr().err


def test_png_bytes_are_those_of_a_file(tmp_path):
    x = torch.tensor(EIGHT)[None] / 255
    assert torch.equal(read_picture(saved(tmp_path, png_bytes(x)))[:1], x)
    assert Image.open(BytesIO(png_bytes(x))).mode == "L"
