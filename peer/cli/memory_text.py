"""How is the shared memory worded for a person? Views to text. Pure: told the time and the width."""

import textwrap
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from covey.peer.memory.views import (
    EntryView,
    ExchangeView,
    ForgetView,
    MemoryStats,
    NamespaceView,
    PolicyView,
    RecallHit,
    SourceView,
    ValueView,
    VerifyView,
)

from .shell import duration, size

ID_CHARACTERS = 12
"""Of an id that is shown; each command takes as many, or more, or fewer."""
WIDTH_MIN = 40
_UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))
_DAYS_SHOWN = 90
LISTED = ("ID", "AGE", "AUTHOR", "NAMESPACE", "STATE", "WHAT")
WRITTEN = ("ID", "WRITTEN", "AUTHOR", "NAMESPACE", "STATE", "WHAT")
HELD = ("NAMESPACE", "ZONE", "SHOWN", "HELD", "AUTHORS", "NEWEST", "POLICY")
COMPARED = ("PEER", "STATE", "DIFFERED", "SENT", "GOT", "BYTES OUT", "BYTES IN", "ROUNDS", "TOOK")


def many(count: int, one: str, more: str = "") -> str:
    """Return a number of things: `1 line`, `2 lines`, `3 entries`."""
    return f"{count} {one}" if count == 1 else f"{count} {more or one + 's'}"


# Times


def ago(at_ms: int, now_ms: int) -> str:
    """Return an age: `just now`, `5 minutes ago`, `7 days ago`, `3 months ago`."""
    seconds = (now_ms - at_ms) // 1000
    if seconds < 5:
        return "just now"
    return f"{_span(seconds)} ago"


