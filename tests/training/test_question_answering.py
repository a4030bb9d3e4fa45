# SPDX-License-Identifier: Apache-2.0
"""Answers in paragraphs: scores, spans in tokens, and the head on a sentence encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

pytest.importorskip("torch")

from benchmarks import question_answering as qa
from benchmarks import squad_f1
from benchmarks.imagenet_samples import to_train_on

PARAGRAPH = "The Norman dynasty, of 1066, had a major impact."
WORDS = [(0, 3), (4, 10), (11, 18), (18, 19), (20, 22), (23, 27), (27, 28), (29, 32), (33, 34)]
WORDS += [(35, 40), (41, 47), (47, 48)]
QUESTION = [(0, 0)] * 3
OFFSETS = np.array(QUESTION + WORDS + [(0, 0)], np.int32)


@pytest.mark.parametrize(
    ("found", "wanted", "score"),
    [
        ("the Norman dynasty!", "Norman Dynasty", 1.0),
        ("Norman", "Norman dynasty", 2 / 3),
        ("a dynasty of dynasty", "dynasty", 2 / 4),
        ("1066", "impact", 0.0),
        ("the", "a", 1.0),
        ("the", "impact", 0.0),
    ],
)
def test_f1_is_squads(found: str, wanted: str, score: float) -> None:
    # Case, articles or punctuation that count, words counted twice, a division by nothing.
    assert squad_f1.f1_of(found, wanted) == pytest.approx(score)


def test_a_span_is_the_tokens_of_the_answer() -> None:
    # A token too many at either end, one of the question, an answer of which the end is cut off.
    start = PARAGRAPH.index("1066")
    assert qa.token_span(OFFSETS, start, start + 4) == (8, 8)
    assert qa.token_span(OFFSETS, 0, len("The Norman dynasty")) == (3, 5)
    start = PARAGRAPH.index("066")
    assert qa.token_span(OFFSETS, start, start + 3) == (8, 8)
    start = PARAGRAPH.index("major")
    assert qa.token_span(OFFSETS[:13], start, start + len("major impact")) is None


def test_the_best_span_has_an_order_and_a_length() -> None:
    # The largest logits of both alone: an end before its start, or half a paragraph.
    start, end = np.zeros((2, 96))
    start[40], start[5], end[7], end[39] = 4.0, 3.0, 2.0, 3.0
    assert squad_f1.best_span(start, end) == (5, 7)
    start[20], end[20 + squad_f1.LONGEST_ANSWER] = 5.0, 1.0
    assert squad_f1.best_span(start, end)[0] == 20
    assert squad_f1.best_span(start, end)[1] == 39
    end[20 + squad_f1.LONGEST_ANSWER - 1] = 4.0
    assert squad_f1.best_span(start, end) == (20, 49)


def test_answers_come_from_the_paragraph_alone() -> None:
    # A question's token with the largest logit, and places of it that stand for the paragraph's.
    logits = np.full((2, 1, len(OFFSETS)), -5.0, np.float32)
    logits[:, 0, 1] = 50.0
    logits[:, 0, 8] = 3.0
    outputs = dict(zip(("start_logits", "end_logits"), logits, strict=True))
    extras = {"offsets": OFFSETS[None], "paragraph": np.array([PARAGRAPH])}
    assert squad_f1.f1(outputs, {**extras, "answer": np.array(["1066"])}) == 1.0
    assert squad_f1.f1(outputs, {**extras, "answer": np.array(["impact"])}) == 0.0


ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (int64[n, l] input_ids, int64[n, l] attention_mask) => (float[n, d] embedding)
<float[6, 4] table, float[4] scale, float[4] shift, int64[1] axis = {1}, int64[1] width = {2}>
{
  x = Gather(table, input_ids)
  hidden = LayerNormalization(x, scale, shift)
  mask = Cast<to: int = 1>(attention_mask)
  wide = Unsqueeze(mask, width)
  kept = Mul(hidden, wide)
  embedding = ReduceSum<keepdims: int = 0>(kept, axis)
}
"""


def test_the_head_takes_the_place_of_the_pooling(tmp_path: Path) -> None:
    # Nodes of the pooling left, start and end of one column, padding that can be an answer.
    text = ENCODER.replace(
        "int64[1] axis = {1}", "int64[1] axis = {1}, int64[1] axis_of_width = {2}"
    )
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    known = {"table": rng.normal(size=(6, 4)), "scale": np.ones(4), "shift": np.zeros(4)}
    kept = [i for i in model.graph.initializer if i.name not in known]
    del model.graph.initializer[:]
    parts = [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in known.items()]
    model.graph.initializer.extend([*kept, *parts])
    qa.graft_head(model, "hidden", 4, seed=3)
    onnx.checker.check_model(model, full_check=True)
    kinds = [n.op_type for n in model.graph.node]
    assert "ReduceSum" not in kinds
    assert kinds.count("Cast") == 1
    path = tmp_path / "qa.onnx"
    onnx.save(model, path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = np.array([[1, 2, 3, 0], [4, 5, 1, 2]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    start, end = session.run(
        ["start_logits", "end_logits"], {"input_ids": ids, "attention_mask": mask}
    )
    x = known["table"][ids]
    hidden = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    wanted = hidden @ weights["head_weight"] + weights["head_bias"] - 100.0 * (1 - mask)[..., None]
    np.testing.assert_allclose(np.stack([start, end], -1), wanted, rtol=1e-5, atol=1e-5)


def test_reviews_with_an_answer_are_questions(tmp_path: Path) -> None:
    # The mark for "no answer" as an answer or as a part of the paragraph, a question twice.
    folder = tmp_path / "books" / "splits"
    folder.mkdir(parents=True)
    (folder / "dev.csv").write_text(
        "question,review,human_ans_spans\n"
        'How is it?,"A long, good book. ANSWERNOTFOUND",good book\n'
        'How is it?,"A long, good book. ANSWERNOTFOUND",good book\n'
        'Who wrote it?,"A long, good book. ANSWERNOTFOUND",ANSWERNOTFOUND\n'
    )
    (found,) = qa.subjqa(tmp_path)
    assert found == qa.Question("How is it?", "A long, good book.", 8, "good book")
    with pytest.raises(SystemExit, match="no questions"):
        qa.subjqa(tmp_path / "books")


def test_tested_images_are_not_trained_on() -> None:
    # Classes in the order of a folder, not of their names.
    paths = [Path(f"n{label:08d}_name.JPEG") for label in range(1000)]
    kept = to_train_on(paths[::-1], {0, 7, 999})
    assert kept == [p for i, p in enumerate(paths) if i not in (0, 7, 999)]
    with pytest.raises(SystemExit, match="999 JPEG files"):
        to_train_on(paths[1:], {0})
