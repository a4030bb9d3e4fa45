# SPDX-License-Identifier: Apache-2.0
"""Sessions of ONNX Runtime, and graphs run in pieces."""
