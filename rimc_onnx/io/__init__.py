# SPDX-License-Identifier: Apache-2.0
"""Files: the only place that opens, checks and replaces them."""
