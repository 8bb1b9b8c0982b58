"""What the functions of this package raise."""


class CheckpointError(Exception):
    """Something about a checkpoint, or where it should go, that the user can mend; one line says what."""
