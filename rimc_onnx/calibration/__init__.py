# SPDX-License-Identifier: Apache-2.0
"""Fitting the SRAM adapters of a converted model to its teacher, node by node."""
