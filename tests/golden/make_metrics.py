"""Make metrics.json: scores by nltk and rouge-chinese, over jieba's words.

pip install nltk==3.10.4 rouge-chinese==1.0.3 jieba==0.42.1
python tests/golden/make_metrics.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import jieba
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

# Name, what a model wrote, what it should have written.
CASES = [
    ("the same text", "这条裙子很适合春天穿。", "这条裙子很适合春天穿。"),
    (
        "an advertisement",
        "这款风衣采用翻领设计，搭配双排扣，穿着显得干练又大方。",
        "翻领的版型修饰脸型，双排扣的设计让风衣更加大方，穿上十分干练。",
    ),
    ("shorter than the reference", "百搭的白衬衫。", "百搭的白衬衫，搭配牛仔裤就很好看。"),
    ("longer than the reference", "百搭的白衬衫，搭配牛仔裤就很好看。", "百搭的白衬衫。"),
    ("repeated words", "好看好看好看好看好看好看", "这件上衣好看，颜色也好看"),
    ("words in another order", "我喜欢你", "你喜欢我"),
    ("nothing in common", "今天下雨", "袖口收紧"),
    ("one word", "好", "好"),
    ("two words", "你好，世界", "你好"),
    ("english", "the cat sat on the mat", "the cat is on the mat"),
    ("english in another case", "The Cat Sat", "the cat sat"),
    ("both languages and numbers", "LoRA 的秩是 8，学习率 5e-5。", "LoRA的秩为8，学习率是5e-5。"),
    ("several lines", "第一行。\n第二行！\n\n第三行", "第一行。\n\n第二行？\n第三行"),
    ("spaces around", "  你好 世界 \n", "你好 世界"),
    ("many dots", "等等.......再说", "等等......再说吧"),
    ("quotes after a sentence", "他说：“走吧。”然后就走了。", "他说“走吧！”，就走了。"),
    ("an empty prediction", "", "你好"),
    ("a blank prediction", " \n ", "你好"),
]


def bleu(prediction: list[str], reference: list[str]) -> float:
    return float(
        sentence_bleu([reference], prediction, smoothing_function=SmoothingFunction().method3)
    )


def rouge(prediction: list[str], reference: list[str]) -> dict[str, float] | None:
    try:
        (scores,) = Rouge().get_scores(" ".join(prediction), " ".join(reference))
    except ValueError:  # it refuses a blank text
        return None
    return {name: values["f"] for name, values in scores.items()}


def case(name: str, prediction: str, reference: str) -> dict[str, object]:
    words = list(jieba.cut(prediction)), list(jieba.cut(reference))
    return {
        "name": name,
        "prediction": prediction,
        "reference": reference,
        "prediction_words": words[0],
        "reference_words": words[1],
        "rouge": rouge(*words),
        "bleu_of_words": bleu(*words),
        "bleu_of_characters": bleu(list(prediction), list(reference)),
    }


if __name__ == "__main__":
    golden = {
        "made_with": {name: version(name) for name in ("nltk", "rouge-chinese", "jieba")},
        "cases": [case(*texts) for texts in CASES],
    }
    text = json.dumps(golden, ensure_ascii=False, indent=1) + "\n"
    Path(__file__).with_name("metrics.json").write_text(text, "utf-8")
