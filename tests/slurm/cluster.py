"""A real Slurm of one node on loopback: Debian's munged, slurmctld and slurmd, as root, in a folder of their own.

    python tests/slurm/cluster.py          # start it, print its SLURM_CONF, stop it at the end of input

Nothing of the system's own Slurm is read or written: the configuration, the key, sockets, ports, state and logs are
those of the folder. The node has four CPUs, 6000 MB and two GPUs that are none (device files that nothing opens).
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
#: Seconds that Slurm waits between SIGTERM and SIGKILL.
KILL_WAIT_SECONDS = 20
CONFIGURATION = """\
ClusterName=rowsft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1500
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait={kill_wait}
MinJobAge=60
InactiveLimit=0
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=6000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no Slurm can be started here; None where it can."""
    if os.geteuid() != 0:
        return "slurmd and munged are started as root"
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(lacking)} not found: apt-get install slurm-wlm munge, or make slurm-test" if lacking else None


def on_path(folder: Path) -> str:
    """A PYTHONPATH on which `folder` comes first."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """Start the cluster and stop it afterwards, with all that it runs; gives what an environment needs for it."""
    # Sockets and munge want a short path that nobody else may write to.
    folder = Path(tempfile.mkdtemp(prefix="rowsft-slurm-"))
    daemons: list[subprocess.Popen] = []
    try:
        conf = _configure(folder)
        environment = {**os.environ, "SLURM_CONF": str(conf)}
        daemons.append(_munged(folder))
        for command in (["slurmctld", "-D", "-i"], ["slurmd", "-D"]):
            with (folder / f"{command[0]}.out").open("w") as out:
                daemons.append(subprocess.Popen([*command, "-f", conf], env=environment, stdout=out, stderr=out))
        _await_idle(folder, environment)
        yield {"SLURM_CONF": str(conf)}
    finally:
        with suppress(subprocess.SubprocessError, OSError):
            subprocess.run(["scancel", "--full", "-u", "root"], env=environment, timeout=20, capture_output=True)
            _await_empty(environment)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> Path:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    # Who runs the jobs must be able to read the configuration, whatever the mask.
    folder.chmod(0o755)
    for number in range(2):
        device = folder / f"gpu{number}"
        # The number of /dev/null: nothing is behind it.
        os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
    conf = folder / "slurm.conf"
    conf.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            folder=folder,
            ctld_port=_free_port(),
            slurmd_port=_free_port(),
            kill_wait=KILL_WAIT_SECONDS,
        )
    )
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    return conf


def _munged(folder: Path) -> subprocess.Popen:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    options = [f"--{option}={folder / name}" for option, name in names.items()]
    log = folder / "munge.log"
    daemon = subprocess.Popen(["munged", "--foreground", "--force", *options, f"--log-file={log}"])
    _until(lambda: (folder / "munge.socket").exists(), "munged did not start", [log])
    return daemon


def _await_idle(folder: Path, environment: dict[str, str]) -> None:
    def idle() -> bool:
        said = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
        return said.stdout.strip() == "idle"

    logs = [folder / name for name in ("slurmctld.out", "slurmd.out", "slurmctld.log", "slurmd.log")]
    _until(idle, "Slurm did not start", logs)


def _await_empty(environment: dict[str, str]) -> None:
    def empty() -> bool:
        said = subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True, timeout=20)
        return not said.stdout.strip()

    with suppress(RuntimeError):
        _until(empty, "jobs are left", [], seconds=30)


def _until(holds, what: str, logs: list[Path], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            said = "\n".join(path.read_text(errors="replace")[-3000:] for path in logs if path.exists())
            raise RuntimeError(f"{what} within {seconds:g} s\n{said}")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    with running() as variables:
        print(*(f"export {name}={value}" for name, value in variables.items()), sep="\n", flush=True)
        sys.stdin.read()
