"""``cloudreg view``: volumes in Neuroglancer."""

from __future__ import annotations

import time
import webbrowser
from typing import Annotated

import typer

_PUBLIC = "https://neuroglancer-demo.appspot.com"


def view(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Volumes, runs, registrations; here or in buckets.")
    ],
    viewer: Annotated[
        str | None, typer.Option("--viewer", help=f"Neuroglancer; default: the installed one, else {_PUBLIC}.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Name of this machine, if others are to look too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, help="0: any that is free.")] = 0,
    show: Annotated[bool, typer.Option("--open", help="Open the link in a browser.")] = False,
) -> None:
    """Print a link that shows volumes in Neuroglancer; what lies here is served until Ctrl-C."""
    from cloudreg.viewer.neuroglancer import neuroglancer_state, own_viewer, viewer_link
    from cloudreg.viewer.serve import FolderServer
    from cloudreg.viewer.show import layers_of

    with FolderServer(host=host, port=port) as server:
        state = neuroglancer_state(layers_of(paths, server.share))
        own = own_viewer(state, host) if viewer is None else None
        link = viewer_link(state, viewer or _PUBLIC) if own is None else str(own.get_viewer_url())
        print(link, flush=True)
        if show:
            webbrowser.open(link)
        try:
            while own is not None or server.shares_something:
                time.sleep(3600)
        except KeyboardInterrupt:
            return
