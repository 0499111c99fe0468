"""The one invariant, for any broker that can be inspected: published = done + dead + waiting, for a group.

`done` is known by what its handler emitted, the id of the message that it handled. So an emitted message without its
ack, an ack without what it emitted, a message handled to its end twice or by nobody: each breaks the sum.

Where what is emitted is not in the ack's own commit (RabbitMQ), a crash between the two repeats it: with the same id,
which is then counted once, and so is a dead letter; and its message may be done and open at the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import msgspec

from carteiro.message import Message, Subscription
from carteiro.ports.broker import GroupStatus, Inspector
from carteiro.ports.features import Capability, Features

_ALL = 10**9


class Account(msgspec.Struct, frozen=True):
    """What became of each message of a group: message ids, and how often each was found there."""

    done: Counter[str]
    dead: Counter[str]
    waiting: Counter[str]
    """Those that nobody has claimed."""
    open: int
    """How many are not done and not dead: waiting, delayed, retrying, in flight."""

    repeats: bool = False
    """Whether what is done may be open too, for a while."""

    def faults(self, published: Collection[str], *, perhaps: bool = False) -> list[str]:
        """What breaks the invariant; `perhaps` permits messages whose publish nobody was told of."""
        ended = self.done + self.dead
        known = set(published)
        twice = [id for id, count in (ended + self.waiting).items() if count > 1]
        strangers = [id for id in ended + self.waiting if id not in known]
        missing = known - ended.keys() - self.waiting.keys()
        unseen = self.open - sum(self.waiting.values())  # claimed, or not due yet: counted, not listed
        faults = [
            f"{name}: {len(ids)}, such as {sorted(ids)[:5]}"
            for name, ids in (("in two places", twice), ("never published", [] if perhaps else strangers))
            if ids
        ]
        if len(missing) > unseen or (len(missing) < unseen and not perhaps and not self.repeats):
            faults.append(f"not to be found: {len(missing)}, while {unseen} are on their way: {sorted(missing)[:5]}")
        return faults


def done_id(message: Message) -> str:
    """Which message of the group this, in `done`, is the end of."""
    id: str = msgspec.json.decode(message.body, type=str)
    return id


async def account(
    inspector: Inspector,
    features: Features,
    work: Subscription,
    done: Subscription,
    collected: Iterable[Message],
    open: int,
) -> Account:
    """The account of `work`; `collected` is what the test has taken of `done`, `open` what is on its way."""
    letters = [one for one in await inspector.dead_letters() if (one.topic, one.group) == (work.topic, work.group)]
    emitted, died = list(collected), [letter.message.id for letter in letters]
    waiting: list[str] = []
    if features[Capability.PEEK]:
        emitted += await inspector.peek(done.topic, done.group, limit=_ALL)
        waiting += [message.id for message in await inspector.peek(work.topic, work.group, limit=_ALL)]
    if not features[Capability.ATOMIC]:
        emitted, died = list({message.id: message for message in emitted}.values()), list(set(died))
    return Account(
        Counter(map(done_id, emitted)), Counter(died), Counter(waiting), open, not features[Capability.ATOMIC]
    )


async def status_of(inspector: Inspector, subscription: Subscription) -> GroupStatus:
    for status in await inspector.groups():
        if (status.topic, status.group) == (subscription.topic, subscription.group):
            return status
    raise AssertionError(f"{subscription} is not declared")


async def life(inspector: Inspector) -> str:
    """Where every group stands and what died, for a test that fails."""
    groups = [str(status) for status in await inspector.groups()]
    letters = await inspector.dead_letters()
    died = [
        f"{letter.message.id} of {letter.topic} [{letter.group}], {letter.message.attempt} attempts: {letter.reason}"
        for letter in letters[:20]
    ]
    return "\n  ".join(["groups:", *groups, f"dead letters: {len(letters)}", *died])
