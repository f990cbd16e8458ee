"""The results of a suite as one self-contained HTML page, from Great Expectations' Data Docs.

Data Docs load styles and scripts from seven hosts. This page loads nothing, so that opening a report discloses nothing
and needs no network.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1f24; }
h1, h2, h3, h4, h5, h6 { margin: 1.5rem 0 .3rem; font-size: 1.15rem; }
h6 { font-weight: normal; font-size: 1rem; margin: 0; }
table { border-collapse: collapse; width: 100%; margin: .3rem 0; }
table table { width: auto; margin: .5rem 0; font-size: .9em; }
th, td { border: 1px solid #d0d7de; padding: .3rem .6rem; text-align: left; vertical-align: top; }
th { background: #f6f8fa; }
td { overflow-wrap: anywhere; }
td:first-child:not(table table td) { white-space: nowrap; }
table table td { white-space: pre-wrap; }
.text-danger br + br { display: none; }
.badge-secondary, code { background: #eaeef2; border-radius: .3rem; padding: 0 .3rem; }
.text-success, .text-danger { font-weight: bold; font-style: normal; }
.text-success { color: #1a7f37; } .text-danger { color: #cf222e; }
i.fa-check-circle::before { content: "kept"; } i.fa-times::before { content: "broken"; }
nav, footer, .sticky, .ge-walkthrough-modal, .btn, [data-toggle="collapse"] { display: none; }
"""
# Nothing is loaded and no script runs, whatever the data contains.
_HEAD = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    f"<style>{_STYLE}</style>"
)


def render_data_docs(result: ExpectationSuiteValidationResult, unchecked: Sequence[str] = ()) -> str:
    """The result as one HTML page, the same bytes for the same result.

    `unchecked` are the requirements of the contract that are not checked, which are listed at the end.
    """
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    numbers = itertools.count()
    view = DefaultJinjaPageView()
    view.env.filters["generate_html_element_uuid"] = lambda prefix="": f"{prefix}{next(numbers)}"
    document = ValidationResultsPageRenderer(run_info_at_end=True).render(result)
    document.page_title = escape(document.page_title)
    document.sections.pop()  # the section about the run, which has no name or time, so that equal rows give equal pages
    html = view.render(document)
    # Values from the data are escaped, so these elements are the template's own.
    html = re.sub(r"<(script|style)\b.*?</\1>|</?a\b[^>]*>|<(link|img)\b[^>]*>", "", html, flags=re.DOTALL)
    html = "\n".join(line for line in map(str.rstrip, html.splitlines()) if line)
    if unchecked:
        points = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in unchecked)
        html = html.replace("</body>", f"<h2>Not checked</h2>\n<ul>\n{points}\n</ul>\n</body>", 1)
    return html.replace("</head>", f"{_HEAD}\n</head>", 1) + "\n"
