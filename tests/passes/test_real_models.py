# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from rimc_onnx.crossbar.config import ConvertConfig
from rimc_onnx.device import get_preset
from rimc_onnx.ops.refusals import Refusal
from rimc_onnx.passes import convert_model, find_units, prepare_pipeline, rram_branches

DATA = Path(__file__).parents[3] / "shared" / "data"
IDEAL = ConvertConfig(device=get_preset("gaussian-relative", drift_frac=0.0))
RNG = np.random.default_rng(29)


def _load(name: str) -> ir.Model:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return ir.load(path)


CASES = [
    ("resnet20_cifar100/resnet20.onnx", 22, 0),
    ("resnet20_cifar100/resnet20_unfused_opset17.onnx", 22, 0),
    ("minilm_sts/minilm_l6.onnx", 36, 12),
]


@pytest.mark.parametrize(("name", "mapped", "digital"), CASES)
def test_real_model_converts_and_computes_the_same(run, name, mapped, digital):
    model = _load(name)
    if name.startswith("resnet"):
        feeds = {"input": RNG.standard_normal((2, 3, 32, 32)).astype(np.float32)}
    else:
        mask = np.ones((2, 9), np.int64)
        feeds = {"input_ids": RNG.integers(100, 3000, (2, 9)), "attention_mask": mask}
    want = run((DATA / name).read_bytes(), **feeds)[0]
    teacher = _load(name)
    prepare_pipeline()(teacher)
    units = find_units(teacher)

    decisions = convert_model(model, IDEAL)
    assert sum(d.accepted for d in decisions) == mapped
    reasons = [d.reason for d in decisions if not d.accepted]
    assert reasons == [Refusal.BOTH_ACTIVATIONS.of()] * digital
    assert not any(n.op_type == "BatchNormalization" for n in model.graph)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    assert proto.ir_version <= 9
    # Logits of order 10 (embeddings of order 0.1); the fold rounds every weight once.
    np.testing.assert_allclose(run(proto.SerializeToString(), **feeds)[0], want, rtol=0, atol=1e-4)

    branches = rram_branches(model)
    assert [(b.node, b.x.name, b.y.name) for b in branches] == [
        (u.name, u.x.name, u.y.name) for u in units.values()
    ]


def test_both_exports_of_one_network_hold_the_same_weights():
    # Two exporters, one of which folded nothing: catches a fold that is only nearly right.
    weights = []
    for name, _, _ in CASES[:2]:
        model = _load(name)
        convert_model(model, IDEAL)
        weights.append([b.rram.inputs[1].const_value.numpy() for b in rram_branches(model)])
    # The exporter that fuses leaves the batch norm in front of the classifier to us, too.
    for fused, folded in zip(*weights, strict=True):
        np.testing.assert_allclose(folded, fused, rtol=1e-4, atol=1e-5)
