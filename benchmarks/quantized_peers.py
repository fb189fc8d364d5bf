"""Random ChatGLM3s in the files of three engines, and each engine behind the same few calls.

The weights' values are random and their sizes are real: what is measured reads and multiplies
the same bytes as with the published model, and what is generated has no sense. Formats:
GGUF 3 as https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes it, architecture
`chatglm`; chatglm.cpp 0.4's own file as its convert.py writes it; ours as `glm3 convert --to
openvino` writes it.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from glm3sdk.adapters.machine import memory_use
from glm3sdk.domain.model import Glm3Config

_F32, _Q4_0, _Q8_0 = 0, 2, 8
_BLOCK = {_Q4_0: 18, _Q8_0: 34}  # bytes of 32 weights, the first two a float16 scale
KINDS = {"q8_0": _Q8_0, "q4_0": _Q4_0}
BATCH = 8

_NOISE = np.random.default_rng(0).integers(0, 256, 1 << 24, dtype=np.uint8)


def noise(size: int, start: int) -> Iterator[np.ndarray]:
    """Random bytes, some at a time; other tensors begin elsewhere."""
    offset = start * 7919 % (1 << 20)
    while size > 0:
        part = _NOISE[offset : offset + min(size, len(_NOISE) - offset)]
        yield part
        size, offset = size - len(part), 0


def write_blocks(file: BinaryIO, shape: tuple[int, ...], kind: int, number: int) -> None:
    """A matrix in ggml's blocks of 32, or a float32 vector of ones."""
    count = int(np.prod(shape))
    if kind == _F32:
        file.write(np.ones(count, np.float32).tobytes())
        return
    scale = np.frombuffer(np.float16(0.05 / np.sqrt(shape[-1])).tobytes(), np.uint8)
    width, blocks = _BLOCK[kind], count // 32
    for start in range(0, blocks, 1 << 18):
        size = min(1 << 18, blocks - start)
        rows = np.concatenate(list(noise(size * width, number + start))).reshape(size, width).copy()
        rows[:, :2] = scale
        file.write(rows.tobytes())


