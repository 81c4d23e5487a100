"""The gateway: turns the sockets of carriers, PBXs and browsers into entries on Redis."""
