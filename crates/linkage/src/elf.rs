//! What the dynamic loader would want to know of an ELF file, read with a few small reads whatever the file's size.
//!
//! A hostile file can make nothing here allocate more than [`MOST`] bytes at a time: every table whose size the file
//! states is measured before it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;

use object::elf::{self, FileHeader32, FileHeader64, Machine};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable};
use object::read::{ReadCache, StringTable};
use object::{Endianness, ReadRef};

/// The most that one table of a file may have.
const MOST: u64 = 1 << 20;

/// What an ELF file says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Processor and word size, as OCI names the architecture; `None` for others.
    pub architecture: Option<&'static str>,
    /// The program that loads it: only executables that are linked dynamically have one.
    pub loader: Option<String>,
    /// Whether it can be started, rather than being only a library.
    pub executable: bool,
    /// Names of the libraries that it needs (`DT_NEEDED`).
    pub needed: Vec<String>,
    /// Where they are searched before anywhere else (`DT_RPATH`), in order.
    pub rpath: Vec<String>,
    /// Where they are searched after `LD_LIBRARY_PATH` (`DT_RUNPATH`), in order.
    pub runpath: Vec<String>,
    /// Versions that it needs of a library, by the library's name; weak ones are left out.
    pub versions: BTreeMap<String, BTreeSet<String>>,
    /// Versions that it has.
    pub defines: BTreeSet<String>,
}

/// Reads what an ELF file says; `None` if it is none, or a damaged one.
pub fn read(mut file: File) -> Option<Facts> {
    let mut ident = [0; 5];
    file.read_exact(&mut ident).ok()?;
    if ident[..4] != elf::ELFMAG {
        return None;
    }
    let data = ReadCache::new(file);
    match elf::FileClass(ident[4]) {
        elf::ELFCLASS32 => facts::<FileHeader32<Endianness>, _>(&data),
        elf::ELFCLASS64 => facts::<FileHeader64<Endianness>, _>(&data),
        _ => None,
    }
}

fn facts<'d, H: FileHeader<Endian = Endianness>, R: ReadRef<'d>>(data: R) -> Option<Facts> {
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let mut facts =
        Facts { architecture: architecture(header.e_machine(endian), header.is_type_64(), endian), ..Facts::default() };
    let kind = header.e_type(endian);
    facts.executable = kind == elf::ET_EXEC;
    for segment in header.program_headers(endian, data).ok()? {
        if segment.p_type(endian) == elf::PT_INTERP && segment.p_filesz(endian).into() <= 4096 {
            facts.loader = segment.interpreter(endian, data).ok()?.map(text);
            facts.executable = true;
        }
    }
    dynamic::<H, R>(header, endian, data, &mut facts);
    if header.e_shnum(endian) > 0
        && let Ok(sections) = header.sections(endian, data)
    {
        versions(&sections, endian, data, &mut facts);
    }
    Some(facts)
}

fn dynamic<'d, H: FileHeader<Endian = Endianness>, R: ReadRef<'d>>(
    header: &H,
    endian: Endianness,
    data: R,
    facts: &mut Facts,
) -> Option<()> {
    let segments = header.program_headers(endian, data).ok()?;
    let segment = segments.iter().find(|s| s.p_type(endian) == elf::PT_DYNAMIC)?;
    if segment.p_filesz(endian).into() > MOST {
        return None;
    }
    let entries: Vec<(elf::DynamicTag, u64)> = segment
        .dynamic(endian, data)
        .ok()??
        .iter()
        .map(|d| (object::read::elf::Dyn::d_tag(d, endian), object::read::elf::Dyn::d_val(d, endian).into()))
        .take_while(|(tag, _)| *tag != elf::DT_NULL)
        .collect();
    let address = entries.iter().find(|(tag, _)| *tag == elf::DT_STRTAB)?.1;
    let start = segments.iter().filter(|s| s.p_type(endian) == elf::PT_LOAD).find_map(|s| {
        let (at, size, offset) = (s.p_vaddr(endian).into(), s.p_filesz(endian).into(), s.p_offset(endian).into());
        let inside = address.checked_sub(at).filter(|inside| *inside < size)?;
        offset.checked_add(inside)
    })?;
    let strings = StringTable::new(data, start, data.len().ok()?);
    for (tag, value) in entries {
        let list = match tag {
            elf::DT_NEEDED | elf::DT_RPATH | elf::DT_RUNPATH => {
                u32::try_from(value).ok().and_then(|at| strings.get(at).ok()).map(text)
            }
            _ => continue,
        };
        let Some(list) = list else { continue };
        let paths = list.split(':').filter(|p| !p.is_empty()).map(str::to_owned);
        match tag {
            elf::DT_NEEDED => facts.needed.push(list),
            elf::DT_RPATH => facts.rpath.extend(paths),
            _ => facts.runpath.extend(paths),
        }
    }
    Some(())
}

fn versions<'d, H: FileHeader<Endian = Endianness>, R: ReadRef<'d>>(
    sections: &SectionTable<'d, H, R>,
    endian: Endianness,
    data: R,
    facts: &mut Facts,
) {
    for section in sections.iter().filter(|s| s.sh_size(endian).into() <= MOST) {
        if let Ok(Some((needs, link))) = section.gnu_verneed(endian, data)
            && let Ok(strings) = sections.strings(endian, data, link)
        {
            for (need, names) in needs.flatten() {
                let Ok(library) = need.file(endian, strings) else { continue };
                let wanted = names.flatten().filter(|n| !n.vna_flags.get(endian).contains(elf::VER_FLG_WEAK));
                let wanted = wanted.filter_map(|n| n.name(endian, strings).ok()).map(text);
                facts.versions.entry(text(library)).or_default().extend(wanted);
            }
        }
        if let Ok(Some((defines, link))) = section.gnu_verdef(endian, data)
            && let Ok(strings) = sections.strings(endian, data, link)
        {
            let names = defines.flatten().filter_map(|(_, mut names)| names.next().ok().flatten());
            facts.defines.extend(names.filter_map(|n| n.name(endian, strings).ok()).map(text));
        }
    }
}

fn architecture(machine: Machine, wide: bool, endian: Endianness) -> Option<&'static str> {
    let little = endian == Endianness::Little;
    Some(match machine {
        elf::EM_X86_64 if wide => "amd64",
        elf::EM_386 => "386",
        elf::EM_AARCH64 => "arm64",
        elf::EM_ARM => "arm",
        elf::EM_RISCV if wide => "riscv64",
        elf::EM_PPC64 if little => "ppc64le",
        elf::EM_S390 if wide => "s390x",
        elf::EM_LOONGARCH if wide => "loong64",
        elf::EM_MIPS if wide && little => "mips64le",
        _ => return None,
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
