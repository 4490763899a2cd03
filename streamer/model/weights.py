"""A reference to weights → a verified local file → tensors. Nothing is unpickled but tensors.

    models/head.pth                            a path
    hf://ORG/REPO/FILE[@REVISION][#sha256=HEX] the Hugging Face hub, kept in its own cache (HF_HOME)
    https://HOST/FILE#sha256=HEX               any server; http:// only from this machine

What came over https is kept in ``$STREAMER_CACHE``, else ``$XDG_CACHE_HOME/streamer``, else
``~/.cache/streamer``.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import secrets
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import urllib3

from streamer.errors import ConfigError, DependencyError, TemporaryError
from streamer.files import file_sha256
from streamer.terminal import say

if TYPE_CHECKING:
    import torch

CONNECT_S = 5.0
"""Per attempt and address: start-up failures end within 30 s."""
STALL_S = 20.0
"""A download ends when nothing comes for this long…"""
DEADLINE_S = 3600.0
"""…and after this long in any case."""
QUIET_S = 2.0
"""Downloads shorter than this say nothing on stderr; longer ones a line every 5 s."""

_CHUNK = 1 << 20
_LOCAL = ("localhost", "127.0.0.1", "::1")
_HF = re.compile(r"hf://([^/\s]+/[^/\s]+)/([^@#\s]+)(?:@([^#\s]+))?(?:#(.*))?")
_OFFLINE = "Where there is no network, fetch the file elsewhere and give its path here."


def resolve(reference: str, where: str) -> Path:
    """A path, ``hf://…`` or ``https://…#sha256=…`` → a local file, checked against its sha256.
    Blocks while it downloads.

    ``where`` is the place in the config, for messages. Raises ConfigError (wrong reference, no such
    file, wrong sha256), TemporaryError (the server cannot be reached, stalls or breaks off) or
    DependencyError (the cache cannot be written).
    """
    scheme = urlsplit(reference).scheme if "://" in reference else ""
    if scheme == "hf":
        return _from_hub(reference, where)
    if scheme in ("http", "https"):
        return _from_web(reference, where)
    if scheme:
        raise ConfigError(
            f"{where}: {reference}: unknown scheme {scheme!r}; use a path, hf:// or https://"
        )
    path = Path(reference).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"{where}: {reference}: {'is a folder' if path.is_dir() else 'no such file'} (seen from {Path.cwd()}); give a weights file"
        )
    return path


def cache_dir() -> Path:
    """Where downloads are kept."""
    if own := os.environ.get("STREAMER_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamer"


def read_state(path: Path, where: str) -> dict[str, torch.Tensor]:
    """A ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file → name → CPU tensor. Raises
    ConfigError; runs no code of the file.

    A checkpoint of a training run is opened at ``state_dict_ema``, ``state_dict`` or ``model``; the
    prefix ``module.`` is dropped.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigError(f"{where}: {path}: not a safetensors file: {error}") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{where}: {path}: refused, because loading it could run code from the file: {first} "
            "Save its state_dict() alone, best as .safetensors, and give that."
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{where}: {path}: not a PyTorch weights file: {first}") from None
    return _unwrapped(loaded, path, where)


