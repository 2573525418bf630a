"""What does the local API show of the shared memory, and how is it asked? Shapes, as in `views.py`.

Pure data. JSON field names are the attribute names; fields are only ever added. Ids are hexadecimal.
"""

from typing import Any, Literal

import msgspec

WRITES_MAX = 100
IMPORT_LINES_MAX = 1000

WriteType = Literal[
    "note", "register", "shared", "set-add", "set-remove", "counter", "maximum", "minimum", "log"
]
LifetimeName = Literal["scratch", "normal", "pinned"]


class SourceView(msgspec.Struct, frozen=True, kw_only=True):
    """Raw data that an author read, and that stayed where it was."""

    name: str
    sha256: str = ""
    size_bytes: int = 0
    observations: int = 0
    """How many lines, rows or entries it held."""


class WriteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing to remember; `POST /v1/memory` takes up to 100."""

    namespace: str
    zone: str = "mesh"
    """Within which it may move; `device`: it never leaves this device."""
    type: WriteType = "note"
    key: str | None = None
    """Of the register, counter, extreme, set or log; a note has none."""
    value: Any = None
    """A text for notes, elements and log lines; any JSON for registers; a number for the others:
    how many more for a counter."""
    keep: int | None = None
    """For a log: how many of this author's lines it keeps."""
    ttl_s: float | None = None
    """After how long the text goes; None: at the end of its lifetime."""
    lifetime: LifetimeName | None = None
    """How long its header is kept: 1, 90 or 400 days. None: as the type needs, or 90 days."""
    sources: tuple[SourceView, ...] = ()
    """What it was made from, for the record; none of it is sent."""
    derived_from: tuple[str, ...] = ()
    """Ids of entries that it was made from."""
    renews: str | None = None
    """For a note: the id of one of this device's own in that namespace, in whose place it stands.
    Without a value it says the same as that one, from the same sources."""
    model: str = ""
    """What worded it."""
    method: str = ""
    summarize: bool = False
    """For a note: `value` is raw text. This device's model words a summary, and only that is shared;
    the raw text's digest, size and number of lines go into the provenance."""


class EntryView(msgspec.Struct, frozen=True, kw_only=True):
    """One entry."""

    id: str
    namespace: str
    zone: str
    author: str
    author_name: str
    at_ms: int
    expires_ms: int
    type: str
    lifetime: str
    state: str
    """`shown`, `expired`, `forgotten`, `superseded`, `removed`, `withdrawn`, `payload missing`, `in
    force` or `not of this version`."""
    key: str = ""
    value: Any = None
    """As in WriteRequest; None unless it is shown."""
    sources: tuple[SourceView, ...] = ()
    model: str = ""
    method: str = ""
    derived_from: tuple[str, ...] = ()
    doubtful: str = ""
    """Why its author is not to be trusted here, such as two entries of one time."""


class RecallHit(msgspec.Struct, frozen=True, kw_only=True):
    """One answer."""

    score: float
    entry: EntryView
    by_words: int | None = None
    """Its rank by words, from 1."""
    by_meaning: int | None = None
    conflicts: tuple[EntryView, ...] = ()
    """Other values that stand beside it."""


class RecallView(msgspec.Struct, frozen=True, kw_only=True):
    """What the memory answers: `GET /v1/memory/recall`."""

    question: str
    hits: tuple[RecallHit, ...]
    searched: int
    """How many texts are in the index."""
    notes: tuple[str, ...] = ()
    """What limits the answer, such as no embedding model, or an index that is being made."""


class CountView(msgspec.Struct, frozen=True, kw_only=True):
    """What one author has counted."""

    author: str
    author_name: str
    added: int
    taken: int
    at_ms: int


class ElementView(msgspec.Struct, frozen=True, kw_only=True):
    """An element of a set, and who put it there."""

    value: str
    added_by: tuple[EntryView, ...]


class ValueView(msgspec.Struct, frozen=True, kw_only=True):
    """What stands under a key: `GET /v1/memory/value`. Several, if authors use it differently."""

    namespace: str
    zone: str
    key: str
    type: str
    value: Any
    """The value; for a shared register in conflict the newest; for sets and logs their texts."""
    conflict: bool = False
    entries: tuple[EntryView, ...] = ()
    """Where it comes from; in a conflict all that stand beside each other."""
    counts: tuple[CountView, ...] = ()
    elements: tuple[ElementView, ...] = ()
    lapsed: tuple[EntryView, ...] = ()
    """Parts whose text has gone, and that the value lacks therefore."""
    complete: bool = True


class ForgetRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to forget, everywhere: `POST /v1/memory/forget`. Ids, or an author and a time."""

    ids: tuple[str, ...] = ()
    """Ids, or beginnings of them that are unique."""
    author: str | None = None
    """Name or id; its own entries for a member, anybody's for an admin."""
    before_ms: int | None = None
    """With `author`: what was written before; None: all that is held here now."""
    namespace: str | None = None
    """With `author`: only there; None: in every namespace."""


class ForgetView(msgspec.Struct, frozen=True, kw_only=True):
    """What was forgotten here; others follow as they hear of it."""

    forgotten: int
    """Texts that were held here and are gone."""
    records: tuple[str, ...]
    """Ids of the entries that tell the others."""
    erased: bool
    """Whether the store file has been written anew without them; else it will be shortly."""


class SyncRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With whom to compare now: `POST /v1/memory/sync`."""

    peer: str | None = None
    """Name or id; None: every linked peer."""
    timeout_s: float = 30.0
    audit: bool = False
    """Under a fresh salt, so that no crafted set of entries can hide another."""


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """How far a peer and this one hold the same."""

    peer: str
    peer_name: str
    state: Literal["in step", "comparing", "apart", "behind", "muted", "unknown", "offline"]
    sentence: str
    """All of it in plain words."""
    lacking: int = 0
    """Entries that it has and this device has asked for."""
    waiting: int = 0
    """Entries that wait to be sent to it."""
    in_step_ms: int | None = None
    """When both were last seen to hold the same."""


class ExchangeView(msgspec.Struct, frozen=True, kw_only=True):
    """What one comparison found and moved."""

    step: StepView
    namespaces: tuple[str, ...]
    """Those that differed."""
    sent: int
    received: int
    bytes_out: int
    bytes_in: int
    rounds: int
    took_ms: float


class PolicyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an admin says of a namespace: `POST /v1/memory/policy`. It takes the place of what was said
    before: what is not named is open from now on.
    """

    namespace: str
    zone: str = "mesh"
    writers: tuple[str, ...] | None = None
    """`admin`, `member`, `zone:NAME` or `peer:NAME`; whoever fits one writes. None: all in the zone."""
    entries: int | None = None
    """How many one author may hold of each lifetime, 1 to 10,000."""
    ttl_s: int | None = None
    """When a text ends at the latest, from when it is written."""


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """What holds in a namespace for what is written now: `GET /v1/memory/policy`."""

    namespace: str
    zone: str
    writers: tuple[str, ...] | None
    """As in PolicyRequest, peers by id."""
    writer_names: tuple[str, ...] = ()
    """The same, peers by what they call themselves."""
    entries: int | None = None
    ttl_s: int | None = None
    quota: int = 0
    """How many entries of one author and lifetime are held, with or without a policy."""
    may_write: bool = True
    """Whether this device may write there."""
    by: str = ""
    """Who said so; empty: nobody, there is no policy."""
    by_name: str = ""
    at_ms: int | None = None


class NamespaceView(msgspec.Struct, frozen=True, kw_only=True):
    """One namespace that this device holds."""

    name: str
    zone: str
    entries: int
    shown: int
    authors: int
    newest_ms: int | None = None
    quota: int = 0
    """How many of one author and lifetime it holds at most."""
    policy: PolicyView | None = None
    """What an admin says of it; None: nothing."""


class MemoryStats(msgspec.Struct, frozen=True, kw_only=True):
    """The memory at a glance: `GET /v1/memory/stats`."""

    namespaces: tuple[NamespaceView, ...]
    entries: int
    file_bytes: int
    indexed: int
    embedded: int
    embedding_model: str | None
    steps: tuple[StepView, ...]
    refused: int
    """Messages and entries of others that were refused since the start."""


class VerifyView(msgspec.Struct, frozen=True, kw_only=True):
    """What a check of everything that is held found: `POST /v1/memory/verify`."""

    entries: int
    payloads: int
    certificates: int
    problems: tuple[str, ...]
    took_ms: float


class ImportView(msgspec.Struct, frozen=True, kw_only=True):
    """What an import took in: `POST /v1/memory/import`."""

    taken: int
    refused: tuple[str, ...]
    """Of each that was not taken, why."""


class ExportedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an export: the entry as it was signed, so that an import can judge it again."""

    zone: str
    namespace: str
    header: str
    """Base64."""
    payload: str | None
    """Base64."""
    chain: tuple[str, ...] = ()
    """Base64: the certificates of its author."""
    shows: Any = None
    """What it says, for people to read."""


class MemoryChange(msgspec.Struct, frozen=True, kw_only=True):
    """In an event of kind `memory`: something was remembered, or is gone."""

    namespace: str
    zone: str
    added: tuple[EntryView, ...] = ()
    """Those that are still shown when this is told; of the others nothing is said any more."""
    gone: tuple[str, ...] = ()
    """Ids whose text is no longer shown; of some nothing may have been told before."""
