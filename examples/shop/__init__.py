"""A stationer's shop: orders come over HTTP; stock, payment, invoice and logistics react, each by its own events."""
