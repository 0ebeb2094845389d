"""Showing tables: finished runs become cells, statistics, Markdown, LaTeX, HTML, CSV, figures and W&B dashboards.

Imports no torch: a table must be printed in an instant.
"""
