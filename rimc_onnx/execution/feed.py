# SPDX-License-Identifier: Apache-2.0
"""What one run of a model is fed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Feed"]


class Feed(dict[str, Any]):
    """The inputs of one run by name, and how many samples they hold.

    ``axes`` has the axis of samples of each input that holds several; any other input belongs to
    the run as a whole and is never cut.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        num_samples: int = 1,
        axes: Mapping[str, int] | None = None,
    ) -> None:
        """One sample, unless it is said otherwise."""
        super().__init__(values)
        self.num_samples = num_samples
        self.axes = dict(axes or {})

    def first(self, count: int) -> Feed:
        """The first ``count`` samples, or all where they can't be taken apart."""
        if count >= self.num_samples or not self.axes:
            return self
        parts = {
            name: value[(slice(None),) * self.axes[name] + (slice(count),)]
            if name in self.axes
            else value
            for name, value in self.items()
        }
        return Feed(parts, num_samples=count, axes=self.axes)
