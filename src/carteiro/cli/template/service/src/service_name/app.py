"""The service: its queues, by queues.yaml, and its handlers."""

import logging

from carteiro import Carteiro

from service_name import handlers
from service_name.settings import settings

logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

app = Carteiro.from_config(settings.queues_file)
app.include(handlers.router)
