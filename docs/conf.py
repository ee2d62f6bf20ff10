"""Settings of Sphinx for the pages of the course; build_site.py starts it."""

project = "GPT by Hand"
author = "the contributors of GPT by Hand"
copyright = "the contributors; Apache License 2.0"
html_title = project
language = "en"

extensions = ["myst_nb"]
root_doc = "README"
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
suppress_warnings = [
    "myst.header",  # a page may go from # to ###
    "toc.not_included",  # pages of code are reached by links
    "misc.highlighting_failure",  # an example of wrong code may be shown
]

# Stored outputs, and no kernel.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_text_lexer = "none"

# What GitHub and JupyterLab read, and nothing more.
myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_labels = False
myst_disable_syntax = [
    "myst_role",
    "myst_target",
    "myst_line_comment",
    "myst_block_break",
]
myst_heading_anchors = 6
myst_heading_slug_func = "course.markdown.github_slug"

html_theme = "sphinx_book_theme"
html_theme_options = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search stands in the side bar, once
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_static_path = ["static"]
html_extra_path = ["extra"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sphinx = False
html_use_index = False
mathjax_path = "../mathjax/tex-chtml.js"


def setup(app):
    """Correct, page by page, what Sphinx and its theme cannot be told."""

    def correct(app, pagename, templatename, context, doctree):
        if pagename.endswith(".ja"):
            context["language"] = "ja"  # or it would be read out in English
        if "body" in context:
            # The corner of a table is no heading when it is empty.
            empty = '<th class="head"><p></p></th>'
            context["body"] = context["body"].replace(empty, "<td></td>")

    app.connect("html-page-context", correct)
