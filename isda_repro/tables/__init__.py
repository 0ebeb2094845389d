"""Presentation of tables: finished runs become cells, statistics, Markdown, LaTeX, HTML, CSV, figures and dashboards.

Nothing here imports torch, so that a table is printed without delay.
"""
