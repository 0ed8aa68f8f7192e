//! `COPY` and `ADD`.

use kiln_dockerfile::{Add, Copy, ExpandMode, InlineFile, Span, Spanned};
use kiln_graph::{
    ActionInput, CopyAction, Edge, FileAction, FileActionKind, FileOp, GitUrl, HttpSource, MergeOp, Mode, Op, Owner,
    SourceOp, UserRef, is_git_url, is_http_url, redact_url,
};
use kiln_oci::Digest;

use crate::plan::Step;
use crate::request::LowerError;
use crate::stage::{Inputs, StageLowering, join};

/// What `COPY` and `ADD` have in common.
struct Job<'s> {
    keyword: &'static str,
    sources: &'s [Spanned<String>],
    files: &'s [InlineFile],
    dest: &'s Spanned<String>,
    chown: Option<&'s Spanned<String>>,
    chmod: Option<&'s Spanned<String>>,
    excludes: Vec<String>,
    link: bool,
    parents: bool,
    /// Where `--from` is.
    from: Option<Span>,
    /// `ADD`'s own.
    add: Option<&'s Add>,
}

/// The op while it is put together.
struct Draft {
    actions: Vec<FileAction>,
    inputs: Inputs,
    /// What every copy of the instruction has.
    template: CopyAction,
    /// What the first action changes.
    start: ActionInput,
}

impl Draft {
    fn push(&mut self, copy: CopyAction) {
        let input = match self.actions.len() {
            0 => self.start,
            n => ActionInput::Action(n - 1),
        };
        self.actions.push(FileAction { input, output: None, kind: FileActionKind::Copy(copy) });
    }

    /// The input that an edge is; scratch if there is none.
    fn input(&mut self, edge: Option<Edge>) -> ActionInput {
        edge.map_or(ActionInput::Scratch, |edge| ActionInput::Input(self.inputs.index(edge)))
    }
}

