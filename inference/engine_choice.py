"""Which engine runs this model file here? Judged by its header, the platform, and a preference. Pure.

What a file and this machine allow decides first: for each engine a file can be run, or there is a reason
why not. Only among those that can does a preference count; without one it is llama.cpp, which keeps to
any grammar and works on several requests at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .engine import AUTO, CTRANSFORMERS, ENGINES, LLAMA_CPP
from .errors import BadModel
from .gguf_header import Header

# Tensor types as of September 2023: F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K.
TENSORS = frozenset({0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14})
# Vocabularies of byte pairs that conversion was tested with.
PRES = frozenset({"smollm"})
# Its wheel carries libraries for these alone, whatever its name says.
MACHINES = frozenset({"x86_64", "amd64"})


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine of one model file."""

    engine: str
    why_not: Mapping[str, str]
    """Of each engine that cannot run it, the reason."""

    def overruled(self, preferred: str) -> str:
        """Return why the preferred engine does not run it; nothing where it does, or none is preferred."""
        why = self.why_not.get(preferred)
        return f"{preferred} cannot run it: {why}" if why is not None else ""


def choose(header: Header, missing: Mapping[str, str], preferred: str = AUTO) -> Choice:
    """Return the engine for a file with this header.

    Args:
        header: that was found sound.
        missing: engines that cannot run here whatever the file, and why (see `missing_here`).
        preferred: an engine or `auto`.

    Raises:
        BadModel: no engine here can run it; says each one's reason.
    """
    judged = {
        LLAMA_CPP: missing.get(LLAMA_CPP) or _why_not_llama_cpp(header),
        CTRANSFORMERS: missing.get(CTRANSFORMERS) or _why_not_ctransformers(header),
    }
    why_not = {engine: why for engine, why in judged.items() if why is not None}
    able = [engine for engine in ENGINES if engine not in why_not]
    if not able:
        raise BadModel(
            "no engine here can run it: "
            + "; ".join(f"{one}: {why}" for one, why in why_not.items())
        )
    return Choice(preferred if preferred in able else able[0], why_not)


def missing_here(machine: str, *, has_ctransformers: bool) -> dict[str, str]:
    """Return the engines that cannot run on this platform, and why.

    Args:
        machine: as the system names it.
        has_ctransformers: whether its package is installed.
    """
    if machine.lower() not in MACHINES:
        return {CTRANSFORMERS: f"it has no library for {machine}; here llama.cpp runs everything"}
    if not has_ctransformers:
        return {CTRANSFORMERS: "it is not installed; here llama.cpp runs everything"}
    return {}


def rank(engine: str, preferred: str) -> int:
    """Return a number by which models on the preferred engine come first; else those on llama.cpp."""
    return int(engine != (LLAMA_CPP if preferred == AUTO else preferred))


def needs_conversion(header: Header, missing: Mapping[str, str]) -> bool:
    """Tell whether ctransformers could run it if it were converted first, and not as it is."""
    return (
        CTRANSFORMERS not in missing
        and _why_not_llama(header) is None
        and header.tokenizer == "gpt2"
        and header.pre in PRES
    )


def _why_not_llama_cpp(header: Header) -> str | None:
    if header.is_converted:
        return "its vocabulary was rewritten for ctransformers; add the file that it was made from"
    return None


def _why_not_ctransformers(header: Header) -> str | None:
    if (why := _why_not_llama(header)) is not None:
        return why
    if header.tokenizer == "gpt2" and header.pre in PRES:
        return "it must be converted first: covey models add FILE --engine ctransformers"
    if header.tokenizer != "llama":
        kind = f"{header.tokenizer!r}" + (f" ({header.pre})" if header.pre else "")
        return f"it cannot read vocabularies of kind {kind}"
    if not header.has_output:
        return "it needs an output matrix of its own, and the file has none"
    return None


def _why_not_llama(header: Header) -> str | None:
    if header.architecture != "llama":
        return f"it runs architecture llama, not {header.architecture}"
    if strange := header.tensor_types - TENSORS:
        return f"it does not know tensors of type {min(strange)}"
    return None
