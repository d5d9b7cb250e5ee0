"""`python -m server`: settings, logging and the process."""

import sys

from server.logs import configure
from server.settings import read_settings


def main() -> int:
    settings = read_settings()
    # torch takes seconds to import, for which --help and a mistyped flag should not wait
    from server.engine_process import EngineProcess
    from server.loading import load_engine
    from server.process import serve

    configure(settings)
    if settings.engine == "thread":
        return serve(settings, load_engine)
    return serve(settings, lambda settings: EngineProcess(settings, load_engine))


if __name__ == "__main__":
    sys.exit(main())
