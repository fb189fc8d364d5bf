from __future__ import annotations

import itertools
import json
from threading import Thread

import attrs
import numpy as np
import pytest
from services.echo_runtime import EchoRuntime

from glm3sdk import (
    Choice,
    GenerationConfig,
    Glm3Service,
    Grammar,
    IncompleteStructure,
    JsonSchema,
    MalformedToolCall,
    Message,
    Regex,
    ReplyEnd,
    ToolCall,
    ToolSpec,
    tool,
)
from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.domain.chat import CompletionEnd, FinishReason
from glm3sdk.domain.special_tokens import SpecialToken
from glm3sdk.errors import (
    InvalidConstraintError,
    InvalidGenerationConfigError,
    UnknownNameError,
    UnsupportedOptionError,
)
from glm3sdk.services.sampling import Sampler
from glm3sdk.services.structure import TokenConstraint
from glm3sdk.testing import CharacterTokenizer, FiniteConstraints, ScriptedRuntime
from glm3sdk.testing.scripted_runtime import Decode, Prefill

TOKENIZER = CharacterTokenizer()
REAL = LlguidanceConstraints(TOKENIZER)
HI = [Message.user("hi")]
GREEDY = GenerationConfig(do_sample=False)
WEATHER = ToolSpec(
    "get_weather",
    "",
    {
        "type": "object",
        "properties": {"city": {"enum": ["北京", "上海"]}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
LIGHTS = ToolSpec("lights", "", {"properties": {"on": {"enum": [True, False]}}, "required": ["on"]})


def service(*replies, constraints=REAL, slots=2, **options) -> Glm3Service:
    return Glm3Service(
        runtime=ScriptedRuntime(*replies),
        tokenizer=TOKENIZER,
        slots=slots,
        constraints=constraints,
        **options,
    )


def asked(config=GREEDY, **options) -> GenerationConfig:
    return attrs.evolve(config, **options)


def steps(of: Glm3Service) -> int:
    return sum(isinstance(call, Decode | Prefill) for call in of.runtime.calls)


def test_a_reply_keeps_within_its_constraint_whatever_the_model_would_say():
    with service("I will not choose") as chatty:
        reply = chatty.chat(HI, asked(constraint=Choice(["yes", "no"])))
        assert reply.content in ("yes", "no")
        assert (reply.finish_reason, reply.incomplete) == ("stop", None)
        assert reply.history[-1] == Message.assistant(reply.content)


def test_the_model_s_own_answer_stands_where_it_fits():
    answers = {
        '{"a": 12}': JsonSchema({"properties": {"a": {"type": "integer"}}, "required": ["a"]}),
        "ab-12": Regex("[a-z]{2}-[0-9]+"),
        "no": Choice(["yes", "no"]),
        "abba": Grammar('start: "a" start "a" | "bb"'),
    }
    with service(*answers) as good:
        for answer, constraint in answers.items():
            assert good.chat(HI, asked(constraint=constraint)).content == answer


def test_a_required_call_is_made_by_a_model_that_would_chat():
    with service("Let me think about it") as chatty:
        reply = chatty.chat(HI, asked(tool_choice="required"), [WEATHER, LIGHTS])
        (call,) = reply.parts
        assert isinstance(call, ToolCall)
        assert call.name in ("get_weather", "lights")
        assert reply.finish_reason == "tool_calls"
        (call,) = chatty.chat(HI, asked(tool_choice="lights"), [WEATHER, LIGHTS]).parts
        assert call.name == "lights"
        assert call.arguments["on"] in (True, False)


def test_auto_takes_over_when_a_call_is_opened_and_leaves_text_alone():
    malformed = Message.assistant("```python\ntool_call(city=北京)\n```", metadata="get_weather")
    thought = ["I look.\nOk?", SpecialToken.ASSISTANT, malformed, SpecialToken.OBSERVATION]
    with service(thought, "plain\ntext", malformed) as careless:
        reply = careless.chat(HI, asked(tool_choice="auto"), [WEATHER])
        text, call = reply.parts
        assert text.text == "I look.\nOk?"
        assert call.arguments["city"] in ("北京", "上海")
        reply = careless.chat(HI, asked(tool_choice="auto"), [WEATHER])
        assert (reply.content, reply.incomplete) == ("plain\ntext", None)
        (part,) = careless.chat(HI, GREEDY, [WEATHER]).parts
        assert isinstance(part, MalformedToolCall)


def test_none_calls_nothing():
    call = Message.assistant("```python\ntool_call(on=True)\n```", metadata="lights")
    with service(call) as eager:
        reply = eager.chat(HI, asked(tool_choice="none", max_new_tokens=40), [LIGHTS])
        assert reply.tool_calls == ()
        assert reply.incomplete is None


def test_tools_of_the_system_message_can_be_called():
    history = [Message.system("Tools:", tools=[LIGHTS]), *HI]
    with service("x") as chatty:
        assert chatty.chat(history, asked(tool_choice="required")).tool_calls[0].name == "lights"


@pytest.mark.parametrize("constraints", [REAL, FiniteConstraints(TOKENIZER)])
def test_forced_tokens_are_read_at_once_and_the_reply_is_the_same(constraints):
    call = Message.assistant("```python\ntool_call(on=False)\n```", metadata="lights")
    replies = []
    for fast_forward in (True, False):
        with service(call, constraints=constraints, fast_forward=fast_forward) as told:
            replies.append(told.chat(HI, asked(tool_choice="required"), [LIGHTS]))
            replies.append(told.chat(replies[-1].history, GREEDY))
            taken = steps(told)
        if fast_forward:
            fast = taken
    assert fast < taken - 30
    assert replies[0] == replies[2]
    assert replies[0].history[-1].tokens == replies[2].history[-1].tokens
    assert replies[0].tool_calls[0].arguments == {"on": False}
    assert replies[0].usage == replies[2].usage
    # The next turn reuses what was forced, as it does what was chosen.
    assert replies[1] == replies[3]


def test_several_replies_are_held_to_different_constraints_at_once():
    configs = [
        asked(constraint=Choice(["yes", "no"])),
        asked(constraint=Regex("[0-9]{4}")),
        asked(tool_choice="lights"),
        GREEDY,
    ]
    with service("not this", slots=4) as shared:
        alone = [shared.chat(HI, config, [LIGHTS]) for config in configs]
        found = {}

        def ask(number: int) -> None:
            found[number] = shared.chat(HI, configs[number], [LIGHTS])

        threads = [Thread(target=ask, args=(number,)) for number in range(len(configs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert [found[n].parts for n in range(4)] == [reply.parts for reply in alone]


def test_a_batch_and_a_stream_give_what_one_reply_gives():
    config = asked(constraint=JsonSchema({"enum": ["a long text", "another", 3]}))
    with service("?", slots=3) as shared:
        alone = shared.chat(HI, config).content
        assert json.loads(alone) in ("a long text", "another", 3)
        assert [reply.content for reply in shared.chat_batch([HI] * 5, config)] == [alone] * 5
        events = list(shared.stream_chat(HI, config))
        assert "".join(event.content for event in events) == alone
        assert isinstance(events[-1], ReplyEnd)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 5.0, "top_p": 1.0},
        {"top_k": 3},
        {"repetition_penalty": 1.9},
        {"min_new_tokens": 500},
        {"logit_bias": {100: 50.0, 2: 90.0}},
        {"stop_token_ids": [3 + ord("e")]},
        {"bad_words": ["m", "on"]},
        {"stop": ["e"]},
    ],
)
def test_every_sampling_option_goes_with_a_constraint(options):
    config = GenerationConfig(seed=3, constraint=Choice(["yes", "no", "maybe"]), **options)
    with service("maybe") as shared:
        reply = shared.chat(HI, config)
        assert shared.chat(HI, config).parts == reply.parts
        if options.get("stop"):
            assert reply.content in ("y", "no", "mayb")
        else:
            assert (reply.content in ("yes", "no", "maybe"), reply.incomplete) == (True, None)


def test_a_seed_gives_the_same_reply_with_and_without_fast_forward():
    config = GenerationConfig(seed=5, temperature=9.0, tool_choice="required")
    seen = []
    for fast_forward in (True, False):
        with service([7, 7, 7], fast_forward=fast_forward) as shared:
            seen.append(shared.chat(HI, config, [WEATHER, LIGHTS]).parts)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_limit_that_comes_first_is_told_with_what_was_written(limit):
    constraint = Choice(["abcdefgh"])
    with service("abcdefgh") as shared:
        reply = shared.chat(HI, asked(constraint=constraint, max_new_tokens=limit))
        assert reply.usage.completion_tokens == min(limit, 9)
        if limit < 9:
            assert reply.finish_reason == "length"
            assert reply.incomplete == IncompleteStructure("abcdefgh"[: limit - 1], "length")
        else:
            assert (reply.finish_reason, reply.incomplete) == ("stop", None)


def test_a_call_that_is_cut_off_is_malformed_and_incomplete():
    with service("x") as shared:
        reply = shared.chat(HI, asked(tool_choice="required", max_new_tokens=25), [LIGHTS])
        (part,) = reply.parts
        assert isinstance(part, MalformedToolCall)
        assert reply.finish_reason == "length"
        assert reply.incomplete == IncompleteStructure(
            "lights\n```python\ntool_cal", FinishReason.LENGTH
        )


def test_a_text_that_may_end_anywhere_is_complete_at_the_limit():
    with service("abcdefgh") as shared:
        reply = shared.chat(HI, asked(constraint=Regex("[a-z]+"), max_new_tokens=4))
        assert (reply.finish_reason, reply.content, reply.incomplete) == ("length", "abc", None)


def test_a_stop_string_inside_the_structure_leaves_it_incomplete():
    with service('{"a": "x; y"}') as shared:
        schema = JsonSchema({"properties": {"a": {"type": "string"}}, "required": ["a"]})
        reply = shared.chat(HI, asked(constraint=schema, stop=";"))
        assert reply.finish_reason == "stop"
        assert reply.incomplete == IncompleteStructure('{"a": "x', FinishReason.STOP)


def test_a_raw_completion_goes_on_from_its_prompt():
    config = asked(constraint=Choice(["yes", "no"]))
    with service("no") as shared:
        completion = shared.generate("Is it so? ", config)
        assert (completion.text in ("yes", "no"), completion.incomplete) == (True, None)
        assert shared.generate("[gMASK]sop<|user|>\nhi<|assistant|>", config).text == "no"
        cut = shared.generate("x", asked(constraint=Choice(["yes"]), max_new_tokens=2))
        assert cut.incomplete == IncompleteStructure("ye", FinishReason.LENGTH)
        assert isinstance(list(shared.stream_generate("x", config))[-1], CompletionEnd)
        with pytest.raises(InvalidGenerationConfigError, match="raw prompt offers no tools"):
            shared.generate("x", asked(tool_choice="required"))


def test_a_constraint_that_cannot_be_used_is_known_before_anything_is_read():
    with service("x") as shared:
        for config, error in (
            (asked(constraint=Regex("(")), InvalidConstraintError),
            (asked(constraint=JsonSchema({"not": {}})), InvalidConstraintError),
            (asked(tool_choice="lihgts"), UnknownNameError),
        ):
            with pytest.raises(error):
                shared.stream_chat(HI, config, [LIGHTS])
        assert shared.runtime.calls == []
    with (
        service("x", constraints=None) as plain,
        pytest.raises(UnsupportedOptionError, match="Glm3Service\\(constraints="),
    ):
        plain.chat(HI, asked(tool_choice="auto"), [LIGHTS])


class DeadEnd:
    """Allows nothing from its second token on."""

    complete = finished = False

    def __init__(self):
        self.taken = 0

    def fill_mask(self, allowed):
        allowed[:] = self.taken == 0

    def accept(self, token_id):
        self.taken += 1

    def forced(self):
        return []


class DeadEnds:
    def compile(self, constraint, *, opening=""):
        return DeadEnd


def test_a_reply_that_fails_leaves_the_others_alone():
    runtime = EchoRuntime()
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=2, constraints=DeadEnds()) as both:
        runtime.hold(after=2)
        good = both.stream_chat([Message.user("a long enough answer")], GREEDY)
        text = [next(good).content]
        bad = both.stream_chat(HI, asked(constraint=Choice(["a"])))
        runtime.go_on()
        with pytest.raises(InvalidConstraintError, match="leaves no token to choose at step 1"):
            list(bad)
        text += [event.content for event in good]
        assert "".join(text) == "a long enough answer"
        assert both.chat([Message.user("again")], GREEDY).content == "again"


def test_a_failure_while_forced_tokens_are_read_fails_one_request():
    runtime = EchoRuntime()
    with Glm3Service(runtime=runtime, tokenizer=TOKENIZER, slots=1, constraints=REAL) as shared:
        config = asked(constraint=Choice(["abcde1", "abcde2", "x"]))
        calls = itertools.count()
        prefill = runtime.sessions[0].prefill

        def fails_second(*args, **kwargs):
            if next(calls) == 1:
                raise RuntimeError("out of memory")
            return prefill(*args, **kwargs)

        runtime.sessions[0].prefill = fails_second
        with pytest.raises(Exception, match="out of memory"):
            shared.chat(HI, config)
        assert shared.chat(HI, config).content in ("abcde1", "abcde2")


def test_run_tools_requires_a_call_in_the_first_round_alone():
    @tool
    def lights(on: bool) -> str:
        """Switch the lights."""
        return "done"

    with service("whatever", "The lights are on.") as chatty:
        reply = chatty.run_tools(HI, [lights], asked(tool_choice="required"))
        assert reply.content == "The lights are on."
        assert [message.metadata for message in reply.history] == ["", "lights", "", ""]


def test_a_sampler_draws_only_among_what_is_allowed():
    state = REAL.compile(Regex("[a-c]{1,3}"))()
    stop_ids = frozenset({2})
    constraint = TokenConstraint(state, vocab_size=TOKENIZER.vocab_size, stop_ids=stop_ids)
    sampler = Sampler(
        GenerationConfig(temperature=50, top_p=1, seed=0),
        vocab_size=TOKENIZER.vocab_size,
        stop_ids=stop_ids,
        prompt_ids=[5],
        constraint=constraint,
    )
    logits = np.zeros(TOKENIZER.vocab_size + 30, np.float32)
    letters = {3 + ord(letter) for letter in "abc"}
    assert {sampler.sample(logits, []) for _ in range(50)} == letters
    constraint.accept(3 + ord("a"))
    assert {sampler.sample(logits, [100]) for _ in range(80)} == {*letters, 2}
