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


def odd_files():
    """Return a dictionary from names to the bytes of unusual but readable images."""
    pixels = picture(1)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    palette = image.quantize(8)

    def saved(one, kind, **options):
        stream = io.BytesIO()
        one.save(stream, kind, **options)
        return stream.getvalue()

    deep = (np.arange(40 * 56).reshape(40, 56) * 29 % 65536).astype(np.uint16)
    return {
        "one_pixel": content(pixels[:1, :1]),
        "grey": saved(image.convert("L"), "JPEG"),
        "grey_alpha": saved(image.convert("LA"), "PNG"),
        "alpha": saved(image.convert("RGBA"), "PNG"),
        "palette": saved(palette, "PNG"),
        "palette_transparent": saved(palette, "PNG", transparency=0),
        "bilevel": saved(image.convert("1"), "PNG"),
        "cmyk": saved(image.convert("CMYK"), "JPEG"),
        "sixteen_bits": saved(Image.fromarray(deep), "PNG"),
        "turned": saved(image, "JPEG", exif=exif.tobytes()),
        "progressive": saved(image, "JPEG", progressive=True),
        "misnamed": saved(image, "PNG"),
        "gif": saved(image, "GIF"),
        "webp": saved(image, "WEBP", lossless=True),
    }