def write_gguf(path: Path, config: Glm3Config, kind: int) -> None:
    """What llama.cpp reads."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def pair(key: str, value: int | float | str) -> bytes:
        if isinstance(value, str):
            return text(key) + struct.pack("<I", 8) + text(value)
        code, form = (6, "<f") if isinstance(value, float) else (4, "<I")
        return text(key) + struct.pack("<I", code) + struct.pack(form, value)

    pairs: dict[str, int | float | str] = {
        "general.architecture": "chatglm",
        "general.name": "random",
        "chatglm.context_length": config.seq_length,
        "chatglm.embedding_length": config.hidden_size,
        "chatglm.feed_forward_length": config.ffn_hidden_size,
        "chatglm.block_count": config.num_layers,
        "chatglm.attention.head_count": config.num_attention_heads,
        "chatglm.attention.head_count_kv": config.multi_query_group_num,
        "chatglm.attention.layer_norm_rms_epsilon": config.layernorm_epsilon,
        "chatglm.rope.dimension_count": config.kv_channels // 2,
        "chatglm.rope.freq_base": config.rope_base,
        "chatglm.vocab_size": config.padded_vocab_size,
        "tokenizer.ggml.model": "none",
    }
    names = {
        "transformer.embedding.word_embeddings.weight": "token_embd.weight",
        "transformer.encoder.final_layernorm.weight": "output_norm.weight",
        "transformer.output_layer.weight": "output.weight",
    }
    parts = {
        "input_layernorm.weight": "attn_norm.weight",
        "self_attention.query_key_value.weight": "attn_qkv.weight",
        "self_attention.query_key_value.bias": "attn_qkv.bias",
        "self_attention.dense.weight": "attn_output.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "mlp.dense_h_to_4h.weight": "ffn_up.weight",
        "mlp.dense_4h_to_h.weight": "ffn_down.weight",
    }
    for layer in range(config.num_layers):
        for ours, theirs in parts.items():
            names[f"transformer.encoder.layers.{layer}.{ours}"] = f"blk.{layer}.{theirs}"
    shapes = config.tensor_shapes()
    header = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(pairs))
    header += b"".join(pair(key, value) for key, value in pairs.items())
    offset, places = 0, []
    for name, shape in shapes.items():
        stored = _F32 if len(shape) == 1 else kind
        header += text(names[name]) + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        header += struct.pack("<IQ", stored, offset)
        places.append((shape, stored, offset))
        count = int(np.prod(shape))
        size = 4 * count if stored == _F32 else count // 32 * _BLOCK[stored]
        offset += -(-size // 32) * 32
    with path.open("wb") as file:
        file.write(header)
        data = -(-len(header) // 32) * 32
        for number, (shape, stored, place) in enumerate(places):
            file.seek(data + place)
            write_blocks(file, shape, stored, number)
        file.truncate(data + offset)


def write_chatglm_cpp(path: Path, config: Glm3Config, kind: int) -> None:
    """What chatglm.cpp 0.4 reads; it asks for a SentencePiece model that it never uses here."""
    pieces = (resources.files("glm3sdk") / "assets" / "tiny" / "tokenizer.model").read_bytes()
    with path.open("wb") as file:
        file.write(b"ggml" + struct.pack("<i", 3))
        values = (
            *(2, kind, config.padded_vocab_size, config.hidden_size),
            *(config.num_attention_heads, config.multi_query_group_num, config.num_layers),
            *(config.ffn_hidden_size, config.layernorm_epsilon, 0, config.rope_base),
            *(config.seq_length, 2, 0),
        )
        file.write(struct.pack("<iiiiiiiififiii", *values))
        file.write(struct.pack("<i", len(pieces)) + pieces)
        for number, (name, shape) in enumerate(config.tensor_shapes().items()):
            stored = _F32 if len(shape) == 1 else kind
            file.write(struct.pack("<i", len(name)) + name.encode())
            file.write(struct.pack(f"<{len(shape) + 2}i", len(shape), *shape, stored))
            file.seek(-(-file.tell() // 16) * 16)
            write_blocks(file, shape, stored, number)


def write_ours(path: Path, config: Glm3Config, quantize: str) -> None:
    """What the runtime openvino reads."""
    from glm3sdk.adapters.openvino.directory import WEIGHTS_FILE, marked
    from glm3sdk.adapters.openvino.quantized import quantized_specs
    from glm3sdk.adapters.storage.local import LocalCheckpointStore

    specs = quantized_specs({}, config, quantize)

    def values() -> Iterator[tuple[str, np.ndarray]]:
        for number, (name, spec) in enumerate(specs.items()):
            if spec.dtype in ("int8", "uint8"):
                made = np.concatenate(list(noise(int(np.prod(spec.shape)), number)))
                yield name, made.view(spec.dtype).reshape(spec.shape)
            else:
                small = 0.05 / np.sqrt(config.hidden_size) if name.endswith(".scale") else 1
                yield name, np.full(spec.shape, small, spec.dtype)

    writer = LocalCheckpointStore().create(str(path))
    text = json.dumps(marked(config.to_hugging_face(), quantize))
    writer.add_file("config.json", text.encode())
    writer.add_tensors(WEIGHTS_FILE, specs, values())
    writer.commit()


class Ours:
    """The runtime openvino."""

    def __init__(self, path: str, length: int) -> None:
        from glm3sdk import load_runtime

        self.session = load_runtime(path).start_decode(slots=BATCH, max_seq_length=length)

    def prefill(self, tokens: int, kept: int = 0) -> None:
        """Read a prompt of which so many tokens are held already."""
        self.session.truncate(0, kept)
        self.session.prefill(0, np.arange(kept, tokens, dtype=np.int32) % 1000 + 3)

    def decode(self, count: int) -> None:
        """Append tokens to the first sequence, one at a time."""
        for _ in range(count):
            self.session.decode([0], [5])

    def batch(self, count: int) -> None:
        """Append tokens to eight sequences, one at a time each."""
        length = self.session.length(0)
        for slot in range(1, BATCH):
            self.session.copy(0, slot, length)
        for _ in range(count):
            self.session.decode(list(range(BATCH)), [5] * BATCH)


class LlamaCpp:
    """llama.cpp through llama-cpp-python's low-level calls."""

    def __init__(self, path: str, length: int) -> None:
        import llama_cpp
        from llama_cpp._logger import set_verbose

        set_verbose(False)
        self.api, self.length = llama_cpp, 0
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = BATCH * length, 512, 512
        options.n_threads = options.n_threads_batch = 2
        options.n_seq_max = BATCH
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        assert self.context, "llama.cpp made no context"
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.filled = llama_cpp.llama_batch_init(512, 0, 1)

    def _run(self, entries: list[tuple[int, int, int]], wanted: set[int]) -> None:
        filled = self.filled
        filled.n_tokens = len(entries)
        for at, (token, position, sequence) in enumerate(entries):
            filled.token[at], filled.pos[at] = token, position
            filled.n_seq_id[at], filled.seq_id[at][0] = 1, sequence
            filled.logits[at] = at in wanted
        assert self.api.llama_decode(self.context, filled) == 0
        self.api.llama_get_logits_ith(self.context, len(entries) - 1)  # waits for the result

    def prefill(self, tokens: int, kept: int = 0) -> None:
        """Read a prompt of which so many tokens are held already."""
        self.api.llama_memory_seq_rm(self.memory, -1, kept, -1)
        for start in range(kept, tokens, 512):
            places = range(start, min(start + 512, tokens))
            last = {len(places) - 1}
            self._run([(at % 1000 + 3, at, 0) for at in places], last)
        self.length = tokens

    def decode(self, count: int) -> None:
        """Append tokens to the first sequence, one at a time."""
        for _ in range(count):
            self._run([(5, self.length, 0)], {0})
            self.length += 1

    def batch(self, count: int) -> None:
        """Append tokens to eight sequences, one at a time each."""
        for sequence in range(1, BATCH):
            self.api.llama_memory_seq_rm(self.memory, sequence, -1, -1)
            self.api.llama_memory_seq_cp(self.memory, 0, sequence, 0, -1)
        every = set(range(BATCH))
        for step in range(count):
            self._run([(5, self.length + step, sequence) for sequence in every], every)
        self.api.llama_memory_seq_rm(self.memory, -1, self.length, -1)


