//! Who may: `kiln login`, docker's and podman's files, credential helpers, tokens.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use kiln_registry::testing::{Fault, FaultProxy, Grant, RegistryOptions, TokenServer};

use super::support::{Run, Sandbox, text};
use super::{World, hello};

fn locked() -> Option<World> {
    World::with(&RegistryOptions { htpasswd: Some(("me".into(), "pass-word".into())), ..RegistryOptions::default() })
}

fn with_input(sandbox: &Sandbox, args: &[&str], input: &str) -> Run {
    let mut command = sandbox.command(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends").into()
}

#[test]
fn a_login_is_checked_kept_used_and_forgotten() {
    let Some(world) = locked() else { return };
    let (host, name) = (world.registry.host(), world.name("private/app:1"));
    let config = world.sandbox.path("home/.docker/config.json");
    world.sandbox.build(&["-t", &name]).ok();
    world.sandbox.kiln(&["push", &name]).fails(1).says(&["refuses access", &format!("kiln login {host}")]);

    let login = ["login", "-u", "me", "--password-stdin", &host];
    with_input(&world.sandbox, &login, "wrong\n")
        .fails(1)
        .says(&["failed: wrong user name or password"])
        .hides("hint:");
    assert!(!config.exists(), "a password that is refused is not kept");
    let done = with_input(&world.sandbox, &login, "pass-word\n").ok();
    assert_eq!(done.stdout, "Login Succeeded\n");
    done.says(&["WARNING", "config.json", "without encryption"]).hides("pass-word");
    assert_eq!(std::fs::metadata(&config).expect("written").permissions().mode() & 0o777, 0o600);

    world.sandbox.kiln(&["push", &name]).ok();
    // A build from a private base, on a machine that has nothing yet.
    assert_eq!(world.text_of(&name), hello());

    let gone = world.sandbox.kiln(&["logout", &host]).ok();
    assert_eq!(gone.stdout, format!("Removing login credentials for {host}\n"));
    assert!(!text(&config).contains(&host));
    assert_eq!(world.sandbox.kiln(&["logout", &host]).ok().stdout, format!("Not logged in to {host}\n"));
    world.elsewhere(&["pull", &name, "-q"]).fails(1).says(&["refuses access"]);
}

#[test]
fn a_password_is_not_asked_for_without_a_terminal() {
    let Some(world) = locked() else { return };
    let host = world.registry.host();
    world.sandbox.kiln(&["login", &host]).fails(1).says(&["terminal", "--password-stdin"]);
    let given = world.sandbox.kiln(&["login", "-u", "me", "-p", "pass-word", &host]).ok();
    given.says(&["WARNING: --password shows"]);
    world.sandbox.kiln(&["login", "--password-stdin", &host]).fails(2);
}

/// A helper that keeps one credential in a file, as Amazon's and the others talk.
fn helper(world: &mut World) -> std::path::PathBuf {
    let dir = world.sandbox.path("bin");
    std::fs::create_dir_all(&dir).expect("a directory");
    let script = format!(
        "#!/bin/sh\necho \"$1\" >> {0}/calls\ncase $1 in\n\
         get) read -r server; test -f {0}/secret && cat {0}/secret || {{ echo 'credentials not found in native keychain'; exit 1; }};;\n\
         store) cat > {0}/secret;;\nerase) rm -f {0}/secret;;\nesac\n",
        dir.display()
    );
    let path = dir.join("docker-credential-ecr-login");
    std::fs::write(&path, script).expect("a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    world.sandbox.env("PATH", &format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display()));
    dir
}

#[test]
fn a_credential_helper_gives_keeps_and_erases() {
    let Some(mut world) = locked() else { return };
    let dir = helper(&mut world);
    let (host, name) = (world.registry.host(), world.name("app:1"));
    let config = serde_json::json!({ "credHelpers": { &host: "ecr-login" } });
    std::fs::create_dir_all(world.sandbox.path("home/.docker")).expect("a directory");
    std::fs::write(world.sandbox.path("home/.docker/config.json"), config.to_string()).expect("a file");
    world.sandbox.build(&["-t", &name]).ok();
    world.sandbox.kiln(&["push", "-q", &name]).fails(1);

    let login = ["login", "-u", "me", "--password-stdin", &host];
    with_input(&world.sandbox, &login, "pass-word").ok().hides("without encryption");
    assert!(!text(world.sandbox.path("home/.docker/config.json")).contains("auths"));
    assert!(text(dir.join("secret")).contains("\"ServerURL\""), "{}", text(dir.join("secret")));
    std::fs::remove_file(dir.join("calls")).expect("a file");
    world.sandbox.kiln(&["push", "-q", &name]).ok();
    assert_eq!(text(dir.join("calls")), "get\n", "once for all requests");
    world.sandbox.kiln(&["logout", &host]).ok();
    assert!(!dir.join("secret").exists());
}

#[test]
fn podmans_file_is_read_too() {
    let Some(mut world) = locked() else { return };
    use base64::Engine;
    let auth = base64::engine::general_purpose::STANDARD.encode("me:pass-word");
    let file = serde_json::json!({ "auths": { world.registry.host(): { "auth": auth } } });
    let path = world.sandbox.path("auth.json");
    std::fs::write(&path, file.to_string()).expect("a file");
    world.sandbox.env("REGISTRY_AUTH_FILE", path.to_str().expect("UTF-8"));
    world.push("app:1");
}

/// A registry whose proxy wants tokens.
fn with_tokens() -> Option<(World, TokenServer, FaultProxy)> {
    let world = World::new()?;
    let grant = Grant { password: "right".into(), repositories: vec!["team/".into()], ..Grant::default() };
    let tokens = TokenServer::start(&[("me", grant)]);
    let gate = FaultProxy::gated(&world.registry.host(), &tokens);
    Some((world, tokens, gate))
}

#[test]
fn expired_credentials_do_not_keep_anybody_from_a_public_image() {
    let Some((world, _tokens, gate)) = with_tokens() else { return };
    world.push("public/app:1");
    let name = format!("{}/public/app:1", gate.host());
    use base64::Engine;
    let auth = base64::engine::general_purpose::STANDARD.encode("me:expired");
    let file = serde_json::json!({ "auths": { gate.host(): { "auth": auth } } });
    std::fs::create_dir_all(world.sandbox.path("home/.docker")).expect("a directory");
    std::fs::write(world.sandbox.path("home/.docker/config.json"), file.to_string()).expect("a file");
    let pulled = world.elsewhere(&["pull", &name]).ok();
    let warnings = pulled.stderr.lines().filter(|l| l.contains("WARNING")).count();
    assert_eq!(warnings, 1, "{}", pulled.stderr);
    pulled.says(&["WARNING", "rejected the credentials from", ".docker/config.json"]).hides("expired\n");
}

#[test]
fn a_token_that_expires_in_the_middle_of_a_push_is_renewed() {
    let Some((world, tokens, gate)) = with_tokens() else { return };
    let name = format!("{}/team/app:1", gate.host());
    world.sandbox.build(&["-t", &name]).ok();
    with_input(&world.sandbox, &["login", "-u", "me", "--password-stdin", &gate.host()], "right").ok();
    let challenge = format!("Bearer realm=\"{}\",service=\"test registry\"", tokens.realm());
    let expired = Fault::answer(401, &[("www-authenticate", &challenge)], b"{}");
    gate.fault("PUT", "/blobs/uploads/", 2, expired);
    world.sandbox.kiln(&["push", &name]).ok();
    assert_eq!(gate.pending(), 0);
    world.sandbox.kiln(&["push", &format!("{}/others/app:1", gate.host())]).fails(1);
}
