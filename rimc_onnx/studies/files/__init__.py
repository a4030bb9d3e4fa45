# SPDX-License-Identifier: Apache-2.0
"""Study files that come with the package."""
