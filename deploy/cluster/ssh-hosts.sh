#!/bin/bash
# A Ray cluster of plain hosts by ssh: bash deploy/cluster/ssh-hosts.sh start head host1 host2 ...; `stop` ends it.
# Each host has adrec[cluster] of the same version in the same place, and lets this user in without a password.
set -euo pipefail
what=$1 head=$2
shift 2
ray_of=${ADREC_RAY:-ray}  # where the command lies on the hosts: /opt/adrec/.venv/bin/ray
case "$what" in
  start)
    ssh "$head" RAY_USAGE_STATS_ENABLED=0 "$ray_of" start --head --port=6379 --num-cpus=0 --disable-usage-stats
    for host in "$@"; do
      ssh "$host" RAY_USAGE_STATS_ENABLED=0 "$ray_of" start --address="$head:6379"
    done
    echo "on $head: adrec score --config score.yaml --cluster $head:6379"
    ;;
  stop)
    for host in "$@" "$head"; do
      ssh "$host" "$ray_of" stop
    done
    ;;
  *)
    echo "start or stop, then the head and the other hosts" >&2
    exit 2
    ;;
esac
