# SPDX-License-Identifier: Apache-2.0
"""SQuAD's F1 as a metric: how much of an answer's words the span of the largest logits has."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

LONGEST_ANSWER = 30
"""Tokens of an answer at most, as SQuAD's baselines have it."""


def normalised(text: str) -> str:
    """Lower case without punctuation and articles, as SQuAD's script has it."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1_of(found: str, wanted: str) -> float:
    """Of two texts: harmonic mean of the shares of words that both have."""
    words, others = normalised(found).split(), normalised(wanted).split()
    if not words or not others:
        return float(words == others)
    common = sum((Counter(words) & Counter(others)).values())
    return 2 * common / (len(words) + len(others))


def best_span(start: npt.NDArray[Any], end: npt.NDArray[Any]) -> tuple[int, int]:
    """First and last token of the largest sum of logits [L] each, of at most LONGEST_ANSWER."""
    scores = start[:, None] + end[None, :]
    place = np.arange(len(start))
    width = place[None, :] - place[:, None]
    scores = np.where((width >= 0) & (width < LONGEST_ANSWER), scores, -np.inf)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return int(first), int(last)


def f1(outputs: Arrays, extras: Arrays) -> float:
    """Mean F1, 0 to 1, of the answers that ``start_logits`` and ``end_logits`` [N, L] give.

    ``extras`` are arrays of the test.npz of :mod:`benchmarks.question_answering`.
    """
    scores = []
    for row, offsets in enumerate(extras["offsets"]):
        places = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
        logits = (outputs[name][row, places] for name in ("start_logits", "end_logits"))
        first, last = best_span(*logits)
        text = str(extras["paragraph"][row])[offsets[places[first], 0] : offsets[places[last], 1]]
        scores.append(f1_of(text, str(extras["answer"][row])))
    return float(np.mean(scores))
