# SPDX-License-Identifier: Apache-2.0
"""Train and export the digits sample: model.onnx, calibration.npz and test.npz beside this file.

A small network of convolutions, batch norms and ReLUs for scikit-learn's 8 x 8 digits. Needs torch,
onnxscript and scikit-learn; takes some ten seconds on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxscript import optimizer
from sklearn.datasets import load_digits
from torch import nn

SEED = 0
NUM_TEST = 500
NUM_CALIBRATION = 64
NUM_EPOCHS = 30
BATCH = 64
LEARNING_RATE = 0.003
WEIGHT_DECAY = 1e-4
OPSET = 18
IR_VERSION = 8
"""The IR version of opset 18: ONNX Runtime 1.17 does not read the exporter's newer one."""
MAX_BYTES = 1 << 20


class Block(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; [N, C, H, W] to [N, M, H / s, W / s]."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class DigitsNet(nn.Module):
    """[N, 1, 8, 8] to logits [N, 10]: dense, grouped, depthwise and pointwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(1, 16, 3)
        self.depthwise0 = Block(16, 16, 3, groups=16)
        self.pointwise0 = Block(16, 32, 1)
        self.down = Block(32, 32, 3, stride=2, groups=4)
        self.depthwise1 = Block(32, 32, 3, groups=32)
        self.pointwise1 = Block(32, 48, 1)
        self.depthwise2 = Block(48, 48, 3, groups=48)
        self.pointwise2 = Block(48, 48, 1)
        self.depthwise3 = Block(48, 48, 3, groups=48)
        self.pointwise3 = Block(48, 48, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, 10] of images [N, 1, 8, 8]."""
        for block in self.children():
            if isinstance(block, Block):
                x = block(x)
        return self.head(self.pool(x).flatten(1))


def load_split() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Training and test set: ``input`` [N, 1, 8, 8] float32 in 0..1 and ``labels`` [N] int64."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(images))
    test, training = order[:NUM_TEST], order[NUM_TEST:]
    return tuple({"input": images[i], "labels": labels[i]} for i in (training, test))


def train(data: dict[str, np.ndarray], num_epochs: int = NUM_EPOCHS) -> DigitsNet:
    """A trained network in evaluation mode; the same on every run on one machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = DigitsNet().train()
    shuffle = torch.Generator().manual_seed(SEED)
    images, labels = torch.from_numpy(data["input"]), torch.from_numpy(data["labels"])
    adam = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    num_batches = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        adam, LEARNING_RATE, total_steps=num_batches * num_epochs
    )
    for _ in range(num_epochs):
        order = torch.randperm(len(images), generator=shuffle)
        # the remainder is left out: a batch of one has no variance for the batch norms
        for batch in order[: num_batches * BATCH].split(BATCH):
            adam.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            adam.step()
            schedule.step()
    return model.eval()


def export(model: DigitsNet, path: Path) -> None:
    """Write ``model`` as one ONNX file: input ``input`` [batch, 1, 8, 8], output ``logits``."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    # Not the exporter's own optimisation: it also folds the batch norms, and a sample should leave
    # that to the conversion.
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    proto = program.model_proto
    strip(proto)
    proto.ir_version = IR_VERSION
    onnx.checker.check_model(proto, full_check=True)
    data = proto.SerializeToString(deterministic=True)
    if len(data) > MAX_BYTES:
        raise SystemExit(f"{path}: {len(data)} bytes, at most {MAX_BYTES} are wanted")
    here = str(Path(__file__).resolve().parents[2])
    for folder in (here, str(Path.home()), str(Path(torch.__file__).parent)):
        if folder.encode() in data:
            raise SystemExit(f"{path}: the file would hold the path {folder}")
    path.write_bytes(data)


def strip(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes for debugging: it holds stack traces with file paths."""
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    for part in (proto, graph, *graph.node, *graph.initializer, *values):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def main() -> None:
    """Train, export and write the data next to the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.use_deterministic_algorithms(True)
    training, test = load_split()
    model = train(training)
    export(model, folder / "model.onnx")
    calibration = {name: array[:NUM_CALIBRATION] for name, array in training.items()}
    np.savez_compressed(folder / "calibration.npz", **calibration)
    np.savez_compressed(folder / "test.npz", **test)
    with torch.no_grad():
        logits = model(torch.from_numpy(test["input"])).numpy()
    accuracy = (logits.argmax(1) == test["labels"]).mean()
    print(f"accuracy on {len(logits)} test images: {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
