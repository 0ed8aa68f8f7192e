//! COPY, ADD, WORKDIR and heredocs: file actions on a new layer.

use std::io::Read;
use std::path::{Path, PathBuf};

use kiln_graph::{ActionInput, CopyAction, FileAction, FileActionKind, FileOp, Mode, Owner as OwnerRef, UserRef};
use kiln_rootfs::apply::{ExtractOptions, extract};
use kiln_rootfs::copy::{CopyRequest, Mtime, copy};
use kiln_rootfs::fileops::{self, Make};
use kiln_rootfs::{FileKind, ModeChange, Owner, Root, Source, Stack, Target, Time, ids};
use kiln_store::{LayerDraft, LayerMeta, Snapshot};

use crate::build::Job;
use crate::contexts::Patterns;
use crate::error::{Error, Result};
use crate::value::Value;

/// Bytes from the beginning of a file that tell whether it is an archive.
const SNIFF: usize = 512;

/// Carries the actions out; together they make one layer.
pub fn apply(job: &Job, op: &FileOp, inputs: &[Value]) -> Result<Snapshot> {
    let base = match op.actions.first().map(|a| a.input) {
        Some(ActionInput::Input(index)) => input(inputs, index)?.snapshot(),
        _ => Snapshot::default(),
    };
    let draft = job.engine.store.layers().draft()?;
    let upper = Root::open(draft.fs())?.with_ownership(job.engine.ownership);
    let target = match base.0.is_empty() {
        true => Target::scratch(upper),
        false => Target::over(upper, job.engine.views.stack(&base)?),
    };
    // The layer's own directory stands for `/`: it has the base's owner, mode and time.
    target.adopt_root()?;
    let work = Work { job, inputs, target, base: &base, draft: &draft };
    for (index, action) in op.actions.iter().enumerate() {
        let follows = matches!(action.input, ActionInput::Action(n) if n + 1 == index);
        if index > 0 && !follows {
            return Err(Error::request("file actions that are not one after the other are not supported"));
        }
        if job.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        work.act(action)?;
    }
    drop(work);
    Ok(base.with(draft.commit(LayerMeta::default())?))
}

fn input(inputs: &[Value], index: usize) -> Result<&Value> {
    inputs.get(index).ok_or_else(|| Error::request("a file action names an input that is not there"))
}

/// What the actions of one op share.
struct Work<'a> {
    job: &'a Job,
    inputs: &'a [Value],
    target: Target,
    base: &'a Snapshot,
    draft: &'a LayerDraft,
}

