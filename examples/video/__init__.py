"""A video service: a file comes over HTTP, and a workflow makes it into what a browser plays, in several sizes."""
