"""What a secret looks like: names of variables and keys, forms of tokens, places in a URL."""

import re
from functools import lru_cache

#: Words of a variable's name that say its value is a secret ...
_SECRET_WORD = re.compile(
    r"tokens?|keys?|apikey|secrets?|password|passwd|passphrase|passcode|pass|pw|pat|pwd|credentials?|creds|auth|jwt|"
    r"bearer|cookie|private",
)
#: ... also inside a word (PGPASSWORD, HFTOKEN) ...
_SECRET_PART = re.compile(r"secret|passw|passphrase|credential|apikey|token$")
#: ... unless it is about the secret: where it lies, of which kind it is.
_ABOUT = re.compile(
    r"path|file|dir|directory|folder|sock|socket|mode|type|kind|name|algorithm|format|length|limit|timeout|ttl|url|uri|"
    r"host|port|user|parallelism|enabled|disabled|command|cmd|helper|askpass",
)
_NO_SECRETS = frozenset(("PWD", "OLDPWD", "SSH_AUTH_SOCK", "TOKENIZERS_PARALLELISM"))

#: Keys of a configuration with a tokenizer's word for text, not for access.
_TEXT_TOKEN = re.compile(
    r"(?:pad|eos|bos|unk|mask|sep|cls|special|additional|stop|start|end|begin|image|prompt|label|new|max|min|num|first|"
    r"last|next)_tokens?",
    re.I,
)
_SECRET_KEY = re.compile(
    r"(?:.*[_-])?(?:token|password|passwd|passphrase|secret|credentials?|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|"
    r"auth[_-]?key|wandb[_-]?key)",
    re.I,
)
_ADDRESS = re.compile(r"(?:.*_)?(?:source|path|url|uri|repo|host|endpoint|dir|folder|store|base_url|from)", re.I)
_REVISION = re.compile(r"rev|commit|sha|hash|digest|fingerprint|git|etag|oid|version", re.I)

#: user:password@ (or user@) of a URL; group 1 is the scheme. A path library writes one slash where there were two.
URL_CREDENTIALS = re.compile(
    r"([A-Za-z][A-Za-z0-9+.\-]*:(?://+|/(?=[^/\s?#\"'<>|@]*:)))([^/\s?#\"'<>|]*@)",
)
#: The same without a scheme, user:password@host; group 1 is empty, for the user goes too.
BARE_CREDENTIALS = re.compile(r"()(?<![\w/.+\-])([\w.+\-]+:[^\s/@:\"'{}]{3,}@)(?=[\w.\-*])")
#: A secret among a URL's parameters; group 1 is its name with the sign.
QUERY_SECRET = re.compile(
    r"([?&;](?:[\w.\-]*[_\-])?(?:token|key|apikey|api_key|secret|password|passwd|auth|sig|signature|credential)=)"
    r"[^&#\s\"'<>]+",
    re.I,
)
#: password=..., "api_key": "..." in a message; group 1 is the name with the sign.
ASSIGNED = re.compile(
    r"(\b(?:[\w\-]*[_\-])?(?:password|passwd|passphrase|secret|api[_-]?key|access[_-]?key|secret[_-]?key|access_?token|"
    r"auth_?token|hf_?token|use_auth_token)(?:[\"']?\s*[=:]\s*[\"']?|(?<=--password)\s+)|"
    r"\bauthorization[\"']?\s*[:=]\s*[\"']?(?:basic|token|bearer)\s+|\bbearer\s+)"
    r"(?!\*\*\*)[^\s\"',;&)}\]]{6,}",
    re.I,
)
#: The secret of a connection string, AccountKey=...;Pwd=...; group 1 is its name with the sign, group 2 the secret.
CONNECTION_SECRET = re.compile(
    r"(\b(?:AccountKey|SharedAccessKey|SharedAccessSignature|PrimaryKey|Pwd|Password)=)(?!\*\*\*)([^\s;\"',]{4,})"
)
#: An entry of a mapping on the command line: its key, the sign, its value.
IN_MAPPING = re.compile(r"(?<![\w.\-])([\w.\-]+)(\s*[:=]\s*)(?:'[^']*'|\"[^\"]*\"|[^,{}\[\]'\"]+)")
#: A W&B key of the older kind. A commit looks the same, so it counts only as a whole value, and not of a revision.
WANDB_KEY = re.compile(r"(?:local-)?[0-9a-f]{40}")

_FORMS = (
    r"hf_(?:oauth_|jwt_)?[A-Za-z0-9]{16,}",
    r"api_org_[A-Za-z0-9]{16,}",
    r"(?:sk|pk|rk|gsk)[-_](?:[A-Za-z0-9]+[-_])*[A-Za-z0-9]{16,}[A-Za-z0-9_\-]*",
    r"sk-(?:ant|proj|svcacct|admin|or|lf)-[A-Za-z0-9_\-]{16,}",
    r"gh[pousr]_[A-Za-z0-9]{16,}",
    r"github_pat_[A-Za-z0-9_]{16,}",
    r"glpat-[A-Za-z0-9_\-]{16,}",
    r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{12,}",
    r"xox[a-z]-[A-Za-z0-9\-]{10,}",
    r"xapp-[A-Za-z0-9\-]{10,}",
    r"AIza[0-9A-Za-z_\-]{30,}",
    r"ya29\.[0-9A-Za-z_\-]{20,}",
    r"eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{6,}(?:\.[A-Za-z0-9_\-]*)*",
    r"wandb_v\d+_[A-Za-z0-9_\-]{16,}",
    r"local-[0-9a-f]{40}",
    r"npm_[A-Za-z0-9]{20,}",
    r"pypi-[A-Za-z0-9_\-]{20,}",
    r"dckr_pat_[A-Za-z0-9_\-]{16,}",
    r"nvapi-[A-Za-z0-9_\-]{20,}",
    r"r8_[A-Za-z0-9]{20,}",
    r"SG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----|.*)",
)
#: Tokens whose form alone tells what they are.
TOKENS = re.compile(r"(?<![A-Za-z0-9])(?:" + "|".join(_FORMS) + ")", re.S)


@lru_cache(maxsize=4096)
def variable_is_secret(name: str) -> bool:
    """Whether an environment variable of that name holds a secret."""
    if name.upper() in _NO_SECRETS:
        return False
    words = [word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", name.lower())]
    words = [word for word in words if word]
    if not words or _ABOUT.fullmatch(words[-1]):
        return False
    return any(_SECRET_WORD.fullmatch(word) or _SECRET_PART.search(word) for word in words)


@lru_cache(maxsize=4096)
def names_secret(key: str) -> bool:
    """Whether a configuration's key of that name (without its group) holds a secret."""
    key = key.rsplit(".", 1)[-1]
    return bool(_SECRET_KEY.fullmatch(key)) and not _TEXT_TOKEN.fullmatch(key)


@lru_cache(maxsize=4096)
def is_address(key: str) -> bool:
    """Whether a configuration's key of that name says where something is."""
    return bool(_ADDRESS.fullmatch(key))


def is_revision(path: tuple[str, ...]) -> bool:
    """Whether a value at this path of keys is a commit or a hash."""
    return any(_REVISION.search(key) for key in path)
