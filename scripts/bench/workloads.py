"""What is measured: each workload makes its files, then gives a row of samples for each tool."""

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

from tools import Said, Sample, measure


class Workload:
    """One row of the table, or several."""

    name = ""
    rows = []
    on_request = False  # too long for a run of all

    def __init__(self, work, quick):
        self.dir = Path(work) / "workloads" / self.name
        self.dir.mkdir(parents=True)
        self.quick = quick

    def setup(self):
        pass

    def write(self, text):
        (self.dir / "Dockerfile").write_text(text)

    def best(self, rounds, timed, before=lambda: None):
        """The least of each figure: noise only adds."""
        samples = []
        for _ in range(1 if self.quick else rounds):
            before()
            samples.append(timed())
        return Sample(*(min(getattr(s, f) for s in samples) for f in ("wall", "cpu", "memory")))

    def rounds(self, tool, kiln, others):
        return kiln if tool.name == "kiln" else others


def cacheonly(tool):
    return {"output": "type=cacheonly"} if tool.cacheonly else {}


class Unchanged(Workload):
    name = "unchanged"
    rows = ["nothing changed: 20 steps, 3 stages"]

    def setup(self):
        run = lambda n: "".join(f"RUN echo {i} > /{n}{i}\n" for i in range(6))
        (self.dir / "file").write_text("content\n")
        self.write(
            f"FROM bench-base AS one\n{run('a')}FROM bench-base AS two\nCOPY file /\n{run('b')}"
            f"FROM bench-base\nCOPY --from=one /a5 /\nCOPY --from=two /b5 /\n{run('c')[:-1]}\nENV done=1\n"
        )

    def measure(self, tool):
        tool.build(self.dir)
        return [self.best(self.rounds(tool, 20, 5), lambda: tool.build(self.dir))]


class OneFile(Workload):
    name = "one-file"
    rows = ["one changed file: 2,000-file app, 6 steps, 2 of them rerun"]

    def setup(self):
        files(self.dir / "src", 2000, 4_000)
        (self.dir / "package").write_text("{}\n")
        self.write(
            "FROM bench-base\nWORKDIR /app\nCOPY package .\nRUN cat package > /installed\n"
            "COPY . .\nRUN find . -type f | wc -l > /count\n"
        )

    def measure(self, tool):
        tool.build(self.dir)
        count = iter(range(1000))
        change = lambda: (self.dir / "src/d0/f7").write_text(f"{tool.name} {next(count)} {time.time()}\n")
        return [self.best(self.rounds(tool, 10, 4), lambda: tool.build(self.dir), change)]


class ManyRuns(Workload):
    name = "runs"
    rows = ["50 trivial RUN steps, uncached"]

    def setup(self):
        self.write("FROM bench-base\n" + "".join(f"RUN echo {i} > /f{i}\n" for i in range(50)))

    def measure(self, tool):
        return [self.best(self.rounds(tool, 5, 2), lambda: tool.build(self.dir, no_cache=True))]


class Sleeping(Workload):
    name = "sleeping"
    rows = ["12 independent stages that sleep one second"]

    def setup(self):
        stages = "".join(f"FROM bench-base AS s{i}\nRUN sleep 1; echo {i} > /f{i}\n" for i in range(12))
        copies = "".join(f"COPY --from=s{i} /f{i} /\n" for i in range(12))
        self.write(f"{stages}FROM bench-base\n{copies}")

    def measure(self, tool):
        return [self.best(self.rounds(tool, 2, 1), lambda: tool.build(self.dir, no_cache=True))]