def digest(tensors: Mapping[str, torch.Tensor], *facts: str) -> str:
    """``sha256:…`` over ``facts``, names, dtypes, shapes and bytes, in the order of the names.
    About 0.7 s/GB on one core."""
    import torch

    def one(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        head = f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode()
        return hashlib.sha256(head + hashlib.sha256(raw.data).digest()).digest()

    whole = hashlib.sha256("\0".join(facts).encode())
    with ThreadPoolExecutor(4, thread_name_prefix="digest") as pool:  # sha256 releases the GIL
        for part in pool.map(one, sorted(tensors.items())):
            whole.update(part)
    return f"sha256:{whole.hexdigest()}"


def _unwrapped(loaded: Any, path: Path, where: str) -> dict[str, torch.Tensor]:
    import torch

    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if (
        not isinstance(loaded, Mapping)
        or not loaded
        or not all(isinstance(v, torch.Tensor) for v in loaded.values())
    ):
        raise ConfigError(
            f"{where}: {path}: holds no state_dict (a mapping of names to tensors); save model.state_dict()"
        )
    state = {str(k): v for k, v in loaded.items()}
    if all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state


def _from_hub(reference: str, where: str) -> Path:
    match = _HF.fullmatch(reference)
    if match is None:
        raise ConfigError(
            f"{where}: {reference}: write it as hf://ORG/REPO/FILE, hf://ORG/REPO/FILE@REVISION, with #sha256=HEX if you like"
        )
    expected = _sha256_of(reference, where) if match[4] is not None else ""
    path = hub_file(match[1], match[2], match[3], where)
    if expected and (found := file_sha256(path)) != expected:
        raise ConfigError(
            f"{where}: {reference}: the file's sha256 is {found}; somebody changed it, or the reference is wrong"
        )
    return path


def hub_file(repo: str, filename: str, revision: str | None, where: str) -> Path:
    """A file of a Hugging Face repository. One that is in the cache is taken without asking the
    network; else it is downloaded.

    Raises ConfigError (no such file, or no access) and TemporaryError (no network).
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    name = f"hf://{repo}/{filename}"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        cached = try_to_load_from_cache(repo, filename, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        _require_answer(
            f"{endpoint}/{repo}/resolve/{revision or 'main'}/{filename}", f"{where}: {name}"
        )
        return Path(hf_hub_download(repo, filename, revision=revision, endpoint=endpoint))
    except LocalEntryNotFoundError as error:
        raise TemporaryError(
            f"{where}: {name}: cannot be fetched from {endpoint}: {_first_line(error)} {_OFFLINE}"
        ) from None
    except (EntryNotFoundError, HFValidationError) as error:
        raise ConfigError(f"{where}: {name}: no such file: {_first_line(error)}") from None
    except HfHubHTTPError as error:
        raise ConfigError(
            f"{where}: {name}: the hub refuses it: {_first_line(error)} Check the name, or log in (HF_TOKEN)."
        ) from None
    except OSError as error:
        raise TemporaryError(
            f"{where}: {name}: cannot be fetched from {endpoint}: {_first_line(error)} {_OFFLINE}"
        ) from None


def _require_answer(url: str, what: str) -> None:
    """One short question first: the hub's own client retries for half a minute where nobody
    answers."""
    try:
        with _pool(url) as pool:
            status = pool.request(
                "HEAD", url, retries=False, redirect=False, timeout=CONNECT_S
            ).status
    except urllib3.exceptions.HTTPError as error:
        raise TemporaryError(
            f"{what}: {url} cannot be reached: {_first_line(error)}. {_OFFLINE}"
        ) from None
    if _is_temporary(status):
        raise TemporaryError(f"{what}: {url}: the server answers {status}. {_OFFLINE}")


def _from_web(reference: str, where: str) -> Path:
    parts = urlsplit(reference)
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise ConfigError(
            f"{where}: {reference}: http:// is for this machine only (localhost); use https://"
        )
    expected = _sha256_of(reference, where)
    url = reference.partition("#")[0]
    name = re.sub(r"[^\w.+-]", "_", unquote(parts.path).rsplit("/", 1)[-1]) or "weights"
    target = cache_dir() / "weights" / expected / name
    try:
        if target.is_file() and file_sha256(target) == expected:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{name}.{os.getpid()}.{secrets.token_hex(4)}.part")
        try:
            found = _download(url, part, where)
            if found != expected:
                raise ConfigError(
                    f"{where}: {url}: its sha256 is {found}, not {expected}: the wrong file, or the wrong reference. Nothing was kept."
                )
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DependencyError(
            f"{where}: the cache {target.parent} cannot be used: {error.strerror}; set STREAMER_CACHE to a writable folder"
        ) from None
    return target


def _sha256_of(reference: str, where: str) -> str:
    key, _, value = reference.partition("#")[2].partition("=")
    if key != "sha256" or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ConfigError(
            f"{where}: {reference}: must end with #sha256= and 64 hex digits (`sha256sum FILE` prints them), so that it can be verified"
        )
    return value.lower()


def _download(url: str, part: Path, where: str) -> str:
    """Streams ``url`` to a durable file; returns its sha256."""
    whole = hashlib.sha256()
    deadline = time.monotonic() + DEADLINE_S
    with _response(url, where) as response, part.open("xb") as file:
        progress = _Progress(url, int(response.headers.get("content-length") or 0))
        while chunk := response.read1(
            _CHUNK
        ):  # what has come, so that a trickle does not outlast the deadline
            whole.update(chunk)
            file.write(chunk)
            progress.add(len(chunk))
            if time.monotonic() > deadline:
                raise TemporaryError(
                    f"{where}: {url}: took longer than {DEADLINE_S:.0f} s. {_OFFLINE}"
                )
        file.flush()
        os.fsync(file.fileno())
    return whole.hexdigest()


@contextmanager
def _response(url: str, where: str) -> Iterator[urllib3.BaseHTTPResponse]:
    retries = urllib3.Retry(connect=1, read=0, redirect=5, status=0, other=0, backoff_factor=0.5)
    try:
        with _pool(url) as pool:
            response = pool.request(
                "GET",
                url,
                preload_content=False,
                retries=retries,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=STALL_S),
            )
            try:
                _require_success(response.status, url, where)
                yield response
            finally:
                response.close()
    except urllib3.exceptions.HTTPError as error:
        raise TemporaryError(
            f"{where}: {url}: cannot be fetched: {_first_line(error)}. {_OFFLINE}"
        ) from None


def _require_success(status: int, url: str, where: str) -> None:
    if status == 200:
        return
    if _is_temporary(status):
        raise TemporaryError(f"{where}: {url}: the server answers {status}. {_OFFLINE}")
    raise ConfigError(
        f"{where}: {url}: the server answers {status}; correct the address, or give a path"
    )


def _is_temporary(status: int) -> bool:
    return status == 429 or status >= 500


def _pool(url: str) -> urllib3.PoolManager:
    """Through the proxy that the environment names for this address, if any."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy)
    return urllib3.PoolManager()


class _Progress:
    """A line on stderr every 5 s for what takes longer than `QUIET_S`."""

    def __init__(self, url: str, total: int) -> None:
        self._name = url.rsplit("/", 1)[-1]
        self._total = total
        self._done = 0
        self._next = time.monotonic() + QUIET_S

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 5.0
            share = (
                f" of {self._total / 1e6:.0f} MB ({self._done / self._total:.0%})"
                if self._total
                else " MB"
            )
            say(f"fetching {self._name}: {self._done / 1e6:.0f}{share}", err=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
