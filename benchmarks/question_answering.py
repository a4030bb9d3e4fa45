# SPDX-License-Identifier: Apache-2.0
"""Trains MiniLM to find answers in paragraphs, as an ONNX file for ``study --paper lin2026``.

    python -m benchmarks.question_answering SUBJQA TOKENIZER [--articles 32] [--passes 5] [-o qa]

SUBJQA is the folder of that name in the public repository megagonlabs/SubjQA (reviews); splits that
are missing are left out. TOKENIZER is tokenizer.json of all-MiniLM-L6-v2. The sentence encoder of
../shared/data loses its pooling and gets a head of two logits a token. It is trained on
``--reviews`` questions of SubjQA that have an answer, once, then on those of the first
``--articles`` articles of XQuAD's English part (48 articles of SQuAD 1.1's development set), as
often as ``--passes`` says. The questions of the other articles are the test.

Written are qa.onnx (inputs ``input_ids`` and ``attention_mask`` [N, L], outputs ``start_logits``
and ``end_logits`` [N, L]), train.npz (articles and reviews in turn), calibration.npz (256 of it)
and test.npz, whose arrays ``paragraph``, ``answer`` (texts) and ``offsets`` (int32 [N, L, 2], first
and last character of a token of the paragraph, 0 and 0 for others) are what the metric
``benchmarks.squad_f1:f1`` scores outputs by. Question and paragraph are cut at ``--length`` tokens,
and a question whose answer is cut off is left out. Needs the extra ``torch``, and tokenizers.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

import rimc_onnx
from benchmarks.datasets import DATA
from benchmarks.squad_f1 import f1
from rimc_onnx.training import load, write_back

Arrays = dict[str, npt.NDArray[Any]]

MODEL = DATA / "minilm_sts" / "minilm_l6.onnx"
XQUAD = DATA / "text" / "xquad.en.json"
_NONE = "ANSWERNOTFOUND"
_TRAINED_ON = ("input_ids", "attention_mask", "start_positions", "end_positions")
_NUM_CALIBRATION = 256


class Question(NamedTuple):
    """A question, its paragraph, and the answer as a part of it."""

    text: str
    paragraph: str
    start: int
    answer: str


def subjqa(folder: Path) -> list[Question]:
    """The questions that have an answer, of all splits that are there."""
    csv.field_size_limit(1 << 24)
    found: dict[tuple[str, str, str], Question] = {}
    for path in sorted(folder.glob("*/splits/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                answer, review = row["human_ans_spans"].strip(), row["review"]
                paragraph = review.removesuffix(_NONE).rstrip()
                start = paragraph.find(answer)
                if answer in ("", _NONE) or start < 0:
                    continue
                one = Question(row["question"], paragraph, start, answer)
                found[one.text, one.paragraph, one.answer] = one
    if not found:
        raise SystemExit(f"{folder}: no questions. Give the folder SubjQA of megagonlabs/SubjQA.")
    return list(found.values())


def xquad(path: Path) -> list[list[Question]]:
    """The questions of every article."""
    articles = json.loads(path.read_text("utf-8"))["data"]
    return [
        [
            Question(q["question"], p["context"], a["answer_start"], a["text"])
            for p in article["paragraphs"]
            for q in p["qas"]
            for a in q["answers"][:1]
        ]
        for article in articles
    ]


def token_span(offsets: npt.NDArray[np.int32], start: int, stop: int) -> tuple[int, int] | None:
    """First and last token that share characters with start..stop; None where one is cut off.

    ``offsets`` are those of :func:`encode` for one question, [L, 2].
    """
    is_within = (offsets[:, 0] < stop) & (offsets[:, 1] > start)
    tokens = np.flatnonzero(is_within)
    if not len(tokens) or offsets[tokens[-1], 1] < stop:
        return None
    return int(tokens[0]), int(tokens[-1])


def encode(questions: Sequence[Question], tokenizer: Any, length: int) -> Arrays:
    """Arrays of the questions, but of those whose answer is cut off."""
    tokenizer.enable_truncation(length, strategy="only_second")
    tokenizer.enable_padding(length=length)
    found = tokenizer.encode_batch([(q.text, q.paragraph) for q in questions])
    ids, mask = (
        np.array([getattr(e, n) for e in found], np.int64) for n in ("ids", "attention_mask")
    )
    is_paragraph = np.array([[s == 1 for s in e.sequence_ids] for e in found])
    offsets = np.array([e.offsets for e in found], np.int32) * is_paragraph[..., None]
    spans = [
        token_span(o, q.start, q.start + len(q.answer)) or (-1, -1)
        for o, q in zip(offsets, questions, strict=True)
    ]
    arrays = {
        "input_ids": ids,
        "attention_mask": mask,
        "start_positions": np.array([s[0] for s in spans], np.int64),
        "end_positions": np.array([s[1] for s in spans], np.int64),
        "offsets": offsets,
        "paragraph": np.array([q.paragraph for q in questions]),
        "answer": np.array([q.answer for q in questions]),
    }
    return {n: a[arrays["start_positions"] >= 0] for n, a in arrays.items()}


_HEAD = """
<ir_version: 8, opset_import: ["" : 17]>
head (float[N, L, D] hidden, int64[N, L] attention_mask,
      float[D, 2] head_weight, float[2] head_bias)
  => (float[N, L] start_logits, float[N, L] end_logits)
