"""What a schedule cannot be is an error where it is written."""

from __future__ import annotations

import pytest

from carteiro import Carteiro, ConfigurationError, Publish, every


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_what_leaves_no_word_of_its_end_cannot_be_waited_for(overlap: str):
    app = Carteiro("house", "memory://")

    @app.task(result=False)
    async def ping() -> None: ...

    with pytest.raises(ConfigurationError, match=rf"overlap='{overlap}' of schedule `ping`: task `ping` keeps nothing"):
        app.schedule("ping", every(minutes=1), ping.s(), overlap=overlap)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=rf"overlap='{overlap}' of schedule `beat`: nobody knows"):
        app.schedule("beat", every(minutes=1), Publish("beats", 1), overlap=overlap)  # type: ignore[arg-type]
