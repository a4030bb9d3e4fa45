// SPDX-License-Identifier: Apache-2.0
//
// Runs a deployed model on test images in C#; no part of rimc-onnx is needed.
// Usage: dotnet run -- MODEL.onnx images.f32 labels.u8, in a project that has the package
// Microsoft.ML.OnnxRuntime (1.17 or newer).
using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Runtime.InteropServices;
using Microsoft.ML.OnnxRuntime;

if (args.Length != 3)
{
    Console.Error.WriteLine("usage: App MODEL.onnx images.f32 labels.u8");
    return 2;
}
byte[] labels = File.ReadAllBytes(args[2]);
float[] images = MemoryMarshal.Cast<byte, float>(File.ReadAllBytes(args[1])).ToArray();

using var session = new InferenceSession(args[0]);
using var input = OrtValue.CreateTensorValueFromMemory(images, new long[] { labels.Length, 1, 8, 8 });
using var options = new RunOptions();
using var results = session.Run(
    options, new Dictionary<string, OrtValue> { ["input"] = input }, new[] { "logits" });

ReadOnlySpan<float> logits = results[0].GetTensorDataAsSpan<float>();
int classes = logits.Length / labels.Length;
int right = 0;
for (int i = 0; i < labels.Length; i++)
{
    int best = 0;
    for (int k = 1; k < classes; k++)
    {
        if (logits[i * classes + k] > logits[i * classes + best]) best = k;
    }
    if (best == labels[i]) right++;
}
Console.WriteLine(string.Format(
    CultureInfo.InvariantCulture,
    "{0} of {1} right, accuracy {2:F1} %", right, labels.Length, 100.0 * right / labels.Length));
return 0;