impl StageLowering<'_, '_, '_> {
    pub fn copy(&mut self, step: &Step, copy: &Copy) -> Result<(), LowerError> {
        self.files(
            step,
            &Job {
                keyword: "COPY",
                sources: &copy.sources,
                files: &copy.files,
                dest: &copy.dest,
                chown: copy.chown.as_ref(),
                chmod: copy.chmod.as_ref(),
                excludes: copy.excludes.iter().map(|e| e.value.clone()).collect(),
                link: copy.link,
                parents: copy.parents,
                from: copy.from.as_ref().map(|f| f.span),
                add: None,
            },
        )
    }

    pub fn add(&mut self, step: &Step, add: &Add) -> Result<(), LowerError> {
        self.files(
            step,
            &Job {
                keyword: "ADD",
                sources: &add.sources,
                files: &add.files,
                dest: &add.dest,
                chown: add.chown.as_ref(),
                chmod: add.chmod.as_ref(),
                excludes: add.excludes.iter().map(|e| e.value.clone()).collect(),
                link: add.link,
                parents: false,
                from: None,
                add: Some(add),
            },
        )
    }

    fn files(&mut self, step: &Step, job: &Job) -> Result<(), LowerError> {
        let maybe = |word: Option<&Spanned<String>>| word.map(|w| self.expand(step, w)).transpose();
        let (chown, chmod) = (maybe(job.chown)?, maybe(job.chmod)?);
        let dest = self.expand(step, job.dest)?;
        let mut history = job.keyword.to_owned();
        if job.parents {
            history += " --parents";
        }
        for (flag, value) in [("chown", &chown), ("chmod", &chmod)] {
            if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
                history += &format!(" --{flag}={value}");
            }
        }
        let title = without_credentials(&self.title(step, ExpandMode::WORD, &[]));
        let name = self.next_name(step, &title);
        let mut draft = self.draft(step, job, &dest, chown.as_deref(), chmod.as_deref())?;
        for source in job.sources {
            let path = self.expand(step, source)?;
            history += &format!(" {}", without_credentials(&path));
            self.source_action(step, job, (&path, source.span), &name, &mut draft)?;
        }
        for file in job.files {
            history += &format!(" <<{}", file.name);
            self.file_action(step, file, &mut draft)?;
        }
        history += &format!(" {dest} # buildkit");
        self.finish(step, job.link, (&title, name), draft)?;
        self.state.commit(history, true);
        Ok(())
    }

    /// The parts of the op that do not depend on a source. With `--link` the copy starts from nothing; the stage's file
    /// system is only an input if its user database is needed.
    fn draft(
        &mut self,
        step: &Step,
        job: &Job,
        dest: &str,
        chown: Option<&str>,
        chmod: Option<&str>,
    ) -> Result<Draft, LowerError> {
        let mut inputs = Inputs::default();
        let named = chown.is_some_and(|c| c.split(':').any(|part| !part.is_empty() && part.parse::<u32>().is_err()));
        let root = match self.state.root {
            Some(edge) if !job.link || named => ActionInput::Input(inputs.index(edge)),
            _ => ActionInput::Scratch,
        };
        let mut template = CopyAction::new(ActionInput::Scratch, "/", self.dest_path(dest));
        template.owner = chown.filter(|c| !c.is_empty()).map(|c| owner(c, root));
        template.create_dest_path = true;
        template.exclude_patterns.clone_from(&job.excludes);
        template.timestamp = self.all.epoch;
        if let Some(text) = chmod.filter(|c| !c.is_empty()) {
            let span = job.chmod.map_or(job.dest.span, |c| c.span);
            template.mode = Some(mode(text).map_err(|message| LowerError::at(step.at(span), message))?);
        }
        let start = if job.link { ActionInput::Scratch } else { root };
        Ok(Draft { actions: Vec::new(), inputs, template, start })
    }

    /// A path of the image; what means "a directory" ends with a slash.
    fn dest_path(&self, dest: &str) -> String {
        let mut path = join(&self.state.dir(), dest);
        let directory = matches!(dest, "" | ".") || dest.ends_with('/') || dest.ends_with("/.");
        if directory && !path.ends_with('/') {
            path.push('/');
        }
        path
    }

    fn source_action(
        &mut self,
        step: &Step,
        job: &Job,
        (path, span): (&str, Span),
        name: &str,
        draft: &mut Draft,
    ) -> Result<(), LowerError> {
        let place = step.at(span);
        let remote = remote_kind(path, job.add);
        if remote.is_some() && job.add.is_none() {
            let what = if is_git_url(path) { "a git ref" } else { "a URL" };
            let error = LowerError::at(place, format!("source can't be {what} for COPY"));
            return Err(error.with_help(Some("use ADD".to_owned())));
        }
        let checksum = self.checksum(step, job, remote.is_some())?;
        let copy = match (remote, job.add) {
            (Some(Remote::Git), Some(add)) => self.git_action(step, add, (path, place), (checksum, name), draft)?,
            (Some(Remote::Http), Some(add)) => {
                let checksum = checksum.map(|c| c.parse::<Digest>()).transpose();
                let flag = add.checksum.as_ref().map_or(place, |c| step.at(c.span));
                let checksum = checksum.map_err(|e| LowerError::at(flag, e.to_string()))?;
                let filename = url_filename(path);
                let http = HttpSource {
                    url: path.to_owned(),
                    checksum,
                    filename: Some(filename.clone()),
                    ..HttpSource::default()
                };
                let edge = self.all.source(SourceOp::Http(http), None, name.to_owned(), Some(step.span()))?;
                CopyAction {
                    from: draft.input(Some(edge)),
                    src: join("/", &filename),
                    attempt_unpack: add.unpack.unwrap_or(false),
                    ..draft.template.clone()
                }
            }
            _ => {
                let from = self.from(step, 0, job.from.unwrap_or(span), "copy")?;
                let from = draft.input(from);
                local_copy(path, from, job, &draft.template)
            }
        };
        draft.push(copy);
        Ok(())
    }

    fn checksum(&self, step: &Step, job: &Job, remote: bool) -> Result<Option<String>, LowerError> {
        let Some(flag) = job.add.and_then(|a| a.checksum.as_ref()) else { return Ok(None) };
        let refuse = |why: &str| Err(LowerError::at(step.at(flag.span), why));
        if job.sources.len() != 1 || !job.files.is_empty() {
            return refuse("checksum can't be specified for multiple sources");
        }
        if !remote {
            return refuse("checksum requires HTTP(S) or Git sources");
        }
        Ok(Some(self.expand(step, flag)?).filter(|c| !c.is_empty()))
    }

    fn git_action(
        &mut self,
        step: &Step,
        add: &Add,
        (url, place): (&str, Span),
        (checksum, name): (Option<String>, &str),
        draft: &mut Draft,
    ) -> Result<CopyAction, LowerError> {
        let mut git = GitUrl::parse(url).map_err(|e| LowerError::at(place, e.to_string()))?;
        if let (Some(flag), Some(query)) = (add.keep_git_dir, git.keep_git_dir)
            && flag != query
        {
            return Err(LowerError::at(place, "inconsistent keep-git-dir configuration"));
        }
        git.keep_git_dir = git.keep_git_dir.or(add.keep_git_dir);
        if let (Some(flag), Some(query)) = (&checksum, &git.checksum)
            && flag != query
        {
            return Err(LowerError::at(place, format!("checksum mismatch {flag:?} != {query:?}")));
        }
        git.checksum = git.checksum.or(checksum);
        let edge = self.all.source(SourceOp::Git(git.source()), None, name.to_owned(), Some(step.span()))?;
        Ok(CopyAction { from: draft.input(Some(edge)), dir_contents_only: true, ..draft.template.clone() })
    }

    fn file_action(&mut self, step: &Step, file: &InlineFile, draft: &mut Draft) -> Result<(), LowerError> {
        let content = match file.expand {
            true => self.expand_file(step, &file.content, file.span)?,
            false => file.content.clone(),
        };
        let edge = self.inline_file(step, &file.name, &content, 0o644)?;
        let copy = CopyAction { from: draft.input(Some(edge)), src: join("/", &file.name), ..draft.template.clone() };
        draft.push(copy);
        Ok(())
    }

    fn finish(
        &mut self,
        step: &Step,
        link: bool,
        (title, name): (&str, String),
        draft: Draft,
    ) -> Result<(), LowerError> {
        let Draft { mut actions, inputs, .. } = draft;
        if let Some(last) = actions.last_mut() {
            last.output = Some(0);
        }
        let op = Op::File(FileOp { actions });
        let base = self.state.root.filter(|_| link);
        let meta = match base {
            Some(_) => self.group_meta(step, name.clone(), (&name, true)),
            None => self.meta(step, name.clone()),
        };
        let copied = self.vertex(op, inputs.0, None, meta)?;
        self.state.root = Some(match base {
            Some(root) => {
                let linked = self.same_name(step, &format!("LINK {title}"));
                let meta = self.group_meta(step, linked, (&name, false));
                self.vertex(Op::Merge(MergeOp), vec![root, copied], None, meta)?
            }
            None => copied,
        });
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Remote {
    Git,
    Http,
}

/// CVE-2023-26054: an instruction as it may be shown and kept in the history, without user names and passwords in its URLs.
fn without_credentials(text: &str) -> String {
    let word = |word: &str| if word.contains("://") { redact_url(word) } else { word.to_owned() };
    text.split_inclusive(' ').map(word).collect()
}

/// With `--keep-git-dir` any URL is a repository's.
fn remote_kind(path: &str, add: Option<&Add>) -> Option<Remote> {
    if is_git_url(path) || is_http_url(path) && add.is_some_and(|a| a.keep_git_dir.is_some()) {
        return Some(Remote::Git);
    }
    is_http_url(path).then_some(Remote::Http)
}

/// The name under which `ADD` saves a URL.
pub(crate) fn url_filename(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let path = path.split_once('/').map_or("", |(_, path)| path);
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | "." | "..") => "__unnamed__".to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn local_copy(path: &str, from: ActionInput, job: &Job, template: &CopyAction) -> CopyAction {
    let (src, pattern) = match path.split_once("/./") {
        Some((parent, pattern)) if job.parents => (parent, Some(pattern)),
        None if job.parents => ("/", Some(path)),
        _ => (path, None),
    };
    let pattern = pattern.map(|p| join("/", p));
    let required = pattern.as_ref().filter(|p| !has_wildcards(src) && !has_wildcards(p));
    let mut copy = CopyAction {
        from,
        required_paths: required.iter().map(|p| join("/", &format!("{src}/{p}"))).collect(),
        include_patterns: pattern.iter().map(|p| p.trim_start_matches('/').to_owned()).collect(),
        src: join("/", src),
        parents: job.parents,
        follow_symlink: true,
        dir_contents_only: true,
        attempt_unpack: job.add.is_some_and(|a| a.unpack.unwrap_or(true)),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..template.clone()
    };
    if copy.parents && copy.include_patterns.iter().all(String::is_empty) {
        // `--parents .` is everything.
        copy.include_patterns.clear();
    }
    copy
}

fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    false
}

