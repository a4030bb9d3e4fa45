# SPDX-License-Identifier: Apache-2.0
"""What training minimises where outputs are no plain rows of classes."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rimc_onnx.errors import DataError  # noqa: E402
from rimc_onnx.training.config import Loss  # noqa: E402
from rimc_onnx.training.losses import Objective, OutputKind  # noqa: E402


def objective(loss: Loss = Loss.DISTILL, **options: Any) -> Objective:
    return Objective(loss, {"y": OutputKind.LOGITS}, **options)


def draw(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 1, 1, 1)])
def test_regressions_have_no_classes(shape: tuple[int, ...]) -> None:
    # A softmax over the batch, or over one class, whose loss is 0 whatever the weights are.
    y, teacher = draw(*shape), {"y": draw(*shape, seed=1)}
    assert float(objective()({"y": y}, {}, teacher)) > 0.1
    assert objective().hits({"y": y}, {}, teacher) is None
    task = objective(Loss.TASK, labels="labels")
    with pytest.raises(DataError, match="no axis of classes"):
        task({"y": y}, {"labels": torch.zeros(8, dtype=torch.long)}, {})


def test_classes_of_a_map_are_those_of_the_channels() -> None:
    # A softmax over the width of an image.
    y, labels = draw(4, 3, 6, 7), torch.randint(0, 3, (4, 6, 7))
    task = objective(Loss.TASK, labels="labels")
    wanted = torch.nn.functional.cross_entropy(y, labels)
    assert float(task({"y": y}, {"labels": labels}, {})) == pytest.approx(float(wanted))
    assert task.hits({"y": y}, {"labels": labels}, {}) == pytest.approx(
        float((y.argmax(1) == labels).float().mean())
    )
    teacher = y + 0.5 * draw(4, 3, 6, 7, seed=1)
    p, q = (torch.log_softmax(v, 1) for v in (teacher, y))
    assert float(objective()({"y": y}, {}, {"y": teacher})) == pytest.approx(
        float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4
    )


@pytest.mark.parametrize(("low", "high"), [(1, 4), (-1, 2)])
def test_labels_beyond_the_classes_are_one_line(low: int, high: int) -> None:
    # An error of torch about a target that is out of bounds.
    labels = torch.tensor([low, high, 0, 0])
    with pytest.raises(DataError, match=rf"labels lie in {min(low, 0)}\.\.{high}, .* 3 classes"):
        objective(Loss.TASK, labels="labels")({"y": draw(4, 3)}, {"labels": labels}, {})


def test_positions_that_do_not_count_are_no_misses() -> None:
    y = draw(6, 3)
    labels = y.argmax(1)
    labels[:4] = -100
    task = objective(Loss.TASK, labels="labels")
    assert task.hits({"y": y}, {"labels": labels}, {}) == 1.0
    assert math.isfinite(float(task({"y": y}, {"labels": labels}, {})))
    assert task.hits({"y": y}, {"labels": torch.full((6,), -100)}, {}) is None


@pytest.mark.parametrize("loss", [Loss.SPAN, Loss.CUSTOM])
def test_other_tasks_are_not_judged_by_the_classes_of_the_teacher(loss: Loss) -> None:
    # Trainings that halve their loss, taken back since the network differs from what it was.
    y = {"y": draw(6, 3)}
    assert objective(loss, custom=lambda *_: y["y"].sum()).hits(y, {}, y) is None
