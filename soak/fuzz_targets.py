"""What is fuzzed: each parser of text or bytes that come from elsewhere, with inputs to begin with.

A target takes bytes and returns, or raises an error of `glm3sdk.errors`. Anything else is a
finding. Sound inputs come from writers that are not under test where there are some: json,
yaml, pickle, zipfile, safetensors.
"""

from __future__ import annotations

from soak import fuzz_documents, fuzz_messages, fuzz_tensors

TARGETS = {**fuzz_documents.TARGETS, **fuzz_tensors.TARGETS, **fuzz_messages.TARGETS}
