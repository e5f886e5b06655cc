"""Tokenizer, padding: text on its way to arrays. No model."""
