"""The Hugging Face Hub; without a network, its local cache alone."""

import functools
import os
import socket
from urllib.parse import urlsplit

import huggingface_hub


@functools.cache
def go_offline_without_network() -> None:
    """Use the cache alone if the Hub's name does not resolve, instead of retrying every file for half a minute."""
    import datasets.config  # takes a second

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # the proxy resolves the name
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the processes that we start
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
