"""The demo: passages that ship with the package, four ways to answer, a table, a plot and a page."""
