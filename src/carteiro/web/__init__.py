"""Around a web service: what its orchestrator and its operators ask it."""

from carteiro.web.routes import health, health_routes

__all__ = ["health", "health_routes"]
