"""A model and its rollouts to traces: what attention and distributions show, token by token."""
