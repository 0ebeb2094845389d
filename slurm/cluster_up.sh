#!/usr/bin/env bash
# cluster_up.sh - a real SLURM (22.05, Debian 12 packages) on one host, as root, no systemd, no cgroups.
# All state (config, keys, spool, logs, pids, database) is under $SLURM_DIR; listens on 127.0.0.1 only.
# Use it:   bash cluster_up.sh && . $SLURM_DIR/env.sh && sinfo
# Settings (environment variables):
SLURM_DIR=${SLURM_DIR:-${TMPDIR:-/tmp}/isda_slurm}
NODES=${NODES:-4}            # virtual nodes node1..nodeN, each its own slurmd (+ own UTS hostname)
CPUS=${CPUS:-4}              # claimed CPUs per node (need not exist, because of config_overrides)
MEM_MB=${MEM_MB:-4000}       # claimed memory per node (not enforced)
GPUS=${GPUS:-2}              # fake GPUs per node (--gres=gpu:N, --gpus-per-node); 0: none; also set to 0 if mknod is refused
DBD=${DBD:-1}                # 1: slurmdbd + private mariadbd, so sacct works (submitit polls it); 0: no accounting
BASE_PORT=${BASE_PORT:-26810}
NODE_TIMEOUT=${NODE_TIMEOUT:-60} # seconds without an answer after which a node counts as dead
UTS=${UTS:-$(unshare --uts true 2>/dev/null && echo 1 || echo 0)}  # 1: each slurmd has its own UTS namespace, so that jobs see hostname nodeN
set -euo pipefail; set +m   # no job control: setsid below must not fork, so that $! is the daemon
[ "$(id -u)" = 0 ] || { echo "must be root" >&2; exit 1; }
[ -z "$(ls -A "$SLURM_DIR" 2>/dev/null)" ] || [ -f "$SLURM_DIR/.isda_slurm" ] || { echo "SLURM_DIR=$SLURM_DIR is no folder of this script: delete it, or name another one" >&2; exit 1; }
t0=$(date +%s.%N); lap() { printf '[%6.2fs] %s\n' "$(echo "$(date +%s.%N) $t0" | awk '{print $1-$2}')" "$*"; }
die() { echo "cluster_up: $*" >&2; for f in "$SLURM_DIR"/log/*.log; do [ -f "$f" ] && { echo "--- $f"; tail -n 15 "$f"; }; done >&2; exit 1; }

since() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }   # start time: tells a process from a later one with its pid
gone() { case "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null)" in ''|Z*|X*) return 0;; *) [ "$(since "$1")" != "$2" ];; esac; }   # gone PID START

# ---- 1. packages -------------------------------------------------------------------------------
pkgs=(slurmctld slurmd slurm-client munge)
[ "$DBD" = 1 ] && pkgs+=(slurmdbd mariadb-server-core mariadb-client-core)   # -core: no service, no /var/lib/mysql
missing=(); for p in "${pkgs[@]}"; do dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p"); done
if [ ${#missing[@]} -gt 0 ]; then
  export DEBIAN_FRONTEND=noninteractive apt_log; apt_log=$(mktemp)
  apt-get -o DPkg::Lock::Timeout=300 update -qq || { echo "cluster_up: packages cannot be installed here: no package lists" >&2; exit 1; }
  if [ ! -e /usr/sbin/policy-rc.d ]; then   # keep packages from starting daemons
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; trap 'rm -f /usr/sbin/policy-rc.d' EXIT; fi
  apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}" >"$apt_log" 2>&1 ||
    { tail -20 "$apt_log" >&2; echo "cluster_up: packages cannot be installed here: ${missing[*]}" >&2; exit 1; }
  rm -f "$apt_log"
  lap "installed: ${missing[*]}"
else lap "packages already installed"; fi

# ---- 2. refuse to start twice; fresh directories -------------------------------------------------
for p in "$SLURM_DIR"/pid/*.pid; do
  [ -f "$p" ] && ! gone $(cat "$p") && { echo "already running ($p); run cluster_down.sh first" >&2; exit 1; }
done
rm -rf "$SLURM_DIR"
mkdir -p "$SLURM_DIR"/{log,pid,state,munge,mysql} && chmod 755 "$SLURM_DIR"/{,log,pid,state,munge} && touch "$SLURM_DIR/.isda_slurm"
P_CTLD=$BASE_PORT P_DBD=$((BASE_PORT+1)) P_SQL=$((BASE_PORT+2)) P_NODE0=$((BASE_PORT+10))
export SLURM_CONF=$SLURM_DIR/slurm.conf
start() { # start NAME CMD...: background, own session, log + pid file
  local n=$1; shift
  setsid "$@" >"$SLURM_DIR/log/$n.log" 2>&1 </dev/null & echo "$! $(since $!)" >"$SLURM_DIR/pid/$n.pid"; }
alive() { ! gone $(cat "$SLURM_DIR/pid/$1.pid") || die "$1 died"; }
wait_for() { # wait_for SECONDS NAME CMD...
  local end=$(( SECONDS + $1 )) who=$2; shift 2
  until timeout 5 "$@" >/dev/null 2>&1; do alive "$who"; [ $SECONDS -lt $end ] || die "timed out waiting for: $*"; sleep 0.1; done; }

# ---- 3. names: node1..N must resolve (MASTER_ADDR of torchrun, srun's reply address) --------------
sed -i '/# isda_slurm$/d' /etc/hosts 2>/dev/null || { grep -v '# isda_slurm$' /etc/hosts >"$SLURM_DIR/h"; cat "$SLURM_DIR/h" >/etc/hosts; }
for i in $(seq "$NODES"); do echo "127.0.0.1 node$i # isda_slurm"; done >>/etc/hosts

# ---- 4. munge, private key and socket -------------------------------------------------------------
MSOCK=$SLURM_DIR/munge/socket; [ ${#MSOCK} -lt 100 ] || die "SLURM_DIR too long for a unix socket"
( umask 077; head -c 1024 /dev/urandom >"$SLURM_DIR/munge/key" )       # 0600, owner = the user munged runs as
start munged munged --foreground --key-file="$SLURM_DIR/munge/key" --socket="$MSOCK" \
  --pid-file="$SLURM_DIR/munge/munged.pid" --seed-file="$SLURM_DIR/munge/seed" --log-file="$SLURM_DIR/log/munged.out"
wait_for 10 munged munge -S "$MSOCK" -n
lap "munged up"

# ---- 5. slurm.conf ----------------------------------------------------------------------------------
HOST=$(hostname -s)
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$P_CTLD
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$MSOCK,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$SLURM_DIR/state
SlurmdSpoolDir=$SLURM_DIR/spool.%n
SlurmctldPidFile=$SLURM_DIR/state/slurmctld.pid
SlurmdPidFile=$SLURM_DIR/state/slurmd.%n.pid
SlurmctldDebug=info
SlurmdDebug=info
# no cgroups, no pinning, no limits
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
# nodes may be bigger than the machine, come back by themselves, and may share memory freely
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
# quick for tests
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=2,bf_interval=2
PriorityType=priority/basic
KillWait=5
CompleteWait=0
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=$NODE_TIMEOUT
# preemption: a job in partition "high" requeues those in "low", USR1/--signal first
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
CONF
if [ "$DBD" = 1 ]; then cat >>"$SLURM_CONF" <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$P_DBD
AccountingStoragePass=$MSOCK
AccountingStoreFlags=job_comment
CONF
else echo "AccountingStorageType=accounting_storage/none" >>"$SLURM_CONF"; fi
mknod "$SLURM_DIR/probe" c 1 3 2>/dev/null || GPUS=0
gres=; if [ "$GPUS" -gt 0 ]; then
  gres=" Gres=gpu:$GPUS"; echo "GresTypes=gpu" >>"$SLURM_CONF"
  mkdir -p "$SLURM_DIR/dev"; for g in $(seq 0 $((GPUS-1))); do mknod "$SLURM_DIR/dev/gpu$g" c 1 3; done  # slurmd wants a device file; these are /dev/null
  r="[0-$((GPUS-1))]"; [ "$GPUS" = 1 ] && r=0
  echo "Name=gpu File=$SLURM_DIR/dev/gpu$r" >"$SLURM_DIR/gres.conf"
fi
for i in $(seq "$NODES"); do
  hn=$HOST; [ "$UTS" = 1 ] && hn=node$i
  echo "NodeName=node$i NodeHostname=$hn NodeAddr=127.0.0.1 Port=$((P_NODE0+i)) CPUs=$CPUS RealMemory=$MEM_MB$gres State=UNKNOWN"
done >>"$SLURM_CONF"
cat >>"$SLURM_CONF" <<CONF
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=low  Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=20 PreemptMode=OFF State=UP
CONF
cat >"$SLURM_DIR/env.sh" <<CONF
export SLURM_CONF=$SLURM_CONF
CONF

# ---- 6. accounting: private mariadbd + slurmdbd -------------------------------------------------------
if [ "$DBD" = 1 ]; then
  pw=$(head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \n')
  mariadb-install-db --no-defaults --user=root --datadir="$SLURM_DIR/mysql" --auth-root-authentication-method=normal \
    --skip-test-db >"$SLURM_DIR/log/mysql_install.log" 2>&1 || die "mariadb-install-db failed"
  lap "database files made"
  start mariadbd mariadbd --no-defaults --user=root --datadir="$SLURM_DIR/mysql" --socket="$SLURM_DIR/mysql.sock" \
    --pid-file="$SLURM_DIR/state/mysql.pid" --bind-address=127.0.0.1 --port=$P_SQL --innodb-buffer-pool-size=64M \
    --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 --skip-name-resolve
  sql() { mariadb --no-defaults --user=root --socket="$SLURM_DIR/mysql.sock" -e "$1"; }
  wait_for 60 mariadbd mariadb --no-defaults --user=root --socket="$SLURM_DIR/mysql.sock" -e "select 1"
  sql "create database slurm_acct_db; create user slurm@127.0.0.1 identified by '$pw'; grant all on slurm_acct_db.* to slurm@127.0.0.1;"
  lap "mariadbd up"
  ( umask 077; cat >"$SLURM_DIR/slurmdbd.conf" <<CONF
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$P_DBD
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$MSOCK
PidFile=$SLURM_DIR/state/slurmdbd.pid
DebugLevel=info
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$P_SQL
StorageUser=slurm
StoragePass=$pw
StorageLoc=slurm_acct_db
CONF
  )
  start slurmdbd slurmdbd -D
  wait_for 60 slurmdbd sacctmgr -n show cluster
  sacctmgr -i -Q add cluster test >/dev/null 2>&1 || true        # slurmctld would add it too, but with an error message
  lap "slurmdbd up"
fi

# ---- 7. slurmctld, then one slurmd per node -----------------------------------------------------------
start slurmctld slurmctld -D -i
wait_for 30 slurmctld sh -c 'scontrol ping | grep -q "is UP"'
lap "slurmctld up"
for i in $(seq "$NODES"); do
  mkdir -p "$SLURM_DIR/spool.node$i"
  if [ "$UTS" = 1 ]; then start "slurmd.node$i" unshare --uts sh -c "hostname node$i && exec slurmd -D -N node$i"
  else start "slurmd.node$i" slurmd -D -N "node$i"; fi
done
wait_for 30 slurmctld sh -c '[ "$(sinfo -h -N -p main -t idle -o %N | wc -l)" = '"$NODES"' ]'
lap "$NODES nodes idle"
echo "ready: . $SLURM_DIR/env.sh"
