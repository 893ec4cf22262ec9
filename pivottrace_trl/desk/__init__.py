"""A local page for people who answer. Needs `pip install pivottrace-trl[desk]`."""