class Context(Workload):
    name = "context"

    @property
    def rows(self):
        return [
            f"{self.count:,} files, {self.count * 4 // 1000} MB: first COPY",
            "the same: first build of an image",
            "the same: nothing changed",
        ]

    def __init__(self, work, quick):
        super().__init__(work, quick)
        self.count = 5_000 if quick else 50_000

    def fresh(self):
        """Makes a context that no tool has seen; what the last run made stays.

        Files are not deleted between two runs: for minutes after many deletions ext4 looks at each deleted inode before it makes
        a new one, and then `cp` takes ten times as long.
        """
        self.made = getattr(self, "made", 0) + 1
        self.context = self.dir / f"context{self.made}"
        files(self.context / "tree", self.count, 4_000, seed=self.made)
        (self.context / "Dockerfile").write_text("FROM scratch\nCOPY tree /tree\n")

    def reference(self):
        copy = lambda: measure(["cp", "-a", str(self.context), f"{self.context}-copy"], None, self.dir / "log")
        return {self.rows[0]: ("cp -a", self.best(2, copy, self.fresh))}

    def measure(self, tool):
        first = None
        if tool.cacheonly:
            copy = lambda: tool.build(self.context, output="type=cacheonly")
            first = self.best(self.rounds(tool, 2, 1), copy, self.fresh)
        image = self.best(self.rounds(tool, 2, 1), lambda: tool.build(self.context), self.fresh)
        # What can't do the one without the other is compared by both.
        first = first or image
        again = self.best(self.rounds(tool, 5, 2), lambda: tool.build(self.context))
        return [first, image, again]


class BetweenStages(Workload):
    name = "stages"
    rows = ["400 MB made in one stage and copied into the next", "the same: an image"]

    def setup(self):
        self.write(
            "FROM bench-base AS make\n"
            "RUN mkdir /tree; i=0; while [ $i -lt 400 ]; do dd if=/dev/urandom of=/tree/$i bs=1M count=1 2>/dev/null; i=$((i+1)); done\n"
            "FROM bench-base\nCOPY --from=make /tree /tree\n"
        )

    def measure(self, tool):
        plain = None
        if tool.cacheonly:
            plain = self.best(self.rounds(tool, 3, 1), lambda: tool.build(self.dir, no_cache=True, **cacheonly(tool)))
        image = self.best(self.rounds(tool, 2, 1), lambda: tool.build(self.dir, no_cache=True))
        return [plain or image, image]


class Archives(Workload):
    name = "archives"

    @property
    def rows(self):
        return [f"new layer of real files ({self.size / 1e6:.0f} MB) to an OCI archive: {c}" for c in ("gzip", "zstd")]

    def __init__(self, work, quick):
        super().__init__(work, quick)
        self.size = 0
        self.sizes = {}

    def setup(self):
        context = self.dir / "context"
        # Programs, libraries, headers, texts, bytecode: what an image of a distribution holds.
        for source in ("/usr/bin", "/usr/lib/gcc", "/usr/include", "/usr/lib/python3", "/usr/share/perl", "/usr/share/doc"):
            self.size += self.take(source, context / "tree", 20e6 if self.quick else 60e6)
        (context / "Dockerfile").write_text("FROM scratch\nCOPY tree /\n")

    def take(self, source, target, most):
        """Copies regular files until there are enough."""
        size = 0
        for directory, subdirectories, names in os.walk(source):
            subdirectories.sort()
            for path in (os.path.join(directory, name) for name in sorted(names)):
                if size > most or os.path.islink(path) or not os.path.isfile(path):
                    continue
                to = target / path[1:]
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, to)
                size += to.stat().st_size
        return size

    def measure(self, tool):
        if not tool.archives:
            return [None, None]
        tool.build(self.dir / "context", **cacheonly(tool))
        samples = []
        for format in ("gzip", "zstd"):
            dest = self.dir / f"{tool.name}.{format}.tar"
            output = f"type=oci,compression={format},dest={dest}"
            if format == "zstd":
                output += ",force-compression=true,oci-mediatypes=true"
            build = lambda: tool.build(self.dir / "context", no_cache=True, output=output)
            sample = self.best(self.rounds(tool, 3, 2), build, lambda: dest.unlink(missing_ok=True))
            sample.note = f"{dest.stat().st_size / 1e6:.1f} MB"
            dest.unlink()
            samples.append(sample)
        return samples


