# SPDX-License-Identifier: Apache-2.0
"""Studies: the main job many times over, with the spread of what comes out."""
