"""`python -m stream_app`: one worker of the stream."""

from __future__ import annotations

import asyncio
import gc
import os
import sys

from service import logs
from service.settings import SettingsError, read_settings
from stream_app import app
from stream_app.settings import Settings


def main() -> int:
    logs.configure("stream_app")
    try:
        settings = read_settings(Settings, os.environ)
        # Hundreds of thousands of players stay at hand; looking through them for cycles finds none.
        gc.set_threshold(50_000, 20, 100)
        return asyncio.run(app.run(settings))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
