"""HTTP calls that carry a secret, which must not follow a redirect."""

import urllib.request


def opener(*handlers) -> urllib.request.OpenerDirector:
    """An opener that raises a redirect as an HTTPError.

    Args:
      handlers: further ones, for `urllib.request.build_opener`.
    """
    return urllib.request.build_opener(_NoRedirect, *handlers)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_) -> None:
        return None
