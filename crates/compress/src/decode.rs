//! Decoders for every format that a layer, an archive for `ADD` or a package may have.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

use crate::format::{Format, MAGIC_LEN, detect};

/// The most memory that a decoder gives to a window or dictionary because a header asks for it: 128 MiB, which is what
/// `zstd --ultra -22` and twice what `xz -9` need. libzstd has the same limit built in.
pub const MEMORY_LIMIT: u64 = 128 << 20;

const INPUT_BUFFER: usize = 128 * 1024;

/// The inner reader type of all decoders.
type Source = BufReader<io::Chain<io::Cursor<Vec<u8>>, Box<dyn Read + Send>>>;

/// Finds out the format by the first bytes and gives a reader of the uncompressed stream.
pub fn decoder(mut reader: Box<dyn Read + Send>) -> io::Result<(Format, Box<dyn Read + Send>)> {
    let head = read_head(&mut reader)?;
    let format = detect(&head);
    let decoded = build(format, BufReader::with_capacity(INPUT_BUFFER, io::Cursor::new(head).chain(reader)))?;
    Ok((format, decoded))
}

/// A decoder for a format that is known, for instance from a media type. A stream of another format is an error.
pub fn decoder_for(format: Format, mut reader: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let head = read_head(&mut reader)?;
    let found = detect(&head);
    if format != Format::Plain && found != format {
        let message = format!("expected a {} stream but the data is {}", format.name(), found.name());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    build(format, BufReader::with_capacity(INPUT_BUFFER, io::Cursor::new(head).chain(reader)))
}

fn read_head(reader: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(MAGIC_LEN);
    reader.take(MAGIC_LEN as u64).read_to_end(&mut head)?;
    Ok(head)
}

fn build(format: Format, source: Source) -> io::Result<Box<dyn Read + Send>> {
    Ok(match format {
        Format::Plain => Box::new(source),
        Format::Gzip => Box::new(Gunzip { member: Some(GzDecoder::new(source)), rest: None }),
        Format::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
        Format::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
        Format::Xz => {
            let limit = u32::try_from(MEMORY_LIMIT >> 10).unwrap_or(u32::MAX);
            Box::new(Worded(lzma_rust2::XzReader::new_mem_limit(source, true, limit)))
        }
    })
}

/// Says what is wrong where the library does not.
struct Worded<R>(R);

impl<R: Read> Read for Worded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(e.kind(), "incomplete xz stream"),
            _ => e,
        })
    }
}

/// All members of a gzip stream, one after the other.
///
/// After a member there may be another member or zero padding up to the end (block devices and tapes leave it, gzip(1)
/// ignores it). Anything else is an error, as in Go.
struct Gunzip<R> {
    member: Option<GzDecoder<R>>,
    /// The source once the last member has ended.
    rest: Option<R>,
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while let Some(member) = &mut self.member {
            let count = member.read(buf)?;
            if count > 0 {
                return Ok(count);
            }
            if let Some(done) = self.member.take() {
                let mut source = done.into_inner();
                match source.fill_buf()?.first() {
                    None | Some(0) => self.rest = Some(source),
                    Some(_) => self.member = Some(GzDecoder::new(source)),
                }
            }
        }
        if let Some(mut source) = self.rest.take() {
            expect_zeros(&mut source)?;
        }
        Ok(0)
    }
}

fn expect_zeros(source: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = source.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.iter().any(|&byte| byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "data after the end of the gzip stream"));
        }
        let count = bytes.len();
        source.consume(count);
    }
}
