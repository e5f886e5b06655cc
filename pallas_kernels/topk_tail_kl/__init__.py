"""Divergences between a student's and a teacher's next-token distributions.

`reference.py` defines them; `chunked.py` evaluates any loss on logits and its gradient
from hidden states, without ever holding all logits.
"""
