# hello.py
from carteiro import Carteiro

app = Carteiro("hello")                     # CARTEIRO_BROKER, or else the embedded broker: ./carteiro.db


@app.subscriber("greetings")
async def greet(message: str) -> str:
    return f"hello, {message}"
