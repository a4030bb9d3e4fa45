# SPDX-License-Identifier: Apache-2.0
"""A network without batch norm and without residuals, trained on scikit-learn's digits.

Eight convolutions and ReLUs in a row: a gain that each node gets wrong is multiplied by those of
all the others. Needs torch and scikit-learn; some 20 seconds on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

__all__ = ["digits", "write_plain_network"]

_CHANNELS = (1, 16, 16, 24, 24, 32, 32, 48, 48)
_STRIDES = (1, 1, 2, 1, 1, 1, 2, 1)
_NUM_TEST = 500
_EPOCHS = 40
_BATCH = 64


def digits() -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, npt.NDArray[np.generic]]]:
    """Training and test set: ``input`` [N, 1, 8, 8] in 0..1 and ``labels`` [N]."""
    found = load_digits()
    images = (found.images[:, None] / 16).astype(np.float32)
    order = np.random.default_rng(1).permutation(len(images))
    return tuple(  # type: ignore[return-value]
        {"input": images[part], "labels": found.target[part].astype(np.int64)}
        for part in (order[_NUM_TEST:], order[:_NUM_TEST])
    )


def write_plain_network(path: Path) -> None:
    """Train, and write the ONNX file."""
    import torch
    from torch import nn

    training, _ = digits()
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    layers: list[nn.Module] = []
    for before, after, stride in zip(_CHANNELS, _CHANNELS[1:], _STRIDES, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    adam = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
    images, labels = (torch.from_numpy(training[name]) for name in ("input", "labels"))
    batches = len(images) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=_EPOCHS * batches)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(_EPOCHS):
        order = torch.randperm(len(images), generator=shuffle)
        for batch in order[: batches * _BATCH].split(_BATCH):
            adam.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            adam.step()
            schedule.step()
    onnx.save(_graph({name: p.detach().numpy() for name, p in model.named_parameters()}), path)


def _graph(weights: dict[str, npt.NDArray[np.float32]]) -> onnx.ModelProto:
    nodes, x = [], "input"
    for i, stride in enumerate(_STRIDES):
        names = [x, f"{2 * i}.weight", f"{2 * i}.bias"]
        nodes.append(
            helper.make_node(
                "Conv", names, [f"y{i}"], f"conv{i}", pads=[1] * 4, strides=[stride] * 2
            )
        )
        nodes.append(helper.make_node("Relu", [f"y{i}"], [x := f"x{i}"], f"relu{i}"))
    last = 2 * len(_STRIDES) + 2
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node(
            "Gemm", ["flat", f"{last}.weight", f"{last}.bias"], ["logits"], "head", transB=1
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(w), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    write_plain_network(Path(sys.argv[1]))
