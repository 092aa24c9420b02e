#!/bin/bash
# Prints how many compile jobs fit this machine: its processors, bounded by memory at 1.5 GB a job
# (what a translation unit with torch headers takes) and by a cgroup's memory limit.
set -euo pipefail
memory_kb=$(awk '/^MemTotal:/ {print $2}' /proc/meminfo)
limit=$(cat /sys/fs/cgroup/memory.max 2> /dev/null || echo max)
if [[ $limit =~ ^[0-9]+$ ]] && ((limit / 1024 < memory_kb)); then memory_kb=$((limit / 1024)); fi
jobs=$((memory_kb / 1500000))
processors=$(nproc)
if ((jobs > processors)); then jobs=$processors; fi
if ((jobs < 1)); then jobs=1; fi
echo "$jobs"
