"""What a constraint costs: a token's mask and bookkeeping, and the compilation of a tool.

    GLM3SDK_TEST_DATA=../shared/data .venv/bin/python benchmarks/constraints.py

Uses the published tokenizer (64,798 ids) where the data folder has it, else the bundled one.
No model runs: logits are random, so that the walks see many states of each grammar.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

from glm3sdk import Choice, GenerationConfig, JsonSchema, ToolSpec, load_tokenizer
from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.domain.constraints import CallRule, Constraint, ToolCalls
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.services.sampling import Sampler
from glm3sdk.services.structure import TokenConstraint

WALKS = 12
MOST_TOKENS = 150
STOP_IDS = frozenset({2})
TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 40},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "budget": {"type": "number", "exclusiveMinimum": 0, "maximum": 100000},
        "when": {"type": "string", "format": "date"},
        "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
        "stops": {
            "type": "array",
            "maxItems": 5,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "nights": {"type": "integer"}},
                "required": ["name"],
            },
        },
        "notes": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["city", "days", "when"],
}
TOOLS = (ToolSpec("plan_trip", "", TRIP), ToolSpec("search", "", {"properties": {"q": {}}}))
CASES: dict[str, Constraint | ToolCalls] = {
    "required call": ToolCalls(CallRule.MUST, TOOLS),
    "auto": ToolCalls(CallRule.MAY, TOOLS),
    "JSON by schema": JsonSchema(TRIP),
    "any JSON object": JsonSchema({"type": "object"}),
    "choice": Choice(["是", "不是", "不知道"]),
}


def tokenizer() -> Tokenizer:
    folder = Path(os.environ.get("GLM3SDK_TEST_DATA", "../shared/data")) / "tokenizer"
    path = folder / "tokenizer.model"
    return load_tokenizer(path if path.is_file() else "tiny")


def token_times(compiler: LlguidanceConstraints, constraint: Constraint | ToolCalls, size: int):
    """Milliseconds of each token: mask with stop ids, its use on the scores, accept, forced."""
    random = np.random.default_rng(0)
    logits = random.standard_normal((32, size)).astype(np.float32) * 4
    config = GenerationConfig(seed=0, top_p=1.0, temperature=1.0)
    start = compiler.compile(constraint)
    times = []
    for walk in range(WALKS):
        held = TokenConstraint(start(), vocab_size=size, stop_ids=STOP_IDS)
        sampler = Sampler(
            config, vocab_size=size, stop_ids=STOP_IDS, prompt_ids=[5], constraint=held
        )
        scores = np.empty(size)
        generated = held.forced(most=MOST_TOKENS)
        while len(generated) < MOST_TOKENS and not held.finished:
            began = time.perf_counter()
            allowed = held.allowed()
            np.count_nonzero(allowed)
            np.copyto(scores, -np.inf, where=~allowed)
            spent = time.perf_counter() - began
            token_id = sampler.sample(logits[(walk + len(generated)) % 32], generated)
            generated.append(token_id)
            if token_id in STOP_IDS:
                break
            began = time.perf_counter()
            held.accept(token_id)
            forced = held.forced(most=MOST_TOKENS)
            spent += time.perf_counter() - began
            generated += forced
            times.append(spent * 1000)
    return times


def compile_times(vocabulary: Tokenizer) -> dict[str, float]:
    """Milliseconds: the first constraint of a process, a further tool, and one again."""
    compiler = LlguidanceConstraints(vocabulary)
    began = time.perf_counter()
    compiler.compile(Choice(["a"]))
    found = {"first, vocabulary included": (time.perf_counter() - began) * 1000}
    fresh, again = [], []
    for number in range(20):
        calls = ToolCalls(CallRule.MUST, (ToolSpec(f"plan_trip_{number}", "", TRIP), TOOLS[1]))
        for times in (fresh, again):
            began = time.perf_counter()
            compiler.compile(calls)()
            times.append((time.perf_counter() - began) * 1000)
    found["tool schema, median"] = statistics.median(fresh)
    found["tool schema, worst"] = max(fresh)
    found["remembered"] = statistics.median(again)
    return found


def main() -> None:
    vocabulary = tokenizer()
    size = vocabulary.vocab_size
    compiler = LlguidanceConstraints(vocabulary)
    report: dict[str, object] = {"vocabulary": size, "compile ms": compile_times(vocabulary)}
    for name, constraint in CASES.items():
        times = token_times(compiler, constraint, size)
        report[name] = {
            "tokens": len(times),
            "median ms": statistics.median(times),
            "mean ms": statistics.fmean(times),
            "p99 ms": float(np.percentile(times, 99)),
            "worst ms": max(times),
        }
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
