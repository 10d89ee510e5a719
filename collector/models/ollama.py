"""Ollama's store of models: files that are named by their hash, and manifests that name the models.

`manifests/HOST/NAMESPACE/MODEL/TAG` is a JSON document whose layer of type `MODEL_LAYER` is the GGUF file
`blobs/sha256-…`. Ollama shows the model as `MODEL:TAG`, with host and namespace where they are not its own.
"""

import json
import os
import re
from collections.abc import Iterable
from typing import Any

MODEL_LAYER = "application/vnd.ollama.image.model"
MAX_MANIFESTS = 10_000
MAX_MANIFEST_BYTES = 262_144

_OWN_HOST, _OWN_NAMESPACE = "registry.ollama.ai", "library"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_DEPTH = 4  # host, namespace, model, tag


def is_ollama_store(subdirectories: Iterable[str]) -> bool:
    """Return whether a directory with these subdirectories is an Ollama store."""
    return {"blobs", "manifests"} <= {os.path.basename(path) for path in subdirectories}  # noqa: PTH119


def read_store(directory: str) -> tuple[dict[str, str], dict[str, OSError]]:
    """Read the manifests of a store.

    Returns:
        the name of each model by the path of its file, of several names the first; and the errors, by path.
    """
    models: dict[str, str] = {}
    errors: dict[str, OSError] = {}
    manifests = os.path.join(directory, "manifests")  # noqa: PTH118 - paths may be of any bytes
    for path in sorted(_files(manifests, errors)):
        try:
            digest = _model_digest(path)
        except OSError as error:
            errors[path] = error
            continue
        if digest:
            blob = os.path.join(directory, "blobs", f"sha256-{digest}")  # noqa: PTH118
            models.setdefault(blob, _name(path[len(manifests) + 1 :].split("/")))
    return models, errors


def _files(manifests: str, errors: dict[str, OSError]) -> list[str]:
    """Return the paths of the manifests; add what cannot be read to `errors`."""
    found: list[str] = []

    def add_error(error: OSError) -> None:
        errors[error.filename] = error

    for parent, directories, files in os.walk(manifests, onerror=add_error):
        if parent.count("/") - manifests.count("/") >= _DEPTH:
            directories.clear()
        found += [os.path.join(parent, name) for name in files]  # noqa: PTH118
        if len(found) > MAX_MANIFESTS:
            break
    return found[:MAX_MANIFESTS]


def _model_digest(path: str) -> str | None:
    """Return the hash of the GGUF file that a manifest names; None if it names none.

    Raises:
        OSError: it cannot be read.
    """
    # O_NONBLOCK: a FIFO must not block the scan.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(MAX_MANIFEST_BYTES) or b""
    try:
        layers: Any = json.loads(content)["layers"]
        for layer in layers:
            if layer["mediaType"] == MODEL_LAYER and (match := _DIGEST.fullmatch(layer["digest"])):
                return match[1]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # another document, or one that is just being written
    return None


def _name(components: list[str]) -> str:
    """Return the name that Ollama shows for a manifest, by the components of its path."""
    *place, tag = (os.fsencode(component).decode(errors="replace") for component in components)
    shown = [part for part in place if part not in (_OWN_HOST, _OWN_NAMESPACE)]
    return f"{'/'.join(shown)}:{tag}" if shown else tag
