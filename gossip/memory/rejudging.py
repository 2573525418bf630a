"""What is held and counts no more, once a revocation or a policy is heard of? It is taken out.

Queued behind all that was judged before, so that nothing slips in that was judged by what held then.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from covey.identity.errors import NotAdmitted, Unavailable
from covey.identity.keys import PeerId, public_key_of

from .entry import CLOCK_BYTES, Entry
from .namespace import Namespace
from .policies import Changed
from .replica import Replica
from .rows import Rows
from .standing import Standing, UnknownCertificate
from .tables import Tables

log = logging.getLogger(__name__)

# What is judged anew holds the writer for about 5 ms at a time: who writes waits no longer.
JUDGED_AT_ONCE = 500
# Of what a policy took out, so many are named in the log, as `covey memory ls` names them.
IDS_TOLD = 50
ID_DIGITS = 12

Judge = Callable[[Entry, Namespace], bool]
"""Raises what is against an entry."""


class Rejudging:
    """Judges what is held anew."""

    def __init__(
        self,
        rows: Rows,
        standing: Standing,
        judge: Judge,
        namespaces: Callable[[], Iterable[Namespace]],
    ) -> None:
        self._rows = rows
        self._standing = standing
        self._judge = judge
        self._namespaces = namespaces

    async def by_revocations(self, subjects: Sequence[PeerId]) -> None:
        """Take out what counts no more: of who was revoked, and of whom a revoked admin signed."""
        authors = set(subjects).union(*map(self._standing.resting_on, subjects))
        keys = [public_key_of(author) for author in sorted(authors)]
        try:
            for namespace in self._namespaces() if keys else ():
                await self._rows.run(self._purge_job(namespace, keys))
        except Unavailable as error:
            log.error("memory.purge_failed", extra={"why": str(error)})

    def _purge_job(
        self, namespace: Namespace, authors: Sequence[bytes]
    ) -> Callable[[Replica, Tables], None]:
        def job(replica: Replica, _: Tables) -> None:
            for author in authors:
                replica.purge(namespace.id, author, partial(still_counts, self._judge, namespace))

        return job

    async def by_policies(self, changed: Sequence[Changed]) -> None:
        """Take out what the policies that hold now do not allow, and then what is beyond their quotas."""
        try:
            for one in changed:
                await self._by_policy(one)
        except Unavailable as error:
            log.error("memory.policy_put_off", extra={"why": str(error)})

    async def _by_policy(self, changed: Changed) -> None:
        namespace = changed.namespace
        taken, told = 0, list[str]()
        start: bytes | None = (changed.after + 1).to_bytes(CLOCK_BYTES, "big")
        while start is not None:
            start, ids = await self._rows.run(self._judge_job(namespace, start))
            taken += len(ids)
            told += ids[: IDS_TOLD - len(told)]
        more = True
        while more:
            more, ids = await self._rows.run(self._trim_job(namespace))
            taken += len(ids)
            told += ids[: IDS_TOLD - len(told)]
        if taken:
            said = {
                "namespace": namespace.name,
                "zone": namespace.zone,
                "entries": taken,
                "ids": told,
            }
            log.warning("memory.policy_took_out", extra=said)

    def _judge_job(
        self, namespace: Namespace, start: bytes
    ) -> Callable[[Replica, Tables], tuple[bytes | None, list[str]]]:
        def job(replica: Replica, _: Tables) -> tuple[bytes | None, list[str]]:
            counts = partial(still_counts, self._judge, namespace)
            goes_on = replica.purge_after(namespace.id, start, counts, JUDGED_AT_ONCE)
            return goes_on, _removed(replica)

        return job

    def _trim_job(
        self, namespace: Namespace
    ) -> Callable[[Replica, Tables], tuple[bool, list[str]]]:
        def job(replica: Replica, _: Tables) -> tuple[bool, list[str]]:
            return replica.trim(namespace.id, JUDGED_AT_ONCE), _removed(replica)

        return job


def _removed(replica: Replica) -> list[str]:
    return [key[CLOCK_BYTES:].hex()[:ID_DIGITS] for _, key in replica.applied.removed]


def still_counts(judge: Judge, namespace: Namespace, entry: Entry) -> bool:
    """Tell whether an entry that counted once counts now."""
    try:
        judge(entry, namespace)
    except NotAdmitted:
        return False
    except UnknownCertificate:
        return True
    return True
