"""Edge Impulse's Linux programs (`.eim`): what the file must be, and the words spoken with it."""
