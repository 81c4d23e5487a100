"""The demo: real speech through a bus, workers and a turns server, all on this machine.

`perform` runs a cast on a stage before an audience, and returns the summary of what came of it.
"""