def _span(seconds: int) -> str:
    days = seconds // 86_400
    if days >= 730:
        return f"{days // 365} years"
    if days > _DAYS_SHOWN:
        return f"{days // 30} months"
    unit, length_s = next((one for one in _UNITS if seconds >= one[1]), _UNITS[-1])
    return many(seconds // length_s, unit)


def when(at_ms: int) -> str:
    """Return a time as this device's clock on the wall shows it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_ms / 1000))


def _ends(expires_ms: int, now_ms: int) -> str:
    if expires_ms <= now_ms:
        return f"until {when(expires_ms)}, which is past"
    return f"until {when(expires_ms)}, for {_span((expires_ms - now_ms) // 1000)}"


# Entries


def short(name: str) -> str:
    """Return the beginning of an id that people see and type."""
    return name[:ID_CHARACTERS]


def place(view: EntryView | ValueView) -> str:
    """Return where something stands; the zone of all members goes without saying."""
    return view.namespace if view.zone == "mesh" else f"{view.namespace} (zone {view.zone})"


def what(entry: EntryView) -> str:
    """Return what an entry says, in one line; how it is put tells its type."""
    if entry.value is None and entry.type not in ("removal", "forgetting"):
        return f"{entry.key}: {entry.type}" if entry.key else entry.type
    text = plain(entry.value)
    match entry.type:
        case "register" | "shared":
            said = f"{entry.key} = {text}"
        case "element":
            said = f"{entry.key}: adds {text}"
        case "counter":
            said = f"{entry.key}: {text} in all"
        case "maximum":
            said = f"{entry.key}: at least {text}"
        case "minimum":
            said = f"{entry.key}: at most {text}"
        case "line":
            said = f"{entry.key}: {text}"
        case "removal":
            said = "takes elements out of their set"
        case "forgetting":
            said = f"lets entries be forgotten: {text}" if text else "lets entries be forgotten"
        case _:
            said = text
    return " ".join(said.split())


def plain(value: Any) -> str:
    """Return a value: a text as it is, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def made_from(entry: EntryView) -> str:
    """Return what it was made from, and what worded it; empty if it does not say."""
    parts = [f"from {', '.join(map(_source, entry.sources))}"] if entry.sources else []
    if entry.derived_from:
        parts.append(f"derived from {', '.join(map(short, entry.derived_from))}")
    if entry.model:
        parts.append(f"worded by {entry.model}")
    elif entry.method:
        parts.append(f"by {entry.method}")
    return ", ".join(parts)


def _source(source: SourceView) -> str:
    if not source.observations:
        return source.name
    return f"{source.name} ({many(source.observations, 'observation')})"


def listed(entry: EntryView, now_ms: int) -> list[str]:
    """Return a row of LISTED."""
    seconds = max(0, now_ms - entry.at_ms) // 1000
    return _row(entry, duration(seconds) if seconds >= 10 else f"{seconds} s")


def written(entry: EntryView) -> list[str]:
    """Return a row of WRITTEN."""
    return _row(entry, when(entry.at_ms))


def _row(entry: EntryView, time_: str) -> list[str]:
    # Where every state is the usual one, the column goes.
    state = "" if entry.state == "shown" else entry.state
    doubt = " (doubtful)" if entry.doubtful else ""
    return [short(entry.id), time_, entry.author_name + doubt, place(entry), state, what(entry)]


def entry_text(entry: EntryView, now_ms: int) -> str:
    """Return all that is known of one entry."""
    rows = [
        ("entry", entry.id),
        ("says", plain(entry.value)),
        ("type", f"{entry.type}, kept as {entry.lifetime}"),
        ("key", entry.key if entry.type != "note" else ""),
        ("state", entry.state),
        ("in", f"{entry.namespace}, zone {entry.zone}"),
        ("author", _named(entry.author_name, entry.author)),
        ("written", f"{when(entry.at_ms)}, {ago(entry.at_ms, now_ms)}"),
        ("kept", _ends(entry.expires_ms, now_ms)),
        *(("source", _digest(source)) for source in entry.sources),
        ("worded by", entry.model),
        ("method", entry.method),
        ("made from", " ".join(map(short, entry.derived_from))),
        ("doubtful", entry.doubtful),
    ]
    return "\n".join(f"{name:10} {value}" for name, value in rows if value)


def _named(name: str, peer: str) -> str:
    return peer if name == peer else f"{name}  {peer}"


def _digest(source: SourceView) -> str:
    held = [many(source.observations, "observation")] if source.observations else []
    held += [size(source.size_bytes)] if source.size_bytes else []
    held += [f"sha256 {source.sha256}"] if source.sha256 else []
    return ", ".join([source.name, *held])


# Answers


def hit_text(number: int, hit: RecallHit, now_ms: int, width: int | None) -> str:
    """Return one answer of a recall: what, who, when, from what, and what stands against it."""
    entry = hit.entry
    ranks = [f"words {hit.by_words}"] if hit.by_words is not None else []
    ranks += [f"meaning {hit.by_meaning}"] if hit.by_meaning is not None else []
    score = f"score {hit.score:.3f}" + (f" ({', '.join(ranks)})" if ranks else "")
    who = f"{entry.author_name}, {ago(entry.at_ms, now_ms)}, in {place(entry)}"
    said = plain(entry.value) if entry.type == "note" else what(entry)
    head = f"{number}. "
    indent = " " * len(head)
    lines = [_wrapped(" ".join(said.split()), head, indent, width)]
    details = [f"{who}; {score}; {short(entry.id)}", made_from(entry)]
    details += [f"doubtful: {entry.doubtful}"] if entry.doubtful else []
    details += [
        f"conflict: {other.author_name}, {ago(other.at_ms, now_ms)}, says: {what(other)}"
        for other in hit.conflicts
    ]
    lines += [_wrapped(line, indent, indent + "  ", width) for line in details if line]
    return "\n".join(lines)


def _wrapped(text: str, first: str, rest: str, width: int | None) -> str:
    if width is None:
        return first + text
    return textwrap.fill(
        text,
        max(width, WIDTH_MIN),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
    )


def value_text(value: ValueView, now_ms: int) -> str:
    """Return what stands under a key, who says so, and what is in doubt."""
    lines = [f"{value.key} in {place(value)} ({value.type})"]
    match value.type:
        case "set":
            lines += [f"  {one.value}{_adders(one.added_by, now_ms)}" for one in value.elements]
        case "log":
            lines += [
                f"  {when(one.at_ms)}  {one.author_name}  {plain(one.value)}"
                for one in value.entries
            ]
        case "counter":
            lines += [f"  {plain(value.value)}"]
            lines += [
                f"    {one.author_name} {_counted(one.added, one.taken)}, {ago(one.at_ms, now_ms)}"
                for one in value.counts
            ]
        case "shared" if value.conflict:
            lines += [f"  in conflict: {len(value.entries)} values stand, the newest first"]
            lines += [_said(one, now_ms) for one in value.entries]
        case _:
            said = value.entries[:1]
            lines += [_said(one, now_ms) for one in said] or [
                f"  {plain(value.value) or 'nothing'}"
            ]
    lines += [
        f"  lacking: what {one.author_name} wrote {ago(one.at_ms, now_ms)}; its text is gone"
        for one in value.lapsed
    ]
    if not value.complete:
        lines.append("  not complete: more stands here than one answer looks at")
    return "\n".join(lines)


def _said(entry: EntryView, now_ms: int) -> str:
    by = f"{entry.author_name}, {ago(entry.at_ms, now_ms)}; {short(entry.id)}"
    return f"  {plain(entry.value)}   by {by}"


def _adders(entries: Sequence[EntryView], now_ms: int) -> str:
    by = ", ".join(f"{one.author_name} {ago(one.at_ms, now_ms)}" for one in entries)
    return f"   added by {by}" if by else ""


def _counted(added: int, taken: int) -> str:
    return f"+{added}" + (f" -{taken}" if taken else "")


# The whole of it


def forgotten(view: ForgetView) -> str:
    """Return what forgetting did here."""
    if not view.records:
        return "nothing of that is held here, and nothing was forgotten"
    file = (
        "erased from the store file"
        if view.erased
        else "the store file is written anew without it shortly"
    )
    if not view.forgotten:
        return "no text of it was here any more; others are told all the same"
    return f"forgot {many(view.forgotten, 'text')} here; {file}"


def compared(view: ExchangeView) -> list[str]:
    """Return a row of COMPARED."""
    return [
        view.step.peer_name,
        view.step.state,
        ", ".join(view.namespaces) or "nothing",
        str(view.sent),
        str(view.received),
        size(view.bytes_out),
        size(view.bytes_in),
        str(view.rounds),
        duration(view.took_ms / 1000),
    ]


def held(view: NamespaceView, now_ms: int) -> list[str]:
    """Return a row of HELD."""
    newest = ago(view.newest_ms, now_ms) if view.newest_ms is not None else ""
    counts = [str(view.shown), str(view.entries), str(view.authors)]
    return [view.name, view.zone, *counts, newest, "; ".join(_limits(view.policy))]


def policy_text(view: PolicyView, now_ms: int) -> str:
    """Return who may write in a namespace, how much, and who says so."""
    said = f"by {view.by_name}, {ago(view.at_ms, now_ms)}" if view.at_ms is not None else ""
    limits = _limits(view)
    if not limits:
        lifted = f"; lifted {said}" if said else ""
        return f"none: {_everybody(view)}, {view.quota:,} entries of each author{lifted}"
    if view.writers is None:
        limits.insert(0, _everybody(view))
    return f"{'; '.join(limits)}; {said}; for what is written since"


def _limits(view: PolicyView | None) -> list[str]:
    """Return what a policy does not leave open."""
    limits: list[str] = []
    if view is None:
        return limits
    if view.writers is not None:
        who = ", ".join(map(_writer, view.writer_names))
        limits.append(f"{who or 'nobody'} may write")
    if view.entries is not None:
        limits.append(f"{many(view.entries, 'entry', 'entries')} of each author and lifetime")
    if view.ttl_s is not None:
        limits.append(f"texts end after {_span(view.ttl_s)}")
    return limits


def _everybody(view: PolicyView) -> str:
    return f"every member of zone {view.zone} writes"


def _writer(name: str) -> str:
    kind, _, of = name.partition(":")
    return {"admin": "admins", "member": "members", "zone": f"members of zone {of}"}.get(kind, of)


def stats_text(stats: MemoryStats) -> str:
    """Return the memory at a glance, without its namespaces."""
    index = many(stats.indexed, "text")
    index += (
        f", {stats.embedded} of them by meaning, with {stats.embedding_model}"
        if stats.embedding_model
        else ", by words only: no embedding model"
    )
    rows = [
        ("entries", f"{stats.entries}, with {size(stats.file_bytes)} on disk"),
        ("index", index),
        ("refused", f"{stats.refused} messages and entries of others"),
        *(("peer" if at == 0 else "", one.sentence) for at, one in enumerate(stats.steps)),
    ]
    return "\n".join(f"{name:8} {value}" for name, value in rows)


def checked(view: VerifyView) -> str:
    """Return what was checked, and each problem."""
    found = "nothing wrong" if not view.problems else f"{len(view.problems)} wrong"
    counted = (
        f"{many(view.entries, 'entry', 'entries')}, {many(view.payloads, 'text')} and "
        f"{many(view.certificates, 'certificate')} checked in {duration(view.took_ms / 1000)}: {found}"
    )
    return "\n".join([counted, *(f"  {one}" for one in view.problems)])
