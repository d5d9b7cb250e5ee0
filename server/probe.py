"""`python -m server.probe`: status 0 while the server of the same variables is healthy.

For HEALTHCHECK: asks /health on this machine, over HTTPS without regard to the certificate's name.
Flags of the server are not seen: what concerns its address must be in variables.
"""

import ssl
import sys
import urllib.request

from server.settings import Settings, read_settings

LONGEST_S = 5.0


def healthy(settings: Settings) -> bool:
    """Whether /health is green."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    scheme = "https" if settings.ssl_certfile else "http"
    address = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{address}:{settings.port}/health"
    trust = ssl._create_unverified_context() if settings.ssl_certfile else None
    try:
        # refused, too late and 503 are all errors of the system's
        with urllib.request.urlopen(url, timeout=LONGEST_S, context=trust):
            return True
    except OSError as error:
        print(error, file=sys.stderr)
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(read_settings([])) else 1)
