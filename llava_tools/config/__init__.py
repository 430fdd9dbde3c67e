"""Configs: find, load, override, check, plan, write.

A config is a short flat Python file. Recipes inherit from `configs/base/` by a relative
`read_base()`; a user's own file starts from any recipe by its name: `base = "llava_phi3_..."`.
"""

from llava_tools.config.check import settings_from
from llava_tools.config.files import check_files
from llava_tools.config.load import find_config, load_config, load_settings, recipes
from llava_tools.config.plan import iterations, planned_rows
from llava_tools.config.settings import DatasetSpec, Settings
from llava_tools.config.write import (
    config_text,
    copy_config,
    diff_configs,
    dump_config,
    is_run_config,
)

__all__ = [
    "DatasetSpec",
    "Settings",
    "check_files",
    "config_text",
    "copy_config",
    "diff_configs",
    "dump_config",
    "find_config",
    "is_run_config",
    "iterations",
    "load_config",
    "load_settings",
    "planned_rows",
    "recipes",
    "settings_from",
]
