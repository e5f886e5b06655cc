"""The decoder, its cache, and its Hugging Face form. Arrays, no text."""
