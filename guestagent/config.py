"""Configuration: how files and the environment become checked values.

Only the composition root imports this; below it, objects get typed values.  What can be set stands in
``options``.
"""

from __future__ import annotations

import difflib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oslo_config import cfg, iniparser

from guestagent.errors import ConfigError
from guestagent.options import GROUPS

LOG = logging.getLogger(__name__)

DEFAULT_FILE = Path("/etc/guestagent/guestagent.conf")
"""The file that is read when none is named, if it is there."""

_LIBRARIES = "oslo_"
_Sections = dict[str, dict[str, list[str]]]


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """All options in the form that oslo-config-generator asks for."""
    return [(group, list(options)) for group, options in GROUPS.items()]


def register(conf: cfg.ConfigOpts) -> None:
    """Make all options known to ``conf``."""
    for group, options in GROUPS.items():
        conf.register_opts(options, group=_group_or_none(group))


def load(config_files: Sequence[str] = ()) -> cfg.ConfigOpts:
    """Read the files, the later over the earlier, and the environment over both; raises ConfigError.

    Variables are named as in ``OS_STORAGE__URL``.  Every value is checked here, so that reading
    one later does not fail.
    """
    contents = {file: _read(file) for file in map(Path, config_files or _default_files())}
    conf = cfg.ConfigOpts()
    register(conf)
    for file, sections in contents.items():
        _check_names(conf, file, sections)
        _check_mode(file, sections)
    conf([], project="guestagent", default_config_files=[str(file) for file in contents], default_config_dirs=[])
    for group, option in _all_options():
        _check_value(conf, group, option, contents)
    if conf.database.socket and conf.database.host:
        raise ConfigError("[database] socket and host are both set", hint="keep the one that leads to the server")
    return conf


def reload(conf: cfg.ConfigOpts, config_files: Sequence[str] = ()) -> cfg.ConfigOpts:
    """What ``load`` gives now, but with the values of ``conf`` where a running agent cannot take new ones.

    As ConfigOpts.mutate_config_files does, but not in place, since jobs and requests read ``conf`` meanwhile, not
    before every value is checked, and without logging passwords.
    """
    fresh = load(config_files)
    for group, option in _all_options():
        old, new = _value(conf, group, option), _value(fresh, group, option)
        if new != old and not option.mutable:
            LOG.warning("[%s] %s stays as it was; a restart of the agent takes the new value", group, option.dest)
            fresh.set_override(option.dest, old, group=_group_or_none(group))
        elif new != old:
            LOG.info("[%s] %s is changed", group, option.dest)
    return fresh


def _all_options() -> Iterator[tuple[str, cfg.Opt]]:
    return ((group, option) for group, options in GROUPS.items() for option in options)


def _value(conf: cfg.ConfigOpts, group: str, option: cfg.Opt) -> Any:
    return (conf if group == "DEFAULT" else conf[group])[option.dest]


def for_library(conf: cfg.ConfigOpts) -> cfg.ConfigOpts:
    """A configuration from the same files in which a library may register and read options of its own."""
    found = cfg.ConfigOpts()
    found([], project="guestagent", default_config_files=list(conf.default_config_files), default_config_dirs=[])
    return found


def _default_files() -> list[str]:
    try:
        DEFAULT_FILE.stat()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(DEFAULT_FILE, error) from error
    return [str(DEFAULT_FILE)]


def _unreadable(file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot read {file}: {error.strerror}", hint="check its path and its permissions")


def _group_or_none(group: str) -> str | None:
    """DEFAULT is a section of files and no group of oslo.config's."""
    return None if group == "DEFAULT" else group


def _read(file: Path) -> _Sections:
    sections: _Sections = {}
    try:
        cfg.ConfigParser(str(file), sections).parse()
    except OSError as error:
        raise _unreadable(file, error) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text", hint="start from guestagent.conf.sample") from error
    except iniparser.ParseError as error:
        # The words of the error, and not the line itself, nor the error that has it: it may hold a password.
        raise ConfigError(
            f"{file}, line {error.lineno}: {error.msg.lower()}", hint="write [section] or option = value"
        ) from None
    return sections


def _check_names(conf: cfg.ConfigOpts, file: Path, sections: _Sections) -> None:
    """A mistyped name must not turn a setting off in silence; sections of oslo's libraries are not ours to judge."""
    for section, options in sections.items():
        known = _known(conf, section)
        if known is None and not section.startswith(_LIBRARIES):
            raise ConfigError(f"{file}: unknown section [{section}]", hint=_nearest(section, GROUPS))
        for name in options:
            if known is not None and name not in known:
                raise ConfigError(f"{file}: unknown option {name} in [{section}]", hint=_nearest(name, known))


def _known(conf: cfg.ConfigOpts, section: str) -> Sequence[str] | None:
    """The names of a section's options, or None for an unknown section."""
    if section == "DEFAULT":
        return [name for name in conf if name not in GROUPS]
    return list(conf[section]) if section in GROUPS else None


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {found[0]}?" if found else "see guestagent.conf.sample for the names"


def _check_mode(file: Path, sections: _Sections) -> None:
    if _has_secret(sections) and file.stat().st_mode & stat.S_IROTH:
        LOG.warning("%s holds a secret and every user of this host can read it; chmod o-r %s", file, file)


def _has_secret(sections: _Sections) -> bool:
    texts = (text for group, option in _all_options() if option.secret for text in _texts(sections, group, option))
    # A URL without a user has no password either.
    return any("://" not in text or "@" in text for text in texts)


def _texts(sections: _Sections, group: str, option: cfg.Opt) -> Sequence[str]:
    return sections.get(group, {}).get(option.dest, ())


def _check_value(conf: cfg.ConfigOpts, group: str, option: cfg.Opt, contents: Mapping[Path, _Sections]) -> None:
    try:
        value = _value(conf, group, option)
    except (cfg.NoSuchOptError, cfg.TemplateSubstitutionError, RecursionError) as error:
        where, _ = _origin(group, option, contents)
        raise ConfigError(
            f"{where} refers to an option that is not there, or to itself", hint="write $ as $$"
        ) from error
    except cfg.ConfigSourceValueError:
        value = None
    if value is None:
        where, text = _origin(group, option, contents)
        raise ConfigError(f"{where} is {text!r}", hint=_wanted(option.type))


def _origin(group: str, option: cfg.Opt, contents: Mapping[Path, _Sections]) -> tuple[str, str]:
    """Where the value in force was set, and its text."""
    variable = f"OS_{group.upper()}__{option.dest.upper()}"
    if variable in os.environ:
        return f"environment: {variable}", os.environ[variable]
    *_, last = ((file, sections) for file, sections in contents.items() if option.dest in sections.get(group, {}))
    return f"{last[0]}: [{group}] {option.dest}", last[1][group][option.dest][-1]


def _wanted(kind: Any) -> str:
    """What to write instead, from the option's type."""
    if getattr(kind, "choices", None):
        return f"use one of: {', '.join(kind.choices)}"
    limits = [("from", getattr(kind, "min", None)), ("to", getattr(kind, "max", None))]
    return " ".join([f"give {kind.type_name}", *(f"{word} {limit}" for word, limit in limits if limit is not None)])
