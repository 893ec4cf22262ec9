"""Who is asked for labels, and what is paid: queries, oracles, and the ledger."""
