"""The builders that are compared: how each is started and told to build."""

import os
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

PLUGIN_DIRS = ["/usr/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins", "/usr/local/lib/docker/cli-plugins"]


class Sample:
    """What one command took: seconds of wall clock, seconds of all CPUs, and MB of memory of its processes together."""

    def __init__(self, wall, cpu, memory):
        self.wall, self.cpu, self.memory = wall, cpu, memory


class Said:
    """A result that is no measurement of time."""

    def __init__(self, text):
        self.text = text


def measure(argv, env, log, expect_failure=False):
    """Runs a command with its output in a file."""
    with open(log, "ab") as out:
        out.write(("\n$ " + " ".join(argv) + "\n").encode())
        out.flush()
        begin = time.perf_counter()
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        children = Watch(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
    if (process.returncode != 0) != expect_failure:
        tail = Path(log).read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(argv)}: exit code {process.returncode}\n{tail}")
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024 + children.stop())


class Watch(threading.Thread):
    """Looks from time to time how much memory the children of a process have, what runs in its containers included."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.most, self.over = pid, 0, threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.05):
            fields = (read(f"/proc/{pid}/statm").split() for pid in descendants(self.pid))
            self.most = max(self.most, sum(int(f[1]) for f in fields if f) * resource.getpagesize() / 2**20)

    def stop(self):
        self.over.set()
        self.join()
        return self.most


def read(path):
    """A file of a process; nothing if that is gone."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def threads(pid):
    """The threads of a process; none if that is gone."""
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def descendants(pid):
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        for thread in threads(pid):
            children = read(f"/proc/{pid}/task/{thread}/children").split()
            found += children
            todo += children
    return found


class Tool:
    """One builder, with all its state below `work`."""

    name = ""
    cacheonly = True  # it can build without writing an image
    archives = True  # it can write OCI archives in gzip and zstd

    def __init__(self, work):
        self.work = Path(work) / self.name
        self.work.mkdir(parents=True)
        self.log = self.work / "log"
        self.env = dict(os.environ)

    def run(self, *argv, **options):
        return measure([str(a) for a in argv], self.env, self.log, **options)

    def build(self, context, *, no_cache=False, output=None, tag=None, expect_failure=False):
        argv = self.build_argv() + (["--no-cache"] if no_cache else [])
        argv += ["--output", output] if output else ["--tag", tag or "bench"]
        before = self.daemon_cpu()
        sample = self.run(*argv, context, expect_failure=expect_failure)
        sample.cpu += self.daemon_cpu() - before
        return sample

    def daemon_cpu(self):
        return 0.0

    def base(self, context):
        """Makes the image that the workloads begin with."""
        self.build(context, tag="bench-base")

    def stop(self):
        pass


class Kiln(Tool):
    name = "kiln"

    def __init__(self, work, binary):
        super().__init__(work)
        self.binary = binary
        self.env["KILN_ROOT"] = str(self.work / "root")
        self.title = subprocess.run([binary, "--version"], text=True, capture_output=True).stdout.strip()

    def build_argv(self):
        return [self.binary, "build", "--progress=plain"]


