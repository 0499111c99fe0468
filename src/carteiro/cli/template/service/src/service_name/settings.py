"""What the environment says. `.env.example` lists all of it."""

from pathlib import Path
from typing import Literal

from dotenv import load_dotenv
from pydantic_settings import BaseSettings

load_dotenv(".env")  # into the environment, where queues.yaml finds it too; what is set there already holds


class Settings(BaseSettings):
    queues_file: Path = Path("queues.yaml")
    consume: bool = True
    """Whether the web service handles messages, too; False leaves them to `carteiro run`."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


settings = Settings()
