"""The shared cells of ChatGLM3: one set for decoding and training, CPU and Ascend."""
