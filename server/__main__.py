"""`python -m server`: settings, logging and uvicorn around the app."""

import logging
import sys
from contextlib import suppress

from server.settings import Settings, read_settings


def main() -> None:
    settings = read_settings()
    # torch takes seconds to import, for which --help and a mistyped flag should not wait
    import uvicorn

    from server.app import create_app
    from server.loading import load_engine
    from server.service import EngineLike

    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    failed = False

    def load(settings: Settings) -> EngineLike:
        nonlocal failed
        try:
            return load_engine(settings)
        except Exception:
            # the app logs the reason; a server without a model is of no use
            failed = server.should_exit = True
            raise

    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, load),
            host=settings.host,
            port=settings.port,
            log_level=settings.log_level,
            log_config=None,  # the root logger's format for all
        )
    )
    with suppress(KeyboardInterrupt):
        server.run()
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
