"""The config file and all that it names: read as a whole, and looked at for changes.

Kubernetes renews a ConfigMap by moving one symbolic link, and most editors by renaming a file; neither is seen by who
holds the file open, and both are by who looks at the path again.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from gateway.fingerprint import digest, glance
from protocol.errors import SettingsError
from protocol.settings import Settings, parse_settings

__all__ = ["Config", "ConfigSource"]


@dataclass(frozen=True, slots=True)
class Config:
    """A config as it was read. `digest`, hexadecimal, is of its text and of what the files hold that it names."""

    text: str
    settings: Settings
    digest: str


class ConfigSource:
    """The config at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base = path.parent.absolute()
        self._named: tuple[Path, ...] = ()

    def read(self) -> Config:
        """Raises `SettingsError`."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"Cannot read the config file {self.path}: {error}.") from None
        settings = parse_settings(text, base=self.base, source=str(self.path))
        self._named = _named(settings)
        told = blake2b(text.encode(), digest_size=16)
        told.update(digest(*self._named))
        return Config(text, settings, told.hexdigest())

    def glance(self) -> object:
        """What changes when the file does, or one that it named when it was last read."""
        return glance(self.path, *self._named)


def _named(settings: Settings) -> tuple[Path, ...]:
    """The files and folders that `settings` name and that are read again by a reload."""
    found: list[Path | None] = [settings.outbound.ca_file]
    if settings.server.tls is not None:
        found += [settings.server.tls.certificate, settings.server.tls.key]
    for model in settings.models.values():
        for upstream in model.openai or ():
            found.append(upstream.ca_file)
            if upstream.client_certificate is not None:
                found += [upstream.client_certificate.certificate, upstream.client_certificate.key]
    for strategy in settings.strategies.values():
        reads = strategy.route or strategy.cascade
        found.append(reads.artefact if reads else None)
    return tuple(dict.fromkeys(path for path in found if path is not None))
