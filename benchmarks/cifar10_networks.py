# SPDX-License-Identifier: Apache-2.0
"""Trains ResNet-18 and VGG-16 on a folder of images, as ONNX files for ``study --paper tang2025``.

    python -m benchmarks.cifar10_networks FOLDER [--network resnet18 vgg16] [--epochs 3]
        [--width 64] [--test-images 1000] [-o OUT]

FOLDER has ``train`` and ``test``, each with a folder of images per class; or folders of classes
alone, of which every sixth image is for the test. Written are train.npz (float32 ``input``
[N, 3, 32, 32] and ``labels``; 12 KB an image), calibration.npz (256 images of it), test.npz (in
random order, the first ``--test-images`` of it) and NETWORK.onnx, whose metadata ``names`` has the
classes. Existing .npz files of OUT are used as they are.

Both networks are those of CIFAR: ResNet-18 with a 3x3 stem and no max-pool, VGG-16 with batch
norms and one dense layer. The schedule is one cycle of SGD with label smoothing over flipped and
shifted images; published accuracies take 100 epochs and more. An epoch of 50,000 images takes some
ten minutes of one core with bfloat16 tiles (AMX), a quarter of it at half the width, and seconds of
a GPU. Needs the extra ``torch``, and Pillow.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import rimc_onnx

SIZE = 32
_MEAN = np.array((0.4914, 0.4822, 0.4465), np.float32)
_STD = np.array((0.2470, 0.2435, 0.2616), np.float32)
_TEST_EVERY = 6
_NUM_CALIBRATION = 256
_SHIFT = 4
"""Pixels that an image is moved by at most."""

Arrays = dict[str, np.ndarray]


class _Block(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(inputs, outputs, 3, stride), nn.ReLU(), *_conv(outputs, outputs, 3, 1)
        )
        is_same = stride == 1 and inputs == outputs
        self.past = nn.Sequential(*([] if is_same else _conv(inputs, outputs, 1, stride)))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.past(x))


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(outputs)


def resnet18(num_classes: int, width: int) -> nn.Sequential:
    """He et al. 2016 in the form for 32x32 images."""
    layers: list[nn.Module] = [*_conv(3, width, 3, 1), nn.ReLU()]
    inputs = width
    for times in (1, 2, 4, 8):
        layers.append(_Block(inputs, times * width, 1 if times == 1 else 2))
        inputs = times * width
        layers.append(_Block(inputs, inputs, 1))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)
    )


def vgg16(num_classes: int, width: int) -> nn.Sequential:
    """Simonyan and Zisserman 2015 with batch norms and one dense layer."""
    layers: list[nn.Module] = []
    inputs = 3
    for times, convolutions in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
        for _ in range(convolutions):
            layers += [*_conv(inputs, times * width, 3, 1), nn.ReLU()]
            inputs = times * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, num_classes))


NETWORKS = {"resnet18": resnet18, "vgg16": vgg16}


def write_data(source: Path, target: Path, test_images: int | None) -> list[str]:
    """The three .npz files, unless they are there; returns the classes."""
    train, test = source / "train", source / "test"
    is_split = train.is_dir() and test.is_dir()
    classes = sorted(p.name for p in (train if is_split else source).iterdir() if p.is_dir())
    if len(classes) < 2:
        raise SystemExit(f"{source}: {len(classes)} folders of classes. Give a folder of them.")
    if all((target / f"{n}.npz").is_file() for n in ("train", "calibration", "test")):
        return classes
    if is_split:
        parts = {"train": _read(train, classes), "test": _read(test, classes)}
    else:
        pixels, labels = _read(source, classes)
        is_test = np.arange(len(labels)) % _TEST_EVERY == 0
        parts = {"train": (pixels[~is_test], labels[~is_test])}
        parts["test"] = (pixels[is_test], labels[is_test])
    target.mkdir(parents=True, exist_ok=True)
    for name, (pixels, labels) in parts.items():
        order = np.random.default_rng(0).permutation(len(labels))
        order = order[: test_images if name == "test" else None]
        images = ((pixels[order] / np.float32(255) - _MEAN) / _STD).transpose(0, 3, 1, 2)
        arrays = {"input": np.ascontiguousarray(images), "labels": labels[order]}
        np.savez(target / f"{name}.npz", **arrays)
        if name == "train":
            few = {n: a[:_NUM_CALIBRATION] for n, a in arrays.items()}
            np.savez(target / "calibration.npz", **few)
    return classes


def _read(folder: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, 32, 32, 3] and class indices."""
    from PIL import Image, UnidentifiedImageError

    pixels, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            try:
                with Image.open(path) as image:
                    found = image.convert("RGB")
            except (UnidentifiedImageError, IsADirectoryError):
                continue
            if found.size != (SIZE, SIZE):
                found = found.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            pixels.append(np.asarray(found))
            labels.append(label)
    if not pixels:
        raise SystemExit(f"{folder}: no images in {', '.join(classes)}")
    return np.stack(pixels), np.array(labels, np.int64)


