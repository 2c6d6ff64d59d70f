"""Hosts that are apart: network namespaces of this machine, each with a cable to one switch.

The hosts share the file system, as machines with a common folder do, and nothing else: a process of one host reaches
processes of another only through the switch.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
from collections.abc import Generator, Mapping, Sequence

PROGRAMS = ("ip", "unshare", "hostname")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def missing() -> str | None:
    """Return why this machine cannot make network namespaces, or None."""
    if absent := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        return f"{', '.join(absent)} not installed (on Debian: iproute2, util-linux and hostname)"
    if os.geteuid():
        return "network namespaces need root"
    try:
        with network(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"


@dataclasses.dataclass(frozen=True)
class Network:
    """Hosts 0, 1, ... at ``addresses``."""

    name: str
    addresses: tuple[str, ...]

    def start(self, host: int, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start a command on a host. Its hostname is its address, because Gloo connects to the hostname."""
        enter = ["ip", "netns", "exec", f"{self.name}-{host}", "unshare", "--uts", "sh", "-c"]
        script = ['hostname "$0" && exec "$@"', self.addresses[host], *command]
        return subprocess.Popen(
            [*enter, *script], env={**environment, "PATH": PATH},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def signal(self, host: int, number: int) -> None:
        """Send a signal to all processes of a host."""
        pids = _ip("netns", "pids", f"{self.name}-{host}").split()
        for pid in map(int, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, host: int) -> None:
        """Kill all processes of a host."""
        self.signal(host, signal.SIGKILL)

    def cut(self, host: int) -> None:
        """Pull the cable of a host: packets are lost, and nobody is told."""
        _ip("-n", f"{self.name}-switch", "link", "set", f"port{host}", "down")

    def heal(self, host: int) -> None:
        """Plug the cable of a host in again."""
        _ip("-n", f"{self.name}-switch", "link", "set", f"port{host}", "up")


@contextlib.contextmanager
def network(hosts: int) -> Generator[Network]:
    """Make hosts and a switch, and remove them after the block. Raise CalledProcessError if it is not permitted."""
    name = f"revelio-{os.getpid()}"
    names = [f"{name}-switch", *(f"{name}-{host}" for host in range(hosts))]
    with contextlib.ExitStack() as stack:
        for each in names:
            _ip("netns", "add", each)
            stack.callback(_ip, "netns", "delete", each)
            _ip("-n", each, "link", "set", "lo", "up")
        switch = names[0]
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        addresses = tuple(f"10.0.0.{host + 1}" for host in range(hosts))
        for host, address in enumerate(addresses):
            port, end = f"port{host}", ("name", "eth0", "netns", names[host + 1])
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", *end)
            _ip("-n", switch, "link", "set", port, "master", "switch", "up")
            _ip("-n", names[host + 1], "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", names[host + 1], "link", "set", "eth0", "up")
        made = Network(name, addresses)
        for host in range(hosts):
            stack.callback(made.kill, host)
        yield made


def _ip(*arguments: str) -> str:
    environment = {**os.environ, "PATH": PATH}
    return subprocess.run(["ip", *arguments], env=environment, capture_output=True, text=True, check=True).stdout
