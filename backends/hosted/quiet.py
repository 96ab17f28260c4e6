"""LiteLLM, imported when a config names a provider that needs it, with everything off that would act by itself:
retries, fallbacks, caches, callbacks, telemetry, logging, downloads, and what it would read from the environment.

litellm reads hundreds of environment variables (keys, addresses, switches), many of them long after it was imported. So
`clean_environment` leaves it a short list of them: those that tell how the network is reached, and, where a deployment
says `credentials: environment`, those that AWS's and Google's libraries read.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, MutableMapping
from functools import wraps
from typing import Any

from protocol.errors import SettingsError
from protocol.settings import HostedModel

__all__ = ["INSTALL", "clean_environment", "load_litellm", "own_parameters"]

INSTALL = "pip install 'chorus-gateway[hosted]'"

_SWITCHES = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its tables come with it; nothing is fetched
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_MODE": "PRODUCTION",  # it reads no .env file
    "LITELLM_LOG": "CRITICAL",
    "HF_HUB_OFFLINE": "1",  # it counts tokens for itself; no tokenizer is fetched for that
    "AIOHTTP_CONNECTOR_LIMIT": "1000000",  # `max_connections` and `max_concurrent` are the limits, and no silent one
    "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "1000000",
    "AWS_EC2_METADATA_DISABLED": "true",  # unless a deployment wants the machine's role
}
_KEPT = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD",
    "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONWARNINGS", "PYTHONHASHSEED", "VIRTUAL_ENV",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE",
)  # fmt: skip
_CREDENTIALS = ("AWS_", "GOOGLE_", "CLOUDSDK_")
"""Prefixes of what a deployment with `credentials: environment` may find there."""


def clean_environment(environ: MutableMapping[str, str], deployments: Iterable[HostedModel]) -> None:
    """Take out of `environ` whatever is not on the list. To be done before litellm is imported."""
    ambient = any(deployment.credentials == "environment" for deployment in deployments)
    prefixes = _CREDENTIALS if ambient else ()
    for name in list(environ):
        if name not in _KEPT and not name.startswith(prefixes):
            del environ[name]
    switches = {name: value for name, value in _SWITCHES.items() if not (ambient and name.startswith("AWS_"))}
    environ.update(switches)


def load_litellm() -> Any:
    """The module, quiet. Raises `SettingsError` with the remedy when it is not installed."""
    for name, value in _SWITCHES.items():
        if name.startswith(("LITELLM_", "AIOHTTP_")):
            os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of its own deprecations, at import
            import litellm
    except ImportError as error:
        raise SettingsError(
            f"A model with a `hosted` section needs litellm, which is not installed ({error}): {INSTALL}"
        ) from error
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    litellm.disable_streaming_logging = True
    litellm.num_retries = None
    litellm.cache = None
    litellm.drop_params = litellm.modify_params = False
    litellm.callbacks, litellm.success_callback, litellm.failure_callback = [], [], []
    litellm.disable_hf_tokenizer_download = True
    _ask_once()
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return litellm


def _ask_once() -> None:
    """Keep litellm's HTTP clients from following redirects, with the key and the prompt, to where a provider says, and
    from sending a request a second time when a connection is lost: the first may have done the work."""
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler
    from litellm.llms.openai.common_utils import BaseOpenAILLM

    def staying(make: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(make)
        def made(*args: Any, **kwargs: Any) -> Any:
            client = make(*args, **kwargs)
            if client is not None:
                client.follow_redirects = False
            return client

        made.stays = True  # type: ignore[attr-defined]
        return made

    async def give_up(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise sys.exception() or RuntimeError("called without a failure to handle")

    if not hasattr(AsyncHTTPHandler.create_client, "stays"):
        AsyncHTTPHandler.create_client = staying(AsyncHTTPHandler.create_client)
        AsyncHTTPHandler.single_connection_post_request = give_up
        BaseOpenAILLM._get_async_http_client = staticmethod(staying(BaseOpenAILLM._get_async_http_client))  # noqa: SLF001


def own_parameters(litellm: Any) -> frozenset[str]:
    """The names litellm takes for itself or for its connection: no field of a request may be called so."""
    from litellm.types.utils import all_litellm_params

    named = set(inspect.signature(litellm.completion).parameters) | set(
        inspect.signature(litellm.embedding).parameters
    )
    return frozenset({*named, *all_litellm_params, "extra_body", "base_url", "api_base", "headers", "client"})
