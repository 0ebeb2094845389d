#!/usr/bin/env bash
# cluster_down.sh - stop what cluster_up.sh started, by recorded pid: first the jobs, then slurmd, slurmctld, slurmdbd, mariadbd, munged.
SLURM_DIR=${SLURM_DIR:-${TMPDIR:-/tmp}/isda_slurm}; export SLURM_CONF=$SLURM_DIR/slurm.conf
[ -d "$SLURM_DIR/pid" ] || { echo "nothing to stop"; exit 0; }
ids=$(timeout 5 squeue -h -o %A 2>/dev/null | sort -u)
if [ -n "$ids" ]; then   # running steps outlive their slurmd, so end them first
  timeout 10 scancel $ids; for _ in $(seq 100); do [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break; sleep 0.2; done
fi
gone() { # gone PID START: true if dead, a zombie that init has not reaped yet, or if its pid has been given again
  case "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null)" in ''|Z*|X*) return 0;; *) [ "$(sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20)" != "$2" ];; esac; }
cd "$SLURM_DIR/pid" || exit 1
for tier in 'slurmd.*.pid' slurmctld.pid slurmdbd.pid mariadbd.pid munged.pid; do
  for f in $tier; do [ -f "$f" ] && read -r pid start <"$f" && ! gone "$pid" "$start" && kill -TERM "$pid"; done
  for f in $tier; do [ -f "$f" ] && read -r pid start <"$f" || continue
    for _ in $(seq 200); do gone "$pid" "$start" && break; sleep 0.1; done
    gone "$pid" "$start" || { echo "$f ($pid): still there, KILL"; kill -KILL "$pid"; }
    rm -f "$f"
  done
done
sed -i '/# isda_slurm$/d' /etc/hosts 2>/dev/null || { t=$(grep -v '# isda_slurm$' /etc/hosts); printf '%s\n' "$t" >/etc/hosts; }   # bind-mounted hosts: no rename
echo "stopped"
