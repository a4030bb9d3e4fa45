# SPDX-License-Identifier: Apache-2.0
"""The command line: parses and renders, nothing else."""
