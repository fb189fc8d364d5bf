from __future__ import annotations

import itertools
import zlib
from threading import Thread

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services.echo_runtime import TOKENIZER

from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.domain.chat import Message, ReplyEnd, ToolSpec
from glm3sdk.domain.constraints import Choice, Regex
from glm3sdk.domain.generation import GenerationConfig
from glm3sdk.domain.model import Glm3Config
from glm3sdk.errors import Glm3Error, InvalidGenerationConfigError
from glm3sdk.ports.model_runtime import RuntimeCapabilities
from glm3sdk.ports.slots import SlotTable
from glm3sdk.services.chat import Glm3Service
from glm3sdk.services.logprobs import with_logprobs
from glm3sdk.services.prompt_lookup import PromptLookup
from glm3sdk.services.request import run
from glm3sdk.testing.scripted_runtime import Decode, Prefill, ScriptedRuntime, Truncate

CONSTRAINTS = LlguidanceConstraints(TOKENIZER)
HI = [Message.user("hi")]
GREEDY = GenerationConfig(do_sample=False, max_new_tokens=60)
LIGHTS = ToolSpec("lights", "", {"properties": {"on": {"enum": [True, False]}}, "required": ["on"]})


class HabitualRuntime:
    """A model whose next token depends on its last two: it falls into loops and leaves them.

    Attributes:
        read: how many tokens each call read in each slot, and whether for all logits.
        fail_verify: raised by the next call for all logits.
    """

    letters = "abcd \n"

    def __init__(self, seed: int) -> None:
        self.config = attrs.evolve(
            Glm3Config.preset("tiny"), padded_vocab_size=TOKENIZER.vocab_size, seq_length=512
        )
        self.capabilities = RuntimeCapabilities(name="habitual", dtype="float32")
        self.seed = seed
        self.read: list[tuple[list[int], bool]] = []
        self.held: list[list[int]] = []
        self.fail_verify: Exception | None = None

    def start_decode(self, *, slots: int, max_seq_length: int) -> HabitualSession:
        return HabitualSession(self, slots=slots, max_seq_length=max_seq_length)

    def close(self) -> None:
        pass

    def logits(self, ids: list[int]) -> np.ndarray:
        key = np.array([self.seed, *ids[-2:]], np.int32).tobytes()
        logits = np.random.default_rng(zlib.crc32(key)).random(TOKENIZER.vocab_size, np.float32)
        logits[TOKENIZER.encode(self.letters)] += 2
        logits[2] += 1.3
        return logits


class HabitualSession(SlotTable):
    def __init__(self, runtime: HabitualRuntime, **size: int) -> None:
        super().__init__(runtime.config, **size)
        self.runtime = runtime
        runtime.held = self.held = [[] for _ in range(self.slots)]

    def prefill(self, slot, input_ids, *, all_logits=False):
        slot, ids = self.check_prefill(slot, input_ids)
        if all_logits and self.runtime.fail_verify:
            raise self.runtime.fail_verify
        rows = [self._append(slot, token_id) for token_id in ids.tolist()]
        self.runtime.read.append(([len(rows)], all_logits))
        return np.stack(rows) if all_logits else rows[-1]

    def decode(self, slots, token_ids):
        chosen, ids = self.check_decode(slots, token_ids)
        self.runtime.read.append(([1] * len(chosen), False))
        pairs = zip(chosen, ids.tolist(), strict=True)
        return np.stack([self._append(slot, token_id) for slot, token_id in pairs])

    def truncate(self, slot, length):
        super().truncate(slot, length)
        del self.held[slot][length:]

    def copy(self, source, target, length):
        super().copy(source, target, length)
        self.held[target] = self.held[source][:length]

    def _append(self, slot: int, token_id: int) -> np.ndarray:
        self.held[slot].append(token_id)
        self.advance(slot, 1)
        return self.runtime.logits(self.held[slot])


def guessing(config: GenerationConfig, most: int = 8) -> GenerationConfig:
    return attrs.evolve(config, prompt_lookup_num_tokens=most)


def habitual(seed: int = 1, *, slots: int = 2) -> Glm3Service:
    return Glm3Service(
        runtime=HabitualRuntime(seed),
        tokenizer=TOKENIZER,
        slots=slots,
        max_seq_length=256,
        constraints=CONSTRAINTS,
    )


def lookup(text: str, most: int = 8) -> PromptLookup:
    return PromptLookup(most, map(ord, text))


def guessed(of: PromptLookup) -> str:
    return "".join(map(chr, of.guess()))


def test_a_text_is_guessed_to_go_on_as_it_did_before():
    assert guessed(lookup("one two three; one two")) == " th"
    assert guessed(lookup("xyz")) == ""
    assert guessed(lookup("")) == ""


def test_the_longest_run_of_last_tokens_counts_and_of_equal_ones_the_last():
    assert guessed(lookup("abcde-bcXY-abc")) == "de-"
    assert guessed(lookup("abc1. abc2. abc")) == "2. "


