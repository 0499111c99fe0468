"""The systems, one file each: how a fresh one is had, who is measured on it, and what DESIGN asks for there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.systems.base import System
from benchmarks.systems.rabbitmq import RabbitMQ
from benchmarks.systems.redis import Redis
from benchmarks.systems.schedules import Schedules
from benchmarks.systems.sqlite import SQLite
from benchmarks.systems.tasks import Tasks

SYSTEMS: Mapping[str, Callable[[], System]] = {
    "sqlite": SQLite,
    "redis": Redis,
    "rabbitmq": RabbitMQ,
    "tasks": Tasks,
    "schedules": Schedules,
}
