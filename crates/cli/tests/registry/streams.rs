//! Layers that are uploaded while they are compressed.

use kiln_registry::testing::Fault;

use super::{World, noise};

fn uploads(world: &World) -> Vec<String> {
    world
        .proxy
        .requests()
        .iter()
        .filter(|r| r.method != "GET" && r.method != "HEAD")
        .map(|r| r.method.clone())
        .collect()
}

#[test]
fn a_new_layer_is_streamed_and_the_rest_is_pushed_as_it_is() {
    let Some(world) = World::new() else { return };
    let name = world.through("app:1");
    let built = world.sandbox.build(&["-t", &name, "--push"]).ok();
    // two layers, each in a stream, and the config
    let mut methods = uploads(&world);
    methods.sort();
    assert_eq!(methods, ["PATCH", "PATCH", "POST", "POST", "POST", "PUT", "PUT", "PUT", "PUT"], "{}", built.stderr);
    world.elsewhere(&["pull", "-q", &world.name("app:1")]).ok();
    // what was there goes to another repository without its bytes
    world.sandbox.build(&["-t", &world.through("other:1"), "--push"]).ok().says(&["mounted from"]);
    world.elsewhere(&["pull", "-q", &world.name("other:1")]).ok();
}

#[test]
fn a_registry_that_takes_no_streams_gets_layers_when_they_are_whole() {
    let Some(world) = World::new() else { return };
    for (number, fault) in [Fault::status(405), Fault::CutUploadAfter(100_000), Fault::Drop].into_iter().enumerate() {
        world.sandbox.file("noise", noise((1 << 20) + number));
        world.proxy.fault("PATCH", "/uploads/", 1, fault);
        let name = world.through(&format!("app:{number}"));
        world.sandbox.build(&["-t", &name, "--push"]).ok();
        assert_eq!(world.proxy.pending(), 0);
        world.elsewhere(&["pull", "-q", &world.name(&format!("app:{number}"))]).ok();
    }
}

#[test]
fn nothing_leaves_before_it_was_searched_for_the_builds_secrets() {
    let Some(world) = World::new() else { return };
    world.sandbox.file("token", "correct-horse-battery");
    world.sandbox.file("text", "a: correct-horse-battery\n");
    let name = world.through("app:1");
    let secret = ["--secret", "id=t,src=ctx/token", "-t", &name, "--push"];
    world.sandbox.build(&secret).fails(4).says(&["secret \"t\" is in"]);
    assert_eq!(uploads(&world), Vec::<String>::new());
    // also if nothing is found, the search comes first
    world.sandbox.file("text", "a: nothing\n");
    world.sandbox.build(&secret).ok();
    assert!(!uploads(&world).contains(&"PATCH".to_owned()));
}