def train(net: nn.Module, data: Arrays, arguments: argparse.Namespace) -> None:
    """In place; batch norms are left in evaluation mode."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net.to(device, memory_format=torch.channels_last).train()
    images = torch.from_numpy(data["input"])
    labels = torch.from_numpy(data["labels"])
    steps = arguments.epochs * (len(labels) // arguments.batch_size)
    if not steps:
        raise SystemExit(f"{len(labels)} images are less than a batch of {arguments.batch_size}")
    sgd = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        sgd, arguments.learning_rate, total_steps=steps, pct_start=0.25, cycle_momentum=False
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    start, mean = time.perf_counter(), 0.0
    for step, rows in enumerate(_batches(len(labels), arguments)):
        x = _varied(images[rows], rows).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=not arguments.float32):
            loss = loss_of(net(x).float(), labels[rows].to(device))
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        cycle.step()
        mean += (float(loss.detach()) - mean) / (step % 50 + 1)
        if step % 50 == 49 or step + 1 == steps:
            seconds = time.perf_counter() - start
            print(f"step {step + 1} of {steps}, loss {mean:.3f}, {seconds:.0f} s", flush=True)
            mean = 0.0
    net.to("cpu").eval()


def _batches(count: int, arguments: argparse.Namespace) -> Iterator[Tensor]:
    """Rows; what is left of an epoch is left out."""
    size = arguments.batch_size
    for _ in range(arguments.epochs):
        yield from torch.randperm(count)[: count // size * size].split(size)


def _varied(images: Tensor, rows: Tensor) -> Tensor:
    """Flipped, and moved by a few pixels with the edge repeated."""
    flips = torch.rand(len(rows)) < 0.5
    images = torch.where(flips[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, (_SHIFT,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * _SHIFT + 1, (2, len(rows)))
    at = torch.arange(SIZE)
    n = torch.arange(len(rows))[:, None, None]
    y, x = (top[:, None] + at)[:, :, None], (left[:, None] + at)[:, None, :]
    return padded.permute(0, 2, 3, 1)[n, y, x].permute(0, 3, 1, 2)


def export(net: nn.Module, classes: list[str], path: Path) -> None:
    """Any batch size; batch norms folded, no stack traces."""
    program = torch.onnx.export(
        net.to(memory_format=torch.contiguous_format),
        (torch.zeros(2, 3, SIZE, SIZE),),
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")  # the exporter notes stack traces there
    onnx.helper.set_model_props(model, {"names": json.dumps(dict(enumerate(classes)))})
    onnx.checker.check_model(model, full_check=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(model.SerializeToString(deterministic=True))
    os.replace(partial, path)


def main() -> None:
    """Train, export, test."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--test-images", type=int, help="as many of them, drawn; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the products")
    parser.add_argument("-o", "--output", type=Path, default=Path("cifar10"))
    arguments = parser.parse_args()
    classes = write_data(arguments.folder, arguments.output, arguments.test_images)
    with np.load(arguments.output / "train.npz") as file:
        data = dict(file)
    for name in arguments.network:
        torch.manual_seed(arguments.seed)
        net = NETWORKS[name](len(classes), arguments.width)
        train(net, data, arguments)
        path = arguments.output / f"{name}.onnx"
        export(net, classes, path)
        report = rimc_onnx.evaluate(path, data=arguments.output / "test.npz", native=False)
        top1 = 100 * (report.top1 or 0.0)
        print(f"{path}: top-1 {top1:.1f} % of {report.samples} test images", flush=True)


if __name__ == "__main__":
    main()
