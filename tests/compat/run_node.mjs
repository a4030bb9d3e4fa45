// SPDX-License-Identifier: Apache-2.0
//
// Runs the models of prepare.py in onnxruntime-node, installed beside this file.
// Usage: node run_node.mjs FOLDER. Writes outputs/<runtime>/<model>.bin, logits in float32.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(import.meta.url);
const ort = require("onnxruntime-node");
const { version } = require("onnxruntime-node/package.json");

const folder = process.argv[2];
const read = (name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
const outputs = join(folder, "outputs", `onnxruntime-node ${version}`);
mkdirSync(outputs, { recursive: true });

// A copy, since a small Buffer may start at an address that is no multiple of 4.
const bytes = Uint8Array.from(readFileSync(join(folder, "input.bin")));
const input = new ort.Tensor("float32", new Float32Array(bytes.buffer), read("shape.json"));
for (const [name, file] of Object.entries(read("models.json"))) {
  const session = await ort.InferenceSession.create(file);
  const { logits } = await session.run({ input });
  const { buffer, byteOffset, byteLength } = logits.data;
  writeFileSync(join(outputs, `${name}.bin`), new Uint8Array(buffer, byteOffset, byteLength));
}
