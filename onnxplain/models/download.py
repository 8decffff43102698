"""Files from the net: resumed where they were broken off, verified, kept in the platform's cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from onnxplain.engine.executors.setup import cache_folder
from onnxplain.errors import DownloadError, OutputError

if TYPE_CHECKING:
    from requests import Response, Session

OFFLINE = ("ONNXPLAIN_OFFLINE", "HF_HUB_OFFLINE")  # either of them forbids the net
MOST = 8 * 2**30  # bytes of a file
CHUNK = 2**16  # what is lost at most where a transfer breaks off
PATIENCE = (10.0, 60.0)  # seconds: to connect, and between two pieces
ATTEMPTS = 2  # that get nothing new
BACKOFF = 0.5  # seconds, doubled each time, before a server is asked again
LOOPBACK = ("localhost", "127.0.0.1", "::1")

Observe = Callable[[int, int | None], None]  # bytes so far, and in all
WATCHER: ContextVar[Observe] = ContextVar("WATCHER", default=lambda done, total: None)  # noqa: ARG005 (nobody looks)


@contextmanager
def watching(observe: Observe) -> Iterator[None]:
    """Tell of all downloads meanwhile, wherever they are made."""
    token = WATCHER.set(observe)
    try:
        yield
    finally:
        WATCHER.reset(token)


def fetch(
    url: str,
    *,
    sha256: str | None = None,
    name: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    observe: Observe | None = None,
) -> Path:
    """The file at a URL, from the cache if it is there.

    Args:
        url: https, or http of this machine.
        sha256: its SHA-256, or the first 8 hexadecimal digits or more, as some put them into names of files.
        name: of the file in the cache; None: the last part of the URL.
        folder: the cache; None: the platform's own.
        observe: told how far it is; None: whoever is `watching`.

    What was got of a download that broke off is kept, and the next one goes on there.

    Raises:
        DownloadError: it cannot be had, or is not the file that it has to be; then nothing is kept of it.
        OutputError: the cache cannot be written.
    """
    from filelock import FileLock

    path = place_of(url, name, folder)
    place = path.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f"{path.name}.lock"):
            if not path.is_file():
                download(url, path.with_name(f"{path.name}.part"), observe or WATCHER.get())
                verify(url, path.with_name(f"{path.name}.part"), sha256)
                os.replace(path.with_name(f"{path.name}.part"), path)
            else:
                verify(url, path, sha256)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise OutputError(f"{place}: cannot be written ({error.strerror or error}); next: make room there") from error
    return path


def cached(url: str, *, name: str | None = None, folder: str | os.PathLike[str] | None = None) -> bool:
    """Whether a file need not be downloaded."""
    return place_of(url, name, folder).is_file()


def place_of(url: str, name: str | None, folder: str | os.PathLike[str] | None) -> Path:
    """Where the file at a URL is kept. Raises `DownloadError` if it has no name."""
    try:
        name = Path(name or unquote(urlsplit(url).path)).name
    except ValueError:  # such as brackets that do not close
        name = ""
    if name in ("", "..") or "\0" in name:
        raise DownloadError(f"{url}: expected an address that ends with the name of a file; next: check it")
    return Path(folder or cache_folder() / "models", hashlib.sha256(url.encode()).hexdigest()[:16]) / name


def offline() -> str | None:
    """The variable that forbids the net, if one does."""
    return next((v for v in OFFLINE if os.environ.get(v, "0").lower() not in ("", "0", "false", "no", "off")), None)


def refuse_offline(what: str) -> None:
    """Raise `DownloadError` if the net is forbidden."""
    if (name := offline()) is not None:
        raise DownloadError(f"{what}: not in the cache, and {name} forbids the net; next: unset it, or get the file")


def verify(url: str, path: Path, sha256: str | None) -> None:
    """Raise `DownloadError`, and remove the file, unless it has the checksum."""
    if sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256.lower()):
        path.unlink()
        raise DownloadError(
            f"{url}: expected a file with the SHA-256 {sha256}, got {found}, which was removed; next: try again, and "
            "if it stays so, do not trust the file"
        )


def download(url: str, part: Path, observe: Observe) -> None:
    """Get a file, going on where an earlier attempt ended."""
    require_safe(url)
    refuse_offline(url)
    import requests

    vain, furthest = 0, size_of(part)
    with session() as net:
        while True:
            failure: requests.RequestException | None = None
            try:
                if transfer(net, url, part, observe):
                    return
            except requests.RequestException as error:
                failure = error
            vain = 0 if size_of(part) > furthest else vain + 1
            furthest = max(furthest, size_of(part))
            if vain >= ATTEMPTS or isinstance(failure, requests.HTTPError):
                why = reason(failure) if failure else "the server does not give the rest"
                raise DownloadError(f"{url}: {why}; next: check the address and the net, and try again") from failure


def session() -> Session:
    """A session that tries again what a server may answer better later."""
    import requests
    from urllib3.util import Retry

    made = requests.Session()
    retry = Retry(total=3, backoff_factor=BACKOFF, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False)
    for scheme in ("https://", "http://"):
        made.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
    return made


def transfer(net: Session, url: str, part: Path, observe: Observe) -> bool:
    """One request for what is missing; whether that was all of it."""
    tag, have = part.with_name(f"{part.name}.tag"), size_of(part)
    headers = {"Accept-Encoding": "identity"}
    if have and tag.is_file():  # a file that has changed meanwhile comes whole
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text()}
    with net.get(url, headers=headers, stream=True, timeout=PATIENCE) as answer:
        for step in (*answer.history, answer):
            require_safe(step.url)
        if have and (answer.status_code == 416 or is_other_part(answer, have)):  # nothing is missing, or it has changed
            part.unlink()
            tag.unlink(missing_ok=True)
            return False
        answer.raise_for_status()
        goes_on = answer.status_code == 206
        have = have if goes_on else 0
        total = length(answer, have)
        remember(answer, tag)
        with part.open("ab" if goes_on else "wb") as file:
            for piece in answer.iter_content(CHUNK):
                file.write(piece)
                have += len(piece)
                if have > MOST or (total is not None and have > total):
                    part.unlink()
                    raise DownloadError(
                        f"{url}: more than the {total or MOST} bytes that were to come; next: report it"
                    )
                observe(have, total)
    if total is not None and have < total:
        return False
    tag.unlink(missing_ok=True)
    return True


def is_other_part(answer: Response, have: int) -> bool:
    """Whether the part of a file that comes is another one than that which is missing."""
    return answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def length(answer: Response, have: int) -> int | None:
    """The bytes that the whole file has, if the server says. Raises `DownloadError` for too many."""
    said: Any = answer.headers.get("Content-Length")
    total = have + int(said) if said is not None and said.isdecimal() and len(said) < 20 else None
    if total is not None and total > MOST:
        raise DownloadError(f"{answer.url}: {total} bytes, more than the limit of {MOST}; next: get it by hand")
    return total


def remember(answer: Response, tag: Path) -> None:
    """Keep what tells this file from a later one under the same address."""
    strong = answer.headers.get("ETag", "")
    mark = strong if strong and not strong.startswith("W/") else answer.headers.get("Last-Modified", "")
    if mark:
        tag.write_text(mark)
    else:
        tag.unlink(missing_ok=True)


def require_safe(url: str) -> None:
    """Raise `DownloadError` for an address that anybody on the way could answer."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise DownloadError(f"{url}: expected https; next: give such an address")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def reason(error: Exception) -> str:
    """A network error in a line."""
    answer = getattr(error, "response", None)
    if answer is not None:
        return f"the server answered {answer.status_code} {answer.reason}"
    return f"cannot be reached ({type(error).__name__})"
