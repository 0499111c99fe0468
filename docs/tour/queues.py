from pathlib import Path

from carteiro import Carteiro

app = Carteiro.from_config(Path(__file__).with_name("queues.yaml"))


@app.subscriber("user_channel", type="send_audio")
async def send_audio(user_id: int, content: str) -> None: ...


@app.subscriber("user_channel", type="send_text")
async def send_text(user_id: int, content: str) -> str:
    return f"to {user_id}: {content}"
