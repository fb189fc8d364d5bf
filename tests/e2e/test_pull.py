"""A model that was fetched, in the real runtime."""

from __future__ import annotations

from servers.model_sources import on_obs
from servers.obs_stores import without_settings
from servers.s3_double import S3Double

from glm3sdk import Glm3Service, load_service
from glm3sdk.bootstrap.cached import prune_models
from glm3sdk.bootstrap.models import model_directory
from glm3sdk.domain.chat import Message
from glm3sdk.domain.generation import GenerationConfig

GREEDY = GenerationConfig(do_sample=False, max_new_tokens=8)


def test_a_model_from_an_object_store_answers_as_the_same_model_here(tiny: Glm3Service):
    files = {file.name: file.read_bytes() for file in model_directory("tiny").iterdir()}
    asked = [Message.user("你好")]
    with without_settings() as settings, S3Double() as double:
        there = on_obs(double, files, settings)
        try:
            with load_service(there.uri) as service:
                answer = service.chat(asked, GREEDY).content
        finally:
            prune_models([there.uri])
    assert answer
    assert answer == tiny.chat(asked, GREEDY).content
