"""A program: `glm3` over a model that plays the replies of a JSON list, the first argument."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from glm3sdk.cli import main
from glm3sdk.cli.loading import Loaders

if TYPE_CHECKING:
    from glm3sdk.services.chat import Glm3Service


def load_service(model: str, **options: Any) -> Glm3Service:
    from scripted import scripted_loaders

    from glm3sdk.domain.chat import Message

    replies = [
        Message.assistant(each["content"], metadata=each["metadata"])
        if isinstance(each, dict)
        else each
        for each in json.loads(sys.argv[1])
    ]
    return scripted_loaders(*replies).service(model, **options)


if __name__ == "__main__":
    # numpy starts threads, so here too it is imported when a command needs it.
    main(sys.argv[2:], loaders=Loaders(service=load_service))
