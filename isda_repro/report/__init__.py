"""HTML report: one self-contained page with tables, curves, and the settings and environment of every finished run.

``evidence`` reads the results; ``table_progress``, ``runs`` and ``labels`` derive from them what the page shows;
``page`` renders it. ``assets`` has the page's HTML, style and scripts.
"""
