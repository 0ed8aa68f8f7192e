use super::*;

#[test]
fn links_resolve_as_text_and_never_into_themselves() {
    assert_eq!(resolve_link("usr/share/doc/a", "b").as_deref(), Some("usr/share/doc/b"));
    assert_eq!(resolve_link("usr/lib/x", "../../opt/x/").as_deref(), Some("opt/x"));
    assert_eq!(resolve_link("a/b", "/c").as_deref(), Some("c"));
    assert_eq!(resolve_link("a", "a"), None);
    assert_eq!(resolve_link("a", "a/b"), None);
    assert_eq!(resolve_link("a", "../../.."), None);
}

#[test]
fn merged_directories() {
    let mut plan = Plan::default();
    plan.merged.insert("lib".into(), "usr/lib".into());
    plan.merged.insert("usr/lib/x".into(), "opt/x".into());
    plan.merged.insert("loop".into(), "loop".into());
    assert_eq!(plan.place("lib/a"), "usr/lib/a");
    assert_eq!(plan.place("lib/x/y"), "opt/x/y");
    assert_eq!(plan.place("library/x"), "library/x");
    assert_eq!(plan.place("lib"), "usr/lib");
    assert_eq!(plan.place("loop/a"), "loop/a");
}
