"""The files of a testbed: its folder, slurm.conf, gres.conf, and what is known of it.

Nothing here starts or stops anything.
"""

import contextlib
import json
import os
import random
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path

FIRST_PORT, LAST_PORT = 17000, 19999
"""Below the kernel's ephemeral ports, and apart from the 20000-29999 where ranks meet."""

CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
AuthType=auth/munge
CredType=cred/munge
AuthInfo={auth_info}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2,sched_interval=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=15
MinJobAge=3600
{gres}
"""


class Problem(Exception):
    """Something the caller has to put right; printed without a traceback."""


@dataclass
class Bed:
    """One testbed: what was asked for, its ports and the processes it started."""

    folder: str
    name: str
    nodes: int
    gpus: int
    cpus: int
    ports: list[int]
    socket: str = ""
    started: dict[str, list[int]] = field(default_factory=dict)
    """Daemon name to (process id, the kernel's start time of that process)."""

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def conf(self) -> Path:
        return self.path / "slurm.conf"

    def node(self, index: int) -> str:
        """Return the name of the node with this index."""
        return f"node{index + 1}"

    def save(self) -> None:
        """Write what is known, so that other calls find and end what was started."""
        temporary = self.path / "testbed.json.tmp"
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        temporary.rename(self.path / "testbed.json")


def load(folder: Path) -> Bed | None:
    """Read what is known of the testbed in `folder`; None where there is none."""
    try:
        return Bed(**json.loads((folder / "testbed.json").read_text()))
    except FileNotFoundError:
        return None


def create(folder: Path, nodes: int, gpus: int, cpus: int) -> Bed:
    """Make the folder with slurm.conf, gres.conf and the files that stand for GPUs."""
    if folder.exists() and any(folder.iterdir()):
        raise Problem(f"{folder} holds files that are not a testbed's; choose another --dir")
    if len(str(folder)) > 80:  # a Unix socket's path has 107 bytes at most
        raise Problem(f"{folder}: the path is too long for a socket; choose a shorter --dir")
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    for index in range(gpus):
        (folder / f"gpu{index}").touch()
    (folder / "state").mkdir()
    bed = Bed(str(folder), f"testbed{os.getpid()}", nodes, gpus, cpus, _free_ports(nodes + 1))
    bed.save()
    return bed


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.sample(range(FIRST_PORT, LAST_PORT + 1), LAST_PORT - FIRST_PORT + 1):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise Problem(f"no {count} free ports between {FIRST_PORT} and {LAST_PORT}")


def write_conf(bed: Bed) -> None:
    """Write slurm.conf and gres.conf."""
    host = socket.gethostname().split(".")[0]
    # A requeued job waits for its credential to expire: 120 s by default, 30 s here.
    auth_info = "cred_expire=30" + (f",socket={bed.socket}" if bed.socket else "")
    gres = "GresTypes=gpu" if bed.gpus else ""
    text = CONF.format(
        name=bed.name,
        host=host,
        port=bed.ports[0],
        folder=bed.folder,
        auth_info=auth_info,
        gres=gres,
    )
    with_gpus = f" Gres=gpu:{bed.gpus}" if bed.gpus else ""
    for index in range(bed.nodes):
        text += (
            f"NodeName={bed.node(index)} NodeHostname={host} NodeAddr=127.0.0.1 "
            f"Port={bed.ports[index + 1]} CPUs={bed.cpus} RealMemory=1000000{with_gpus}\n"
        )
    text += "PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=10 State=UP\n"
    text += "PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP\n"
    bed.conf.write_text(text)
    if bed.gpus:
        last = f"[0-{bed.gpus - 1}]" if bed.gpus > 1 else "0"
        (bed.path / "gres.conf").write_text(f"Name=gpu File={bed.folder}/gpu{last}\n")
