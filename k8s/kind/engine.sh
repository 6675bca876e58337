#!/bin/sh
# engine.sh RUN DATA CGROUP: a Docker engine in namespaces of its own. Its process is found again by RUN/engine.pid,
# which is written before there is anything to find; the process's start time makes the number unmistakable.
set -eu
export RUN="$1" DATA="$2" CGROUP="$3"
read -r line < /proc/$$/stat
rest=${line##*) }
set -- $rest
shift 19
echo "$$ $1" > "$RUN/.engine.pid"
mv "$RUN/.engine.pid" "$RUN/engine.pid"
# the first process of the namespace must take in orphans, which dockerd would not
exec unshare --mount --pid --fork --kill-child=KILL --mount-proc tini -- sh -euc '
  # another engine of this machine is neither seen nor met
  for folder in /run/containerd /run/docker; do [ ! -d $folder ] || mount -t tmpfs none $folder; done
  exec dockerd --config-file "$RUN/daemon.json" --data-root "$DATA" --exec-root "$RUN/exec" --pidfile "$RUN/docker.pid" \
    --host "unix://$RUN/docker.sock" --storage-driver overlay2 --bridge none --cgroup-parent "/$CGROUP"'