class ChatGlmCpp:
    """chatglm.cpp; it decodes one sequence at a time."""

    def __init__(self, path: str, length: int) -> None:
        from chatglm_cpp._C import GenerationConfig, Pipeline

        self.pipeline, self.ids = Pipeline(path, length), []
        self.options = GenerationConfig(max_length=length, do_sample=False)

    def prefill(self, tokens: int) -> None:
        """Read a prompt from its beginning: behind what is held it reads one token at a time."""
        self.ids = [at % 1000 + 3 for at in range(tokens)]
        self.pipeline.model.generate_next_token(self.ids, None, self.options, 0, tokens)

    def decode(self, count: int) -> None:
        """Append tokens to the first sequence, one at a time."""
        for _ in range(count):
            self.ids.append(5)
            past = len(self.ids) - 1
            self.pipeline.model.generate_next_token(self.ids, None, self.options, past, past)


ENGINES = {"ours": Ours, "llama.cpp": LlamaCpp, "chatglm.cpp": ChatGlmCpp}


def serve(engine: str, path: str, length: int) -> None:
    """Carry out calls that come as JSON lines; answer each with its seconds and memory."""

    def answer(began: float, **more: Any) -> None:
        peak, anonymous = memory_use()
        values = {"s": time.perf_counter() - began, "peak": peak, "anonymous": anonymous, **more}
        print(json.dumps(values), flush=True)

    began = time.perf_counter()
    engine_ = ENGINES[engine](path, length)
    engine_.prefill(1)
    answer(began, can_batch=hasattr(engine_, "batch"))
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        began = time.perf_counter()
        getattr(engine_, name)(*arguments)
        answer(began)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
