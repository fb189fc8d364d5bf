"""The models that their authors published: where, and what their files must be.

The digests of THUDM/chatglm3-6b were read on 2023-12-07 from a public copy's Git LFS pointers.
config.json and the index are small files outside LFS, which the authors edit; what they say
is compared instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from glm3sdk.domain.model import PRESETS, Glm3Config


@attrs.frozen
class PublishedFile:
    """What a published file must be.

    Attributes:
        size: bytes.
        sha256: lower-case hexadecimal.
    """

    size: int
    sha256: str


@attrs.frozen
class PublishedModel:
    """A model under its name in this SDK.

    Attributes:
        name: such as "glm3-6b".
        repository: on the Hugging Face hub.
        files: what is known of them; empty where nothing is.
    """

    name: str
    repository: str
    files: Mapping[str, PublishedFile] = {}

    @property
    def config(self) -> Glm3Config:
        """The hyper-parameters that its config.json must give."""
        return PRESETS[self.name]


_GLM3_6B = {
    "pytorch_model-00001-of-00007.bin": PublishedFile(
        1827781090, "4d5567466e89625dbd10e51c69a02982f233a10108cf232a379defdbb065ae0b"
    ),
    "pytorch_model-00002-of-00007.bin": PublishedFile(
        1968299480, "4ad41534016ac4a2431fa2d4b08efbe28f963744135ec52b2ea13cc86730fa2a"
    ),
    "pytorch_model-00003-of-00007.bin": PublishedFile(
        1927415036, "a2be9b17c332a8345e787953d4879caee4747ad4b263f013aa3c4654c94c3d24"
    ),
    "pytorch_model-00004-of-00007.bin": PublishedFile(
        1815225998, "b5526891e1b4c8edd2e3688df5156aa107e2140fe7e3f9d0d54f9cbe3b6ee3b5"
    ),
    "pytorch_model-00005-of-00007.bin": PublishedFile(
        1968299544, "84bb18a476f74beaf4d941733bd1c475791eba799b228f78d0165de989cb7a40"
    ),
    "pytorch_model-00006-of-00007.bin": PublishedFile(
        1927415036, "1181875a2dc30fba968d72d0fc4628b9a60d3866bf680eb14b9822b5b504830f"
    ),
    "pytorch_model-00007-of-00007.bin": PublishedFile(
        1052808542, "1271b638dc0a88206d1c7a51bcaa862410eb56f3e59fd0068a96e96cb5e3f4f0"
    ),
    "tokenizer.model": PublishedFile(
        1018370, "e7dc4c393423b76e4373e5157ddc34803a0189ba96b21ddbb40269d31468a6f2"
    ),
}

PUBLISHED_MODELS: Mapping[str, PublishedModel] = {
    model.name: model
    for model in (
        PublishedModel("glm3-6b", "THUDM/chatglm3-6b", _GLM3_6B),
        PublishedModel("glm3-6b-32k", "THUDM/chatglm3-6b-32k"),
        PublishedModel("glm3-6b-128k", "THUDM/chatglm3-6b-128k"),
    )
}


def base_model(name: str) -> str:
    """What an adapter's base is called here: adapters of others name its repository."""
    known = {model.repository: model.name for model in PUBLISHED_MODELS.values()}
    return known.get(name, name)
