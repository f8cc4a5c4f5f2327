"""Who may talk to a Prefect server that this software starts: whoever has its login, at its own address, from its page.

Prefect's server by itself wants no login, answers any host name, and lets every web page read its answers. A page that
is open in a browser on the same machine could then deploy and run code here.
"""

from __future__ import annotations

import base64
import os
import secrets
import socket
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from fortifai_core.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
WILDCARDS = ("0.0.0.0", "::", "")
# a proxy does not know this machine's ports
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_started: dict[str, str] = {}  # the logins of servers that this process has started for itself, by their URL


def check_folder() -> None:
    """Refuse to have Prefect imported where files of the current folder would set it.

    Prefect follows `.env`, `prefect.toml` and `pyproject.toml` of the folder in which it is imported, whoever put them
    there. Its settings name code: the logging configuration calls any function.

    Raises:
        InputError: names the file.
    """
    remedy = (
        "would set Prefect, which can have code run: start from another folder, or move what it says of Prefect into "
        "the environment (PREFECT_…) or a profile (`prefect config set`)"
    )
    for name, sets_prefect in _SETTINGS.items():
        file = Path.cwd() / name
        try:
            found = sets_prefect(file.read_bytes().decode("utf-8", "replace"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # nor can Prefect read it
            raise InputError("the current folder", str(file), f"{error}: {remedy}") from error
        if found:
            raise InputError("the current folder", str(file), remedy)


# Files in which Prefect looks for its settings, and whether such a text holds any.
_SETTINGS: dict[str, Callable[[str], bool]] = {
    ".env": lambda text: "prefect" in text.lower(),
    "prefect.toml": lambda _: True,
    "pyproject.toml": lambda text: "prefect" in tomllib.loads(text).get("tool", {}),
}


def new_login(url: str) -> str:
    """A login for a server that this process starts at `url` and alone talks to."""
    _started[url] = f"fortifai:{secrets.token_urlsafe(24)}"
    return _started[url]


def login_file() -> Path:
    """Where the login of `fortifai serve` is kept, for this user alone."""
    from prefect.settings import PREFECT_HOME

    return Path(PREFECT_HOME.value()) / "fortifai-login"


def serving_login() -> str:
    """The login of `fortifai serve`: Prefect's own setting where it is made, else one that is made once and kept.

    Raises:
        InputError: the file in which it is kept cannot be used.
    """
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING

    chosen = PREFECT_SERVER_API_AUTH_STRING.value()
    if chosen:
        return str(chosen)
    kept = login_file()
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            draft = kept.with_name(f"{kept.name}.{os.getpid()}")
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(f"fortifai:{secrets.token_urlsafe(24)}\n")
            try:
                os.link(draft, kept)  # whoever is first; a second one at the same moment takes what is there
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        kept.chmod(0o600)
        login = kept.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("PREFECT_HOME", str(kept), f"the server's login cannot be kept there ({error})") from error
    user, colon, password = login.partition(":")
    if not (user and colon and password):
        raise InputError("PREFECT_HOME", str(kept), "holds no login (user:password); delete it, and another is made")
    return login


def login_for(url: str) -> str | None:
    """What to say to the Prefect server at this API URL: what the user has set, or what `serve` keeps on this machine.

    The kept login goes to no other machine.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING

    if url in _started:
        return _started[url]
    chosen = PREFECT_API_AUTH_STRING.value()
    if chosen:
        return str(chosen)
    host = urllib.parse.urlsplit(url).hostname or ""
    is_here = host in ("127.0.0.1", "localhost", "::1")
    return serving_login() if is_here and login_file().is_file() else None


def client_settings(url: str) -> dict[Any, Any]:
    """Prefect's settings for the client of the server at this API URL, to be set for a time."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    login = login_for(url)
    return {PREFECT_API_URL: url} | ({PREFECT_API_AUTH_STRING: login} if login else {})


def request(url: str, login: str | None) -> urllib.request.Request:
    """To ask for a URL of a Prefect server, with the login where it has one."""
    basic = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    return urllib.request.Request(url, headers=basic)


def fetch(url: str, login: str | None, *, seconds: float = 5) -> bytes:
    """The body at a URL of a Prefect server on this machine."""
    with _direct.open(request(url, login), timeout=seconds) as answer:
        body: bytes = answer.read(10_000)
        return body


def accepts(url: str, login: str | None) -> bool:
    """Whether the Prefect server at this API URL takes this login (or none)."""
    try:
        fetch(f"{url}/admin/version", login)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return False
        raise
    return True


# ------------------------------------------------------------------------------------------- in the server


def own_hosts(host: str) -> list[str]:
    """The names by which a server that listens at `host` may be called; IPv6 addresses in brackets.

    A page of somebody else's name, which its owner has made to point at this machine, calls it by that name.
    """
    if host in WILDCARDS:
        addresses = [a.address for every in psutil.net_if_addrs().values() for a in every if _is_internet(a)]
        return list(dict.fromkeys([*LOOPBACK, socket.gethostname().lower(), *map(_in_url, addresses)]))
    name = _in_url(host).lower()
    return list(LOOPBACK) if name in LOOPBACK else [name]


def own_origins(host: str, port: int) -> list[str]:
    """The pages that may ask a server which listens there: its own."""
    suffix = "" if port == 80 else f":{port}"
    return [f"http://{name}{suffix}" for name in own_hosts(host)]


def _calls_only(origins: Iterable[str]) -> str:
    """The policy of a page that may call these origins, and the API that Prefect's settings name for the UI."""
    api = urllib.parse.urlsplit(os.environ.get("PREFECT_UI_API_URL", ""))
    called = {*origins, *([f"{api.scheme}://{api.netloc}"] if api.netloc else [])}
    named = sorted(one for one in called if "[" not in one)  # no policy can name an IPv6 address
    return " ".join(["connect-src 'self'", *named, *(f"ws{one.removeprefix('http')}" for one in named)])


def _is_internet(address: Any) -> bool:
    return address.family == socket.AF_INET or (address.family == socket.AF_INET6 and "%" not in address.address)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def guarded(app: Any, host: str, port: int) -> Any:
    """The ASGI application behind two checks: it is called by its own name, and by no page but its own.

    And its page calls nobody else: Prefect's UI would ask a service that analyses what its users do for settings.
    """
    from starlette.datastructures import Headers
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import PlainTextResponse

    origins = frozenset(own_origins(host, port))
    policy = (b"content-security-policy", _calls_only(origins).encode())

    async def from_own_page(scope: Any, receive: Any, send: Any) -> None:
        # browsers alone send an origin, with whatever could change something, and with every web socket
        if scope["type"] in ("http", "websocket"):
            origin = Headers(scope=scope).get("origin")
            if origin is not None and origin.lower() not in origins:
                refusal = PlainTextResponse("this page may not ask this server", status_code=403)
                await refusal(scope, receive, send)
                return

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), policy]}
            await send(message)

        await app(scope, receive, send_with_policy)

    return TrustedHostMiddleware(from_own_page, allowed_hosts=own_hosts(host), www_redirect=False)
