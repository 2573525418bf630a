"""Which request asks what of the mesh's members? Everything below `/v1/members` and `/v1/pending`."""

from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from covey.peer.member_views import (
    AdmitRequest,
    ApproveRequest,
    MemberView,
    PendingView,
    RenewRequest,
    RevokedView,
    RevokeRequest,
)

from .answers import Table, body_of, json_answer, list_answer

_revoke = msgspec.json.Decoder(RevokeRequest).decode
_admit = msgspec.json.Decoder(AdmitRequest).decode
_renew = msgspec.json.Decoder(RenewRequest).decode
_approve = msgspec.json.Decoder(ApproveRequest).decode


class Members(Protocol):
    """What the routes ask; `peer/members.py` answers."""

    def members(self) -> list[MemberView]:
        """Return everybody of whom a certificate is known."""
        ...

    def member(self, name: str) -> MemberView:
        """Return one of them."""
        ...

    def resting_on(self, name: str) -> list[MemberView]:
        """Return the members that would fall with an admin."""
        ...

    async def revoke(self, name: str, request: RevokeRequest) -> RevokedView:
        """Revoke a member or an admin."""
        ...

    async def admit(self, name: str, request: AdmitRequest) -> MemberView:
        """Let in again, change zones, or make an admin."""
        ...

    async def renew(self, name: str, request: RenewRequest) -> MemberView:
        """Renew a certificate."""
        ...

    def pending(self) -> list[PendingView]:
        """Return who waits for this admin's word."""
        ...

    async def approve(self, name: str, request: ApproveRequest) -> MemberView:
        """Let a joiner in that waits."""
        ...

    async def deny(self, name: str) -> PendingView:
        """Tell a joiner no."""
        ...


class Membership(Protocol):
    """Who has the members: the daemon's service."""

    @property
    def members(self) -> Members:
        """The members."""
        ...


class _MemberRoutes:
    """The handlers, on top of one service's members."""

    def __init__(self, service: Membership) -> None:
        self._service = service

    @property
    def _members(self) -> Members:
        return self._service.members

    async def members(self, _request: Request) -> Response:
        return list_answer("MemberList", self._members.members())

    async def member(self, request: Request) -> Response:
        return json_answer(self._members.member(_peer(request)))

    async def resting(self, request: Request) -> Response:
        return list_answer("MemberList", self._members.resting_on(_peer(request)))

    async def revoke(self, request: Request) -> Response:
        asked = await body_of(request, lambda body: _revoke(body or b"{}"))
        return json_answer(await self._members.revoke(_peer(request), asked))

    async def admit(self, request: Request) -> Response:
        asked = await body_of(request, lambda body: _admit(body or b"{}"))
        return json_answer(await self._members.admit(_peer(request), asked))

    async def renew(self, request: Request) -> Response:
        asked = await body_of(request, lambda body: _renew(body or b"{}"))
        return json_answer(await self._members.renew(_peer(request), asked))

    async def pending(self, _request: Request) -> Response:
        return list_answer("PendingList", self._members.pending())

    async def approve(self, request: Request) -> Response:
        asked = await body_of(request, lambda body: _approve(body or b"{}"))
        return json_answer(await self._members.approve(_peer(request), asked))

    async def deny(self, request: Request) -> Response:
        return json_answer(await self._members.deny(_peer(request)))


def member_table(service: Membership) -> Table:
    """Return the routes of the members."""
    routes = _MemberRoutes(service)
    return (
        ("/v1/members", "GET", "", routes.members),
        ("/v1/members/{peer}", "GET", "", routes.member),
        ("/v1/members/{peer}/resting", "GET", "", routes.resting),
        ("/v1/members/{peer}/revoke", "POST", "", routes.revoke),
        ("/v1/members/{peer}/admit", "POST", "", routes.admit),
        ("/v1/members/{peer}/renew", "POST", "", routes.renew),
        ("/v1/pending", "GET", "", routes.pending),
        ("/v1/pending/{peer}/approve", "POST", "", routes.approve),
        ("/v1/pending/{peer}/deny", "POST", "", routes.deny),
    )


def _peer(request: Request) -> str:
    return str(request.path_params["peer"])
