"""The network calls that libraries make on their own, turned off before those libraries are imported.

Not a firewall: a hub name given as ``--model``, or a tracking server's address, still goes out, because it was asked
for. Each variable below was found by watching the sockets of the library named beside it.
"""

import os

_OFF = {
    # huggingface_hub, transformers: usage details sent along with requests, and a lookup of known coding agents.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # transformers: asks a bot to convert the weights of a hub repository and to open a pull request there.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    # datasets: counts a download at s3.amazonaws.com, even where load_dataset("json") reads a local file.
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    # mlflow: fetches config.mlflow-telemetry.io at the first run and sends usage records there.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def telemetry_off() -> None:
    """Set the variables that turn telemetry off; one that the user has set keeps its value.

    Call it before the first import of ``huggingface_hub``, ``transformers``, ``datasets`` or ``mlflow``: they read
    their variables at import time.
    """
    for name, value in _OFF.items():
        os.environ.setdefault(name, value)
