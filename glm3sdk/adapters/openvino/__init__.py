"""ChatGLM3 on OpenVINO: int8 and int4 weights on a plain CPU."""
