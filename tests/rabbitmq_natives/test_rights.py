"""A user who may not do everything: what it takes, and what is said where it is missing."""

from __future__ import annotations

import pytest

from carteiro import BrokerError, Carteiro
from carteiro.backends.rabbitmq import RabbitExchange, RabbitQueue
from tests.rabbitmq_natives.stage import Place
from tests.redis_natives.stage import listen, working
from tests.servers.rabbitmq import RabbitServer


@pytest.fixture
def limited(each_rabbitmq_server: RabbitServer, place: Place) -> str:
    """The URL of a user whose rights end with carteiro's own things, under the test's prefix."""
    user = place.name("user")
    each_rabbitmq_server.add_user(user, "secret", may=rf"^(carteiro\.|{place.prefix}(\.|$)|amq\.default)")
    return f"{each_rabbitmq_server.url_with(user=user, password='secret')}?prefix={place.prefix}"


async def test_a_queue_that_the_user_may_not_have_is_named_with_the_rights_it_takes(place: Place, limited: str):
    app, jobs = Carteiro("shop", limited), RabbitQueue(place.name("jobs"))
    listen(app, jobs)
    with pytest.raises(BrokerError, match=rf"does not permit that to this user.*queue '{jobs.name}'"):
        async with working(app):
            pass
    async with Carteiro("office", limited) as office:
        with pytest.raises(BrokerError, match=r"does not permit that to this user.*exchange '.*logs'"):
            await office.publish(RabbitExchange(place.name("logs")), 1)


async def test_whoever_may_only_publish_takes_what_is_there(place: Place, limited: str):
    queue = place.queue("jobs")
    async with Carteiro("office", limited) as office:
        await office.publish(RabbitQueue(queue, declare=False), 7)
    assert place.bodies(queue) == [b"7"]


async def test_a_queue_of_another_connection_alone_is_said_to_be_so(place: Place):
    place.client.queue_declare(place.name("mine"), exclusive=True)
    app = place.app()
    listen(app, RabbitQueue(place.name("mine"), type="classic", declare=False))
    with pytest.raises(BrokerError, match=r"keeps this for another connection alone.*mine"):
        async with working(app):
            pass
