# SPDX-License-Identifier: Apache-2.0
"""Function bodies of the operators, in standard ONNX operators."""
