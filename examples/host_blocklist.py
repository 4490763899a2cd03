"""A plugin: leaves out images from web hosts that asked not to be used (an opt-out list, one host
per line).

filters:
  - {type: "host_blocklist:HostBlocklist", name: opted_out, args: {path: hosts.txt}}      # in the folder where `streamer run` starts
"""

from pathlib import Path
from urllib.parse import urlsplit

from streamer import Filter
from streamer.judge.filters import FilterRow


class HostBlocklist(Filter):
    needs = "header"  # the url is known before the image is decoded

    def __init__(self, path: str) -> None:
        lines = (
            line.partition("#")[0].strip().lower()
            for line in Path(path).read_text("utf-8").splitlines()
        )
        self.blocked = frozenset(line for line in lines if line)

    def keep(self, row: FilterRow) -> bool | tuple[bool, str]:
        host = urlsplit(row.facts.url or "").hostname or ""
        if not host:
            return False, "no_url"
        labels = host.split(".")
        return not any(".".join(labels[i:]) in self.blocked for i in range(len(labels)))
