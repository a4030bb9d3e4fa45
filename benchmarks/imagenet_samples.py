# SPDX-License-Identifier: Apache-2.0
"""Images to train EfficientNet-lite0 on: a folder with one of every ImageNet class.

    python -m benchmarks.imagenet_samples FOLDER [-o train.npz]

FOLDER is a checkout of the public repository EliSchwartz/imagenet-sample-images: 1,000 JPEG files
whose names sort by class. The images of the zoo's test set are 200 of them and are left out.
Written is float32 ``input`` [800, 3, 224, 224] (0.6 MB an image) without labels, in random order: a
training towards the clean network's own answers needs none. Needs Pillow.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.datasets import DATA
from benchmarks.zoo import lite0_input

SIZE = 224
_SHARE = 224 / 256
"""Of the shorter side, in the middle of the image."""


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    """Uint8 [224, 224, 3] RGB: the middle square of an image, 224/256 of its shorter side."""
    from PIL import Image

    with Image.open(path) as image:
        rgb = image.convert("RGB")
    width, height = rgb.size
    side = round(_SHARE * min(width, height))
    left, top = (width - side) // 2, (height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def to_train_on(paths: Sequence[Path], tested: Collection[int]) -> list[Path]:
    """The files, sorted by class, without those of the classes ``tested``."""
    if len(paths) != 1000:
        raise SystemExit(f"{len(paths)} JPEG files where there is one of each of 1000 classes.")
    return [path for label, path in enumerate(sorted(paths)) if label not in tested]


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("train.npz"))
    arguments = parser.parse_args()
    with np.load(DATA / "imagenet" / "images.npz") as file:
        tested = set(file["labels"].tolist())
    paths = to_train_on(list(arguments.folder.glob("*.JPEG")), tested)
    order = np.random.default_rng(0).permutation(len(paths))
    images = np.stack([pixels(paths[i]) for i in order])
    arrays: dict[str, npt.NDArray[Any]] = lite0_input(images)
    np.savez(arguments.output, **arrays)
    print(f"{arguments.output}: {len(images)} images; {len(tested)} of the test are left out")


if __name__ == "__main__":
    main()
