//! The last step: find the program, execute it, and if that fails say why in words a person can act on.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::StartError;

/// Executes `args[0]`; returns only on failure.
pub fn exec(args: &[OsString], env: &[OsString]) -> Result<Infallible, StartError> {
    let program = args.first().map_or(OsStr::new(""), OsString::as_os_str);
    let argv = c_strings(args)?;
    let envp = c_strings(env)?;
    if program.as_bytes().contains(&b'/') {
        let error = execve(Path::new(program), &argv, &envp)?;
        return Err(diagnose(PathBuf::from(program), &error, None));
    }
    let path = env.iter().find_map(|v| v.as_bytes().strip_prefix(b"PATH=")).unwrap_or_default();
    // What was found but could not be executed is a better answer than "not found".
    let mut denied: Option<StartError> = None;
    for dir in path.split(|b| *b == b':') {
        let dir = if dir.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(dir) };
        let candidate = Path::new(dir).join(program);
        let error = execve(&candidate, &argv, &envp)?;
        let exists = std::fs::symlink_metadata(&candidate).is_ok_and(|m| !m.is_dir());
        if exists {
            denied.get_or_insert_with(|| diagnose(candidate, &error, None));
        }
    }
    let path = String::from_utf8_lossy(path).into_owned();
    Err(denied.unwrap_or(StartError::NotFound { program: PathBuf::from(program), path: Some(path) }))
}

fn c_strings(items: &[OsString]) -> Result<Vec<CString>, StartError> {
    let step = "a NUL byte in an argument or variable";
    let convert = |item: &OsString| {
        CString::new(item.as_bytes()).map_err(|_| StartError::Setup { step: step.to_owned(), errno: libc::EINVAL })
    };
    items.iter().map(convert).collect()
}

/// The error of execve(2), which is the only thing that it can return.
fn execve(path: &Path, argv: &[CString], envp: &[CString]) -> Result<io::Error, StartError> {
    let path = c_strings(&[path.as_os_str().to_owned()])?;
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: all strings outlive the call and both lists end with a null pointer.
    unsafe { libc::execve(path[0].as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Ok(io::Error::last_os_error())
}

/// Turns an errno of execve into what is wrong with the file.
fn diagnose(program: PathBuf, error: &io::Error, path: Option<String>) -> StartError {
    let not_executable = |why: String| StartError::NotExecutable { program: program.clone(), why };
    let Ok(meta) = std::fs::metadata(&program) else {
        return match (error.raw_os_error(), std::fs::read_link(&program)) {
            (Some(libc::EACCES), _) => not_executable("permission denied on the way to it".into()),
            (_, Ok(target)) => not_executable(format!("it is a link to {}, which does not exist", target.display())),
            _ => StartError::NotFound { program, path },
        };
    };
    if meta.is_dir() {
        return not_executable("it is a directory".into());
    }
    match error.raw_os_error() {
        Some(libc::EACCES) if meta.permissions().mode() & 0o111 == 0 => {
            let mode = meta.permissions().mode() & 0o7777;
            not_executable(format!("permission denied: its mode is {mode:04o}, without an execute bit (chmod +x)"))
        }
        Some(libc::EACCES) => not_executable("permission denied".into()),
        Some(libc::ENOENT | libc::ENOTDIR) => match interpreter(&program) {
            Some((kind, interpreter)) => StartError::MissingInterpreter { program, kind: kind.to_owned(), interpreter },
            None => not_executable("a file that it needs does not exist".into()),
        },
        Some(libc::ENOEXEC) => bad_format(program),
        Some(libc::E2BIG) => not_executable("its arguments and environment are too long for the kernel".into()),
        _ => not_executable(error.to_string()),
    }
}

fn open(path: &Path) -> Option<File> {
    std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()
}

fn head(path: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    if let Some(file) = open(path) {
        let _ = file.take(512).read_to_end(&mut head);
    }
    head
}

/// What a script's first line or an ELF header names.
fn interpreter(program: &Path) -> Option<(&'static str, PathBuf)> {
    let head = head(program);
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next()?;
        let start = line.iter().position(|b| !matches!(b, b' ' | b'\t'))?;
        let name = line[start..].split(|b| matches!(b, b' ' | b'\t')).next()?;
        return Some(("interpreter", PathBuf::from(OsStr::from_bytes(name))));
    }
    Some(("dynamic loader", elf_interpreter(program, &Elf::parse(&head)?)?))
}

struct Elf {
    wide: bool,
    big: bool,
    machine: u16,
    program_headers: u64,
    entry_size: u16,
    entries: u16,
}

impl Elf {
    fn parse(head: &[u8]) -> Option<Elf> {
        if head.len() < 64 || !head.starts_with(b"\x7fELF") {
            return None;
        }
        let (wide, big) = (head[4] == 2, head[5] == 2);
        let offset = if wide { number(head, 32, 8, big)? } else { number(head, 28, 4, big)? };
        let at = if wide { 54 } else { 42 };
        Some(Elf {
            wide,
            big,
            machine: number(head, 18, 2, big)? as u16,
            program_headers: offset,
            entry_size: number(head, at, 2, big)? as u16,
            entries: number(head, at + 2, 2, big)? as u16,
        })
    }

    fn name(&self) -> String {
        let name = match (self.machine, self.wide, self.big) {
            (62, true, _) => "linux/amd64",
            (62, false, _) => "linux/amd64 (x32)",
            (3, ..) => "linux/386",
            (183, ..) => "linux/arm64",
            (40, ..) => "linux/arm",
            (243, true, _) => "linux/riscv64",
            (22, true, _) => "linux/s390x",
            (21, _, false) => "linux/ppc64le",
            (21, _, true) => "linux/ppc64",
            (258, ..) => "linux/loong64",
            (8, true, false) => "linux/mips64le",
            (other, ..) => return format!("ELF machine {other}"),
        };
        name.to_owned()
    }
}

fn number(bytes: &[u8], at: usize, len: usize, big: bool) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    let fold = |acc: u64, b: &u8| acc << 8 | u64::from(*b);
    Some(if big { bytes.iter().fold(0, fold) } else { bytes.iter().rev().fold(0, fold) })
}

