"""Everything that crosses a wire, as types: bus entries, turn events, provider messages."""
