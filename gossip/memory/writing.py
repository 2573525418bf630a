"""Which entry says what its author wants to say? Commands in, signed entries out.

Pure. A command reads what is held and writes over it, so it is given the tables of one transaction,
and its entries are for `Replica.apply` in that same transaction: two increments that read one count
would be one. Nothing is written over that this device cannot have seen, and an entry's clock is
greater than all that it replaces. Model: MEMORY 4.4.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, assert_never

from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed, Misuse, NotFound, Unavailable
from covey.identity.keys import Keypair

from .commands import (
    Command,
    CounterAdd,
    Forget,
    ForgetAuthor,
    LogAppend,
    Maximum,
    Minimum,
    Note,
    Register,
    SetAdd,
    SetRemove,
    Shared,
)
from .entry import (
    AHEAD_MS_MAX,
    DERIVED_MAX,
    REASON_BYTES_MAX,
    SEEN_MAX,
    SHORT_ID_BYTES,
    VERSION,
    Entry,
    EntryId,
    Header,
    Key,
    NamespaceId,
    author_of,
    digest_of,
    sign_entry,
)
from .forms import (
    KEEP_MAX,
    NESTING_MAX,
    NUMBER_CHARACTERS_MAX,
    count_of,
    has_controls,
    is_clean,
    is_json,
    nests_too_deep,
    number_of,
)
from .hybrid_clock import COUNTER_BITS, HybridClock, stamp_of
from .kinds import DAY_MS, Lifetime, Type, is_record, kind_of, pinned_only, type_of
from .paths import (
    Path,
    checked_key,
    element_path,
    forgetting_path,
    line_path,
    path_of,
    removal_path,
)
from .payload import (
    SALT_BYTES,
    SCHEMA,
    TEXT_BYTES_MAX,
    Embedding,
    Payload,
    Provenance,
    decode_payload,
    encode_payload,
)
from .reading import (
    Remembered,
    State,
    head_at,
    head_key_at,
    held_by_id,
    held_under,
    newest_clock,
    newest_clock_of,
    remembered,
)
from .replica import Arrival, is_superseded
from .tables import Tables

NAME_BYTES = 16
TTL_MS_MIN = 1_000  # an entry ends at a whole second
# A count has at most 30 digits; a trillion steps of this size still fit.
DELTA_MAX = 10**18
COUNT_MAX = 10**30 - 1

_LIFETIMES = (Lifetime.SCRATCH, Lifetime.NORMAL, Lifetime.PINNED)
"""Those that an author may choose; the mesh's books have one of their own."""


# Both are made for each entry: a frozen dataclass of as many fields takes three times as long.
class _Moment(NamedTuple):
    """Where and when a command is carried out, and how long what it writes is to last."""

    tables: Tables
    namespace: NamespaceId
    now_ms: int
    lifetime: Lifetime | None
    ttl_ms: int | None
    ttl_ms_max: int | None


class _Draft(NamedTuple):
    """An entry before it has its time."""

    type: Type
    lifetime: Lifetime
    path: Path
    payload: bytes = b""
    after: int = 0
    """The greatest clock of what it must be newer than."""
    seen: tuple[bytes, ...] = ()
    derived_from: tuple[bytes, ...] = ()
    subject: bytes = b""
    cut: int = 0


