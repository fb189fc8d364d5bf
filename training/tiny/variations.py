"""Dialogues with many values, so that the model learns to copy what it was told.

The written dialogues alone are few enough to be learned by heart, observation and all. The
short ones here show copying in few tokens; the ones with tools apply it.
"""

from __future__ import annotations

import json
import random

from glm3sdk import Message, ToolSpec
from glm3sdk.domain.tool_calls import render_tool_call

SYSTEM = (
    "Answer the following questions as best as you can. You have access to the following tools:"
)
CITIES = ("北京", "上海", "广州", "深圳", "成都", "杭州", "南京", "西安", "三亚", "天津", "长沙")
FOREIGN_CITIES = ("Paris", "London", "Tokyo", "Rome", "New York")
CONDITIONS = ("晴", "阴", "多云", "小雨", "大雨", "小雪")
FOREIGN_CONDITIONS = ("sunny", "rainy", "cloudy", "windy")
NAMES = ("小明", "小红", "Tom", "Anna", "Jack", "Lily", "小王", "小华", "小美")
SYLLABLES = "小大明红华美王林天晴雨雪山海文春冬安乐高"
QUESTIONS = ("{}的天气怎么样？", "{}今天天气怎么样", "{}天气怎么样", "今天{}的天气怎么样？")


def _spec(name: str, description: str, argument: str) -> ToolSpec:
    properties = {argument: {"type": "string"}}
    return ToolSpec(
        name,
        description,
        {"type": "object", "properties": properties, "required": [argument]},
    )


GET_WEATHER = _spec("get_weather", "查询城市的天气", "city")
CALCULATE = _spec("calculate", "计算数学表达式", "expression")


def _call(
    tools: tuple[ToolSpec, ...], question: str, name: str, arguments: dict[str, str], seen: str
) -> list[Message]:
    return [
        Message.system(SYSTEM, tools=tools),
        Message.user(question),
        Message.assistant(render_tool_call(arguments), metadata=name),
        Message.observation(seen),
    ]


def copy_variations(count: int, *, seed: int) -> list[tuple[Message, ...]]:
    """Short dialogues: repeat this, and what is my name."""
    choice = random.Random(seed)
    words = (*CITIES, *FOREIGN_CITIES, *CONDITIONS, *FOREIGN_CONDITIONS, *NAMES)
    dialogues = []
    for index in range(count):
        if index % 4 == 0:
            name = "".join(choice.choice(SYLLABLES) for _ in range(2))
            dialogues.append(
                (
                    Message.user(f"我叫{name}"),
                    Message.assistant(f"你好，{name}！很高兴认识你。"),
                    Message.user("我叫什么名字？"),
                    Message.assistant(f"你叫{name}。"),
                )
            )
        else:
            pieces = [
                choice.choice((choice.choice(words), str(choice.randint(-9, 99))))
                for _ in range(choice.randint(2, 14))
            ]
            text = " ".join(pieces)
            dialogues.append((Message.user(f"请重复：{text}"), Message.assistant(text)))
    return dialogues


def tool_variations(count: int, *, seed: int) -> list[tuple[Message, ...]]:
    """Dialogues about the weather and about sums, `count` of each kind."""
    choice = random.Random(seed)  # not for security
    dialogues = []
    for index in range(count):
        tools = (GET_WEATHER, CALCULATE) if index % 4 == 0 else (GET_WEATHER,)
        foreign = index % 4 == 1
        city = choice.choice(FOREIGN_CITIES if foreign else CITIES)
        condition = choice.choice(FOREIGN_CONDITIONS if foreign else CONDITIONS)
        degrees = choice.randint(-9, 39)
        if foreign:
            question = f"What is the weather in {city}?"
            answer = f"It is {condition} in {city} today, {degrees} degrees."
        else:
            question = choice.choice(QUESTIONS).format(city)
            answer = f"{city}今天{condition}，气温{degrees}度。"
        seen = json.dumps({"temperature": degrees, "condition": condition}, ensure_ascii=False)
        call = _call(tools, question, "get_weather", {"city": city}, seen)
        dialogues.append((*call, Message.assistant(answer)))
    for index in range(count):
        tools = (GET_WEATHER, CALCULATE) if index % 4 == 0 else (CALCULATE,)
        left, right = choice.randint(2, 99), choice.randint(2, 99)
        sign, result = choice.choice((("+", left + right), ("*", left * right)))
        expression = f"{left}{sign}{right}"
        call = _call(
            tools, f"计算 {expression}", "calculate", {"expression": expression}, str(result)
        )
        dialogues.append((*call, Message.assistant(f"{expression} 的结果是 {result}。")))
    return dialogues


def variations(*, seed: int) -> list[tuple[Message, ...]]:
    """One epoch's dialogues: others for every seed."""
    return [*copy_variations(500, seed=2 * seed), *tool_variations(30, seed=2 * seed + 1)]