class Plan(Workload):
    name = "plan"
    rows = ["500 stages, 5,000 steps: plan", "1,000 stages, 10,000 steps: plan"]

    def setup(self):
        for stages in (500, 1000):
            directory = self.dir / str(stages)
            directory.mkdir()
            # All stages come from the first one, whose step fails: everything is planned and nothing else runs.
            text = "FROM bench-base AS s0\nRUN exit 1\n"
            for i in range(1, stages):
                text += f"FROM s0 AS s{i}\n" + "".join(f"RUN echo {i} {j}\n" for j in range(9))
            text += "FROM s0\n" + "".join(f"COPY --from=s{i} /f /f{i}\n" for i in range(1, stages))
            (directory / "Dockerfile").write_text(text)

    def measure(self, tool):
        if tool.name == "buildah":
            return [None, None]
        build = lambda stages: tool.build(self.dir / str(stages), expect_failure=True)
        return [self.best(self.rounds(tool, 5, 1), lambda: build(stages)) for stages in (500, 1000)]


class LargeFile(Workload):
    """For kiln's memory alone."""

    name = "large-file"
    rows = ["one file of 2 GB to a gzip OCI archive"]

    def setup(self):
        line = b"".join(b"%d lines of a large file\n" % i for i in range(40_000))
        context = self.dir / "context"
        context.mkdir()
        with open(context / "large", "wb") as out:
            for _ in range((200_000_000 if self.quick else 2_000_000_000) // len(line)):
                out.write(line)
        (context / "Dockerfile").write_text("FROM scratch\nCOPY large /\n")

    def measure(self, tool):
        if tool.name != "kiln":
            return [None]
        dest = self.dir / "out.tar"
        sample = tool.build(self.dir / "context", output=f"type=oci,compression=gzip,dest={dest}")
        dest.unlink()
        return [sample]


class Program(Workload):
    name = "binary"
    rows = ["size of the program"]

    def measure(self, tool):
        return [Said(f"{Path(tool.binary).stat().st_size / 1e6:.1f} MB") if tool.name == "kiln" else None]


class ColdBuild(Workload):
    name = "cold-build"
    rows = ["cold `cargo build --release`"]
    on_request = True

    def measure(self, tool):
        if tool.name != "kiln":
            return [None]
        env = dict(os.environ, CARGO_TARGET_DIR=str(self.dir / "target"))
        manifest = str(Path(__file__).resolve().parents[2] / "Cargo.toml")
        return [measure(["cargo", "build", "--release", "--locked", "--manifest-path", manifest], env, self.dir / "log")]


ALL = [Unchanged, OneFile, ManyRuns, Sleeping, Context, BetweenStages, Archives, LargeFile, Plan, Program, ColdBuild]


def base_context(work):
    """A context whose image is one static busybox."""
    busybox = shutil.which("busybox")
    if not busybox or b"statically" not in subprocess.run(["file", "-L", busybox], capture_output=True).stdout:
        raise LookupError("a static busybox is needed (Debian: busybox-static)")
    context = Path(work) / "base"
    root = context / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for applet in ("sh", "cat", "dd", "echo", "find", "mkdir", "sleep", "wc"):
        (root / "bin" / applet).symlink_to("busybox")
    # What every image of a distribution has.
    for directory in ("dev", "etc", "proc", "sys", "tmp"):
        (root / directory).mkdir()
    for name in ("hosts", "hostname", "resolv.conf"):
        (root / "etc" / name).touch()
    (context / "Dockerfile").write_text('FROM scratch\nCOPY root /\nENV PATH=/bin\nCMD ["sh"]\n')
    return context


def files(directory, count, size, seed=0):
    """Files of about `size` bytes, half of them hard to compress, 100 in a directory."""
    source = random.Random(count + seed)
    for i in range(count):
        if i % 100 == 0:
            (directory / f"d{i // 100}").mkdir(parents=True)
        half = source.randbytes(size // 2)
        (directory / f"d{i // 100}" / f"f{i % 100}").write_bytes(half + (b"%d text " % i * size)[: size // 2])