/// `user[:group]`: names are looked up in `root` later. A number without a group is the group's number as well.
pub(crate) fn owner(text: &str, root: ActionInput) -> Owner {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let who = |text: &str| match text.parse::<u32>() {
        _ if text.is_empty() => None,
        Ok(id) => Some(UserRef::Id(id)),
        Err(_) => Some(UserRef::Name { name: text.to_owned(), input: root }),
    };
    let user = who(user);
    let group = who(group).or(match &user {
        Some(UserRef::Id(id)) => Some(UserRef::Id(*id)),
        _ => None,
    });
    Owner { user, group }
}

/// `--chmod`: octal digits, or `chmod`'s words.
fn mode(text: &str) -> Result<Mode, String> {
    let octal = || format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777");
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777);
        return bits.map(Mode::Octal).ok_or_else(octal);
    }
    let clause = |clause: &str| {
        let operations = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        operations.starts_with(['+', '-', '='])
            && operations
                .split(['+', '-', '='])
                .skip(1)
                .all(|what| matches!(what, "u" | "g" | "o") || what.chars().all(|c| "rwxXst".contains(c)))
    };
    match text.split(',').all(clause) {
        true => Ok(Mode::Symbolic(text.to_owned())),
        false => Err(format!("invalid chmod parameter: '{text}'. it should be octal or symbolic, such as u+x,go=rX")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_urls() {
        assert_eq!(url_filename("https://h/a/b.tar.gz?x=/y"), "b.tar.gz");
        assert_eq!(url_filename("https://h/a/"), "a");
        assert_eq!(url_filename("https://h/"), "__unnamed__");
        assert_eq!(url_filename("https://h"), "__unnamed__");
        assert_eq!(url_filename("https://h/a/.."), "__unnamed__");
    }

    #[test]
    fn owners() {
        let root = ActionInput::Input(0);
        let name = |n: &str| Some(UserRef::Name { name: n.into(), input: root });
        let id = |n| Some(UserRef::Id(n));
        assert_eq!(owner("app", root), Owner { user: name("app"), group: None });
        assert_eq!(owner("10", root), Owner { user: id(10), group: id(10) });
        assert_eq!(owner("app:0", root), Owner { user: name("app"), group: id(0) });
        assert_eq!(owner(":adm", root), Owner { user: None, group: name("adm") });
        assert_eq!(owner("4294967295", root).user, id(u32::MAX));
    }

    #[test]
    fn modes() {
        assert_eq!(mode("755"), Ok(Mode::Octal(0o755)));
        assert_eq!(mode("07777"), Ok(Mode::Octal(0o7777)));
        for symbolic in ["u+x", "+x", "a=rX", "u=rwx,g=u,o-w+x", "go="] {
            assert_eq!(mode(symbolic), Ok(Mode::Symbolic(symbolic.into())), "{symbolic}");
        }
        for bad in ["10000", "789", "x", "u", "u+y", "u+x,", "ux+r", "u+ur", "+755"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