class Writer:
    """What one author writes in one mesh.

    Args:
        keypair: the author.
        mesh: the mesh.
        certificate: the id (16 bytes) of the certificate under which it writes.
        clock: the device's clock, which has observed what the store holds.
        draw: so many bytes of entropy.
        by_admin: whether the certificate makes it an admin, who may forget others' entries.
    """

    def __init__(
        self,
        keypair: Keypair,
        mesh: MeshId,
        certificate: bytes,
        clock: HybridClock,
        draw: Callable[[int], bytes],
        *,
        by_admin: bool = False,
    ) -> None:
        self._keypair = keypair
        self._mesh = mesh
        self._certificate = certificate
        self._clock = clock
        self._draw = draw
        self._by_admin = by_admin

    def write(
        self,
        tables: Tables,
        namespace: NamespaceId,
        command: Command,
        now_ms: int,
        *,
        lifetime: Lifetime | None = None,
        ttl_ms: int | None = None,
        ttl_ms_max: int | None = None,
    ) -> tuple[Arrival, ...]:
        """Return the entries that carry a command out, to be applied before the next command.

        The first one says what the author wants to say; others follow where one entry cannot name
        all that it is about, or where the author's older value had another lifetime. Empty: the
        author has said as much already, and there is nothing to write.

        Args:
            tables: the transaction in which they will be applied.
            namespace: where to.
            command: what to say.
            now_ms: the wall clock.
            lifetime: for how long the header is kept; normal, or pinned where it must be.
            ttl_ms: when the text goes, counted from now; at the end of the lifetime.
            ttl_ms_max: when it goes at the latest, if no ttl is given.

        Raises:
            Misuse: it cannot be said so; with the remedy.
            Unavailable: this device's clock, or its copy of what it wrote itself, is behind.
        """
        moment = _Moment(tables, namespace, now_ms, lifetime, ttl_ms, ttl_ms_max)
        return tuple(self._sign(moment, one) for one in self._drafts(moment, command))

    def _drafts(self, moment: _Moment, command: Command) -> Sequence[_Draft]:
        match command:
            case Note():
                return self._note(moment, command)
            case Register():
                return self._register(moment, command)
            case Shared():
                return self._shared(moment, command)
            case SetAdd():
                return self._set_add(moment, command)
            case SetRemove():
                return self._set_remove(moment, command)
            case CounterAdd():
                return self._counter_add(moment, command)
            case Maximum() | Minimum():
                return self._extreme(moment, command)
            case LogAppend():
                return self._log_append(moment, command)
            case Forget():
                return self._forget(moment, command)
            case ForgetAuthor():
                return self._forget_author(moment, command)
            case _:
                assert_never(command)

    # Notes and registers

    def _note(self, moment: _Moment, note: Note) -> Sequence[_Draft]:
        _check_text(note.text, "note")
        if len(note.derived_from) > DERIVED_MAX:
            raise Misuse(
                f"a note names at most {DERIVED_MAX} entries that it was made from, "
                f"not {len(note.derived_from)}; name the most important ones"
            )
        older = self._note_to_renew(moment, note.renews) if note.renews is not None else None
        name = older.key if older is not None and older.key else self._draw(NAME_BYTES).hex()
        lifetime = _lifetime(moment, Type.NOTE, older.lifetime if older is not None else None)
        payload = self._payload(name, note.text, note.provenance, note.embedding)
        draft = _Draft(
            type=Type.NOTE,
            lifetime=lifetime,
            path=path_of(moment.namespace, name),
            payload=payload,
            after=older.clock if older is not None else 0,
            derived_from=tuple(one[:SHORT_ID_BYTES] for one in note.derived_from),
        )
        # Nothing stands under a name that was drawn just now.
        return [draft, *self._withdrawals(moment, draft)] if older is not None else [draft]

    def _note_to_renew(self, moment: _Moment, entry_id: EntryId) -> Remembered:
        entry = held_by_id(moment.tables, moment.namespace, entry_id, moment.now_ms)
        if entry is None:
            raise NotFound(
                f"nothing is held here under the id {entry_id.hex()}; leave out what it renews"
            )
        if type_of(entry.header.kind) is not Type.NOTE:
            raise Misuse(f"{_name(entry)} is no note; write its key anew instead")
        if entry.header.author != self._keypair.public_key:
            raise Misuse(
                f"{_name(entry)} is by {author_of(entry.header.author)}, who alone can renew it; "
                "write a note of your own that is derived from it"
            )
        older = remembered(moment.tables, entry, moment.now_ms)
        if older.state is State.MISSING:
            raise Unavailable(f"the text of {_name(entry)} has not come yet; try again later")
        return older

    def _register(self, moment: _Moment, command: Register) -> Sequence[_Draft]:
        path, payload = self._json(moment, command.key, command.value)
        draft = _Draft(
            type=Type.REGISTER,
            lifetime=_lifetime(moment, Type.REGISTER),
            path=path,
            payload=payload,
            after=newest_clock(moment.tables, moment.namespace, path),
        )
        return [draft, *self._withdrawals(moment, draft)]

    def _shared(self, moment: _Moment, command: Shared) -> Sequence[_Draft]:
        path, payload = self._json(moment, command.key, command.value)
        seen = self._values_seen(moment, path)
        longest = max((one.lifetime for one in seen), default=Lifetime.SCRATCH)
        lifetime = _lifetime(moment, Type.SHARED, max(longest, Lifetime.NORMAL))
        if lifetime < longest:
            # Once this one's header is gone, what it superseded would stand again.
            raise Misuse(
                f"another author's value of {command.key!r} is {_word(longest)} and would outlast "
                f"a {_word(lifetime)} one; write it {_word(longest)}, with a ttl if it is to end "
                "earlier"
            )
        draft = _Draft(
            type=Type.SHARED,
            lifetime=lifetime,
            path=path,
            payload=payload,
            seen=_shorts(seen[:SEEN_MAX]),
        )
        return [draft, *self._withdrawals(moment, draft)]

    def _values_seen(self, moment: _Moment, path: Path) -> list[Entry]:
        """Return the others' values that a new one supersedes, those first that nobody has yet.

        Also those that somebody has: whose value that is may write another, which need not know
        them. One whose text has not come yet was not seen, and stays beside the new one; so does
        one too far ahead of this device's clock, or an author could keep others from writing.
        """
        seen: list[tuple[bool, Entry]] = []
        for entry in held_under(moment.tables, moment.namespace, path, moment.now_ms):
            if type_of(entry.header.kind) is not Type.SHARED or entry.lifetime is Lifetime.BOOK:
                continue
            superseded = is_superseded(moment.tables, entry)
            state = remembered(moment.tables, entry, moment.now_ms).state
            is_due = superseded or state is State.SHOWN
            self._clock.observe(entry.header.clock, moment.now_ms)
            is_over = entry.header.clock <= self._clock.last
            if is_due and is_over and entry.header.author != self._keypair.public_key:
                seen.append((superseded, entry))
        return [entry for _, entry in sorted(seen, key=lambda one: one[0])]

    def _json(self, moment: _Moment, key: str, value: str) -> tuple[Path, bytes]:
        key = checked_key(key)
        _check_text(value, "value")
        if not is_json(value):
            limit = f" of at most {NESTING_MAX} levels" if nests_too_deep(value) else ""
            raise Misuse(
                f"the value {_start(value)} is not JSON{limit}; a text is written in quotes"
            )
        return path_of(moment.namespace, key), self._payload(key, value)

    # Sets

    def _set_add(self, moment: _Moment, command: SetAdd) -> Sequence[_Draft]:
        name = checked_key(command.of_set, "set's name")
        _check_text(command.element, "element")
        draft = _Draft(
            type=Type.ELEMENT,
            lifetime=_lifetime(moment, Type.ELEMENT),
            path=element_path(moment.namespace, name, command.element),
            payload=self._payload(name, command.element),
        )
        return [draft]

    def _set_remove(self, moment: _Moment, command: SetRemove) -> Sequence[_Draft]:
        name = checked_key(command.of_set, "set's name")
        _check_text(command.element, "element")
        lifetime = _lifetime(moment, Type.REMOVAL)
        path = element_path(moment.namespace, name, command.element)
        adds = [
            one
            for one in held_under(moment.tables, moment.namespace, path, moment.now_ms)
            if type_of(one.header.kind) is Type.ELEMENT and one.lifetime is not Lifetime.BOOK
        ]
        states = {remembered(moment.tables, one, moment.now_ms).state for one in adds}
        if not states & {State.SHOWN, State.MISSING}:
            raise NotFound(
                f"the set {name!r} has no element {_start(command.element)} here; "
                f"see what it has: covey memory history {name}"
            )
        # No text goes along: it would outlast the element's being forgotten.
        return [
            _Draft(
                type=Type.REMOVAL,
                lifetime=lifetime,
                path=removal_path(moment.namespace, name),
                after=adds[0].header.clock,
                seen=_shorts(adds[start : start + SEEN_MAX]),
            )
            for start in range(0, len(adds), SEEN_MAX)
        ]

    # Numbers

    def _counter_add(self, moment: _Moment, command: CounterAdd) -> Sequence[_Draft]:
        key = checked_key(command.key)
        if not 1 <= abs(command.delta) <= DELTA_MAX:
            raise Misuse(
                f"a counter is changed by 1 to {DELTA_MAX}, up or down, not by {command.delta}"
            )
        path = path_of(moment.namespace, key)
        own = self._own(moment, Type.COUNTER, path)
        # What is expired or forgotten counts no more for anybody, so the count begins anew.
        added, taken = (own and count_of(own.value)) or (0, 0)
        added, taken = added + max(command.delta, 0), taken - min(command.delta, 0)
        if max(added, taken) > COUNT_MAX:
            raise Misuse(f"the counter {key!r} is full at {COUNT_MAX}; go on with another key")
        return [self._number(moment, Type.COUNTER, key, f"{added} {taken}", own)]

    def _extreme(self, moment: _Moment, command: Maximum | Minimum) -> Sequence[_Draft]:
        key, text = checked_key(command.key), command.number.strip()
        number = number_of(text)
        if number is None:
            raise Misuse(
                f"{_start(command.number)} is not a number such as 12, -0.5 or 1e-6, of at most "
                f"{NUMBER_CHARACTERS_MAX} characters"
            )
        type_ = Type.MAXIMUM if isinstance(command, Maximum) else Type.MINIMUM
        own = self._own(moment, type_, path_of(moment.namespace, key))
        known = number_of(own.value) if own is not None else None
        if own is not None and known is not None:
            stands = known >= number if type_ is Type.MAXIMUM else known <= number
            # It is said again only when it would end much earlier than what is said now.
            left_ms, wanted_ms = own.expires_ms - moment.now_ms, _lasts_ms(moment, own.lifetime)
            if stands and 2 * left_ms >= wanted_ms:
                _lifetime(moment, type_)
                return []
            text = own.value if stands else text
        return [self._number(moment, type_, key, text, own)]

    def _number(
        self, moment: _Moment, type_: Type, key: str, text: str, own: Remembered | None
    ) -> _Draft:
        return _Draft(
            type=type_,
            lifetime=_lifetime(moment, type_),
            path=path_of(moment.namespace, key),
            payload=self._payload(key, text),
            after=own.clock if own is not None else 0,
        )

    def _own(self, moment: _Moment, type_: Type, path: Path) -> Remembered | None:
        """Return this author's number under a key, which a new one goes on from."""
        kind = kind_of(type_, Lifetime.PINNED)
        head = head_at(moment.tables, moment.namespace, self._keypair.public_key, kind, path)
        if head is None:
            return None
        own = remembered(moment.tables, head, moment.now_ms)
        if own.state is State.MISSING:
            raise Unavailable(
                "what this device itself wrote under this key has not come back to it yet; "
                "try again once it is in step (covey memory sync)"
            )
        if own.state is State.UNREADABLE:
            raise Unavailable(
                "what this device wrote under this key is of a later version of covey; upgrade it"
            )
        return own

    # Logs

    def _log_append(self, moment: _Moment, command: LogAppend) -> Sequence[_Draft]:
        name = checked_key(command.log, "log's name")
        _check_text(command.text, "line")
        if not 1 <= command.keep <= KEEP_MAX:
            raise Misuse(f"a log keeps 1 to {KEEP_MAX} lines of each author, not {command.keep}")
        lifetime = _lifetime(moment, Type.LINE)
        path = self._room_for_line(moment, name, lifetime, command.keep)
        payload = self._payload(name, f"{command.keep} {command.text}")
        draft = _Draft(type=Type.LINE, lifetime=lifetime, path=path, payload=payload)
        return [draft]

    def _room_for_line(self, moment: _Moment, log: str, lifetime: Lifetime, keep: int) -> Path:
        """Return the first free one of a log's `keep` places, or that of the author's oldest line.

        No cut is needed, and nobody counts: the places are the author's own slots, and which of
        its lines are the newest their clocks tell.
        """
        kind = kind_of(Type.LINE, lifetime)
        lines: list[tuple[Key, Path]] = []
        for position in range(keep):
            path = line_path(moment.namespace, log, position)
            own = self._keypair.public_key
            key = head_key_at(moment.tables, moment.namespace, own, kind, path)
            if key is None:
                return path
            lines.append((key, path))
        return min(lines)[1]

    # Forgetting

    def _forget(self, moment: _Moment, command: Forget) -> Sequence[_Draft]:
        ids = list(dict.fromkeys(command.ids))
        if not ids:
            raise Misuse("nothing to forget is named; give the ids, see: covey memory ls")
        entries = [self._entry_to_forget(moment, one) for one in ids]
        payload = self._reason(command.reason)
        return [
            _Draft(
                type=Type.FORGETTING,
                lifetime=_lifetime(moment, Type.FORGETTING),
                path=forgetting_path(moment.namespace),
                payload=payload,
                after=max(one.header.clock for one in entries),
                seen=_shorts(entries[start : start + SEEN_MAX]),
            )
            for start in range(0, len(entries), SEEN_MAX)
        ]

    def _entry_to_forget(self, moment: _Moment, entry_id: EntryId) -> Entry:
        entry = held_by_id(moment.tables, moment.namespace, entry_id, moment.now_ms)
        if entry is None:
            raise NotFound(f"nothing is held here under the id {entry_id.hex()}")
        if is_record(entry.header.kind):
            raise Misuse(f"{_name(entry)} removes or forgets others, and stays with its reason")
        if entry.lifetime is Lifetime.BOOK:
            raise Misuse(f"{_name(entry)} is in the mesh's books; revoke or renew instead")
        self._check_may_forget(entry.header.author)
        return entry

    def _forget_author(self, moment: _Moment, command: ForgetAuthor) -> Sequence[_Draft]:
        try:
            author_of(command.author)
        except Malformed as error:
            raise Misuse(f"whose entries to forget: {error}; name a peer") from error
        self._check_may_forget(command.author)
        now = stamp_of(moment.now_ms)
        newest = newest_clock_of(moment.tables, moment.namespace, command.author)
        self._clock.observe(newest, moment.now_ms)
        # What an author wrote further ahead than this clock follows must not save all the rest.
        cut = max(now, min(newest, self._clock.last))
        if command.before is not None:
            if not 1 <= command.before <= now + 1:
                raise Misuse("only what is written by now can be forgotten; name a time before now")
            cut = command.before - 1
        draft = _Draft(
            type=Type.FORGETTING,
            lifetime=_lifetime(moment, Type.FORGETTING),
            path=forgetting_path(moment.namespace),
            payload=self._reason(command.reason),
            after=cut,
            subject=command.author,
            cut=cut,
        )
        return [draft]

    def _check_may_forget(self, author: bytes) -> None:
        if author != self._keypair.public_key and not self._by_admin:
            raise Misuse(
                f"{author_of(author)} wrote it, and only its author and admins can have it "
                "forgotten everywhere; ask one of them"
            )

    def _reason(self, reason: str) -> bytes:
        if not reason:
            return b""
        _check_text(reason, "reason")
        payload = self._payload("", reason)
        if len(payload) > REASON_BYTES_MAX:
            over = len(payload) - REASON_BYTES_MAX
            raise Misuse(
                f"the reason has {len(reason.encode())} bytes, {over} too many; put it briefly"
            )
        return payload

    # Signing

    def _payload(
        self,
        key: str,
        value: str,
        provenance: Provenance | None = None,
        embedding: Embedding | None = None,
    ) -> bytes:
        if not is_clean(provenance):
            raise Misuse("the provenance has control characters; name sources and model in text")
        if embedding is not None and (not embedding.vector or len(embedding.vector) % 2):
            raise Misuse(
                f"an embedding of {len(embedding.vector)} bytes; it has 2 for each dimension"
            )
        try:
            payload = Payload(SCHEMA, self._draw(SALT_BYTES), key, value, provenance, embedding)
            data = encode_payload(payload)
            if provenance is not None or embedding is not None:
                decode_payload(data)  # their limits, by which every other peer will judge them
        except Malformed as error:
            raise Misuse(f"this cannot be shared: {error}") from error
        return data

    def _withdrawals(self, moment: _Moment, draft: _Draft) -> list[_Draft]:
        """Return what takes back the author's values of other lifetimes, which stand in their own slots.

        Without it a value for a day would, when it ends, bring back an older one for a year.
        """
        return [
            _Draft(type=draft.type, lifetime=lifetime, path=draft.path, after=older.header.clock)
            for lifetime in _LIFETIMES
            if lifetime is not draft.lifetime
            and (older := self._standing(moment, kind_of(draft.type, lifetime), draft.path))
        ]

    def _standing(self, moment: _Moment, kind: int, path: Path) -> Entry | None:
        """Return this author's entry of a slot, unless it has ended."""
        head = head_at(moment.tables, moment.namespace, self._keypair.public_key, kind, path)
        if head is None:
            return None
        state = remembered(moment.tables, head, moment.now_ms).state
        return None if state in (State.EXPIRED, State.FORGOTTEN, State.WITHDRAWN) else head

    def _sign(self, moment: _Moment, draft: _Draft) -> Arrival:
        clock = self._stamp(moment.now_ms, draft.after)
        lasts_ms = draft.lifetime.ms
        if draft.payload and not is_record(draft.type):
            lasts_ms = _lasts_ms(moment, draft.lifetime)
        header = Header(
            version=VERSION,
            namespace=moment.namespace,
            author=self._keypair.public_key,
            clock=clock,
            expires_s=((clock >> COUNTER_BITS) + lasts_ms) // 1000,
            kind=kind_of(draft.type, draft.lifetime),
            parent=draft.path.parent,
            key=draft.path.key,
            seen=draft.seen,
            payload_digest=digest_of(draft.payload),
            payload_bytes=len(draft.payload),
            certificate=self._certificate,
            derived_from=draft.derived_from,
            subject=draft.subject,
            cut=draft.cut,
        )
        entry = sign_entry(header, mesh=self._mesh, keypair=self._keypair)
        return Arrival(entry, draft.payload or None, self._by_admin)

    def _stamp(self, now_ms: int, after: int) -> int:
        """Return a time that is greater than `after`, and that other peers take."""
        self._clock.observe(after, now_ms)
        stamp = self._clock.stamp(now_ms)
        if stamp >> COUNTER_BITS > now_ms + AHEAD_MS_MAX:
            behind_s = ((stamp >> COUNTER_BITS) - now_ms) / 1000
            raise Unavailable(
                f"this device's clock shows a time {behind_s:.0f} s before its own newest entry; "
                "set the clock right (covey doctor)"
            )
        if stamp <= after:
            ahead_s = ((after >> COUNTER_BITS) - now_ms) / 1000
            raise Unavailable(
                f"what this would replace was written {ahead_s:.0f} s ahead of this device's clock; "
                "try again in a minute, and see covey doctor for whose clock is wrong"
            )
        return stamp


