"""How does a program ask for the mesh's members? The part of the client that lets in, out and again."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from covey.peer.member_views import (
    AdmitRequest,
    ApproveRequest,
    MemberView,
    PendingView,
    RenewRequest,
    RevokedView,
    RevokeRequest,
)

from .memory import MemoryClient, quoted

T = TypeVar("T")
# The root's key opens slowly on purpose; admins out of reach are dialled one after the other.
OPEN_S = 30.0


class MemberClient(MemoryClient):
    """The members, as each client asks for them.

    A peer is named by name, id, or the end of an id; `self` is this one.
    """

    def members(self) -> list[MemberView]:
        """Return everybody of whom a certificate is known, admins first."""
        return self._items("/v1/members", MemberView)

    def member(self, peer: str) -> MemberView:
        """Return one of them.

        Raises:
            NotFoundHere: no certificate of it is known.
        """
        return self._get(_path_of(peer), MemberView)

    def resting_on(self, peer: str) -> list[MemberView]:
        """Return the members that would fall with an admin."""
        return self._items(f"{_path_of(peer)}/resting", MemberView)

    def revoke(
        self,
        peer: str,
        *,
        purge: bool = False,
        reason: str = "",
        keep: Sequence[str] | None = None,
        passphrase: str | None = None,
    ) -> RevokedView:
        """Revoke a member, or with the root's passphrase an admin.

        `keep`: of those whom the admin let in, whom this one signs anew: names, `all`, or nobody.

        Raises:
            Denied: this device is no admin, or the passphrase is wrong.
        """
        kept = None if keep is None else tuple(keep)
        request = RevokeRequest(purge=purge, reason=reason, keep=kept, passphrase=passphrase)
        return self._act(peer, "revoke", request, RevokedView)

    def admit(
        self,
        peer: str,
        *,
        zones: Sequence[str] | None = None,
        admin: bool = False,
        passphrase: str | None = None,
    ) -> MemberView:
        """Let a peer in again that was revoked, change its zones, or make it an admin.

        Raises:
            Denied: this device is no admin, or the passphrase is wrong.
        """
        named = None if zones is None else tuple(zones)
        request = AdmitRequest(zones=named, admin=admin, passphrase=passphrase)
        return self._act(peer, "admit", request, MemberView)

    def renew(self, peer: str = "self", *, passphrase: str | None = None) -> MemberView:
        """Renew a certificate: this device's by any admin in reach, an admin's with the passphrase.

        Raises:
            ClientError: no admin is in reach, or it refused.
        """
        return self._act(peer, "renew", RenewRequest(passphrase=passphrase), MemberView)

    def pending(self) -> list[PendingView]:
        """Return who waits for this admin's word."""
        return self._items("/v1/pending", PendingView)

    def approve(self, peer: str, *, zones: Sequence[str] | None = None) -> MemberView:
        """Let a joiner in that waits.

        Raises:
            NotFoundHere: nobody of that name waits.
        """
        request = ApproveRequest(zones=None if zones is None else tuple(zones))
        body = msgspec.json.encode(request)
        return self._call("POST", f"/v1/pending/{quoted(peer)}/approve", body, MemberView)

    def deny(self, peer: str) -> PendingView:
        """Tell a joiner no.

        Raises:
            NotFoundHere: nobody of that name waits.
        """
        return self._call("POST", f"/v1/pending/{quoted(peer)}/deny", b"", PendingView)

    def _act(self, peer: str, what: str, request: msgspec.Struct, kind: type[T]) -> T:
        path = f"{_path_of(peer)}/{what}"
        return self._call("POST", path, msgspec.json.encode(request), kind, wait_s=OPEN_S)


def _path_of(peer: str) -> str:
    return f"/v1/members/{quoted(peer)}"
