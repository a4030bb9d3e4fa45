// SPDX-License-Identifier: Apache-2.0
//
// Runs a deployed model on test images in Node; no part of rimc-onnx is needed.
// Usage: node app.mjs MODEL.onnx images.f32 labels.u8
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-node";

if (process.argv.length !== 5) {
  console.error("usage: node app.mjs MODEL.onnx images.f32 labels.u8");
  process.exit(2);
}
const [model, imagesFile, labelsFile] = process.argv.slice(2);
const labels = readFileSync(labelsFile);
// A copy, since a Buffer may start at an address that is no multiple of 4.
const bytes = Uint8Array.from(readFileSync(imagesFile));
const images = new ort.Tensor("float32", new Float32Array(bytes.buffer), [labels.length, 1, 8, 8]);

const session = await ort.InferenceSession.create(model);
const { logits } = await session.run({ input: images });

const [count, classes] = logits.dims;
let right = 0;
for (let i = 0; i < count; i++) {
  const row = logits.data.slice(i * classes, (i + 1) * classes);
  if (row.indexOf(Math.max(...row)) === labels[i]) right++;
}
console.log(`${right} of ${count} right, accuracy ${((100 * right) / count).toFixed(1)} %`);
