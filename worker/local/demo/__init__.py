"""The demo: real speech through Redis, two workers and local STT servers, on this machine.

`run_demo` runs the sessions in an environment, shows them on a display, and prints the summary.
"""
