# SPDX-License-Identifier: Apache-2.0
"""What a node is: operator schema, geometry, adapter."""
