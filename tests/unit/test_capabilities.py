"""The published capability table is what the brokers say of themselves today."""

from pathlib import Path

from carteiro.ports.features import Capability
from carteiro.testing.conformance.table import features_of, kit_tests, table

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"


def test_the_published_table_is_the_one_that_is_generated():
    brokers = ["memory://kit", "sqlite:///kit.db", "redis://localhost", "amqp://localhost"]
    again = f"python -m carteiro.testing.conformance.table {' '.join(brokers)} > docs/capabilities.md"
    assert PAGE.read_text() == table(features_of(brokers)), f"make it again: {again}"


def test_the_kit_tests_every_capability_that_can_be_asked_for():
    held = kit_tests()
    assert held[None] > 0
    assert [capability.value for capability in Capability if not held[capability]] == []
