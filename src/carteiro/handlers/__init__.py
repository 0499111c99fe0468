"""A handler's signature, compiled once at start-up to a call plan.

`markers` is what a user writes in a signature and `injected` what a handler gets besides the body. `codecs` turns
bodies into values and back. `signature` reads a function, `sources` says how each parameter is had from a message,
`wiring` gives each argument its place, `dependencies` opens and closes what `Depends` names, `running` runs the whole
on the loop, in a thread or in a process, and `plan` is what the engine sees of it.
"""
