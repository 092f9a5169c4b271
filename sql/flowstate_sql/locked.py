"""What keeps a query to the views: the settings of every DuckDB here that runs SQL of others."""

from __future__ import annotations

#: No files, no network, no Python variables of the caller, no extensions; locked, so that no query can change it back.
LOCKED = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "allow_community_extensions": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
