"""Skill `chat`: what does the text model say to this?"""

from typing import Literal

import msgspec

from covey.inference.engine import ChatMessage, GenerateRequest
from covey.inference.errors import BadRequest

from .skill import Context, Skill

MAX_TOKENS_MAX = 512
# The next number means to llama.cpp that it draws a seed itself.
SEED_MAX = 2**32 - 2


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt, or a conversation."""

    prompt: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    model: str | None = None
    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0


class ChatResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. A small model's words: check before you rely on them."""

    text: str
    model: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


async def run(request: ChatRequest, context: Context) -> ChatResult:
    """Ask the model."""
    if (request.prompt is None) == (not request.messages):
        raise BadRequest("give either 'prompt' or 'messages'")
    if not 1 <= request.max_tokens <= MAX_TOKENS_MAX:
        raise BadRequest(f"'max_tokens' is 1 to {MAX_TOKENS_MAX}, not {request.max_tokens}")
    if not 0.0 <= request.temperature <= 2.0:
        raise BadRequest(f"'temperature' is 0 to 2, not {request.temperature:g}")
    if not 0 <= request.seed <= SEED_MAX:
        raise BadRequest(f"'seed' is 0 to {SEED_MAX}, not {request.seed}")
    messages = request.messages or (ChatMessage("user", request.prompt or ""),)
    if not any(one.content.strip() for one in messages):
        raise BadRequest("nothing is asked: the text is blank")
    completion = await context.models.generate(
        GenerateRequest(
            messages=messages,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
        ),
        model=request.model,
        deadline_s=context.deadline_s,
    )
    return ChatResult(
        text=completion.text,
        model=completion.model,
        finish=completion.finish,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
    )


SKILL = Skill("chat", ChatRequest, run, ("text",))