def test_one_equal_token_is_worth_two_guesses():
    assert guessed(lookup("qabc-q")) == "ab"


def test_one_equal_token_is_not_enough_after_two_wrong_guesses_until_one_is_right():
    found = lookup("qabcd-q")
    for right, expected in ((0, "ab"), (0, ""), (1, "ab")):
        found.learn(2, right)
        assert guessed(found) == expected
    found.learn(2, 0)
    found.learn(2, 0)
    found.extend(map(ord, "a"))
    assert guessed(found) == "bcd"


def test_a_loop_is_guessed_to_go_round():
    found = lookup("no: ababab")
    found.learn(3, 3)
    assert guessed(found) == "abababa"
    assert guessed(lookup("zz")) == "zz"


def test_more_is_guessed_where_guesses_were_right_and_never_more_than_the_most():
    found = lookup("0123456789abcdefghij 012", most=10)
    sizes = [len(found.guess())]
    for right in (3, 7, 10, 4, 0):
        found.learn(sizes[-1], right)
        sizes.append(len(found.guess()))
    assert sizes == [3, 7, 10, 10, 4, 3]
    assert len(lookup("abcabc", most=1).guess()) == 1


def test_a_negative_number_is_refused():
    with pytest.raises(InvalidGenerationConfigError, match="prompt_lookup_num_tokens"):
        GenerationConfig(prompt_lookup_num_tokens=-1)


@given(
    words=st.lists(st.sampled_from(["ab", "你好", "x", " ", "tool_call("]), max_size=20),
    most=st.integers(1, 12),
    limit=st.integers(1, 80),
)
def test_a_script_is_played_to_the_token_with_and_without_guesses(words, most, limit):
    config = attrs.evolve(GREEDY, max_new_tokens=limit)
    replies = []
    for options in (config, guessing(config, most)):
        runtime = ScriptedRuntime("".join(words), "next")
        with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
            first = service.chat([Message.user("ab" + "".join(words[:3]))], options)
            replies.append((first, service.chat([*first.history, *HI], options)))
    assert replies[0] == replies[1]


def test_text_that_stands_in_the_prompt_is_written_in_few_steps():
    text = "The quick brown fox jumps over the lazy dog, and then it does so again."
    runtime = ScriptedRuntime(text)
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        asked = [Message.user(f"Repeat: {text}")]
        plain = service.chat(asked, GREEDY)
        before = len(runtime.calls)
        assert service.chat(asked, guessing(GREEDY, 10)).content == plain.content
    steps = [call for call in runtime.calls[before:] if not isinstance(call, Truncate)]
    assert len(steps) < 20
    assert len(plain.content) > 55


OPTIONS = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 60)},
    optional={
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([0.1, 0.8, 3.0]),
        "top_k": st.integers(0, 4),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "stop": st.sampled_from(["ab", "\n", "c d"]),
        "stop_token_ids": st.just([3 + ord("d")]),
        "bad_words": st.sampled_from([["a"], ["ab", "dc"]]),
        "logit_bias": st.just({3 + ord("a"): 1.0}),
        "min_new_tokens": st.just(1),
        "constraint": st.sampled_from(
            [Regex("[ab]{3}(abcd|abba)+x"), Choice(["abcabcabc", "abcabcabd"])]
        ),
    },
)


def turn(service: Glm3Service, history: list[Message], config: GenerationConfig) -> object:
    """A reply's text, tokens and counts, or why there is none."""
    try:
        reply = service.chat(history, config)
    except Glm3Error as exc:
        return str(exc)
    return reply.parts, reply.history[-1].tokens, reply.finish_reason, reply.usage


@settings(max_examples=80)
@given(options=OPTIONS, seed=st.integers(0, 1000), most=st.integers(1, 12))
def test_every_option_gives_the_same_reply_with_and_without_guesses(options, seed, most):
    config = GenerationConfig(**{"do_sample": False, "seed": 7, **options})
    seen = []
    for chosen in (config, guessing(config, most)):
        with habitual(seed) as service:
            turns = ["abcd"], ["abcd", "ab"], ["abcd"]
            seen.append(
                [turn(service, [Message.user(text) for text in texts], chosen) for texts in turns]
            )
    assert seen[0] == seen[1]


def test_a_tool_call_whose_tokens_are_forced_is_the_same():
    call = Message.assistant("```python\ntool_call(on=False)\n```", metadata="lights")
    config = attrs.evolve(GREEDY, tool_choice="required")
    replies = []
    for chosen in (config, guessing(config)):
        runtime = ScriptedRuntime(call)
        with Glm3Service(runtime=runtime, tokenizer=TOKENIZER, constraints=CONSTRAINTS) as service:
            replies.append(service.chat(HI, chosen, [LIGHTS]))
    assert replies[0] == replies[1]
    assert replies[0].tool_calls[0].arguments == {"on": False}


