"""Small folders of synthetic photographs for tests."""

import io

import numpy as np
import torch
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def picture(seed, height=40, width=56):
    """Return a smooth image that depends on the seed: uint8 [H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 5, 7, generator=generator)
    large = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)
    return (large[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def content(pixels, kind="JPEG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def make_folder(root, train=8, val=4, classes=CLASSES, extension="jpg"):
    """Write ``root/{train,val}/<class>/<n>.<extension>`` with images of different sizes, and return ``root``."""
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                seed = 1000 * label + number + (500 if part == "val" else 0)
                size = (30 + seed % 23, 36 + seed % 31)
                kind = {"jpg": "JPEG", "png": "PNG"}[extension]
                (root / part / name / f"{number}.{extension}").write_bytes(content(picture(seed, *size), kind))
    return root


def saved(image, kind, **options):
    """Return a Pillow image as the content of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


SMOOTH = Image.fromarray(picture(1))
GREY = (np.arange(40 * 56).reshape(40, 56) * 29 % 65536).astype(np.uint16)


def turned(kind):
    """Return an image file whose EXIF orientation says that it is turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(SMOOTH, kind, exif=exif.tobytes())


PECULIAR = {  # rule of isda_repro.data.decode.RULES -> an image that it applies to
    "grey levels": saved(SMOOTH.convert("L"), "JPEG"),
    "1 bit per pixel": saved(SMOOTH.convert("1"), "TIFF"),
    "a palette": saved(SMOOTH.quantize(8), "PNG"),
    "CMYK": saved(SMOOTH.convert("CMYK"), "JPEG"),
    "another colour space": saved(SMOOTH.convert("YCbCr"), "TIFF"),
    "transparency": saved(SMOOTH.convert("RGBA"), "PNG"),
    "16 bits per level": saved(Image.fromarray(GREY), "PNG"),
    "several frames": saved(SMOOTH, "WEBP", save_all=True, append_images=[SMOOTH.rotate(90)], lossless=True),
    "EXIF orientation": turned("JPEG"),
}


def odd_files():
    """Return a dictionary from names to the bytes of unusual but readable images."""
    pixels = picture(1)
    image = Image.fromarray(pixels)
    palette = image.quantize(8)

    return {
        "one_pixel": content(pixels[:1, :1]),
        "grey": saved(image.convert("L"), "JPEG"),
        "grey_alpha": saved(image.convert("LA"), "PNG"),
        "alpha": saved(image.convert("RGBA"), "PNG"),
        "palette": saved(palette, "PNG"),
        "palette_transparent": saved(palette, "PNG", transparency=0),
        "bilevel": saved(image.convert("1"), "PNG"),
        "cmyk": saved(image.convert("CMYK"), "JPEG"),
        "sixteen_bits": saved(Image.fromarray(GREY), "PNG"),
        "turned": turned("JPEG"),
        "progressive": saved(image, "JPEG", progressive=True),
        "misnamed": saved(image, "PNG"),
        "gif": saved(image, "GIF"),
        "webp": saved(image, "WEBP", lossless=True),
    }
