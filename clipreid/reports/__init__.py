"""What is drawn of an evaluation: the HTML page, figures, ranked lists, where the model looked."""

from clipreid.reports.html import Section, section_of, write_report
from clipreid.reports.ranked_lists import ranked_lists

__all__ = ["Section", "ranked_lists", "section_of", "write_report"]
