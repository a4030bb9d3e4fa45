# SPDX-License-Identifier: Apache-2.0
"""Figures of the README and the docs: every command prints its own."""