def test_forced_tokens_that_were_guessed_are_not_read_again():
    config = attrs.evolve(GREEDY, constraint=Regex("x(abcdef|abcdeg)y"))
    prompt = [Message.user("abcdef abcdeg xab")]
    runtime = ScriptedRuntime("xabcdefy")
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER, constraints=CONSTRAINTS) as service:
        assert service.chat(prompt, guessing(config)).content == "xabcdefy"
        held = []
        for call in runtime.calls:
            if isinstance(call, Prefill):
                held += call.input_ids
            elif isinstance(call, Truncate):
                del held[call.length :]
            else:
                held += call.token_ids
    # The last two tokens end the reply, so that nothing needs them in the slot.
    assert TOKENIZER.decode(held).endswith("\nxabcde")


def test_streams_and_log_probabilities_are_the_same():
    seen = []
    for config in (GREEDY, guessing(GREEDY)):
        with habitual(3) as service:
            told = with_logprobs(service.prepare_chat(HI, config), tokenizer=TOKENIZER, top=2)
            seen.append([event for _, event in run(service._scheduler, [told])])
            seen[-1] += service.stream_chat([Message.user("abab")], config)
    assert seen[0] == seen[1]
    assert isinstance(seen[0][-1], ReplyEnd)


def test_a_batch_is_the_same_and_guesses_begin_when_one_is_left():
    prompts = [[Message.user(text)] for text in ("ab", "abcd", "dcba", "a b")]
    with habitual(4, slots=3) as service:
        plain = service.chat_batch(prompts, GREEDY)
        runtime = service.runtime
        assert isinstance(runtime, HabitualRuntime)
        runtime.read.clear()
        fast = service.chat_batch(prompts, guessing(GREEDY))
        assert [reply.parts for reply in fast] == [reply.parts for reply in plain]
        last_together = max(n for n, (sizes, _) in enumerate(runtime.read) if len(sizes) > 1)
        verified = [n for n, (_, all_logits) in enumerate(runtime.read) if all_logits]
        assert verified
        assert min(verified) > last_together
        assert [r.parts for r in service.chat_batch(prompts, GREEDY)] == [r.parts for r in plain]


def test_replies_with_and_without_guesses_run_side_by_side():
    configs = [GREEDY, guessing(GREEDY), guessing(GREEDY, 2), GREEDY]
    with habitual(5, slots=2) as service:
        alone = [service.chat([Message.user(f"ab{n}")], config) for n, config in enumerate(configs)]
        found = {}

        def ask(n: int) -> None:
            found[n] = service.chat([Message.user(f"ab{n}")], configs[n])

        threads = [Thread(target=ask, args=(n,)) for n in range(len(configs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert [found[n].parts for n in range(4)] == [reply.parts for reply in alone]


def test_a_stream_that_is_left_leaves_a_slot_that_serves_as_before():
    with habitual(2, slots=1) as service:
        expected = service.chat([Message.user("abab")], GREEDY)
        stream = service.stream_chat(HI, guessing(GREEDY))
        next(stream)
        stream.close()
        assert service.chat([Message.user("abab")], guessing(GREEDY)).parts == expected.parts


def test_a_failing_verification_fails_its_own_request_alone():
    with habitual() as service:
        runtime = service.runtime
        assert isinstance(runtime, HabitualRuntime)
        expected = service.chat([Message.user("abab")], GREEDY)
        runtime.fail_verify = RuntimeError("out of memory")
        with pytest.raises(Glm3Error, match="out of memory"):
            service.chat([Message.user("abab")], guessing(GREEDY))
        runtime.fail_verify = None
        again = service.chat([Message.user("abab")], guessing(GREEDY))
        assert again.parts == expected.parts


def test_the_slot_has_room_for_every_guess_up_to_the_limit():
    # The prompt and the reply fill the kv_cache to its last place.
    for length in range(20, 40):
        with Glm3Service(
            runtime=HabitualRuntime(1), tokenizer=TOKENIZER, slots=1, max_seq_length=length
        ) as service:
            endless = GenerationConfig(do_sample=False, logit_bias={2: -100.0})
            plain = service.chat([Message.user("abab")], endless)
            fast = service.chat([Message.user("abab")], guessing(endless, 30))
            assert (fast.parts, fast.finish_reason) == (plain.parts, "length")
            assert fast.usage.total_tokens == length


def test_no_stop_id_is_guessed():
    runtime = ScriptedRuntime("one", "one", "one")
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER) as service:
        history = service.chat(HI, GREEDY).history
        for _ in range(2):
            history = service.chat([*history, *HI], guessing(GREEDY)).history
        turns = runtime.turn_ids
    reads = [c.input_ids for c in runtime.calls if isinstance(c, Prefill) and len(c.input_ids) < 5]
    assert reads
    assert all(turns.isdisjoint(ids[1:]) for ids in reads)
    decodes = itertools.chain(*(c.token_ids for c in runtime.calls if isinstance(c, Decode)))
    assert turns.isdisjoint(decodes)
