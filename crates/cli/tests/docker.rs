//! What docker itself makes of kiln's images, and kiln of docker's: archives, a registry between them, containers.

#[path = "support/dockerd.rs"]
mod dockerd;
mod support;

use dockerd::Dockerd;
use kiln_registry::testing::{DockerRegistry, RegistryOptions};
use support::{BASE, Sandbox, has_tool};

const APP: &str = "WORKDIR /app
COPY --chown=7:8 --chmod=4751 note /app/note
RUN ln note hard && ln -s note soft && mkfifo fifo && rm /bin/vi && chmod 1777 /app
ENV GREETING=\"hello, docker\"
LABEL made=here
EXPOSE 8080
VOLUME /data
USER 1234:8
ENTRYPOINT [\"/bin/sh\", \"-c\"]
CMD [\"echo $GREETING; id -u; stat -c '%A %u %g %h' note; readlink soft; test ! -e /bin/vi && pwd\"]
";
const SAYS: &str = "hello, docker\n1234\n-rwsr-x--x 7 8 2\nnote\n/app";

/// A sandbox with the image `app`, and a daemon.
fn world() -> Option<(Sandbox, Dockerd)> {
    let sandbox = Sandbox::new(&format!("{BASE}{APP}"))?;
    let daemon = Dockerd::start(&sandbox.path(""))?;
    sandbox.file("note", "a note\n");
    sandbox.build(&["-t", "app:1"]).ok();
    Some((sandbox, daemon))
}

fn kilns_id(sandbox: &Sandbox, name: &str) -> String {
    sandbox.kiln(&["inspect", "-f", "{{.Id}}", name]).ok().stdout.trim().to_owned()
}

#[test]
fn docker_loads_and_runs_what_kiln_saves_and_the_other_way_round() {
    let Some((sandbox, daemon)) = world() else { return };
    let path = |name: &str| sandbox.path(name).to_string_lossy().into_owned();
    let id = kilns_id(&sandbox, "app:1");
    // Its own format: docker reads OCI archives since version 25 only.
    sandbox.kiln(&["save", "-o", "docker.tar", "app:1"]).ok();
    assert!(daemon.docker(&["load", "-i", &path("docker.tar")]).contains("app:1"));
    assert_eq!(daemon.docker(&["run", "--rm", "--network=none", "app:1"]), SAYS);
    assert_eq!(daemon.docker(&["inspect", "-f", "{{.Id}}", "app:1"]), id, "the ID is the config's digest");
    let config = daemon.docker(&["inspect", "-f", "{{json .Config.ExposedPorts}} {{.Config.Labels.made}}", "app:1"]);
    assert_eq!(config, "{\"8080/tcp\":{}} here");
    let steps = sandbox.kiln(&["history", "-q", "app:1"]).ok().stdout.lines().count();
    assert_eq!(daemon.docker(&["history", "-q", "app:1"]).lines().count(), steps);
    daemon.docker(&["tag", "app:1", "theirs:2"]);
    daemon.docker(&["save", "-o", &path("theirs.tar"), "theirs:2"]);
    assert_eq!(sandbox.kiln(&["load", "-i", "theirs.tar"]).ok().stdout, "Loaded image: theirs:2\n");
    assert_eq!(kilns_id(&sandbox, "theirs:2"), id);
    assert_eq!(sandbox.kiln(&["run", "--rm", "theirs:2"]).ok().stdout.trim_end(), SAYS);
}

#[test]
fn docker_pulls_what_kiln_pushes_and_the_other_way_round() {
    if !has_tool("docker-registry") {
        return;
    }
    let Some((sandbox, daemon)) = world() else { return };
    let Some(registry) = DockerRegistry::start(&RegistryOptions::default()) else { return };
    let name = |rest: &str| format!("{}/{rest}", registry.host());
    let id = kilns_id(&sandbox, "app:1");
    for compression in ["gzip", "zstd"] {
        let name = name(&format!("{compression}:1"));
        sandbox.build(&["-o", &format!("type=image,name={name},push=true,compression={compression}")]).ok();
        daemon.docker(&["pull", "-q", &name]);
        assert_eq!(daemon.docker(&["run", "--rm", "--network=none", &name]), SAYS, "{compression}");
        assert_eq!(daemon.docker(&["inspect", "-f", "{{.Id}}", &name]), id, "{compression}");
    }
    let theirs = name("theirs:1");
    daemon.docker(&["tag", &name("gzip:1"), &theirs]);
    daemon.docker(&["push", "-q", &theirs]);
    sandbox.kiln(&["pull", "-q", &theirs]).ok();
    assert_eq!(kilns_id(&sandbox, &theirs), id);
}
