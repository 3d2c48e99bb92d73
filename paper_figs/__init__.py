"""Figures: each script reads the CSV files of one experiment and draws them; none computes."""