def _lasts_ms(moment: _Moment, lifetime: Lifetime) -> int:
    """Return how long a text of this lifetime is shown."""
    if moment.ttl_ms is not None:
        return moment.ttl_ms
    return lifetime.ms if moment.ttl_ms_max is None else min(moment.ttl_ms_max, lifetime.ms)


def _lifetime(moment: _Moment, type_: Type, default: Lifetime | None = None) -> Lifetime:
    """Return the lifetime of what is written; the default is normal.

    Raises:
        Misuse: the type cannot have it, or the ttl is longer.
    """
    chosen = moment.lifetime
    if is_record(kind_of(type_, Lifetime.PINNED)) and moment.ttl_ms is not None:
        raise Misuse(f"a {type_.name.lower()} holds for good; leave out the ttl")
    if pinned_only(type_):
        if chosen not in (None, Lifetime.PINNED):
            raise Misuse(
                f"a {type_.name.lower()} is always pinned, not {_word(chosen)}; leave the lifetime "
                "out, and give a ttl if it is to end earlier"
            )
        chosen = Lifetime.PINNED
    elif chosen is Lifetime.BOOK:
        raise Misuse("that lifetime is for the mesh's own books; take scratch, normal or pinned")
    elif chosen is None:
        chosen = default if default is not None else Lifetime.NORMAL
    _check_ttl(moment.ttl_ms, chosen)
    return chosen


