# SPDX-License-Identifier: Apache-2.0
"""What is asked of an error and of those behind it."""

from __future__ import annotations

import pytest

from rimc_onnx.errors import ModelError, is_of_memory


def test_is_of_memory_ends_when_an_error_is_the_cause_of_its_own_context() -> None:
    # A pass's error that is raised again without the framework's error around it: the chain is a
    # circle, and the command line that told of a converted model ran for ever.
    with pytest.raises(ModelError) as raised:
        _raise_again(ModelError("already converted"))
    assert raised.value.__context__ is not None
    assert raised.value.__context__.__cause__ is raised.value
    assert not is_of_memory(raised.value)


def test_is_of_memory_finds_it_behind_other_errors() -> None:
    # A walk that stops at the first error: memory that ran out is told of as a defect.
    with pytest.raises(ModelError) as raised:
        _raise_again(ModelError("std::bad_alloc"))
    assert is_of_memory(raised.value.__context__)


def _raise_again(error: ModelError) -> None:
    try:
        raise RuntimeError("in a pass") from error
    except RuntimeError:
        raise error from None
