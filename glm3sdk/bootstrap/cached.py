"""What the model cache holds, and what goes from it."""

from __future__ import annotations

from collections.abc import Iterable

from glm3sdk.adapters.storage.cache_layout import CachedModel
from glm3sdk.adapters.storage.cache_pruning import Pruned
from glm3sdk.adapters.storage.model_cache import ModelCache, models_folder
from glm3sdk.errors import unknown_name


def cached_models(keys: Iterable[str] | None = None) -> tuple[CachedModel, ...]:
    """The models in the cache, sorted by key; or those of some keys.

    Raises:
        UnknownNameError: a key is not in the cache.
        UserError: the cache is switched off.
    """
    known = {model.key: model for model in ModelCache(models_folder()).list()}
    if keys is None:
        return tuple(known.values())
    for key in keys:
        if key not in known:
            raise unknown_name("model in the cache", key, known)
    return tuple(known[key] for key in sorted(set(keys)))


def prune_models(keys: Iterable[str]) -> Pruned:
    """Forget models, then remove every file that no model needs, unfinished ones too.

    Raises:
        UnknownNameError: a key is not in the cache; nothing was removed.
        UserError: the cache is switched off.
        CheckpointWriteError: something cannot be removed.
    """
    return ModelCache(models_folder()).prune(keys)
