//! The op that copies, makes and removes files.

/// Actions on file systems, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileOp {
    /// In order.
    pub actions: Vec<FileAction>,
}

/// One action: changes a copy of `input`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileAction {
    /// What is changed.
    pub input: ActionInput,
    /// Index of the op's output that the result becomes; absent if only later actions use it.
    pub output: Option<u32>,
    /// What is done.
    pub kind: FileActionKind,
}

/// What an action works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActionInput {
    /// An empty file system.
    Scratch,
    /// One of the vertex's inputs.
    Input(usize),
    /// The result of an earlier action of the same op.
    Action(usize),
}

/// The kinds of actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileActionKind {
    /// Copies from another file system.
    Copy(CopyAction),
    /// Makes a file.
    Mkfile(MkfileAction),
    /// Makes a directory.
    Mkdir(MkdirAction),
    /// Removes.
    Rm(RmAction),
    /// Makes a symbolic link.
    Symlink(SymlinkAction),
}

/// Copies files, with the meaning of Dockerfile's `COPY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyAction {
    /// Where from: the file system.
    pub from: ActionInput,
    /// Where from: the path, absolute; may hold wildcards.
    pub src: String,
    /// Where to, absolute. A `/` at the end means "a directory".
    pub dest: String,
    /// Owner of what is copied; the source's where absent (the files of a local context count as owned by 0:0).
    pub owner: Option<Owner>,
    /// Permissions of what is copied; the source's where absent.
    pub mode: Option<Mode>,
    /// Whether a symbolic link in `src` is followed.
    pub follow_symlink: bool,
    /// Whether a directory's content is copied rather than the directory.
    pub dir_contents_only: bool,
    /// Whether an archive is unpacked instead.
    pub attempt_unpack: bool,
    /// Whether missing directories of `dest` are made.
    pub create_dest_path: bool,
    /// Whether `src` may hold wildcards.
    pub allow_wildcard: bool,
    /// Whether it is fine if the wildcards match nothing.
    pub allow_empty_wildcard: bool,
    /// `--parents`: `include_patterns` holds one path or pattern relative to `src`, whose directories are made below
    /// `dest` too.
    pub parents: bool,
    /// Only what matches one of these, relative to `src`.
    pub include_patterns: Vec<String>,
    /// But not what matches one of these, relative to `src`.
    pub exclude_patterns: Vec<String>,
    /// Absolute paths of the source that must exist.
    pub required_paths: Vec<String>,
    /// Whether something of another type at the destination is replaced rather than an error.
    pub always_replace: bool,
    /// Modification time of what is copied, in seconds since 1970; the source's where absent.
    pub timestamp: Option<i64>,
}

impl CopyAction {
    /// Copies `src` of `from` to `dest`, all options off.
    pub fn new(from: ActionInput, src: impl Into<String>, dest: impl Into<String>) -> Self {
        Self {
            from,
            src: src.into(),
            dest: dest.into(),
            owner: None,
            mode: None,
            follow_symlink: false,
            dir_contents_only: false,
            attempt_unpack: false,
            create_dest_path: false,
            allow_wildcard: false,
            allow_empty_wildcard: false,
            parents: false,
            include_patterns: Vec::new(),
            exclude_patterns: Vec::new(),
            required_paths: Vec::new(),
            always_replace: false,
            timestamp: None,
        }
    }
}

/// Makes a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MkfileAction {
    /// Where, absolute.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// Its bytes.
    pub data: Vec<u8>,
    /// Owner; 0:0 where absent.
    pub owner: Option<Owner>,
    /// Modification time.
    pub timestamp: Option<i64>,
}

/// Makes a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MkdirAction {
    /// Where, absolute.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// Whether parents are made, and an existing directory is left as it is.
    pub make_parents: bool,
    /// Owner; 0:0 where absent.
    pub owner: Option<Owner>,
    /// Modification time.
    pub timestamp: Option<i64>,
}

/// Removes a file or tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RmAction {
    /// What, absolute.
    pub path: String,
    /// Whether it is fine if it is not there.
    pub allow_not_found: bool,
    /// Whether `path` may hold wildcards.
    pub allow_wildcard: bool,
}

/// Makes a symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SymlinkAction {
    /// What it says.
    pub target: String,
    /// Where it is, absolute.
    pub path: String,
    /// Owner; 0:0 where absent.
    pub owner: Option<Owner>,
    /// Modification time.
    pub timestamp: Option<i64>,
}

/// Permissions to set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// All of them: 0..=07777.
    Octal(u32),
    /// A change in `chmod`'s words: `u+x,go=rX`.
    Symbolic(String),
}

/// An owner; what is absent is 0, or the user's main group if the user is a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub user: Option<UserRef>,
    /// Group.
    pub group: Option<UserRef>,
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserRef {
    /// By number.
    Id(u32),
    /// By name.
    Name {
        /// The name.
        name: String,
        /// The file system whose `/etc/passwd` and `/etc/group` say what it means.
        input: ActionInput,
    },
}

impl Owner {
    /// The file systems whose user database is needed.
    pub fn lookups(&self) -> impl Iterator<Item = ActionInput> + '_ {
        self.user.iter().chain(&self.group).filter_map(|u| match u {
            UserRef::Name { input, .. } => Some(*input),
            UserRef::Id(_) => None,
        })
    }
}

impl FileAction {
    /// The owner that it sets, if any.
    pub fn owner(&self) -> Option<&Owner> {
        match &self.kind {
            FileActionKind::Copy(a) => a.owner.as_ref(),
            FileActionKind::Mkfile(a) => a.owner.as_ref(),
            FileActionKind::Mkdir(a) => a.owner.as_ref(),
            FileActionKind::Symlink(a) => a.owner.as_ref(),
            FileActionKind::Rm(_) => None,
        }
    }

    /// Everything that it works on or reads.
    pub(crate) fn reads(&self) -> Vec<ActionInput> {
        let mut all = vec![self.input];
        if let FileActionKind::Copy(copy) = &self.kind {
            all.push(copy.from);
        }
        all.extend(self.owner().into_iter().flat_map(Owner::lookups));
        all
    }
}

impl FileOp {
    pub(crate) fn mentioned_inputs(&self) -> Vec<usize> {
        let index = |i| match i {
            ActionInput::Input(n) => Some(n),
            ActionInput::Scratch | ActionInput::Action(_) => None,
        };
        self.actions.iter().flat_map(FileAction::reads).filter_map(index).collect()
    }

    /// The first action that names itself or a later one.
    pub(crate) fn bad_action(&self) -> Option<usize> {
        let forward = |at: usize, i: &ActionInput| matches!(i, ActionInput::Action(n) if *n >= at);
        (0..self.actions.len()).find(|&at| self.actions[at].reads().iter().any(|i| forward(at, i)))
    }
}
