"""One file per protocol of the feed: its path, who may read it, and how its frames are written.

The hub calls them, they call `core.feed`. They never send anything themselves.
"""
