#!/usr/bin/env bash
# docs/config.md from the schema: bazel run //client:config_reference > docs/config.md
exec client/dump_config_reference client/run_config.descriptor "$@"
