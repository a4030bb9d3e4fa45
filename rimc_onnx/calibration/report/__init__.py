# SPDX-License-Identifier: Apache-2.0
"""The record of a calibration and the page made of it."""
