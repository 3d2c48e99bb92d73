"""Preference models and adapters: anything that says how likely one response beats another."""