<int64[1] head_axis = {2}, float head_one = {1}, float head_far = {100}>
{
  head_product = MatMul(hidden, head_weight)
  head_logits = Add(head_product, head_bias)
  head_start, head_end = Split<axis: int = 2>(head_logits)
  head_start_row = Squeeze(head_start, head_axis)
  head_end_row = Squeeze(head_end, head_axis)
  head_mask = Cast<to: int = 1>(attention_mask)
  head_padding = Sub(head_mask, head_one)
  head_masked = Mul(head_padding, head_far)
  start_logits = Add(head_start_row, head_masked)
  end_logits = Add(head_end_row, head_masked)
}
"""
"""Padding loses 100 of its logits: nobody answers with it."""


def graft_head(model: onnx.ModelProto, hidden: str, width: int, seed: int = 0) -> None:
    """Outputs start_logits and end_logits [N, L] of ``hidden`` [N, L, width], and no others.

    The model has opset 13 to 17. Nodes that only the former outputs needed go.
    """
    graph, head = model.graph, onnx.parser.parse_model(_HEAD).graph
    weight = np.random.default_rng(seed).normal(0, 0.02, (width, 2)).astype(np.float32)
    for name, array in (("head_weight", weight), ("head_bias", np.zeros(2, np.float32))):
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    graph.initializer.extend(head.initializer)
    for node in head.node:
        node.name = f"head/{node.output[0]}"
        node.input[:] = [hidden if name == "hidden" else name for name in node.input]
    graph.node.extend(head.node)
    del graph.output[:]
    graph.output.extend(head.output)
    needed = {o.name for o in graph.output}
    for node in reversed(list(graph.node)):
        if needed.intersection(node.output):
            needed.update(node.input)
        else:
            graph.node.remove(node)


def train(model: Path, parts: Sequence[Arrays], arguments: argparse.Namespace) -> None:
    """In the file ``model``: over each of ``parts`` in turn, one schedule for all."""
    torch.manual_seed(arguments.seed)
    module = load(model)
    batches = [b for part in parts for b in _batches(part, arguments.batch_size)]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("word_embeddings" not in name)
    trained = [p for p in module.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=arguments.learning_rate, weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        adam, arguments.learning_rate, total_steps=len(batches), pct_start=0.1, cycle_momentum=False
    )
    start, mean = time.perf_counter(), 0.0
    for step, batch in enumerate(batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=not arguments.float32):
            found = module(batch["input_ids"], batch["attention_mask"])
        loss: Tensor = sum(
            torch.nn.functional.cross_entropy(logits.float(), batch[wanted]) / 2
            for logits, wanted in zip(found, ("start_positions", "end_positions"), strict=True)
        )
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        cycle.step()
        mean += (float(loss.detach()) - mean) / (step % 50 + 1)
        if step % 50 == 49 or step + 1 == len(batches):
            seconds = time.perf_counter() - start
            text = f"step {step + 1} of {len(batches)}, loss {mean:.3f}, {seconds:.0f} s"
            print(text, flush=True)
            mean = 0.0
    partial = model.with_suffix(".partial")
    write_back(model, partial, module.weights(), force=True)
    partial.replace(model)


def _batches(part: Arrays, size: int) -> Iterator[dict[str, Tensor]]:
    """One pass in random order, questions of like length together, as long as the longest."""
    lengths = part["attention_mask"].sum(axis=1)
    noisy = lengths * (1 + 0.1 * torch.rand(len(lengths)).numpy())
    groups = np.argsort(noisy)
    for start in torch.randperm(-(-len(groups) // size)).tolist():
        rows = groups[start * size : (start + 1) * size]
        longest = int(lengths[rows].max())
        batch = {name: part[name][rows] for name in _TRAINED_ON}
        batch |= {name: batch[name][:, :longest] for name in _TRAINED_ON[:2]}
        yield {name: torch.from_numpy(array) for name, array in batch.items()}


def main() -> None:
    """Write the data, train, test."""
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("subjqa", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--articles", type=int, default=32, help="of XQuAD, to train on")
    parser.add_argument("--passes", type=int, default=5, help="over these articles")
    parser.add_argument("--reviews", type=int, default=2400, help="questions of SubjQA, drawn")
    parser.add_argument("--length", type=int, default=192, help="tokens of question and paragraph")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the products")
    parser.add_argument("-o", "--output", type=Path, default=Path("qa"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    articles = xquad(XQUAD)
    pieces = (articles[: arguments.articles], [subjqa(arguments.subjqa)])
    pieces += (articles[arguments.articles :],)
    *parts, test = (
        encode([q for a in piece for q in a], tokenizer, arguments.length) for piece in pieces
    )
    rows = np.random.default_rng(arguments.seed).permutation(len(parts[1]["answer"]))
    parts[1] = {n: a[rows[: arguments.reviews]] for n, a in parts[1].items()}
    sizes = [len(p["answer"]) for p in (*parts, test)]
    print("questions: {} of articles, {} of reviews, {} to test".format(*sizes), flush=True)
    write_data(parts, test, arguments)
    model = onnx.load(MODEL)
    last = [n for n in model.graph.node if n.op_type == "LayerNormalization"][-1]
    graft_head(model, last.output[0], 384, arguments.seed)
    onnx.checker.check_model(model)
    path = arguments.output / "qa.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    train(path, [parts[1], *[parts[0]] * arguments.passes], arguments)
    report = rimc_onnx.evaluate(path, data=arguments.output / "test.npz", metric=f1, native=False)
    print(f"{path}: F1 {100 * report.metrics['f1']:.1f} of {report.samples} questions", flush=True)


def write_data(parts: Sequence[Arrays], test: Arrays, arguments: argparse.Namespace) -> None:
    """The three .npz files; both parts of the training data are mixed evenly."""
    every = [np.random.default_rng(arguments.seed).permutation(len(p["answer"])) for p in parts]
    count = min(map(len, every))
    mixed = {
        n: np.stack([p[n][rows[:count]] for p, rows in zip(parts, every, strict=True)], 1)
        for n in _TRAINED_ON
    }
    arrays = {n: a.reshape(-1, *a.shape[2:]) for n, a in mixed.items()}
    np.savez(arguments.output / "train.npz", **arrays)
    few = {n: a[:_NUM_CALIBRATION] for n, a in arrays.items()}
    np.savez(arguments.output / "calibration.npz", **few)
    kept = ("input_ids", "attention_mask", "offsets", "paragraph", "answer")
    np.savez(arguments.output / "test.npz", **{n: test[n] for n in kept})


if __name__ == "__main__":
    main()
