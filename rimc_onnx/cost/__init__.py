# SPDX-License-Identifier: Apache-2.0
"""Energy, latency and area of a mapped model: counts of what happens, times published constants."""
