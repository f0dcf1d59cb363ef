"""The instrument: what the program costs beside other tools, and beside the least there is.

A section measures (`nothing.py` …) and gives rows of bare figures. They are kept in
docs/benchmarks.json, and `page.py` draws docs/benchmarks.md and its charts from nothing else.
"""
