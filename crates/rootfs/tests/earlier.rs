//! A second copy to the same place.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::UNIX_EPOCH;

use common::{Case, select, tree};
use kiln_rootfs::copy::CopyRequest;

#[test]
fn what_is_as_at_an_earlier_copy_becomes_a_link_to_it() {
    let c = Case::new();
    tree(&c.src(), &["d/same=S", "d/text=one", "d/mode=M", "d/time=T", "d/sub/deep=D", "d/twin=W", "d/gone=G"]);
    let earlier = c.tmp.path().join("earlier");
    c.copy("d", "/x").unwrap();
    fs::rename(c.up(), &earlier).unwrap();
    fs::create_dir(c.up()).unwrap();
    // Both names of one inode there are two files here.
    fs::remove_file(earlier.join("x/gone")).unwrap();
    fs::hard_link(earlier.join("x/twin"), earlier.join("x/twin2")).unwrap();
    let now = |name: &str, text: &str| {
        let path = c.src().join("d").join(name);
        let time = path.metadata().or_else(|_| c.src().join("d/twin").metadata()).unwrap().modified().unwrap();
        fs::write(&path, text).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    now("text", "two");
    now("twin2", "W");
    fs::set_permissions(c.src().join("d/mode"), Permissions::from_mode(0o600)).unwrap();
    File::options().write(true).open(c.src().join("d/time")).unwrap().set_modified(UNIX_EPOCH).unwrap();
    let earlier_root = Some(c.root(&earlier));
    let request =
        CopyRequest { select: select(&["d"]), dest: "/x".into(), earlier: earlier_root, ..Default::default() };
    let report = c.copy_with(&request).unwrap();
    let ino = |root: &Path, name: &str| root.join("x").join(name).metadata().unwrap().ino();
    let linked = |name: &str| ino(&earlier, name) == ino(&c.up(), name);
    assert_eq!(report.linked, 3);
    assert!(linked("same") && linked("sub/deep"));
    assert!(ino(&c.up(), "twin") != ino(&c.up(), "twin2"));
    for (name, text) in [("text", "two"), ("mode", "M"), ("time", "T"), ("gone", "G"), ("twin2", "W")] {
        assert_eq!(fs::read_to_string(c.up().join("x").join(name)).unwrap(), text);
    }
    assert!(!linked("text") && !linked("mode") && !linked("time"));
    // What is asked of the copies counts.
    let request = CopyRequest { mode: Some("0640".parse().unwrap()), dest: "/y".into(), ..request };
    fs::rename(earlier.join("x"), earlier.join("y")).unwrap();
    assert_eq!(c.copy_with(&request).unwrap().linked, 0);
}
