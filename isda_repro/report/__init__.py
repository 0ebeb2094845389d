"""Finished runs -> one HTML page that needs nothing else: tables, curves, and every run's settings and surroundings.

``evidence`` gathers, ``progress``, ``runs`` and ``curves`` say what of it the page needs, ``page`` puts it together;
``assets`` has the page itself: its HTML, its looks and its behaviour in the browser.
"""
