"""A page of HTML, read: its texts, whether it is well-formed, and what it would fetch."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Texts, tags still open at the end, and whatever would be fetched."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.open, self.fetched = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]
        if tag not in ("meta", "br", "img", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []
