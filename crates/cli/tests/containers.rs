//! Containers that outlive their command: made, listed, started again, joined, copied from and into, removed.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};

use support::*;

/// A sandbox with an image `box` that has a shell.
fn with_image(rest: &str) -> Option<Sandbox> {
    let s = Sandbox::new(&format!("{BASE}FROM base\nCMD [\"sh\"]\n{rest}"))?;
    s.build(&["-t", "box"]).ok();
    Some(s)
}

/// A kiln that is not left behind by a test that fails.
struct Foreground(Child);

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a container in the foreground and waits until its command says that it is ready.
fn ready(mut command: Command) -> Foreground {
    let mut child = Foreground(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

const WAITS: &str = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";

fn status(s: &Sandbox, name: &str) -> String {
    let filter = format!("name={name}");
    s.kiln(&["ps", "-a", "--filter", &filter, "--format", "{{.State}} {{.Status}}"]).ok().stdout
}

#[test]
fn files_are_extracted_as_the_articles_do() {
    let Some(s) = with_image("RUN mkdir -p /app/sub && echo binary > /app/server && echo x > /app/sub/x\n") else {
        return;
    };
    let id = s.kiln(&["create", "--name", "extract", "box"]).ok().stdout;
    assert!(id.trim_end().len() == 64 && id.trim_end().bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    s.kiln(&["cp", "extract:/app/server", "./server"]).ok().hides("Successfully");
    assert_eq!(text(s.path("server")), "binary\n");
    s.kiln(&["cp", "-q", "extract:/app", "out"]).ok().hides("Successfully");
    assert_eq!(names(s.path("out")), ["server", "sub"]);
    s.kiln(&["cp", "extract:/app", "out"]).ok();
    assert_eq!(names(s.path("out")), ["app", "server", "sub"]);
    s.kiln(&["cp", "extract:/app/.", "out/sub"]).ok();
    assert_eq!(names(s.path("out/sub")), ["server", "sub", "x"]);
    assert_eq!(s.kiln(&["rm", "-f", "extract"]).ok().stdout, "extract\n");
    s.kiln(&["cp", "extract:/app/server", "."]).fails(1).says(&["No such container: extract"]);
    assert_eq!(s.kiln(&["ps", "-aq"]).ok().stdout, "");
    assert!(names(s.path("store/containers")).is_empty());
}

#[test]
fn a_container_stays_until_it_is_removed_and_starts_again_over_its_files() {
    let Some(s) = with_image("") else { return };
    let script = "cat /count 2>/dev/null; echo x >> /count; exit 3";
    s.kiln(&["run", "--name", "job", "-l", "stage=test", "--cidfile", "cid", "box", "sh", "-c", script]).fails(3);
    let id = text(s.path("cid"));
    assert!(status(&s, "job").starts_with("exited Exited (3) "), "{}", status(&s, "job"));
    assert_eq!(s.kiln(&["start", "-a", "job"]).fails(3).stdout, "x\n");
    assert_eq!(s.kiln(&["start", "--attach", &id[..12]]).fails(3).stdout, "x\nx\n");
    s.kiln(&["run", "--name", "job", "box", "true"]).fails(125).says(&["\"/job\" is already in use by container", &id]);
    s.kiln(&["run", "--cidfile", "cid", "box", "true"]).fails(125).says(&["container ID file"]);
    let quiet = |args: &[&str]| s.kiln(&[&["ps", "-q", "--no-trunc"], args].concat()).ok().stdout;
    assert_eq!(quiet(&[]), "");
    let own = format!("{id}\n");
    for filter in ["status=exited", "exited=3", "label=stage=test", "label=stage", "ancestor=box", "name=jo"] {
        assert_eq!(quiet(&["-a", "--filter", filter]), own, "{filter}");
    }
    assert_eq!(quiet(&["-a", "--filter", "label=stage=other"]), "");
    assert_eq!(quiet(&["-l"]), own);
    s.kiln(&["run", "--rm", "--name", "gone", "box", "true"]).ok();
    s.kiln(&["run", "--rm", "box", "no-such-command"]).fails(127);
    assert_eq!(quiet(&["-a"]), own);
    let inspected =
        s.kiln(&["inspect", "-f", "{{.Name}} {{.State.ExitCode}} {{.Path}} {{.Config.Labels.stage}}", "job"]);
    assert_eq!(inspected.ok().stdout, "/job 3 sh test\n");
    s.kiln(&["inspect", "--type", "image", "job"]).fails(1);
    let df = s.kiln(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"]).ok().stdout;
    assert!(df.contains("Containers 1 0"), "{df}");
    let pruned = s.kiln(&["container", "prune", "-f"]).ok().stdout;
    assert!(pruned.starts_with(&format!("Deleted Containers:\n{own}\nTotal reclaimed space: ")), "{pruned}");
    s.kiln(&["start", "-a", "job"]).fails(1).says(&["No such container: job"]);
}

#[test]
fn a_killed_kiln_leaves_a_killed_container() {
    let Some(s) = with_image("") else { return };
    let mut child = ready(s.command(["run", "--name", "victim", "box", "sh", "-c", WAITS]));
    let mut fleeting = ready(s.command(["run", "--rm", "--name", "fleeting", "box", "sh", "-c", WAITS]));
    assert!(status(&s, "victim").starts_with("running Up "), "{}", status(&s, "victim"));
    s.kiln(&["rm", "victim"]).fails(1).says(&["container is running", "--force"]);
    child.0.kill().unwrap();
    fleeting.0.kill().unwrap();
    child.0.wait().unwrap();
    fleeting.0.wait().unwrap();
    let list = s.kiln(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"]).ok();
    assert!(
        list.stdout.starts_with("victim Exited (137) ") && list.stderr.is_empty(),
        "{}{}",
        list.stdout,
        list.stderr
    );
    assert_eq!(list.stdout.lines().count(), 1);
    assert_eq!(s.kiln(&["rm", "victim"]).ok().stdout, "victim\n");
}

#[test]
fn in_the_background_a_kiln_of_its_own_watches_it() {
    let Some(s) = with_image("") else { return };
    let script = format!("echo to stderr >&2; {}", WAITS.replace("exit 7", "echo stopping; exit 7"));
    // That this ends at all says that nothing of ours is held by the container.
    let id = s.kiln(&["run", "-d", "--name", "web", "-p", "80:80", "box", "sh", "-c", &script]).ok().stdout;
    let listed = s.kiln(&["ps", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.Ports}}"]).ok().stdout;
    assert_eq!(listed, format!("{} web 0.0.0.0:80->80/tcp\n", id.trim_end()));
    wait_until("it has written", || s.kiln(&["logs", "web"]).ok().stdout == "ready\n");
    let mut follower =
        s.command(["logs", "-f", "-t", "web"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut waiter = s.command(["wait", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(s.kiln(&["stop", "web"]).ok().stdout, "web\n");
    let all = |child: &mut Child| std::io::read_to_string(child.stdout.as_mut().unwrap()).unwrap();
    assert_eq!(all(&mut waiter), "7\n");
    let followed = all(&mut follower);
    let texts: Vec<&str> = followed.lines().filter_map(|l| l.split_once("Z ").map(|(_, text)| text)).collect();
    assert_eq!(texts, ["ready", "stopping"], "{followed}");
    waiter.wait().unwrap();
    follower.wait().unwrap();
    s.kiln(&["logs", "web"]).ok().says(&["to stderr\n"]);
    assert_eq!(s.kiln(&["logs", "-n", "1", "web"]).ok().stdout, "stopping\n");
    assert_eq!(s.kiln(&["logs", "--since", "2100-01-01", "web"]).ok().stdout, "");
    assert!(status(&s, "web").starts_with("exited Exited (7) "), "{}", status(&s, "web"));
    s.kiln(&["kill", "web"]).fails(1).says(&["not running"]);
    // Again, over the same log; then the kiln that watches it is killed.
    assert_eq!(s.kiln(&["start", "web"]).ok().stdout, "web\n");
    assert_eq!(s.kiln(&["start", "web"]).ok().stdout, "web\n", "it runs already");
    s.kiln(&["start", "-a", "web"]).fails(125).says(&["running already"]);
    assert_eq!(s.kiln(&["restart", "-t", "0", "web"]).ok().stdout, "web\n");
    let state = || text(s.path("store/containers").join(id.trim_end()).join("state.json"));
    let monitor = serde_json::from_str::<serde_json::Value>(&state()).unwrap()["monitor"]["pid"].to_string();
    assert!(Command::new("kill").args(["-9", &monitor]).status().unwrap().success());
    wait_until("it is dead", || !status(&s, "web").starts_with("running"));
    assert!(status(&s, "web").starts_with("exited Exited (137) "), "{}", status(&s, "web"));
    s.kiln(&["rm", "web"]).ok();
    // What can't be started is told at once; what has --rm goes with its end.
    s.kiln(&["run", "-d", "--rm", "box", "no-such-command"]).fails(127).says(&["no-such-command: command not found"]);
    s.kiln(&["run", "-d", "--rm", "-i", "--name", "cat", "box", "cat"]).ok();
    assert!(status(&s, "cat").starts_with("running"), "its input is open");
    s.kiln(&["kill", "cat"]).ok();
    assert_eq!(s.kiln(&["ps", "-aq"]).ok().stdout, "");
    wait_until("its files are gone", || names(s.path("store/containers")).is_empty());
}

#[test]
fn exec_joins_a_container_that_runs() {
    let Some(s) = with_image(
        "RUN mkdir -p /etc /w && echo worker:x:77:78::/home/worker:/bin/sh > /etc/passwd\nENV A=image\nWORKDIR /w\n",
    ) else {
        return;
    };
    let mut child = ready(s.command(["run", "--name", "web", "--hostname", "inside", "box", "sh", "-c", WAITS]));
    let exec = |args: &[&str]| s.kiln(&[&["exec"], args].concat());
    assert_eq!(
        exec(&["web", "sh", "-c", "hostname; pwd; echo $A; cat /proc/1/comm"]).ok().stdout,
        "inside\n/w\nimage\nsh\n"
    );
    assert_eq!(
        exec(&["-e", "A=b", "-w", "/", "-u", "worker", "web", "sh", "-c", "echo $A; pwd; id -u"]).ok().stdout,
        "b\n/\n77\n"
    );
    exec(&["web", "sh", "-c", "exit 42"]).fails(42);
    exec(&["web", "no-such-command"]).fails(127);
    exec(&["web", "/w"]).fails(126);
    let status = |args: &[&str]| {
        let text = exec(&[args, &["web", "grep", "-E", "^(Cap...|Seccomp|NoNewPrivs):", "/proc/self/status"]].concat())
            .ok()
            .stdout;
        let own = exec(&["web", "grep", "-E", "^(Cap...|Seccomp|NoNewPrivs):", "/proc/1/status"]).ok().stdout;
        (text, own)
    };
    let (joined, own) = status(&[]);
    assert_eq!(joined, own, "no more rights than the container's own process");
    let mut cat = s.command(["exec", "-i", "web", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    cat.stdin.take().unwrap().write_all(b"piped\n").unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"piped\n");
    // Copies see the same files, while it runs.
    exec(&["web", "sh", "-c", "echo from inside > /w/made"]).ok();
    s.kiln(&["cp", "web:made", "."]).fails(1).says(&["Could not find the file /made in container web"]);
    s.kiln(&["cp", "web:w/made", "."]).ok();
    assert_eq!(text(s.path("made")), "from inside\n");
    s.file("new", "from outside\n");
    s.kiln(&["cp", "ctx/new", "web:/w/"]).ok();
    assert_eq!(exec(&["web", "cat", "/w/new"]).ok().stdout, "from outside\n");
    assert_eq!(exec(&["web", "stat", "-c", "%u:%g", "/w/new"]).ok().stdout, "0:0\n");
    assert_eq!(s.kiln(&["rm", "-f", "web"]).ok().stdout, "web\n");
    assert_eq!(child.0.wait().unwrap().code(), Some(137));
    exec(&["web", "true"]).fails(1).says(&["No such container: web"]);
    s.kiln(&["create", "--name", "idle", "box"]).ok();
    exec(&["idle", "true"]).fails(1).says(&["the container idle is not running", "kiln start idle"]);
}

#[test]
fn copies_stay_in_the_container_whatever_its_links_say() {
    let Some(s) = with_image(
        "RUN mkdir -p /real /d && echo inside > /real/f && ln -s /real /legit && ln -s real/f /file && ln -s ../../../../../.. /up \
         && ln -s /etc/canary /secret && mkdir /etc/x && echo own > /etc/x/y && ln -s /nowhere /dangling\n",
    ) else {
        return;
    };
    let outside = s.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "secret of the host\n").unwrap();
    s.kiln(&["create", "--name", "cc", "box"]).ok();
    // Links that lead somewhere inside do so, on the way and with -L.
    s.kiln(&["cp", "cc:/legit/f", "through"]).ok();
    assert_eq!(text(s.path("through")), "inside\n");
    s.kiln(&["cp", "cc:/file", "link"]).ok();
    assert_eq!(fs::read_link(s.path("link")).unwrap().to_str(), Some("real/f"));
    s.kiln(&["cp", "-L", "cc:/file", "followed"]).ok();
    assert_eq!(text(s.path("followed")), "inside\n");
    // An absolute link and one with too many `..` mean the container's root.
    s.kiln(&["cp", "cc:/up/etc/x/y", "own"]).ok();
    assert_eq!(text(s.path("own")), "own\n");
    s.kiln(&["cp", "-L", "cc:/secret", "stolen"]).fails(1).says(&["Could not find the file /secret in container cc"]);
    // Into the container: a link that is the destination, or on the way, is followed inside.
    let host = outside.to_str().unwrap();
    let plant = format!("ln -s {host} /planted; ln -s {host}/canary /planted-file");
    s.kiln(&["run", "--name", "hh", "box", "sh", "-c", &plant]).ok();
    s.file("new", "new\n");
    s.kiln(&["cp", "ctx/new", "hh:/planted"]).fails(1);
    s.kiln(&["cp", "ctx/new", "hh:/planted/canary"]).fails(1);
    s.kiln(&["cp", "ctx/new", "hh:/planted-file"]).fails(1);
    assert_eq!(text(outside.join("canary")), "secret of the host\n");
    assert_eq!(names(&outside), ["canary"]);
    s.kiln(&["cp", "ctx/new", "cc:/legit"]).ok();
    s.kiln(&["cp", "cc:/real/new", "back"]).ok();
    assert_eq!(text(s.path("back")), "new\n");
    // A directory of the user's whose link leads out is not written through by what comes from the container.
    fs::create_dir(s.path("mine")).unwrap();
    symlink(&outside, s.path("mine/real")).unwrap();
    s.kiln(&["cp", "cc:/real", "mine"]).fails(1).says(&["a symbolic link is there"]);
    assert_eq!(names(&outside), ["canary"]);
    for (args, message) in [
        (["ctx/new", "cc:/no/such/dir"], "Could not find the file /no/such in container cc"),
        (["ctx/new", "cc:/missing/"], "no such directory"),
        (["ctx", "cc:/real/f"], "cannot copy directory"),
        (["ctx/none", "cc:/"], "no such file or directory"),
        (["cc:/none", "."], "Could not find the file /none in container cc"),
        (["cc:/real/f/", "."], "cc:/real/f/: not a directory"),
        (["ctx/new", "cc:/real/f/"], "cc:/real/f/: not a directory"),
    ] {
        s.kiln(&["cp", args[0], args[1]]).fails(1).says(&[message]);
    }
    let volume = format!("{host}:/mnt");
    s.kiln(&["create", "--name", "vv", "-v", &volume, "box"]).ok();
    s.kiln(&["cp", "ctx/new", "vv:/mnt/new"]).fails(1).says(&["/mnt of container vv is mounted from", host]);
    s.kiln(&["cp", "cc:/real", "hh:/"]).fails(2).says(&["between containers"]);
}

#[test]
fn tar_streams_go_both_ways_and_owners_are_kept_if_asked() {
    let Some(s) = with_image("RUN mkdir /d /opt && echo f > /d/f && chown -R 7:8 /d && chmod 640 /d/f\n") else {
        return;
    };
    s.kiln(&["create", "--name", "aa", "box"]).ok();
    s.kiln(&["create", "--name", "bb", "box"]).ok();
    let tar = s.command(["cp", "aa:/d", "-"]).output().unwrap();
    assert!(tar.status.success());
    let mut names_in: Vec<String> = Vec::new();
    let mut archive = tar::Archive::new(&tar.stdout[..]);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        names_in.push(format!("{} {}", entry.path().unwrap().display(), entry.header().uid().unwrap()));
    }
    assert_eq!(names_in, ["d/ 7", "d/f 7"]);
    let unpack = |args: &[&str], to: &str| {
        let mut child = s.command([&["cp"], args, &["-", to]].concat()).stdin(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(&tar.stdout);
        child.wait().unwrap().code()
    };
    assert_eq!(unpack(&[], "bb:/tmp/none"), Some(1));
    s.kiln(&["start", "-a", "bb"]).ok();
    assert_eq!(unpack(&["-a"], "bb:/bin"), Some(0));
    assert_eq!(unpack(&[], "bb:/opt"), Some(0));
    let listing = s.command(["export", "bb"]).output().unwrap();
    let mut archive = tar::Archive::new(&listing.stdout[..]);
    let owner = |path: &str, entry: &tar::Entry<'_, &[u8]>| {
        (entry.path().unwrap().to_str() == Some(path))
            .then(|| (entry.header().uid().unwrap(), entry.header().mode().unwrap()))
    };
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        found.extend(["bin/d/f", "opt/d/f"].into_iter().filter_map(|p| owner(p, &entry)));
    }
    assert_eq!(found, [(7, 0o640), (0, 0o640)]);
}

#[test]
fn what_a_container_changed_is_listed() {
    let Some(s) = with_image("RUN mkdir -p /d/gone /opt && touch /d/gone/x /d/kept /d/old /opt/same\n") else { return };
    let script = "rm -r /d/gone; mkdir /d/gone; touch /d/gone/y; rm /d/old; echo x >> /d/kept; mkdir /new; echo ready; sleep 1000";
    let mut child = ready(s.command(["run", "--name", "web", "box", "sh", "-c", script]));
    let changes = "C /d\nC /d/gone\nD /d/gone/x\nA /d/gone/y\nC /d/kept\nD /d/old\nA /new\n";
    assert_eq!(s.kiln(&["diff", "web"]).ok().stdout, changes, "while it runs");
    s.kiln(&["kill", "web"]).ok();
    child.0.wait().unwrap();
    assert_eq!(s.kiln(&["container", "diff", "web"]).ok().stdout, changes);
}

#[test]
fn of_two_that_want_a_name_one_gets_it() {
    let Some(s) = with_image("") else { return };
    let create =
        || s.command(["create", "--name", "one", "box"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut both = [create(), create()];
    let mut codes = both.each_mut().map(|child| child.wait().unwrap().code());
    codes.sort();
    assert_eq!(codes, [Some(0), Some(1)]);
    assert_eq!(s.kiln(&["ps", "-a", "--format", "{{.Names}}"]).ok().stdout, "one\n");
}

#[test]
fn a_containers_layers_are_kept_whatever_becomes_of_its_image() {
    let Some(s) = with_image("RUN echo content > /f\n") else { return };
    s.kiln(&["create", "--name", "keeper", "box", "cat", "/f"]).ok();
    s.kiln(&["rmi", "box"]).fails(1).says(&["the container keeper", "uses the image", "--force"]);
    s.kiln(&["image", "prune", "-af"]).ok();
    s.kiln(&["inspect", "--type", "image", "box"]).ok();
    s.kiln(&["rmi", "-f", "box"]).ok();
    s.kiln(&["prune", "-af"]).ok();
    assert_eq!(s.kiln(&["start", "-a", "keeper"]).ok().stdout, "content\n");
    s.kiln(&["rm", "keeper"]).ok();
    s.kiln(&["prune", "-af"]).ok();
    assert!(names(s.path("store/layers")).is_empty(), "nothing holds them any more");
}

#[test]
fn what_is_not_there_is_a_clear_error() {
    let Some(s) = with_image("") else { return };
    s.kiln(&["rm", "-f", "none"]).ok().says(&["No such container: none"]);
    s.kiln(&["logs", "none"]).fails(1).says(&["no container and no build none"]);
    s.kiln(&["rm", "none"]).fails(1).says(&["No such container: none"]);
    s.kiln(&["create", "--name", "-x", "box"]).fails(2);
    s.kiln(&["create", "--name", "a/b", "box"]).fails(1).says(&["invalid container name"]);
    s.kiln(&["create", "--pull", "never", "other"]).fails(1).says(&["no such image: other:latest"]);
    s.kiln(&["pause", "x"]).fails(2).says(&["hint: "]);
    s.kiln(&["run", "--memory", "1g", "box"]).fails(2).says(&["--memory"]);
}

/// As a user who has no subordinate ids.
#[test]
fn another_user_has_containers_of_his_own() {
    let Some(s) = with_image("RUN echo x > /owned && chown 5 /owned\n") else { return };
    if !is_root() {
        eprintln!("SKIPPED: only root can become somebody else");
        return;
    }
    let kiln = |args: &[&str]| -> Run {
        s.command_of_nobody(args).env("KILN_ROOT", s.path("nobodys")).output().unwrap().into()
    };
    let built = kiln(&["build", "-t", "box", "ctx"]);
    if built.stderr.contains("user namespace") {
        eprintln!("SKIPPED: users may not make namespaces here:\n{}", built.stderr);
        return;
    }
    built.ok();
    let mut command = s.command_of_nobody(["run", "--name", "web", "box", "sh", "-c", WAITS]);
    command.env("KILN_ROOT", s.path("nobodys"));
    let mut child = ready(command);
    assert_eq!(kiln(&["exec", "web", "sh", "-c", "id -u; echo made > /made; cat /proc/1/comm"]).ok().stdout, "0\nsh\n");
    kiln(&["cp", "web:/made", "got"]).ok();
    assert_eq!(text(s.path("got")), "made\n");
    kiln(&["cp", "got", "web:/put"]).ok();
    assert_eq!(kiln(&["exec", "web", "cat", "/put"]).ok().stdout, "made\n");
    kiln(&["rm", "-f", "web"]).ok();
    child.0.wait().unwrap();
    kiln(&["run", "-d", "--name", "web", "box", "sh", "-c", WAITS]).ok();
    assert_eq!(kiln(&["exec", "web", "echo", "joined"]).ok().stdout, "joined\n");
    wait_until("it has written", || kiln(&["logs", "web"]).ok().stdout == "ready\n");
    kiln(&["stop", "web"]).ok();
    assert_eq!(kiln(&["wait", "web"]).ok().stdout, "7\n");
    kiln(&["rm", "web"]).ok();
    kiln(&["create", "--name", "cc", "box", "cat", "/put"]).ok();
    kiln(&["cp", "got", "cc:/put"]).ok();
    assert_eq!(kiln(&["start", "-a", "cc"]).ok().stdout, "made\n");
    kiln(&["rm", "cc"]).ok();
    assert_eq!(kiln(&["ps", "-aq"]).ok().stdout, "");
}