class Docker(Tool):
    """dockerd with its BuildKit, started here with a data directory of its own."""

    name = "docker"

    def __init__(self, work):
        super().__init__(work)
        self.daemon = None
        client, self.buildx = self.find_client()
        self.client = client
        dockerd = shutil.which("dockerd")
        if not client or not dockerd:
            raise LookupError("dockerd and a docker client that speaks to BuildKit are not installed")
        self.env.update(DOCKER_HOST=f"unix://{self.work}/socket", DOCKER_BUILDKIT="1", BUILDX_NO_DEFAULT_ATTESTATIONS="1")
        version = subprocess.run([dockerd, "--version"], text=True, capture_output=True).stdout
        version = re.search(r"version ([0-9.]+)", version).group(1)
        self.title = f"docker {version} (BuildKit)"
        # The store of containerd is what can write OCI archives; BuildKit by itself works with it as well.
        self.archives = self.cacheonly = self.buildx and int(version.split(".")[0]) >= 25
        argv = [dockerd, "--data-root", self.work / "data", "--exec-root", self.work / "exec", "--pidfile", self.work / "pid"]
        argv += ["-H", f"unix://{self.work}/socket", "--iptables=false", "--bridge=none"]
        argv += ["--feature", "containerd-snapshotter=true"] if self.archives else ["--storage-driver=overlay2"]
        self.daemon = subprocess.Popen(
            [str(a) for a in argv], stdout=open(self.work / "dockerd.log", "wb"), stderr=subprocess.STDOUT, start_new_session=True
        )
        for _ in range(300):
            if subprocess.run([client, "info"], env=self.env, capture_output=True).returncode == 0:
                return
            if self.daemon.poll() is not None:
                break
            time.sleep(0.1)
        self.stop()
        raise LookupError(f"dockerd does not start: {(self.work / 'dockerd.log').read_text()[-500:]}")

    def find_client(self):
        """The first client that has buildx, else an old one that has BuildKit's client built in."""
        config = self.work / "config"
        (config / "cli-plugins").mkdir(parents=True)
        plugin = shutil.which("docker-buildx", path=os.pathsep.join([os.environ.get("PATH", "")] + PLUGIN_DIRS))
        if plugin:
            (config / "cli-plugins" / "docker-buildx").symlink_to(plugin)
        self.env["DOCKER_CONFIG"] = str(config)
        for directory in os.environ.get("PATH", "").split(os.pathsep):
            client = os.path.join(directory, "docker")
            if not os.access(client, os.X_OK):
                continue
            if subprocess.run([client, "buildx", "version"], env=self.env, capture_output=True).returncode == 0:
                return client, True
            version = subprocess.run([client, "--version"], text=True, capture_output=True).stdout
            found = re.search(r"version (\d+)\.", version)
            if found and 18 < int(found.group(1)) < 23:
                return client, False
        return None, False

    def build_argv(self):
        return [self.client] + (["buildx", "build"] if self.buildx else ["build"]) + ["--progress=plain", "--network=host"]

    def daemon_cpu(self):
        """Of dockerd, the containerd that it started, and their children that have ended."""
        if not self.daemon:
            return 0.0
        stats = (read(f"/proc/{pid}/stat").rpartition(")")[2].split() for pid in [self.daemon.pid] + descendants(self.daemon.pid))
        return sum(int(f) for fields in stats for f in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        if self.daemon and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGTERM)
            try:
                self.daemon.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.daemon.pid, signal.SIGKILL)
        # Mounts of what was killed would keep the directory from being removed.
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            target = line.split()[1]
            if target.startswith(f"{self.work}/"):
                subprocess.run(["umount", "-l", target], capture_output=True)


class Buildah(Tool):
    name = "buildah"
    cacheonly = False

    def __init__(self, work):
        super().__init__(work)
        self.binary = shutil.which("buildah")
        runtime = shutil.which("runc") or shutil.which("crun")
        if not self.binary or not runtime:
            raise LookupError("buildah and a container runtime are not installed")
        version = subprocess.run([self.binary, "--version"], text=True, capture_output=True).stdout
        self.title = "buildah " + version.split()[2]
        self.storage = ["--root", str(self.work / "root"), "--runroot", str(self.work / "run"), "--storage-driver=overlay"]
        self.runtime = runtime
        self.env.setdefault("BUILDAH_HISTORY", "true")

    def build_argv(self):
        return [self.binary] + self.storage + ["bud", "--layers", "--runtime", self.runtime, "--pull=never"]

    def build(self, context, *, no_cache=False, output=None, tag=None, expect_failure=False):
        """It always writes an image; an archive is a second command."""
        sample = super().build(context, no_cache=no_cache, tag=tag, expect_failure=expect_failure)
        if output and output.startswith("type=oci"):
            attributes = dict(a.split("=", 1) for a in output.split(","))
            push = [self.binary] + self.storage + ["push", "--compression-format", attributes["compression"]]
            more = self.run(*push, "bench", f"oci-archive:{attributes['dest']}")
            sample = Sample(sample.wall + more.wall, sample.cpu + more.cpu, max(sample.memory, more.memory))
        return sample

    def stop(self):
        subprocess.run(["umount", "-l", str(self.work / "root" / "overlay")], capture_output=True)


def raise_file_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 65536), hard), hard))
