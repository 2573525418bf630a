"""Skill `embed`: what vector stands for each text?"""

import msgspec

from .skill import Context, Skill, check_items

TEXTS_MAX = 256


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Texts to be turned into vectors."""

    texts: tuple[str, ...]
    model: str | None = None


class EmbedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One unit vector for each text, in order."""

    vectors: tuple[tuple[float, ...], ...]
    model: str
    dimensions: int


async def run(request: EmbedRequest, context: Context) -> EmbedResult:
    """Embed every text."""
    check_items(request.texts, items_max=TEXTS_MAX)
    vectors = await context.models.embed(
        request.texts, model=request.model, deadline_s=context.deadline_s
    )
    return EmbedResult(
        vectors=tuple(tuple(round(number, 6) for number in vector) for vector in vectors),
        model=context.models.info(request.model, "embedding").name,
        dimensions=len(vectors[0]),
    )


SKILL = Skill("embed", EmbedRequest, run, ("embedding",))
