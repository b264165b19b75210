"""The pages of a report: HTML for browsers, Markdown for GitHub, and an index of all reports."""

from superblock.reporting.pages.index import render_index
from superblock.reporting.pages.page import render

__all__ = ["render", "render_index"]
