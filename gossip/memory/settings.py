"""How long does spreading wait, and for how much? Its times and limits, one branch of the config."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpreadSettings:
    """Times and limits of spreading."""

    gather_s: float = 0.05
    """How long new entries are gathered before they are pushed."""
    books_first_s: float = 2.0
    """For how long at most a new link whose books differ carries them alone. Two peers whose books
    cannot agree, and one that lies about its own, hold nothing up for longer."""
    compare_s: float = 60.0
    """How often a peer compares with a few of its neighbours, and again with one that is apart."""
    compare_with: int = 3
    """With how many, each time."""
    retry_s: float = 5.0
    """How soon after a comparison that failed the next may begin; doubled each time."""
    answer_s: float = 15.0
    """How long an answer, an acknowledgement or an entry that was asked for may take."""
    window: int = 4
    """Batches under way to one peer: together about 512 KiB."""
    outbox_max: int = 200_000
    """Entries that wait for one peer. Beyond, they are left to the next comparison."""
    strikes_max: int = 8
    """Malformed messages and bad entries of one peer, until it is not listened to for a while."""
    mute_s: float = 600.0
    """How long that is, and how long a strike counts."""
    unwelcome_s: float = 600.0
    """How long an entry that was refused is not asked for, or sent, again."""
    audit_s: float = 30.0
    """How soon one peer may have a namespace summed up under another salt."""
