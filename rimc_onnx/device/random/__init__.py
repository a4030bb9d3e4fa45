# SPDX-License-Identifier: Apache-2.0
"""Random draws that depend on their key alone."""
