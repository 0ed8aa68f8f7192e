//! The files of the result: `type=local` and `type=tar`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use kiln_rootfs::Root;
use kiln_rootfs::diff::DiffOptions;
use kiln_rootfs::export::tar_tree;
use kiln_store::Snapshot;

use crate::build::Job;
use crate::error::{Error, Result};
use crate::request::Destination;

/// Writes the files into a directory. With `delete`, what is there and not in the result is removed.
pub fn local(job: &Job, snapshot: &Snapshot, dest: &Path, delete: bool) -> Result<()> {
    std::fs::create_dir_all(dest).map_err(|e| Error::io("create", dest, e))?;
    let from = job.engine.views.readable(snapshot)?;
    let to = Root::open(dest)?;
    if delete {
        remove_extra(&from, &to)?;
    }
    job.copy_out(&from, &to)
}

/// Removes what `to` has and `from` has not, or has as something else.
fn remove_extra(from: &Root, to: &Root) -> Result<()> {
    let mut pending = vec![std::path::PathBuf::from("/")];
    while let Some(dir) = pending.pop() {
        for entry in to.read_dir(&dir)? {
            let path = dir.join(&entry.name);
            match from.try_stat(&path, false)? {
                Some(stat) if stat.kind != entry.kind => to.remove_all(&path)?,
                Some(stat) if stat.kind == kiln_rootfs::FileKind::Dir => pending.push(path),
                Some(_) => {}
                None => to.remove_all(&path)?,
            }
        }
    }
    Ok(())
}

/// Writes the files as a tar.
pub fn tar(job: &Job, snapshot: &Snapshot, dest: &Destination) -> Result<()> {
    let from = job.engine.views.readable(snapshot)?;
    let mut options = DiffOptions { rewrite_timestamp: job.request.source_date_epoch, ..DiffOptions::default() };
    with_writer(dest, |out| Ok(tar_tree(&from, out, &mut options).map(|_| ())?))
}

/// Writes to a file, which appears only when it is complete, or to standard output.
pub fn with_writer(dest: &Destination, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    match dest {
        Destination::Stdout => {
            let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
            write(&mut out)?;
            out.flush().map_err(|e| Error::io("write", "standard output", e))
        }
        Destination::Path(path) => {
            // A device or a pipe is written to, not replaced by a file; a link stays and its file is replaced.
            let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            if std::fs::metadata(&real).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
                return write_into(&real, write);
            }
            let path = &real;
            let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let temporary = tempfile::Builder::new()
                .prefix(".kiln-")
                .permissions(as_others())
                .tempfile_in(dir)
                .map_err(|e| Error::io("create a file in", dir, e))?;
            let mut out = BufWriter::with_capacity(
                1 << 20,
                temporary.as_file().try_clone().map_err(|e| Error::io("open", path, e))?,
            );
            write(&mut out).map_err(|e| match e {
                Error::Store(kiln_store::Error::Output(e)) => Error::io("write", path, e),
                other => other,
            })?;
            out.flush().map_err(|e| Error::io("write", path, e))?;
            temporary.persist(path).map_err(|e| Error::io("create", path, e.error))?;
            Ok(())
        }
    }
}

fn write_into(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let file = File::options().write(true).open(path).map_err(|e| Error::io("open", path, e))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)?;
    out.flush().map_err(|e| Error::io("write", path, e))
}

/// Temporary files are private; the result is as any file that the user makes, which the umask decides.
pub(crate) fn as_others() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o666)
}
