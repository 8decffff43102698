"""Engines that took long to build, kept in a folder. One is never taken for another.

    FOLDER/engines/KEY.engine   an engine, as the runtime serialised it
    FOLDER/engines/KEY.timing   what the runtime measured while it built engines on this device, to build others sooner
    FOLDER/engines/KEY.json     beside each: everything that its key is made of, and the SHA-256 of its bytes
    FOLDER/engines/KEY.lock     held by the process that is building it

`KEY` is a digest of all that an engine depends on. The JSON is written last and both are written atomically, so an
engine without a JSON that fits it is one that somebody did not finish, or that was damaged: it is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxplain.engine.atomic import writable_folder, write_atomically
from onnxplain.errors import BackendFailed, OutputError, importing

LOG = logging.getLogger(__name__)
ENGINES = "engines"
WHAT, ENGINE, TIMING = "what", "engine", "timing"  # every set of facts says which of the two it is of
ABOUT, LOCK, HALF = ".json", ".lock", ".tmp"

Facts: TypeAlias = Mapping[str, Any]  # plain JSON values


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One engine, or what was timed: `size` in bytes, and `facts`, which are empty if its JSON cannot be read."""

    key: str
    path: Path
    size: int
    facts: Facts


class EngineCache:
    """The engines in a folder. `extra` is what installs the library of the locks."""

    def __init__(self, folder: str | os.PathLike[str], extra: str) -> None:
        self.folder = Path(folder) / ENGINES
        self.extra = extra

    def get(self, facts: Facts) -> bytes | None:
        """The engine of which these facts are true, if it is here and whole."""
        engine, about = self._paths(facts)
        with contextlib.suppress(OSError, ValueError):
            data, said = engine.read_bytes(), json.loads(about.read_bytes())
            if said == described(facts, data):
                return data
        return None

    def get_or_build(self, facts: Facts, build: Callable[[], bytes]) -> bytes:
        """The engine of which these facts are true: from the folder, or built and put there.

        Whoever wants an engine that another process is building waits for it.

        Raises:
            OutputError: it has to be built, and the folder cannot be written to. Nothing has been built yet.
        """
        found = self.get(facts)
        if found is not None:
            return found
        self._must_be_writable()
        with self._lock(facts):
            found = self.get(facts)
            if found is None:
                self._note_what_is_left(facts)
                found = build()
                self.put(facts, found)
        return found

    def put(self, facts: Facts, data: bytes) -> None:
        """Keep an engine. What cannot be kept after all (the disk is full) is noted only: it was built."""
        engine, about = self._paths(facts)
        try:
            write_atomically(engine, data, overwrite=True)
            write_atomically(about, json.dumps(described(facts, data), indent=1).encode(), overwrite=True)
        except OutputError as error:
            LOG.warning("the engine was built, but could not be kept: %s", error)

    def _paths(self, facts: Facts) -> tuple[Path, Path]:
        key = key_of(facts)
        return self.folder / f"{key}.{facts[WHAT]}", self.folder / f"{key}{ABOUT}"

    def _must_be_writable(self) -> None:
        try:
            writable_folder(self.folder)
        except OutputError as error:
            raise OutputError(
                f"{self.folder}: no engine can be kept here ({cause(error)}), so none is built; "
                "next: make the folder writable, choose another one (--cache FOLDER), or keep nothing (--cache none)"
            ) from error

    def _note_what_is_left(self, facts: Facts) -> None:
        for path in self._paths(facts):
            if path.exists():
                LOG.warning("%s: damaged or not finished; the engine is built anew", path)
                return

    @contextlib.contextmanager
    def _lock(self, facts: Facts) -> Iterator[None]:
        """Held by one process at a time."""
        with importing("filelock", self.extra):
            from filelock import FileLock, Timeout
        lock = FileLock(self.folder / f"{key_of(facts)}{LOCK}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            LOG.warning("another process is building this engine; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def entries(folder: str | os.PathLike[str]) -> list[Entry]:
    """Everything that is kept in a cache folder, whole or not, by key."""
    found = []
    for path in sorted(Path(folder, ENGINES).glob("*")):
        if path.suffix not in (f".{ENGINE}", f".{TIMING}"):
            continue
        facts: Facts = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            facts = dict(json.loads(path.with_suffix(ABOUT).read_bytes())["facts"])
        found.append(Entry(key=path.stem, path=path, size=path.stat().st_size, facts=facts))
    return found


def clear(folder: str | os.PathLike[str]) -> int:
    """Remove every engine from a cache folder, and what was left of others; the number of engines.

    Other files of the folder stay. Who has loaded an engine keeps it; who is building one will put it there.

    Raises:
        OutputError: one cannot be removed.
    """
    count = 0
    for path in sorted(Path(folder, ENGINES).glob("*")):
        if path.suffix in (f".{ENGINE}", f".{TIMING}", ABOUT, LOCK, HALF):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{path}: cannot be removed ({error.strerror}); next: remove it by hand") from error
            count += path.suffix == f".{ENGINE}"
    return count


def described(facts: Facts, data: bytes) -> dict[str, Any]:
    """What the JSON beside an engine says, as JSON gives it back."""
    about = {"facts": facts, "key": key_of(facts), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return dict(json.loads(json.dumps(about)))


def key_of(facts: Facts) -> str:
    """SHA-256 of the facts, whatever their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def facts_of(model: bytes, graph: onnx.GraphProto, folder: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What an engine depends on by its model: SHA-256 of its bytes, and of each file of weights.

    Two models of one architecture with other weights are two models.

    Raises:
        BackendFailed: a file of weights is missing.
    """
    places = sorted({ExternalDataInfo(t).location for t in tensors(graph) if uses_external_data(t)})
    return {
        "model": hashlib.sha256(model).hexdigest(),
        "weights": {place: digest_of_file(Path(folder or ".", place)) for place in places},
    }


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of values in a graph and the graphs inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from tensors(inner)


def digest_of_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BackendFailed(f"{path}: the model's weights cannot be read ({error.strerror})") from error


def cause(error: BaseException) -> str:
    """Why, in the words of the system."""
    under = error.__cause__
    return str(under.strerror or under) if isinstance(under, OSError) else str(error)
