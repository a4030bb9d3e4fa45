// SPDX-License-Identifier: Apache-2.0
//
// Runs a deployed model on test images in Java; no part of rimc-onnx is needed.
// Usage: java -cp onnxruntime.jar App.java MODEL.onnx images.f32 labels.u8
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.Map;

public final class App {
  private App() {}

  public static void main(String[] arguments) throws Exception {
    if (arguments.length != 3) {
      System.err.println("usage: App MODEL.onnx images.f32 labels.u8");
      System.exit(2);
    }
    byte[] labels = Files.readAllBytes(Path.of(arguments[2]));
    FloatBuffer images =
        ByteBuffer.wrap(Files.readAllBytes(Path.of(arguments[1])))
            .order(ByteOrder.LITTLE_ENDIAN)
            .asFloatBuffer();
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    try (OrtSession session = environment.createSession(arguments[0]);
        OnnxTensor input =
            OnnxTensor.createTensor(environment, images, new long[] {labels.length, 1, 8, 8});
        OrtSession.Result result = session.run(Map.of("input", input))) {
      float[][] logits = (float[][]) result.get("logits").orElseThrow().getValue();
      int right = 0;
      for (int i = 0; i < labels.length; i++) {
        int best = 0;
        for (int k = 1; k < logits[i].length; k++) {
          if (logits[i][k] > logits[i][best]) best = k;
        }
        if (best == labels[i]) right++;
      }
      System.out.printf(
          Locale.ROOT,
          "%d of %d right, accuracy %.1f %%%n",
          right,
          labels.length,
          100.0 * right / labels.length);
    }
  }
}
