"""What can a peer do out of the box? The built-in skills, by name."""

from . import chat, classify, embed, extract, summarize
from .skill import Context, Skill, decode_request, with_lines

SKILLS: dict[str, Skill] = {
    one.SKILL.name: one.SKILL for one in (chat, classify, embed, extract, summarize)
}

__all__ = ["SKILLS", "Context", "Skill", "decode_request", "with_lines"]
