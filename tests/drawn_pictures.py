"""Small pictures of different sizes and kinds, drawn here, and a folder of them as people keep theirs."""

import numpy as np
from PIL import Image


def draw(height, width, seed):
    """A smooth random picture [height, width, 3], uint8, that a JPEG keeps."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def make_folder(root):
    """root/train/<class>/deeper/<n>.jpg or .PNG, five of each of two classes; root/test likewise, three."""
    for half, count in (("train", 5), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                path = root / half / name / "deeper" / f"{number}.{'jpg' if number else 'PNG'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = draw(30 + 7 * number, 50 - 9 * number, seed=10 * label + number)
                Image.fromarray(pixels).save(path, "JPEG" if number else "PNG")
    return root
