"""What bodies, headers, keys and ids may hold."""

from __future__ import annotations

import pytest

from carteiro.testing.conformance.rig import Rig


@pytest.mark.asyncio
class BodiesConformance:
    @pytest.mark.parametrize(
        "body",
        [b"", bytes(range(256)), b"\x00" * 10, b"\xff\xfe\r\n\x00", "Zoë Müller 🚚".encode(), b'{"id": 1}'],
        ids=["empty", "every byte", "zeros", "not utf-8", "unicode", "json"],
    )
    async def test_a_body_arrives_byte_for_byte(self, rig: Rig, body: bytes) -> None:
        files = await rig.declare("files")
        await rig.publish("files", body)

        assert (await rig.one(rig.broker.consume([files]), files)).message.body == body

    async def test_a_body_of_a_megabyte_arrives(self, rig: Rig) -> None:
        files = await rig.declare("files")
        body = bytes(range(256)) * 4096
        await rig.publish("files", body, b"after it")

        large, small = await rig.take(rig.broker.consume([files]), files, 2)

        assert large.message.body == body
        assert small.message.body == b"after it"

    async def test_headers_hold_any_text(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        headers = {
            "name": "Zoë Müller",
            "city": "São Paulo",
            "emoji": "🚚📦",
            "empty": "",
            "quotes": "\"'\\",
            "lines": "one\ntwo\r\nthree\ttab",
            "zero": "a\x00b",
            "long": "é" * 2_000,
            "x-ключ": "значение",
        }
        await rig.broker.publish([rig.message("orders", b"order", headers=headers)])

        assert dict((await rig.one(rig.broker.consume([orders]), orders)).message.headers) == headers

    async def test_keys_and_ids_hold_any_text(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        sent = rig.message("orders", b"order", id="pedido/São Paulo 🚚 #1", key="conta: Zoë 'Müller' %_*")
        await rig.broker.publish([sent])

        message = (await rig.one(rig.broker.consume([orders]), orders)).message

        assert (message.id, message.key) == (sent.id, sent.key)

    async def test_a_publisher_may_reuse_its_headers(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        headers = {"n": "1"}
        await rig.broker.publish([rig.message("orders", b"order", headers=headers)])
        headers["n"] = "2"

        assert (await rig.one(rig.broker.consume([orders]), orders)).message.headers["n"] == "1"

    async def test_a_thousand_messages_of_one_call_arrive(self, rig: Rig) -> None:
        orders = await rig.declare("orders")
        sent = [b"%d" % number for number in range(1_000)]
        await rig.publish("orders", *sent)

        taken = await rig.take(rig.broker.consume([orders]), orders, 1_000)

        assert [one.message.body for one in taken] == sent
