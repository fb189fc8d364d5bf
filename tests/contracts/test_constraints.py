from __future__ import annotations

from pathlib import Path

import pytest

from glm3sdk import load_tokenizer
from glm3sdk.adapters.llguidance.compiler import LlguidanceConstraints
from glm3sdk.domain.constraints import CallRule, Regex, ToolCalls
from glm3sdk.errors import UnsupportedOptionError
from glm3sdk.ports.tokenizer import Tokenizer
from glm3sdk.testing import CharacterTokenizer, ConstraintContract, FiniteConstraints

TINY = load_tokenizer("tiny")
OVER_TINY = LlguidanceConstraints(TINY)
OVER_BYTES = LlguidanceConstraints(CharacterTokenizer())


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "tokenizer" / "tokenizer.model")


@pytest.fixture(scope="module")
def over_published(published: Tokenizer) -> LlguidanceConstraints:
    return LlguidanceConstraints(published)


class TestLlguidanceOverTheBundledTokenizer(ConstraintContract):
    @pytest.fixture
    def tokenizer(self):
        return TINY

    @pytest.fixture
    def compiler(self):
        return OVER_TINY


class TestLlguidanceOverBytes(ConstraintContract):
    @pytest.fixture
    def tokenizer(self):
        return CharacterTokenizer()

    @pytest.fixture
    def compiler(self):
        return OVER_BYTES


class TestLlguidanceOverThePublishedTokenizer(ConstraintContract):
    @pytest.fixture
    def tokenizer(self, published):
        return published

    @pytest.fixture
    def compiler(self, over_published):
        return over_published


class TestTheFake(ConstraintContract):
    @pytest.fixture
    def tokenizer(self):
        return TINY

    @pytest.fixture
    def compiler(self):
        return FiniteConstraints(TINY)


@pytest.mark.parametrize("constraint", [Regex("a+"), ToolCalls(CallRule.NEVER)])
def test_the_fake_refuses_what_has_no_list_of_texts(constraint):
    with pytest.raises(UnsupportedOptionError, match=r"glm3sdk\[structured\]"):
        FiniteConstraints(TINY).compile(constraint)
