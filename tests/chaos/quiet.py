"""Progress of a chaos run without output."""


class Quiet:
    """Shows nothing."""

    def phase(self, text: str) -> None:
        """Ignore the phase."""

    def detail(self, text: str) -> None:
        """Ignore the progress."""