def _check_ttl(ttl_ms: int | None, lifetime: Lifetime) -> None:
    if ttl_ms is None or TTL_MS_MIN <= ttl_ms <= lifetime.ms:
        return
    if ttl_ms < TTL_MS_MIN:
        raise Misuse(f"a ttl is at least {TTL_MS_MIN} ms, not {ttl_ms}")
    enough = next((one for one in _LIFETIMES if ttl_ms <= one.ms), None)
    remedy = (
        f"use lifetime {_word(enough)}"
        if enough is not None
        else f"nothing is kept longer than {Lifetime.PINNED.ms // DAY_MS} d: write it again by then"
    )
    raise Misuse(
        f"a {_word(lifetime)} entry is kept for {lifetime.ms // DAY_MS} d, not for "
        f"{ttl_ms / DAY_MS:.1f} d; {remedy}"
    )


def _check_text(text: str, what: str) -> None:
    if not text.strip():
        raise Misuse(f"the {what} is empty; say something")
    if has_controls(text):
        raise Misuse(f"the {what} has control characters; share text, line breaks and tabs only")
    size_bytes = len(text.encode())
    if size_bytes > TEXT_BYTES_MAX:
        raise Misuse(
            f"the {what} has {size_bytes} bytes, at most {TEXT_BYTES_MAX} can be shared; "
            "shorten it, or share a summary"
        )


def _shorts(entries: Sequence[Entry]) -> tuple[bytes, ...]:
    return tuple(one.id[:SHORT_ID_BYTES] for one in entries)


def _name(entry: Entry) -> str:
    return f"entry {entry.id.hex()[:12]}"


def _word(lifetime: Lifetime) -> str:
    return lifetime.name.lower()


def _start(text: str) -> str:
    """Return a text for a message, cut short."""
    return repr(text if len(text) <= 40 else text[:40] + "…")
