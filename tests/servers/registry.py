"""The systems that tests may need."""

from tests.servers.postgresql import POSTGRESQL
from tests.servers.programs import CHROMIUM, FFMPEG
from tests.servers.rabbitmq import RABBITMQ
from tests.servers.redis import REDIS, REDIS_TLS, VALKEY

SYSTEMS = {system.name: system for system in (REDIS, REDIS_TLS, VALKEY, RABBITMQ, POSTGRESQL, FFMPEG, CHROMIUM)}
