"""Open the model of config.tags at an endpoint."""

import threading

from revelio_jax.chat_endpoint import FIRST_WAIT, ChatEndpoint, EndpointOptions
from revelio_jax.config import TagsConfig
from revelio_jax.interpret.tags.answers import VisionLanguageModel


def open_endpoint(options: TagsConfig, stop: threading.Event, first_wait: float = FIRST_WAIT) -> VisionLanguageModel:
    """Return the model config.tags.model at its endpoint; send nothing yet. Raise InputError for an invalid key."""
    name = options.model or ""
    chat = ChatEndpoint(
        EndpointOptions(
            section="config.tags",
            endpoint=options.endpoint or "",
            model=name,
            key=options.key,
            max_tokens=options.max_tokens,
            timeout=options.timeout,
            advice="the answers so far are saved, rerun the command to continue",
        ),
        stop,
        first_wait,
    )
    return VisionLanguageModel(
        name, f"endpoint {name}", lambda question: chat.ask(question.text, question.images), options.parallel
    )
