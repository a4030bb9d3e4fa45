# SPDX-License-Identifier: Apache-2.0
"""Ways to find the adapter of a node."""