fn elf_interpreter(program: &Path, elf: &Elf) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;
    let mut file = open(program)?;
    let mut read_at = |offset: u64, len: usize| -> Option<Vec<u8>> {
        file.seek(SeekFrom::Start(offset)).ok()?;
        let mut bytes = vec![0; len];
        file.read_exact(&mut bytes).ok()?;
        Some(bytes)
    };
    for i in 0..elf.entries.min(256) {
        let header = read_at(
            elf.program_headers.checked_add(u64::from(i) * u64::from(elf.entry_size))?,
            usize::from(elf.entry_size).max(32),
        )?;
        if number(&header, 0, 4, elf.big)? != PT_INTERP {
            continue;
        }
        let (offset, size) = if elf.wide {
            (number(&header, 8, 8, elf.big)?, number(&header, 32, 8, elf.big)?)
        } else {
            (number(&header, 4, 4, elf.big)?, number(&header, 16, 4, elf.big)?)
        };
        let mut name = read_at(offset, usize::try_from(size.min(4096)).ok()?)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        return Some(PathBuf::from(OsString::from_vec(name)));
    }
    None
}

fn bad_format(program: PathBuf) -> StartError {
    let head = head(&program);
    let machine = crate::host_machine();
    match Elf::parse(&head) {
        Some(elf) if elf.name() != machine => {
            StartError::WrongArchitecture { program, found: elf.name(), expected: machine.to_owned() }
        }
        Some(_) => StartError::NotExecutable { program, why: "exec format error: a damaged ELF file".into() },
        None if head.is_empty() => StartError::NotExecutable { program, why: "exec format error: it is empty".into() },
        None if head.starts_with(b"#!") => {
            StartError::NotExecutable { program, why: "exec format error: its #! line cannot be used".into() }
        }
        None => StartError::NotExecutable {
            program,
            why: "exec format error: neither an ELF file nor a script with a #! line".into(),
        },
    }
}