impl Work<'_> {
    fn act(&self, action: &FileAction) -> Result<()> {
        match &action.kind {
            FileActionKind::Copy(copy) => self.copy(copy),
            FileActionKind::Mkfile(file) => {
                let make = self.make(file.mode, file.owner.as_ref(), file.timestamp)?;
                Ok(fileops::mkfile(&self.target, Path::new(&file.path), file.data.as_slice(), &make)?)
            }
            FileActionKind::Mkdir(dir) => {
                let make = self.make(dir.mode, dir.owner.as_ref(), dir.timestamp)?;
                fileops::mkdir(&self.target, Path::new(&dir.path), &make, dir.make_parents)?;
                Ok(())
            }
            FileActionKind::Rm(rm) => {
                fileops::rm(&self.target, Path::new(&rm.path), rm.allow_wildcard, rm.allow_not_found)?;
                Ok(())
            }
            FileActionKind::Symlink(link) => {
                let make = self.make(0o777, link.owner.as_ref(), link.timestamp)?;
                Ok(fileops::symlink(&self.target, Path::new(&link.target), Path::new(&link.path), &make)?)
            }
        }
    }

    /// Metadata of something new.
    fn make(&self, mode: u32, owner: Option<&OwnerRef>, timestamp: Option<i64>) -> Result<Make> {
        let owner = self.owner(owner)?.unwrap_or(Owner { uid: 0, gid: 0 });
        Ok(Make { mode, owner, mtime: self.new_time(timestamp) })
    }

    fn new_time(&self, asked: Option<i64>) -> Option<Time> {
        asked.or(self.job.request.source_date_epoch).map(|secs| (secs, 0))
    }

    fn copy(&self, action: &CopyAction) -> Result<()> {
        let from = match action.from {
            ActionInput::Input(index) => input(self.inputs, index)?,
            _ => return Err(Error::request("copying within one file op is not supported")),
        };
        let context = match from {
            Value::Context(name) => Some(self.job.contexts.get(name)?),
            Value::Tree { .. } => None,
        };
        let stack: Stack = match from {
            Value::Context(name) => self.job.contexts.get(name)?.root().clone().into(),
            Value::Tree { snapshot, .. } => self.job.engine.views.stack(snapshot)?,
        };
        let source = match context {
            Some(context) => Source::Tree(context.tree()?),
            None => Source::Stack(&stack),
        };
        if !action.attempt_unpack {
            let copied = self.copy_one(action, source, Path::new(&action.src), action.allow_wildcard);
            return match from {
                Value::Tree { snapshot, .. } => copied.map_err(|e| self.job.not_in_tree(snapshot, e)),
                Value::Context(_) => copied,
            };
        }
        for path in self.matches(action, source)? {
            match archive(&stack, &path)? {
                Some(reader) => self.unpack(action, reader)?,
                None => self.copy_one(action, source, &path, false)?,
            }
        }
        Ok(())
    }

    /// What a source with wildcards stands for; itself if it has none.
    fn matches(&self, action: &CopyAction, source: Source<'_>) -> Result<Vec<PathBuf>> {
        let select = kiln_rootfs::Selector {
            sources: vec![PathBuf::from(&action.src)],
            wildcard: action.allow_wildcard,
            allow_empty: action.allow_empty_wildcard,
            no_follow: false,
            filter: None,
        };
        Ok(kiln_rootfs::matches(source, &select)?)
    }

    fn copy_one(&self, action: &CopyAction, source: Source<'_>, src: &Path, wildcard: bool) -> Result<()> {
        let patterns = Patterns::new(&action.include_patterns, &action.exclude_patterns)?;
        let filter = |path: &Path, dir: bool| patterns.filter(path, dir);
        let epoch = action.timestamp.map(|secs| Mtime::Set((secs, 0)));
        let request = CopyRequest {
            select: kiln_rootfs::Selector {
                sources: vec![src.to_owned()],
                wildcard,
                allow_empty: action.allow_empty_wildcard,
                no_follow: !action.follow_symlink,
                filter: if patterns.is_empty() { None } else { Some(&filter) },
            },
            dest: PathBuf::from(&action.dest),
            // Without --chown files keep the owner that they have in a stage or image; in a context all are root's.
            owner: self.owner(action.owner.as_ref())?,
            mode: action.mode.as_ref().map(mode).transpose()?,
            mtime: epoch.unwrap_or_default(),
        };
        copy(&request, source, &self.target)?;
        Ok(())
    }

    /// Through a mount of the target, where the kernel does what an archive's entries want of existing files.
    fn unpack(&self, action: &CopyAction, reader: Box<dyn Read + Send>) -> Result<()> {
        // A volatile mount leaves a mark there that forbids a second one, as after a crash; this is the same life.
        let _ = std::fs::remove_dir_all(self.draft.work().join("work/incompat"));
        let view = self.job.engine.views.writable(self.base, self.draft.fs(), self.draft.work())?;
        let owner = self.owner(action.owner.as_ref())?;
        let dest = Path::new(&action.dest);
        view.create_dir_all(dest, 0o755, owner)?;
        let (_, plain) = kiln_compress::decoder(reader).map_err(|e| Error::io("unpack", &action.src, e))?;
        let options = ExtractOptions { owner, keep_top: true, ..ExtractOptions::default() };
        extract(plain, &view.sub(dest)?, &options)?;
        Ok(())
    }

    fn owner(&self, owner: Option<&OwnerRef>) -> Result<Option<Owner>> {
        let Some(owner) = owner else { return Ok(None) };
        let lookup = |user: &UserRef, group: bool| -> Result<Owner> {
            match user {
                UserRef::Id(id) => Ok(Owner { uid: *id, gid: *id }),
                UserRef::Name { name, input: of } => {
                    let spec = if group { format!("0:{name}") } else { name.clone() };
                    let root = match of {
                        ActionInput::Input(index) => Some(self.job.readable(input(self.inputs, *index)?)?),
                        _ => None,
                    };
                    Ok(ids::lookup_owner(root.as_ref(), &spec)?)
                }
            }
        };
        let user = owner.user.as_ref().map(|u| lookup(u, false)).transpose()?;
        let group = owner.group.as_ref().map(|g| lookup(g, true)).transpose()?;
        let uid = user.map_or(0, |u| u.uid);
        Ok(Some(Owner { uid, gid: group.map(|g| g.gid).or(user.map(|u| u.gid)).unwrap_or(0) }))
    }
}

fn mode(mode: &Mode) -> Result<ModeChange> {
    Ok(match mode {
        Mode::Octal(bits) => ModeChange::Octal(*bits),
        Mode::Symbolic(text) => text.parse()?,
    })
}

/// A reader of the file if it is an archive, compressed or not.
fn archive(stack: &Stack, path: &Path) -> Result<Option<Box<dyn Read + Send>>> {
    let Some(stat) = stack.stat(path, true)? else { return Ok(None) };
    if stat.kind != FileKind::File {
        return Ok(None);
    }
    let mut file = stack.open_file(path)?;
    let mut head = Vec::with_capacity(SNIFF);
    file.by_ref().take(SNIFF as u64).read_to_end(&mut head).map_err(|e| Error::io("read", path, e))?;
    let plain_head = match kiln_compress::detect(&head) {
        kiln_compress::Format::Plain => head.clone(),
        _ => {
            let again = stack.open_file(path)?;
            let mut plain = Vec::with_capacity(SNIFF);
            // A file that only looks compressed is copied as it is.
            match kiln_compress::decoder(Box::new(again))
                .and_then(|(_, r)| r.take(SNIFF as u64).read_to_end(&mut plain))
            {
                Ok(_) => plain,
                Err(_) => return Ok(None),
            }
        }
    };
    if !is_tar(&plain_head) {
        return Ok(None);
    }
    Ok(Some(Box::new(stack.open_file(path)?)))
}

/// A ustar or GNU magic, or a header whose checksum is right (v7), or an empty archive.
fn is_tar(head: &[u8]) -> bool {
    if head.len() < SNIFF {
        return false;
    }
    let stored = std::str::from_utf8(&head[148..156]).ok();
    let stored = stored.and_then(|s| u32::from_str_radix(s.trim_matches([' ', '\0']), 8).ok());
    let sum =
        head.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum::<u32>();
    stored == Some(sum)
}
