"""`python -m ingest`: reads the environment, runs the service, ends with status 0 when told to stop."""

from __future__ import annotations

import gc
import os
import sys

import uvloop

from ingest.app import serve
from ingest.settings import Settings
from service import logs
from service.settings import SettingsError, read_settings


def main() -> int:
    logs.configure("ingest")
    try:
        settings = read_settings(Settings, os.environ)
    except SettingsError as error:
        logs.get("ingest").critical("settings_unreadable", detail=str(error))
        return 2
    # What requests leave behind is freed by counting; looking for cycles often finds none.
    gc.set_threshold(50_000, 20, 100)
    uvloop.run(serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
