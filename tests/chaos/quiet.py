"""Progress of a chaos run that nobody watches."""


class Quiet:
    """Shows nothing."""

    def phase(self, text: str) -> None:
        """Take what begins now."""

    def detail(self, text: str) -> None:
        """Take how far that is."""
