"""The pool of prompts: loading it, what each prompt asks, and prompt ids. Knows nothing of labels."""

from .identity import Questions as Questions
from .identity import drop_duplicates as drop_duplicates
from .identity import pool_fingerprint as pool_fingerprint
from .identity import pool_ids as pool_ids
from .identity import prompt_id as prompt_id
from .loading import collect_stream as collect_stream
from .loading import load_pool as load_pool
from .loading import read_rows as read_rows
from .prompts import build_prompt as build_prompt
from .prompts import prompt_text as prompt_text
