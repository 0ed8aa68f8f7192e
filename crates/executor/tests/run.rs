//! Containers as a build uses them.

mod common;

use common::*;
use kiln_executor::*;

kiln_executor::helper_in_tests!();

#[test]
fn a_program_runs_and_its_exit_is_known() {
    if skip("a container") {
        return;
    }
    let root = busybox_root();
    assert_eq!(sh(root.path(), "echo hello; pwd; id -u"), "hello\n/\n0\n");
    assert_eq!(run(script(root.path(), "exit 7")).exit.code, Some(7));
    let killed = run(script(root.path(), "sh -c 'kill -9 $$'; echo $?")).ok();
    assert!(killed.ends_with("137\n"), "{killed}");
}
