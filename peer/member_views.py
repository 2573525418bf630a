"""What does the local API show of the mesh's members? The shapes that daemon, API and command line share.

Pure data; times ending in `_ms` are unix milliseconds.
"""

from typing import Literal

import msgspec

MemberState = Literal["member", "revoked", "expired"]


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody of whom a certificate is known: `GET /v1/members`."""

    id: str
    name: str
    """What it calls itself; its id if that is not known here."""
    role: Literal["admin", "member"]
    zones: tuple[str, ...]
    state: MemberState
    issued_ms: int
    not_after_ms: int
    grace_until_ms: int
    signed_by: str
    """The admin who signed its certificate; `root` for an admin's own."""
    why: str = ""
    """Why it is no member any more."""


class RevokeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/members/{peer}/revoke`."""

    purge: bool = False
    """Nothing that it ever wrote counts; otherwise what it wrote until now stays."""
    reason: str = ""
    """It is told at the door, and everyone reads it."""
    keep: tuple[str, ...] | None = None
    """Of an admin: those whom it let in and whom this admin signs anew; `all`, or none at all. None:
    refused if there are any."""
    passphrase: str | None = None
    """Of the mesh's root key; to revoke an admin."""


class AdmitRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/members/{peer}/admit`."""

    zones: tuple[str, ...] | None = None
    """Those that it is in from now on; None: those of before."""
    admin: bool = False
    """Make it an admin, which only the root can."""
    passphrase: str | None = None


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/members/{peer}/renew`."""

    passphrase: str | None = None
    """To renew an admin."""


class ApproveRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/pending/{peer}/approve`."""

    zones: tuple[str, ...] | None = None
    """None: those of the invite that it holds, if it holds one."""


class RevokedView(msgspec.Struct, frozen=True, kw_only=True):
    """What a revocation came to."""

    member: MemberView
    kept: tuple[MemberView, ...] = ()
    """Members that were signed anew."""
    fallen: tuple[MemberView, ...] = ()
    """Members that fell with the admin who had let them in."""


class PendingView(msgspec.Struct, frozen=True, kw_only=True):
    """A joiner that waits for this admin's word: `GET /v1/pending`."""

    id: str
    name: str
    """What it calls itself: nobody has looked."""
    words: str
    """The same that are shown on the joiner's side, if nobody stands in between."""
    asked_ms: int
    has_confirmed: bool
    """Whoever sits there has seen the words and said yes."""
    zones: tuple[str, ...] = ()
    inviter: str | None = None
    """The admin whose invite it has proved to hold: then the words need not be compared."""
    inviter_name: str | None = None
