"""The only room that knows TRL: what is put into a trainer, and what is read from it."""
