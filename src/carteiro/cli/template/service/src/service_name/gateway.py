"""The way to the users' devices. It only writes to the log: put the client of your provider in its place."""

import logging

from carteiro import Reject

log = logging.getLogger(__name__)


class GatewayDown(Exception):
    """It may be back soon: the message is tried again."""


class UnknownUser(Reject):
    """No retry can help: the message goes straight to the dead letters."""


class Gateway:
    async def send(self, user_id: int, content: str) -> None:
        """Raises GatewayDown or UnknownUser."""
        log.info("to user %d: %s", user_id, content)

    async def is_online(self, user_id: int) -> bool:
        """Raises GatewayDown or UnknownUser."""
        return True


_gateway = Gateway()


def get_gateway() -> Gateway:
    """The dependency of the handlers; tests put a fake in its place."""
    return _gateway
